"""LitServe with dynamic batching. FAST_QUEUE=1: its zmq transport instead of a multiprocessing Manager."""

import os

import common
import litserve
import numpy as np


class API(litserve.LitAPI):
    def setup(self, device):
        self.session = common.session()

    def decode_request(self, request):  # LitServe insists on the argument name `request`
        return common.decode(request["data"])

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, batch):
        return self.session.run(None, {"x": batch})[0]

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"prob": output.tolist()}


if __name__ == "__main__":
    api = API(max_batch_size=common.MAX_BATCH, batch_timeout=float(os.environ.get("BATCH_WAIT_S", "0.001")))
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=common.WORKERS,
        fast_queue=os.environ.get("FAST_QUEUE") == "1",
        timeout=30,
    )
    server.run(
        host="127.0.0.1",
        port=common.PORT,
        num_api_servers=int(os.environ.get("API_SERVERS", "1")),
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )

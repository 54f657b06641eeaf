"""nvidia-pytriton: Triton's server process, with a proxy to inference functions in Python processes."""

import os
import sysconfig

# Triton's Python stub must load the libpython of this interpreter, not the system's (another patch version crashes it).
os.environ["LD_LIBRARY_PATH"] = ":".join([sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH", "")])

import common
import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def inference_function():
    session = common.session()

    @batch
    def infer(x):
        return {"prob": session.run(None, {"x": x})[0]}

    return infer


if __name__ == "__main__":
    shape, dtype, classes = ((30,), np.float32, 2) if common.MODEL == "T" else ((96, 96, 3), np.uint8, 10)
    functions = [inference_function() for _ in range(common.WORKERS)]
    batcher = DynamicBatcher(max_queue_delay_microseconds=int(os.environ.get("QUEUE_DELAY_US", "0")))
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=common.PORT,
        grpc_port=common.PORT + 1,
        allow_grpc=False,
        allow_metrics=False,
        http_thread_count=int(os.environ.get("HTTP_THREADS", "2")),
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="m",
            infer_func=functions if len(functions) > 1 else functions[0],
            inputs=[Tensor(name="x", dtype=dtype, shape=shape)],
            outputs=[Tensor(name="prob", dtype=np.float32, shape=(classes,))],
            config=ModelConfig(max_batch_size=common.MAX_BATCH, batcher=batcher),
            strict=False,
        )
        triton.serve()

"""MLServer custom runtime. Model V arrives as OIP v2 BYTES (base64 text in JSON)."""

import common
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Runtime(MLModel):
    async def load(self):
        self.session = common.session()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        tensor = payload.inputs[0]
        data = tensor.data.root if hasattr(tensor.data, "root") else tensor.data
        if common.MODEL == "T":
            batch = np.asarray(data, np.float32).reshape(tensor.shape)
        else:
            batch = np.stack([common.decode(item) for item in data])
        output = self.session.run(None, {"x": batch})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("prob", output)])

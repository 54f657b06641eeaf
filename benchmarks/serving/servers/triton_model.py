"""Model file for Triton's python backend (triton_start.py copies it into the model repository)."""

import common
import numpy as np
import triton_python_backend_utils as pb


def rows(array):
    """An input tensor as rows of the model. With INPUT=BYTES, model V arrives as base64 texts [n, 1]."""
    return array if array.dtype != object else np.stack([common.decode(item) for item in array.ravel()])


class TritonPythonModel:
    def initialize(self, args):
        self.session = common.session()

    def execute(self, requests):
        inputs = [rows(pb.get_input_tensor_by_name(request, "x").as_numpy()) for request in requests]
        output = self.session.run(None, {"x": inputs[0] if len(inputs) == 1 else np.concatenate(inputs)})[0]
        responses, start = [], 0
        for array in inputs:
            part = np.ascontiguousarray(output[start : start + len(array)])
            responses.append(pb.InferenceResponse(output_tensors=[pb.Tensor("prob", part)]))
            start += len(array)
        return responses

"""A key that stands twice in one JSON object: the documented rule, in every protocol."""

from __future__ import annotations

import json
from typing import Any

import pytest

TENSOR = '{"name": "x", "datatype": "FP32", "shape": [1, 3], %s}'
FIRST, LAST = [9, 9, 9], [1, 2, 3]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict/m", f'{{"x": {FIRST}, "x": {LAST}}}'),
        ("/v1/models/m:predict", f'{{"instances": [{{"x": {FIRST}, "x": {LAST}}}]}}'),
        ("/v1/models/m:predict", f'{{"instances": [{FIRST}], "instances": [{LAST}]}}'),
        ("/v1/models/m:predict", f'{{"inputs": {{"x": [{FIRST}], "x": [{LAST}]}}}}'),
        ("/v2/models/m/infer", f'{{"inputs": [{TENSOR % f""""data": {FIRST}, "data": {LAST}"""}]}}'),
        (
            "/v2/models/m/infer",
            f'{{"inputs": [{TENSOR % f""""data": {FIRST}"""}], "inputs": [{TENSOR % f""""data": {LAST}"""}]}}',
        ),
    ],
)
def test_the_last_value_counts(server: Any, path: str, body: str) -> None:
    answer = server.connect().ask(path, body.encode())
    assert answer.status == 200, answer.body
    told = json.dumps(answer.json)
    assert "1.0, 2.0, 3.0" in told
    assert "9.0" not in told


def test_a_last_value_that_is_wrong_is_an_error_although_the_first_was_right(server: Any) -> None:
    answer = server.connect().ask("/predict/m", b'{"x": [1, 2, 3], "x": [1, 2]}')
    assert answer.status == 400


def test_two_inputs_of_one_name_are_an_error(server: Any) -> None:
    tensor = TENSOR % '"data": [1, 2, 3]'
    answer = server.connect().ask("/v2/models/m/infer", f'{{"inputs": [{tensor}, {tensor}]}}'.encode())
    assert answer.status == 400
    assert "twice" in answer.error

"""Errors of the house as OpenAI's clients read them."""

from __future__ import annotations

import pytest

from pelton import errors
from pelton.server.openai.errors import of


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (errors.NotFound("x"), 404, "invalid_request_error", "model_not_found"),
        (errors.InvalidInput("x"), 400, "invalid_request_error", "invalid_value"),
        (errors.TooLarge("x"), 413, "invalid_request_error", "request_too_large"),
        (errors.Unsupported("x"), 400, "invalid_request_error", "unsupported_value"),
        (errors.ExtraMissing("a grammar", "chat"), 400, "invalid_request_error", "unsupported_value"),
        (errors.Overloaded("x", retry_after=2.5), 429, "rate_limit_error", "rate_limit_exceeded"),
        (errors.NotReady("x"), 503, "service_unavailable", "model_not_ready"),
        (errors.Draining("x"), 503, "service_unavailable", "server_stopping"),
        (errors.DeadlineExceeded("x"), 504, "timeout_error", "deadline_exceeded"),
        (errors.ModelFailed("x"), 500, "server_error", "model_failed"),
        (ZeroDivisionError("secret"), 500, "server_error", None),
    ],
)
def test_each_has_its_status_type_and_code(error: Exception, status: int, kind: str, code: str | None):
    told = of(error)
    assert (told.status, told.kind, told.code) == (status, kind, code)
    assert ("retry-after" in told.headers) == isinstance(error, errors.Refused)
    assert "secret" not in str(told)


def test_when_to_try_again_is_told_in_whole_seconds():
    assert of(errors.Overloaded("x", retry_after=2.5)).headers["retry-after"] == "3"


def test_a_long_message_is_cut_and_a_strange_one_is_still_json():
    assert len(of(errors.InvalidInput("x" * 100_000)).body()) < 10_000
    assert b"?" in of(errors.InvalidInput("\udc00")).body()

"""Retries are for disk and network alone: real tasks on Prefect's temporary server."""

from __future__ import annotations

import httpx
import pytest
import requests
from prefect import flow, task

from tasks import retrying


def as_mlflow_does(error: Exception) -> Exception:
    try:
        raise RuntimeError("API request failed") from error
    except RuntimeError as wrapped:
        return wrapped


def answered(status: int) -> Exception:
    request = httpx.Request("GET", "http://server/api")
    return httpx.HTTPStatusError(str(status), request=request, response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (OSError("disk full"), 4),
        (requests.ConnectionError("refused"), 4),
        (httpx.ReadTimeout("slow"), 4),
        (as_mlflow_does(requests.ConnectionError("refused")), 4),
        (answered(503), 4),
        (answered(409), 1),
        (ValueError("a caller's mistake"), 1),
        (RuntimeError("CUDA out of memory"), 1),
    ],
)
def test_only_passing_faults_are_tried_again(error, tries):
    seen = []

    @task(**(retrying.IO_RETRIES | {"retry_delay_seconds": 0}))
    def fails() -> None:
        seen.append(1)
        raise error

    @flow
    def once() -> None:
        fails()

    with pytest.raises(type(error)):
        once()
    assert len(seen) == tries

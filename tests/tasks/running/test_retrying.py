"""Retries are for disk and network alone: real tasks on Prefect's temporary server."""

from __future__ import annotations

import time

import httpx
import pytest
import requests
from PIL import UnidentifiedImageError
from prefect import flow, task

from flows.workers import trigger_final
from tasks.calibration.hours import publish_calibration
from tasks.calibration.train import calibrate_pack
from tasks.export.card import write_card
from tasks.final.compare import write_comparison
from tasks.final.evaluate import evaluate_finals
from tasks.final.pair import finetune_arm
from tasks.nightly.champion import accept_by_hand
from tasks.nightly.run import publish_night
from tasks.report.write import publish_artifacts, publish_to_mlflow, show_report
from tasks.running import retrying


def as_mlflow_does(error: Exception) -> Exception:
    try:
        raise RuntimeError("API request failed") from error
    except RuntimeError as wrapped:
        return wrapped


def answered(status: int) -> Exception:
    request = httpx.Request("GET", "http://server/api")
    return httpx.HTTPStatusError(str(status), request=request, response=httpx.Response(status, request=request))


def because_of(error: OSError) -> ValueError:
    """As the reader of images raises where one cannot be read."""
    mistake = ValueError("image 3.png cannot be read")
    mistake.__cause__ = error
    return mistake


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
        (because_of(OSError("image file is truncated")), 1),
        (because_of(UnidentifiedImageError("cannot identify image file")), 1),
        (because_of(OSError(5, "Input/output error")), 4),
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


def test_a_task_that_used_up_its_time_is_ended_and_not_tried_again():
    """Its error is a TimeoutError and so an OSError, as a disk's would be."""
    seen = []

    @task(**(retrying.REQUESTS | {"timeout_seconds": 0.2, "retry_delay_seconds": 0}))
    def hangs() -> None:
        seen.append(1)
        time.sleep(30)

    @flow
    def once() -> None:
        hangs()

    started = time.monotonic()
    with pytest.raises(TimeoutError):
        once()
    assert len(seen) == 1
    assert time.monotonic() - started < 25  # ended within its sleep


def test_tasks_that_publish_or_trigger_have_a_time_limit_and_those_that_train_have_none_of_their_own():
    publishing = [
        trigger_final, publish_artifacts, publish_to_mlflow, show_report, publish_night, publish_calibration,
        write_card, write_comparison, accept_by_hand,
    ]  # fmt: skip
    assert {task.timeout_seconds for task in publishing} == {600, 3600}
    assert {task.timeout_seconds for task in (calibrate_pack, finetune_arm, evaluate_finals)} == {None}

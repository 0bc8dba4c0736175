"""A final run is triggered once per attempt; a person may change what is trained."""

from __future__ import annotations

import contextvars
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.service.trigger import Request, run_all, start_once
from tasks.settings.study import StudyConfig
from tasks.storage.folder import Revision
from tests.deployments.conftest import Running, wait_until

pytestmark = pytest.mark.stack


@pytest.fixture
def paused_queue(stack: Running):
    """Nothing is taken from the queue of final runs, so that what is triggered stays as it is."""
    queue = "/work_pools/mars-gpu/queues/final"
    stack.ask("PATCH", queue, {"is_paused": True})
    with temporary_settings({PREFECT_API_URL: stack.api}):
        yield
    stack.ask("PATCH", queue, {"is_paused": False})


def request_for(study: StudyConfig) -> Request:
    parameters = {"config": study.model_dump(mode="json"), "r_me": 2, "r_llm": 2}
    return Request("mars-final/final-finetune", str(uuid4()), "final me2-llm2", parameters)


def end(stack: Running, run: str, kind: str) -> None:
    stack.post(f"/flow_runs/{run}/set_state", {"state": {"type": kind, "name": kind.title()}, "force": True})


def test_many_triggers_at_once_make_one_run(stack, small_study, paused_queue):
    request = request_for(small_study)
    with ThreadPoolExecutor(8) as pool:
        started = [pool.submit(contextvars.copy_context().run, start_once, request) for _ in range(8)]
    (run,) = {future.result().id for future in started}
    assert start_once(request).id == run
    end(stack, str(run), "CANCELLED")


@pytest.mark.parametrize("kind", ["CRASHED", "FAILED", "CANCELLED"])
def test_a_run_that_ended_can_be_triggered_again_once(stack, small_study, paused_queue, kind):
    request = request_for(small_study)
    first = start_once(request)
    end(stack, str(first.id), kind)
    second, again = start_once(request), start_once(request)
    assert second.id == again.id != first.id
    assert "attempt:2" in second.tags
    end(stack, str(second.id), "CANCELLED")


def test_a_run_that_somebody_deletes_is_named(stack, small_study, paused_queue):
    request = request_for(small_study)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(contextvars.copy_context().run, run_all, [request])
        while not waiting.done():
            for run in stack.runs_of(request.deployment, small_study.study):
                stack.ask("DELETE", f"/flow_runs/{run['id']}")
            time.sleep(1)
    with pytest.raises(RuntimeError, match="1 of 1 runs did not complete: final me2-llm2 was deleted"):
        waiting.result()


def test_unknown_deployment_says_how_to_register(stack, paused_queue):
    with pytest.raises(ValueError, match=r"python -m deployments\.register"):
        start_once(Request("mars-study/nope", "x", "x", {}))


def test_without_a_server_nothing_starts(small_study):
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(ValueError, match="mars up"):
        start_once(request_for(small_study))


def answer(stack: Running, run: object, before: str = "", **given: object) -> str:
    """Wait until a run asks (other than the pause `before`), and answer; returns the pause's id."""
    wait_until(lambda: stack.state(run)["type"] == "PAUSED" and stack.state(run)["id"] != before)
    asked = stack.state(run)["id"]
    stack.post(f"/flow_runs/{run}/resume", {"run_input": given})
    return asked


def test_a_person_changes_the_ranks(stack, copied):
    revision = Revision(Path(copied.study), 1)
    chosen = json.loads(revision.path("choice.json").read_text())["pair"]
    other = next([a, b] for a in (2, 4) for b in (2, 4) if [a, b] not in (chosen, [2, 2]))
    values = copied.model_dump(mode="json")
    run = stack.start("mars-fit-and-search/fit-and-search", config=values, after_choice="ask")
    # Ranks beyond the model's layers are refused by asking again.
    first = answer(stack, run, decision="change ranks", r_me=4000, r_llm=4000, reason="")
    answer(stack, run, first, decision="change ranks", r_me=other[0], r_llm=other[1], reason="smaller adapter")
    stack.complete(run)
    (final,) = stack.runs_of("mars-final/final-finetune", copied.study)
    assert [final["parameters"]["r_me"], final["parameters"]["r_llm"]] == other
    stack.complete(final["id"])
    assert revision.path("final", f"me{other[0]}-llm{other[1]}", "adapter", "adapter_model.safetensors").is_file()
    assert json.loads(revision.path("choice.json").read_text())["pair"] == chosen  # the search's word stays as it was


def test_a_person_stops_the_study(stack, copied):
    shutil.rmtree(Revision(Path(copied.study), 1).path("final"))
    values = copied.model_dump(mode="json")
    run = stack.start("mars-fit-and-search/fit-and-search", config=values, after_choice="ask")
    answer(stack, run, decision="stop", r_me=2, r_llm=2, reason="")
    stack.complete(run)
    assert stack.runs_of("mars-final/final-finetune", copied.study) == []

"""What `mars doctor --train` says of a machine."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from mars_core.doctor import training
from mars_core.doctor.table import markdown
from mars_core.doctor.training import Check

WITHOUT_SERVICES = """
import runpy, sys
from importlib.machinery import PathFinder
found = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.split(".")[0] in ("prefect", "mlflow") else found(name, *rest)
)
from mars_core.doctor import training
training.RUNS, training.VALIDATION = training.RUNS[::2], 16
training.try_training.__kwdefaults__["steps"] = 4
runpy.run_module("mars_core.doctor", run_name="__main__")
"""


def test_losses_that_agree_within_rounding_are_the_same_run():
    assert training._packed_is_separate("float32", [1.0, 2.0], [1.0, 2.001]).state == "ok"


@pytest.mark.parametrize("wrong", [2.01, math.nan, math.inf])
def test_a_run_that_ends_elsewhere_in_a_pack_is_told(wrong):
    """One of many: the others cannot make up for it, and neither can their order."""
    for losses in ([1.0, wrong], [wrong, 1.0]):
        separate = [1.0 if loss == 1.0 else 2.0 for loss in losses]
        assert training._packed_is_separate("float32", losses, separate).state == "failed"


def test_a_loss_that_does_not_fall_is_told():
    assert training._losses_fall("float32", [(2.0, 1.0), (2.0, 1.9)]).state == "ok"
    assert training._losses_fall("float32", [(2.0, 1.0), (2.0, 2.0)]).state == "failed"
    assert training._losses_fall("float32", [(2.0, 1.0), ()]).state == "failed"  # it diverged at once


def test_what_raises_is_a_row_and_the_rest_is_tried(monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel | image")

    monkeypatch.setattr(training, "_packs", broken)
    monkeypatch.setattr(training, "_final", lambda *_: iter([Check("float32", "final run", "ok", "fine", "")]))
    rows = list(training.try_training(device=torch.device("cpu")))
    assert [row.state for row in rows] == ["failed", "ok", "note"]
    assert r"RuntimeError: no kernel \| image" in markdown(rows, torch.device("cpu"))


def test_half_and_4_bit_weights_are_tried_on_a_gpu_alone():
    assert training.precisions_of(torch.device("cpu")) == ["float32"]
    assert training.precisions_of(torch.device("cuda", 0)) == ["float32", "bfloat16", "4-bit"]


@pytest.mark.slow
def test_all_of_it_holds_on_this_machine_without_prefect_and_mlflow():
    done = subprocess.run([sys.executable, "-c", WITHOUT_SERVICES], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| float32")]
    assert [row[1] for row in rows if row[2] == "ok"] == [
        "validation losses fall",
        "packed = separate (plain PEFT)",
        "final run (Trainer and PEFT)",
        "adapter reloaded",
        "adapter merged",
        "merged checkpoint reloaded",
    ]

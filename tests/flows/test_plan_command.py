"""`mars plan` on a finished study."""

import json

import pytest
from typer.testing import CliRunner

from flows.cli.main import app

runner = CliRunner()


def plan(*arguments):
    return runner.invoke(app, ["plan", *map(str, arguments)])


def test_score_of_a_size_and_of_a_loss(finished):
    shown = plan("score", finished.study, "--size", 128, "--json")
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert found["interval"][0] <= found["score"] <= found["interval"][1]
    assert found["observed_interval"][1] - found["observed_interval"][0] > found["interval"][1] - found["interval"][0]
    at_loss = json.loads(plan("score", finished.study, "--loss", found["loss"], "--json").stdout)
    assert at_loss["score"] == pytest.approx(found["score"], abs=3)
    for window in ("interval", "cumulative"):
        of_training = plan("score", finished.study, "--loss", found["loss"], "--window", window, "--json")
        assert of_training.exit_code == 0, of_training.output
        assert 0 <= json.loads(of_training.stdout)["score"] <= 100


def test_data_for_a_target_prints_size_score_and_law(finished):
    shown = plan("data", finished.study, "--target", 30, "--pair", "2,4")
    assert shown.exit_code == 0, shown.output
    for piece in ("30 points", "samples", "ranks (2, 4), as asked", "loss-to-score law"):
        assert piece in " ".join(shown.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data", "--target", 130), "between 0 and 100 points"),
        (("score",), "give --size or --loss"),
        (("score", "--size", 100, "--window", "interval"), "--window says which training loss --loss is"),
        (("score", "--size", 100, "--pair", "eight"), "--pair is two ranks"),
        (("score", "--size", 100, "--pair", "3,3"), "says nothing of pair (3, 3)"),
    ],
)
def test_mistakes_end_with_one_message(finished, arguments, message):
    command, *rest = arguments
    shown = plan(command, finished.study, *rest)
    assert shown.exit_code == 2
    assert message in " ".join(shown.stderr.split())

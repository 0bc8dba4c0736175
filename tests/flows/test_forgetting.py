"""What adapters gained and forgot: through the evaluation, the report, the command and the acceptance."""

import io
import json
import shutil

import mlflow
import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.calibrate import calibrate_flow
from flows.cli.main import app
from flows.nightly import _decided
from flows.stages import accept_flow, evaluate_flow, fit_flow, report_flow, search_flow
from mars_core.demo.upstream import build_upstream_data
from tasks.final.arm import Arm
from tasks.final.forgetting import forgetting_table
from tasks.final.pair import final_folder
from tasks.final.pairs import final_arms
from tasks.final.record import read_final
from tasks.nightly.champion import champion_path, read_champion
from tasks.settings.study import read_study, write_study
from tasks.settings.upstream import UpstreamTask
from tasks.study.opened import begun_study
from tasks.tracking import runs as tracking

runner = CliRunner()


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return build_upstream_data(tmp_path_factory.mktemp("upstream") / "data", n_samples=12)


@pytest.fixture(scope="module")
def asked(finished, before, tmp_path_factory):
    """A copy of the finished study that now names upstream tasks, evaluated again; and the file with its settings."""
    folder = tmp_path_factory.mktemp("asked")
    tasks = (
        UpstreamTask(name="reading", data=str(before.reading)),
        UpstreamTask(name="looks", data=str(before.looks), images=str(before.images)),
        UpstreamTask(name="told", data=str(before.reading), metric="cider-d", samples=6),
    )
    config = finished.model_copy(update={"study": str(folder / "study"), "upstream": tasks})
    shutil.copytree(finished.study, config.study)
    write_study(config, folder / "asked.yaml")
    evaluate_flow(config)
    return config, folder / "asked.yaml"


def test_evaluation_report_command_and_acceptance_know_what_was_forgotten(asked, one_figure):
    config, file = asked
    study = begun_study(config)
    table = forgetting_table(study)
    assert set(table) == set(final_arms(study))
    chosen = table["chosen"]
    upstream = [task for task in chosen["tasks"] if task["kind"] == "upstream"]
    assert [task["name"] for task in upstream] == ["reading", "looks", "told"]
    assert upstream[0]["base"]["value"] > 50  # what the backbone could do before
    assert upstream[2]["metric"] == "cider-d"
    expected = sum(task["base"]["value"] - task["tuned"]["value"] for task in upstream) / 3
    assert chosen["F"]["value"] == pytest.approx(expected)
    assert {task["name"] for task in chosen["tasks"] if task["kind"] == "target"} > {"target: caption"}

    run = read_final(study.revision, final_arms(study)["chosen"]).mlflow_run_id
    tracking.use_store(study.folder)
    logged = pd.read_csv(io.StringIO(mlflow.artifacts.load_text(f"runs:/{run}/forgetting/forgetting.csv")))
    assert logged.set_index("model").loc["chosen", "F"] == round(chosen["F"]["value"], 1)

    report_flow(config)
    page = study.revision.path("report.html").read_text(encoding="utf-8")
    assert 'id="forgetting-scores"' in page
    assert '<th class="n">reading</th>' in page

    adapter = final_folder(study.revision, Arm(final_arms(study)["chosen"].pair)) / "adapter"
    shown = runner.invoke(app, ["forgetting", str(file), "--adapter", str(adapter), "--json"])
    assert shown.exit_code == 0, shown.output
    printed = json.loads(shown.stdout)
    assert printed[str(adapter)]["F"] == printed["chosen"]["F"]
    for_people = runner.invoke(app, ["forgetting", str(file)]).stdout
    assert "F: forgotten" in for_people
    assert f"{chosen['F']['value']:+.1f}" in for_people

    champion_path(study.folder).unlink()  # the chosen pair's run stands already, and would not be judged
    arm, forgotten = final_arms(study)["chosen"], chosen["F"]["value"]
    strict, lax = (_limited(config, forgotten + more) for more in (-1, 1))
    refused = accept_flow(strict)
    assert not refused["accepted"]
    assert f"search.max_forgetting = {strict.search.max_forgetting:g}" in refused["reason"]
    assert refused["forgotten"]["points"] == pytest.approx(forgotten)
    assert accept_flow(strict) == refused  # not decided twice
    assert _decided(begun_study(strict), arm, None) == (
        "refused",
        f"The final run of {arm} was not accepted: {refused['reason']}.",
    )
    assert _decided(begun_study(lax), arm, None) is None  # at night, too, another limit asks again
    assert accept_flow(lax)["accepted"]
    assert read_champion(study.folder) is not None


def _limited(config, limit):
    # Negative limits are no settings, but a demo adapter may have gained upstream.
    return config.model_copy(update={"search": config.search.model_copy(update={"max_forgetting": limit})})


def test_mistakes_are_one_message(asked, tmp_path):
    config, file = asked
    # The study's folder has the settings that it was evaluated with.
    write_study(config.model_copy(update={"upstream": ()}), tmp_path / "unasked.yaml")
    for arguments, message in (
        ([str(tmp_path / "unasked.yaml")], "names no upstream tasks"),
        ([str(file), "--adapter", "nowhere"], "no PEFT adapter in nowhere"),
    ):
        shown = runner.invoke(app, ["forgetting", *arguments])
        assert shown.exit_code == 2, shown.output
        assert message in " ".join(shown.stderr.split())


@pytest.mark.slow
def test_pairs_are_scored_upstream_and_shown_as_a_front(study, before):
    config = read_study(study)
    tasks = (UpstreamTask(name="reading", data=str(before.reading)),)
    config = config.model_copy(
        update={
            "upstream": tasks,
            "calibration": config.calibration.model_copy(update={"snapshots": True}),
            "search": config.search.model_copy(update={"forgetting_weight": 0.5}),
        }
    )
    calibrate_flow(config)
    fit_flow(config)
    search_flow(config)
    opened = begun_study(config)
    found = json.loads(opened.revision.path("pair_forgetting.json").read_text(encoding="utf-8"))
    assert {tuple(one["pair"]) for one in found["pairs"]} == {(2, 2), (2, 4), (4, 2), (4, 4)}
    assert any(one["on_front"] for one in found["pairs"])
    weighted = [one["weighted"] for one in found["pairs"]]
    assert weighted == sorted(weighted)
    for one in found["pairs"]:
        assert one["forgotten"] == pytest.approx(one["upstream"] - found["base_loss"])
    report_flow(config)
    assert 'id="tradeoffs"' in opened.revision.path("report.html").read_text(encoding="utf-8")

import copy
import dataclasses
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mars_core.report import ReportData, render, render_report, render_with_figures
from mars_core.report.decision import VERDICTS
from mars_core.search.rates import BestRate, RateAnswer

SECTIONS = [
    *("answer", "findings", "measured", "candidates-section", "law-p", "law-c", "balance", "details"),
    *("training", "test", "cost", "inputs", "again", "terms"),
]
FIGURES = ("heatmap", "earlier", "law-p", "predicted", "law-c", "balance", "calibration", "finals")


class Page(HTMLParser):
    """Ids, tables (by id) and text of a page, read without the code that made it."""

    def __init__(self, html):
        super().__init__()
        self.ids, self.tables, self.text, self.tags, self.hrefs = [], {}, [], [], []
        self._table, self._cell = None, None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.hrefs += [value for key, value in attributes.items() if key in ("href", "src", "xlink:href")]
        if tag == "table":
            self._table = self.tables.setdefault(attributes.get("id", f"table-{len(self.tables)}"), [])
        if tag == "tr" and self._table is not None:
            self._table.append([])
        if tag in ("td", "th") and self._table is not None:
            self._cell = []

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self._cell is not None:
            self._table[-1].append("".join(self._cell).strip())
            self._cell = None
        if tag == "table":
            self._table = None

    def handle_data(self, data):
        self.text.append(data)
        if self._cell is not None:
            self._cell.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


@pytest.fixture(scope="module")
def full(planted, make_data):
    return render_report(make_data(*planted))


@pytest.fixture
def draw_only(monkeypatch):
    """Function that limits the report to some figures: drawing is what takes time."""

    def limit(*names):
        nothing = [
            plot if plot.name in names else dataclasses.replace(plot, draw=lambda data, results: None)
            for plot in render.PLOTS
        ]
        monkeypatch.setattr(render, "PLOTS", nothing)

    return limit


def test_has_every_section_and_figure_once(full):
    page = Page(full)
    for name in (*SECTIONS, *(f"figure-{figure}" for figure in FIGURES)):
        assert page.ids.count(name) == 1, name
    assert len(page.ids) == len(set(page.ids))


def test_every_figure_comes_with_a_reading_aid(full):
    assert full.count("How to read this.") >= len(FIGURES)


def test_loads_nothing(full):
    page = Page(full)
    assert all(href.startswith("#") for href in page.hrefs)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert not re.search(r"https?:|@import|url\((?!#)", full)


def test_internal_references_have_targets(full):
    page = Page(full)
    targets = {href[1:] for href in page.hrefs} | set(re.findall(r"url\(#([^)]+)\)", full))
    assert targets <= set(page.ids)


def test_is_small(full):
    assert len(full.encode()) < 3_000_000


def test_answer_names_pair_verdict_reason_and_adapter(full, planted):
    choice = planted[2]
    words = Page(full).words
    assert f"Vision rank {choice.pair[0]} , LLM rank {choice.pair[1]}" in words
    assert choice.reason in words
    assert "studies/demo/revisions/001/final/8-16/adapter" in words
    assert "perplexity from 22.198 to 3.353" in words
    assert "4.9% lower (better)" in words
    assert "2.0 points higher (better)" in words


def test_coefficients_equal_the_fit(full, planted):
    laws = planted[1]
    rows = Page(full).tables["coefficients-performance"][1:]
    shown = {row[0]: float(row[1]) for row in rows}
    expected = laws["performance"]["coefficients"]
    for symbol, name in {"A": "A", "α m": "alpha_m", "α l": "alpha_l", "β": "beta", "E": "E"}.items():
        assert shown[symbol.replace(" ", "")] == pytest.approx(expected[name], rel=1e-3)


def test_candidates_equal_the_choice(full, planted):
    choice = planted[2]
    rows = {row[0]: row for row in Page(full).tables["candidates"][1:]}
    assert len(rows) == len(choice.candidates) == 16
    for candidate in choice.candidates:
        row = rows[f"({candidate.pair[0]}, {candidate.pair[1]})"]
        assert int(row[1].replace(",", "")) == candidate.trainable_parameters
        assert float(row[2]) == pytest.approx(candidate.loss, abs=6e-5)
        assert float(row[4].rstrip("%")) == pytest.approx(100 * candidate.expected_regret, abs=6e-3)
        assert float(row[5].rstrip("%").replace("−", "-")) == pytest.approx(100 * candidate.excess, abs=6e-3)
        assert float(row[7].rstrip("%")) == pytest.approx(100 * candidate.probability_best, abs=0.6)
        assert row[8] == ("yes" if candidate.source.balanced else "no")


def test_where_no_pair_is_balanced_none_is_called_unbalanced(planted, make_data, draw_only):
    draw_only()
    metrics, laws, choice = planted
    plain = [
        dataclasses.replace(one, source=dataclasses.replace(one.source, balanced=False)) for one in choice.candidates
    ]
    without = dataclasses.replace(choice, candidates=tuple(plain))
    header, *rows = Page(render_report(make_data(metrics, laws, without))).tables["candidates"]
    assert header[8] == "remarks"
    assert not any(row[8].startswith(("yes", "no;")) or row[8] == "no" for row in rows)


def test_the_predicted_heatmap_is_the_posterior_s(full, planted):
    figure = re.search(r'<figure id="figure-predicted".*?</figure>', full, re.DOTALL).group(0)
    for candidate in planted[2].candidates:
        assert f">{candidate.perplexity:.3f}<" in figure


def test_the_first_paragraph_decides(full, planted):
    choice = planted[2]
    first = Page(re.search(r'<p class="reason">.*?</p>', full, re.DOTALL).group(0)).words
    assert choice.reason in first
    assert f"{choice.regret:.2%} of perplexity, at most {choice.regret_bound:.2%} (95%)" in first
    for rival in choice.rivals:
        assert (f"({rival.pair[0]}, {rival.pair[1]}), trains {rival.trainable_parameters:,} parameters" in first) == (
            rival.pair != choice.pair
        )


def test_a_choice_that_cannot_tell_says_how_many_seeds_would(data, draw_only):
    draw_only()
    reason = "These runs cannot tell (calibrating each pair with about 7 seeds would)."
    choice = {**data.choice, "verdict": "cannot tell", "seeds_needed": 7, "reason": reason}
    words = Page(render_report(dataclasses.replace(data, choice=choice))).words
    assert words.count("7 seeds") == 1


def test_what_the_other_rule_takes_stands_beside_the_candidates(data, draw_only):
    draw_only()
    assert "Algorithm 1 of the paper takes" in Page(render_report(data)).words
    other = {"pair": [8, 8], "verdict": "best", "reason": "It is predicted best."}
    paper = {**data.choice, "rule": "paper", "verdict": "paper", "decided_by": "Algorithm 1", "other_rule": other}
    words = Page(render_report(dataclasses.replace(data, choice=paper))).words
    assert "The rule of MARS (law: mars) takes (8, 8): It is predicted best." in words
    assert f"Its expected regret over all pairs is {data.choice['regret']:.2%} of perplexity" in words


@pytest.mark.parametrize(("shift", "said"), [(0.0, False), (0.5, True), (-0.5, True)])
def test_a_missed_prediction_is_said_plainly(data, shift, said, draw_only):
    draw_only()
    loss = next(c["loss"] for c in data.choice["candidates"] if c["pair"] == data.choice["pair"])
    finals = [{**data.finals[0], "best_val_loss": loss + shift}]
    words = Page(render_report(dataclasses.replace(data, finals=finals))).words
    assert ("The prediction missed" in words) == said
    if said:
        assert f"is {loss + shift:.3f}, {'above' if shift > 0 else 'below'} the predicted 95% interval" in words


def test_test_scores_by_task_equal_the_evaluation(full):
    rows = {row[0]: row for row in Page(full).tables["tasks"][2:]}
    assert rows["colour"] == ["colour", "150", "18.174", "21.0%", "2.886", "70.0%", "2.746", "72.0%"]
    assert rows["count"][1] == "250"


def test_costs_show_steps_memory_and_total(full):
    rows = {row[0]: row for row in Page(full).tables["costs"]}
    assert rows["calibrate"][1] == "5 min 12 s"
    assert rows["calibrate"][3] == "4,096"  # 16 runs of 256 steps
    assert rows["calibrate"][4] == "1.40 GiB"
    assert rows["finetune"][3] == "1,200"
    assert rows["total"][1] == "7 min 29 s"


def test_heatmap_prints_the_measured_perplexities(full, planted):
    metrics = planted[0]
    figure = re.search(r'<figure id="figure-heatmap".*?</figure>', full, re.DOTALL).group(0)
    last = metrics[metrics["unique_samples"] == 2048]
    assert len(last) == 16
    for perplexity in last["val_perplexity"]:
        assert f">{perplexity:.3f}<" in figure


def test_command_versions_and_inputs_are_there(full):
    words = Page(full).words
    for expected in ("mars run studies/demo/study.yaml", "2.13.0", "llava_onevision", "9f31c0de", "learning_rate"):
        assert expected in words


def test_untrusted_strings_are_escaped(data, draw_only):
    draw_only("finals")
    attack = '<script>alert("x")</script>'
    evil = dataclasses.replace(
        data,
        study=attack,
        command=attack,
        adapter=attack,
        warnings=[attack],
        notes=[attack],
        versions={attack: attack},
        recipe={attack: attack},
        model={**data.model, "id": attack, "model_type": attack},
        data={**data.data, "tasks": {attack: 3}, "data_hash": attack},
        evaluation={"chosen": {**data.evaluation["chosen"], "by_task": {attack: data.evaluation["base"]["overall"]}}},
        costs=[{"stage": attack, "seconds": 1.0, "detail": attack}],
        finals=[{**data.finals[0], "role": attack}],
        choice={**data.choice, "reason": attack},
    )
    html = render_report(evil)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 10


def test_fallback_is_shown_with_its_cause(data, draw_only):
    draw_only()
    cause = "law C of the LLM has a wrong-signed exponent"
    choice = {**data.choice, "verdict": "fallback", "fallback_cause": cause, "decided_by": "best observed pair"}
    words = Page(render_report(dataclasses.replace(data, choice={**choice, "reason": "Something else."}))).words
    assert "This is a fallback, decided by best observed pair." in words
    assert cause in words


def part(html, section):
    start = html.index(f'<section id="{section}"')
    return html[start : html.index("</section>", start)]


def test_only_what_changes_the_decision_is_a_warning(data, planted, draw_only):
    draw_only()
    laws = planted[1]
    status = {"code": "at_bound", "message": "beta ended on its upper bound", "severity": "error"}
    performance = {**laws["performance"], "statuses": [status]}
    me = {**laws["convergence"], "me": None}
    laws = {**laws, "performance": performance, "convergence": me, "causes": {"me": "too few points"}}
    choice = {**data.choice, "warnings": ["the target is far away", "and another thing"]}
    told = dataclasses.replace(data, laws=laws, choice=choice, warnings=["2 runs diverged"], notes=["size capped"])
    html = render_report(told)
    head, details = part(html, "findings"), part(html, "details")
    assert 0 < head.index("far away") < head.index("another thing") < head.index("2 runs diverged")
    for remark in ("beta ended on its upper bound", "too few points", "size capped"):
        assert remark not in head
        assert remark in details
    assert details.index("beta ended") < details.index("size capped")  # errors first
    assert "<details>" in details


def test_chance_is_no_warning(full):
    head = part(full, "findings")
    assert "chance" not in head
    assert "Nothing that would change the decision" in head


def test_a_missing_law_is_a_warning_where_it_decided(data, planted, draw_only):
    draw_only()
    laws = {**planted[1], "performance": None, "causes": {"performance": "too few points"}}
    choice = {**data.choice, "rule": "paper", "verdict": "paper", "decided_by": "default pair"}
    assert "too few points" in part(render_report(dataclasses.replace(data, laws=laws, choice=choice)), "findings")
    assert "too few points" not in part(render_report(dataclasses.replace(data, laws=laws)), "findings")


STORED = Path(__file__).parent / "stored"  # written by the version that chose by the laws alone


@pytest.mark.parametrize("verdict", ["chosen", "indistinguishable", "balance uninformative", "fallback"])
def test_a_study_of_before_still_opens(data, verdict, draw_only):
    draw_only("predicted", "law-p", "law-c", "balance")
    laws, choice = (json.loads((STORED / f"{name}.json").read_text()) for name in ("laws", "choice"))
    choice |= {"verdict": verdict, "fallback_cause": "law P is unusable" if verdict == "fallback" else None}
    page = Page(render_report(dataclasses.replace(data, laws=laws, choice=choice)))
    assert choice["reason"] in page.words
    assert VERDICTS[verdict][1] in page.words
    assert "figure-predicted" in page.ids
    assert "other-rule" not in page.ids
    rows = page.tables["candidates"][1:]
    assert {row[0] for row in rows} == {f"({c['pair'][0]}, {c['pair'][1]})" for c in choice["candidates"]}
    assert all(row[5:8] == ["–", "–", "–"] for row in rows)  # no excess, no probability was stored
    assert all(row[8] == "yes" for row in rows)  # it compared balanced pairs only


def test_an_unmeasured_pair_of_before_is_flagged(data, draw_only):
    draw_only()
    choice = json.loads((STORED / "choice.json").read_text())
    for candidate in choice["candidates"]:
        candidate["source"]["extrapolated"] = True
    head = part(render_report(dataclasses.replace(data, choice=choice)), "findings")
    assert "has a rank that was never calibrated" in head


def test_worse_than_uniform_is_said_plainly(data, draw_only):
    draw_only()
    swapped = {**data.evaluation, "chosen": data.evaluation["uniform"], "uniform": data.evaluation["chosen"]}
    words = Page(render_report(dataclasses.replace(data, evaluation=swapped))).words
    assert "higher (worse)" in words
    assert "2.0 points lower (worse)" in words


def test_without_law_c(data, planted, draw_only):
    draw_only("law-c", "balance")
    laws = {**planted[1], "convergence": {"me": None, "llm": None}, "convergence_times": []}
    laws["causes"] = {"me": "no size has enough checkpoints", "llm": "no size has enough checkpoints"}
    choice = {**data.choice, "balance_curve": [], "dropped": []}
    page = Page(render_report(dataclasses.replace(data, laws=laws, choice=choice)))
    assert "could not be fitted" in page.words
    assert "no size has enough checkpoints" in page.words
    assert "figure-law-c" not in page.ids
    assert "there is no balance curve" in page.words


def test_without_law_p(data, planted, draw_only):
    draw_only("law-p", "predicted")
    laws = {**planted[1], "performance": None, "causes": {"performance": "too few points"}}
    page = Page(render_report(dataclasses.replace(data, laws=laws)))
    assert "Law P could not be fitted. too few points" in page.words
    assert {"figure-law-p", "figure-predicted"} <= set(page.ids)  # points and the posterior remain


def test_after_the_search_and_before_the_final_run(data, draw_only):
    draw_only("finals")
    page = Page(render_report(dataclasses.replace(data, finals=[], evaluation=None, adapter=None)))
    assert "The final fine-tune has not been run yet" in page.words
    assert "There are no test scores yet." in page.words
    assert "figure-finals" not in page.ids


def test_before_the_search(data, draw_only):
    draw_only("heatmap", "balance")
    early = dataclasses.replace(data, choice=None, finals=[], evaluation=None, adapter=None, costs=[])
    page = Page(render_report(early))
    assert "No pair has been chosen yet" in page.words
    assert "figure-balance" not in page.ids


def test_chosen_pair_is_the_uniform_default(data, draw_only):
    draw_only()
    evaluation = {role: data.evaluation[role] for role in ("base", "chosen")}
    choice = {**data.choice, "pair": [4, 4]}
    words = Page(render_report(dataclasses.replace(data, choice=choice, evaluation=evaluation))).words
    assert "itself a uniform pair" in words


def test_without_any_calibration_run(data):
    words = Page(render_report(dataclasses.replace(data, metrics=data.metrics.head(0)))).words
    assert "There are no calibration runs." in words


def test_several_seeds_show_their_spread(data, planted_metrics, draw_only):
    draw_only("heatmap", "calibration")
    metrics = planted_metrics(seeds=(0, 1, 2), noise=0.01)
    words = Page(render_report(dataclasses.replace(data, metrics=metrics))).words
    spread = re.search(r"differ by ([\d.]+)% \(standard deviation\)", words)
    assert 0.5 < float(spread.group(1)) < 1.6  # planted: about 1% of a loss of 1.1 nats
    assert "48 short runs" in words


@pytest.mark.parametrize("form", ["performance_imbalance", "performance_overfit"])
def test_other_forms_of_law_p(data, planted, fit_form, form, draw_only):
    draw_only("law-p", "predicted")
    fit = fit_form(planted[0], form)
    page = Page(render_report(dataclasses.replace(data, laws={**planted[1], "performance": fit.to_json()})))
    rows = page.tables["coefficients-performance"][1:]
    assert [float(row[1]) for row in rows] == pytest.approx(list(fit.coefficients.values()), rel=1e-3)


def test_a_missing_column_is_named(data):
    broken = dataclasses.replace(data, metrics=data.metrics.drop(columns="val_loss"))
    with pytest.raises(ValueError, match="val_loss"):
        render_report(broken)


def test_is_deterministic_and_fast(full, data):
    started = time.process_time()
    assert render_report(data) == full
    assert time.process_time() - started < 6


def test_only_the_evidence_of_laws_is_required():
    required = {field.name for field in dataclasses.fields(ReportData) if field.default is dataclasses.MISSING}
    assert {"adapter", "finals", "evaluation", "costs", "notes"}.isdisjoint(required)


def test_a_diverged_run_leaves_an_empty_cell(data, draw_only):
    draw_only("heatmap")
    metrics = data.metrics
    cut = metrics[(metrics["r_me"] != 2) | (metrics["r_llm"] != 2) | (metrics["step"] <= 16)]
    words = Page(render_report(dataclasses.replace(data, metrics=cut, notes=["run (2, 2) diverged at step 17"]))).words
    assert words.count("no value") == 1
    assert "run (2, 2) diverged at step 17" in words


def test_runs_without_adapter_take_no_part_in_the_curves(data, draw_only):
    draw_only("heatmap", "law-p", "predicted", "balance")
    bare = data.metrics[data.metrics["r_me"] == 2].assign(r_me=0)
    bare["run_id"] = "bare-" + bare["run_id"]
    page = Page(render_report(dataclasses.replace(data, metrics=pd.concat([data.metrics, bare]))))
    assert {"figure-heatmap", "figure-law-p", "figure-predicted", "figure-balance"} <= set(page.ids)


def test_a_chosen_pair_beyond_the_calibrated_ranks_is_drawn(data, draw_only):
    draw_only("heatmap", "predicted", "balance")
    first = data.choice["candidates"][0]
    wide = {**first, "pair": [64, 64], "source": {**first["source"], "extrapolated": True, "measured": False}}
    choice = {**data.choice, "pair": [64, 64], "candidates": [wide, *data.choice["candidates"]]}
    page = Page(render_report(dataclasses.replace(data, choice=choice)))
    assert {"figure-heatmap", "figure-predicted", "figure-balance"} <= set(page.ids)
    assert next(row for row in page.tables["candidates"] if row[0] == "(64, 64)")[8] == "no; extrapolated"


def test_wild_bootstrap_draws_do_not_break_the_figures(data, draw_only):
    draw_only("law-p", "predicted", "law-c", "balance")
    laws = copy.deepcopy(data.laws)
    laws["convergence"]["me"]["draws"][:2] = [[None] * 4, [1.0, 5.0, 3.0, 1e9]]
    laws["performance"]["draws"][0] = [1e300, -2.0, -2.0, -1.0, 1.0]
    page = Page(render_report(dataclasses.replace(data, laws=laws)))
    assert "figure-balance" in page.ids


def test_each_final_run_has_its_own_cost(data, draw_only):
    draw_only()
    costs = [{"stage": f"final fine-tune ({role})", "seconds": 60.0, "detail": ""} for role in ("chosen", "uniform")]
    finals = [{**final, "peak_memory_bytes": 2**30} for final in data.finals]
    rows = Page(render_report(dataclasses.replace(data, costs=costs, finals=finals))).tables["costs"]
    assert [row[3:5] for row in rows[1:3]] == [["600", "1.00 GiB"]] * 2


def test_baselines_stand_in_one_table_the_best_first(data, draw_only):
    draw_only()
    assert 'id="comparison"' not in render_report(data)
    marked = {"accuracy": 0.75, "correct": 300, "n": 400, "interval": [0.705, 0.79]}
    tested = {**data.evaluation["uniform"], "generated": {"overall": marked}}
    rows = [
        {"name": "base model", "role": "base", "trainable_parameters": 0, "test": data.evaluation["base"]},
        {
            **{"name": "MARS", "role": "chosen", "trainable_parameters": 4000, "test": data.evaluation["chosen"]},
            **{"seconds": 125.0, "best_val_loss": 1.25, "settings": {"method": "pair", "r_me": 8, "r_llm": 16}},
        },
        {
            **{"name": "adalora<b>", "role": "baseline", "trainable_parameters": 6000, "seconds": 200.0},
            **{"test": tested, "best_val_loss": 1.3, "settings": {"method": "adalora"}},
        },
    ]
    html = render_report(dataclasses.replace(data, comparison=rows))
    assert "<b>" not in html[html.index('id="baselines"') : html.index('id="cost"')].replace("<b>How", "")
    table = Page(html).tables["baselines"][1:]
    assert [row[0] for row in table] == ["MARS (8, 16)", "adalora<b>", "base model"]
    assert table[1][1:] == ["6,000", "3.525", "60.0%", "75.0% (70.5% to 79.0%)", "1.3000", "3 min 20 s"]  # exp(1.26)
    assert "search for it" not in html


def test_a_table_with_a_tuned_baseline_says_what_the_searches_took(data, draw_only):
    draw_only()
    trained = {"trainable_parameters": 4000, "seconds": 125.0, "best_val_loss": 1.25}
    pair = {"method": "pair", "r_me": 8, "r_llm": 16}
    rows = [
        {"name": "base model", "role": "base", "trainable_parameters": 0, "test": data.evaluation["base"]},
        {"name": "MARS", "role": "chosen", "test": data.evaluation["chosen"], "settings": pair, **trained}
        | {"learning_rates": [2e-4] * 3, "search": {"runs": 16, "pair_steps": 4096, "seconds": 600.0}},
        {"name": "dora-16-tuned", "role": "baseline", "test": data.evaluation["uniform"], "settings": {}, **trained}
        | {"learning_rates": [1e-4, 2e-4, 2e-4], "search": {"runs": 5, "pair_steps": 1280, "seconds": 200.0}},
    ]
    table = Page(render_report(dataclasses.replace(data, comparison=rows))).tables["baselines"]
    assert table[0][-2:] == ["learning rate", "search for it"]
    assert {row[0]: row[-2:] for row in table[1:]} == {
        "base model": ["–", "–"],
        "MARS (8, 16)": ["0.0002", "16 runs, 4,096 steps, 10 min 00 s"],
        "dora-16-tuned": ["0.0001 (vision encoder), 0.0002 (LLM)", "5 runs, 1,280 steps, 3 min 20 s"],
    }


def test_runs_at_several_rates_are_drawn_over_rate_and_rank(planted, make_data, full, draw_only):
    """What a rate costs is planted: a parabola about a best rate that falls with the ranks."""
    metrics, laws, choice = planted
    parts = []
    for rate in (5e-4, 1e-3, 2e-3):
        best = np.log(1e-3) - 0.2 * np.log(metrics["r_me"] * metrics["r_llm"] / 16)
        loss = metrics["val_loss"] + 0.07 * (np.log(rate) - best) ** 2
        names = {"peak_lr_me": rate, "peak_lr_llm": rate, "run_id": metrics["run_id"] + f"-{rate}"}
        parts.append(metrics.assign(val_loss=loss, val_perplexity=np.exp(loss), **names))
    several = pd.concat(parts, ignore_index=True)
    pairs = [BestRate(c.pair, "all", 1e-3, (8e-4, 1.3e-3)) for c in choice.candidates]
    own = tuple(one for one in pairs if one.pair == choice.pair)
    rates = RateAnswer(own, tuple(pairs), {"s_me": (-0.2, -0.3, -0.1)}, {"all": (5e-4, 2e-3)})
    data = make_data(several, laws, dataclasses.replace(choice, rates=rates))
    draw_only("heatmap", "rates", "best-rates")
    page, figures = render_with_figures(data)
    assert "figure-rates" in Page(page).ids
    assert "figure-rates" not in Page(full).ids
    assert figures.keys() == {"heatmap", "rates", "best-rates"}
    assert "peak learning rate" in figures["rates"]
    assert "best peak learning rate" in figures["best-rates"]
    assert "The best rate changes as r_me^-0.2 [-0.3, -0.1]." in page
    assert "48 short runs at several learning rates" in page

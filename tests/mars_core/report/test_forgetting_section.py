"""What the report says of gained and forgotten abilities."""

from dataclasses import replace

import pytest

from mars_core.evaluation.forgetting import pareto_front
from mars_core.report import render_with_figures
from mars_core.report.forgetting import forgetting_rows, tradeoff_rows
from tests.report_figures import figures_drawn

TASKS = [
    {
        "name": name,
        "kind": kind,
        "metric": "accuracy",
        "n_samples": 10,
        **{part: {"value": value, "low": value - 2, "high": value + 2} for part, value in values.items()},
    }
    for name, kind, values in (
        ("target: caption", "target", {"base": 10.0, "tuned": 40.0, "change": 30.0}),
        ("reading", "upstream", {"base": 80.0, "tuned": 50.0, "change": -30.0}),
    )
]
FOUND = {
    "chosen": {
        "E": {"value": 30.0, "low": 28.0, "high": 32.0},
        "F": {"value": 30.0, "low": 27.0, "high": 33.0},
        "O": None,
        "tasks": TASKS,
        "level": 0.95,
        "signs": [{"code": "forgot", "severity": "error", "message": "reading fell by 38%"}],
    }
}
FRONT = {
    "base_loss": 0.5,
    "pairs": [
        one.to_json()
        for one in pareto_front(
            {(2, 2): 1.0, (4, 4): 0.9, (8, 8): 0.95}, {(2, 2): 0.6, (4, 4): 0.8, (8, 8): 0.9}, 0.5, 0.1
        )
    ],
}


@pytest.fixture
def asked(data):
    return replace(data, forgetting=FOUND, tradeoffs=FRONT)


def test_table_and_signs_are_in_the_page(asked):
    with figures_drawn("forgetting"):
        page, figures = render_with_figures(asked)
    assert "30.0 (27.0 to 33.0)" in page
    assert "80.0 → 50.0" in page
    assert "reading fell by 38%" in page
    assert 'id="figure-forgetting"' in page
    assert "forgetting" in figures


def test_without_upstream_tasks_nothing_is_said(data):
    with figures_drawn("forgetting"):
        page, figures = render_with_figures(data)
    assert "Gained and forgotten" not in page
    assert "forgetting" not in figures


def test_rows(asked):
    (row,) = forgetting_rows(asked)
    assert row["O"] == "–"
    assert row["tasks"] == ["10.0 → 40.0", "80.0 → 50.0"]
    rows = tradeoff_rows(asked)
    assert {row["pair"]: row["front"] for row in rows} == {"(4, 4)": "yes", "(2, 2)": "yes", "(8, 8)": ""}

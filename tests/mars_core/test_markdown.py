"""Text of others in Markdown is shown letter for letter."""

from __future__ import annotations

import pytest
from markdown import markdown

from mars_core.drift.choice import ChoiceDrift
from mars_core.drift.markdown import quiet_night_as_markdown
from mars_core.markdown import code, markdown_table, plain

ATTACKS = (
    '<script>alert("x")</script>',
    "<img src=x onerror=alert(1)>",
    "![x](http://evil/pixel.png)",
    "[click](javascript:alert(1))",
    "`</code><script>alert(1)</script>`",
    "**bold** _it_ ~~gone~~",
    "a\n\n# Heading\n\n<iframe src=x>",
    "&lt;script&gt;",
    "a | b |",
    "\\<script>",
)


def rendered(text: str) -> str:
    """By an implementation that passes HTML through, as the least careful page would."""
    return markdown(text, extensions=["tables"])


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("how", [plain, code])
def test_nothing_of_it_becomes_markup(attack, how):
    html = rendered(f"before {how(attack)} after")
    for tag in ("<script", "<img", "<iframe", "<a ", "<strong", "<em", "<h1"):
        assert tag not in html
    assert html.count("<p>") == 1


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_cell_can_neither_end_nor_begin_a_tag(attack):
    html = rendered(markdown_table(["task"], [[plain(attack)], ["next"]]))
    assert html.count("<td>") == 2
    assert "<script" not in html
    assert "<img" not in html


def test_words_stay_as_they_are():
    assert plain("recipe.learning_rate was 0.1 (before)") == "recipe.learning_rate was 0.1 (before)"


def test_a_study_named_with_markup_is_shown_by_its_name():
    choice = ChoiceDrift((2, 2), (2, 2), "same pair", "<b>as</b> before", 0.01)
    text = quiet_night_as_markdown("<img src=x>[a](b)", 1, choice, "Nothing.")
    html = rendered(text)
    assert "<img" not in html
    assert "<a " not in html
    assert "<b>" not in html
    assert "&lt;img src=x&gt;[a](b)" in html

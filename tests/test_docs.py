"""What the documentation says of this repository's files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from flows.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SECRET = "docker/.env"  # made where the stack is started
REPOSITORY_PATH = re.compile(r"`((?:benchmarks|deployments|docker|docs|flows|mars_core|tasks|tests)/[\w./-]*)`")
FENCE = re.compile(r"```(?:bash|sh|console|shell)\n(.*?)```", re.DOTALL)


def commands_of(page: Path) -> list[str]:
    """The `mars` commands of a page's shell blocks, each on one line."""
    blocks = "\n".join(FENCE.findall(page.read_text(encoding="utf-8")))
    lines = [line.strip().removeprefix("$ ") for line in blocks.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("mars ")]


SHOWN = sorted({command for page in PAGES for command in commands_of(page)})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    named = REPOSITORY_PATH.findall(page.read_text(encoding="utf-8"))
    assert [path for path in named if path != SECRET and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("line", SHOWN)
def test_a_command_that_a_page_shows_is_one_that_mars_has(line):
    """Read by the command line's own parser, and not run: a name or an option that is not there ends the reading."""
    command, words = typer.main.get_command(app), shlex.split(line, comments=True)
    context = command.make_context(words[0], words[1:])
    while isinstance(command, typer.core.TyperGroup):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)


def test_pages_show_commands():
    assert len(SHOWN) > 40

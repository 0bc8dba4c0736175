"""What the documentation says of this repository's files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SECRET = "docker/.env"  # made where the stack is started
REPOSITORY_PATH = re.compile(r"`((?:benchmarks|deployments|docker|docs|flows|mars_core|tasks|tests)/[\w./-]*)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    named = REPOSITORY_PATH.findall(page.read_text(encoding="utf-8"))
    assert [path for path in named if path != SECRET and not (ROOT / path).exists()] == []

"""The protections that are taken away are still in the source, and their tests are still there."""

from __future__ import annotations

import ast
import shutil

import pytest

from benchmarks.bites import BITES, ROOT, without


@pytest.mark.parametrize("bite", BITES, ids=lambda bite: bite.protection)
def test_a_protection_can_be_taken_away_and_has_a_test(bite, tmp_path):
    copy = tmp_path / bite.file
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / bite.file, copy)
    without(bite, tmp_path)
    ast.parse(copy.read_text(encoding="utf-8"))  # else the test would fail of a mere typing error
    file, _, name = bite.test.partition("::")
    tests = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    assert name in [node.name for node in tests if isinstance(node, ast.FunctionDef)]


def test_a_protection_that_was_rewritten_is_named(tmp_path):
    copy = tmp_path / BITES[0].file
    copy.parent.mkdir(parents=True)
    copy.write_text("")
    with pytest.raises(ValueError, match=r"stands 0 times in tasks/storage/files\.py, expected once"):
        without(BITES[0], tmp_path)

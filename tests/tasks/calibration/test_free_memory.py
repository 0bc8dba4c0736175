from __future__ import annotations

import psutil
import pytest

from tasks.calibration.free_memory import free_memory

LIMIT, USED, CACHED = 2 << 30, 1 << 30, 1 << 28


@pytest.fixture
def groups(tmp_path):
    """A container's group with a limit, a job's group in it without one, and the file that names the latter."""
    root = tmp_path / "cgroup"
    for folder, limit in ((root / "box", str(LIMIT)), (root / "box" / "job", "max")):
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{USED}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {CACHED}\nactive_file 7\n")
    own = tmp_path / "own"
    own.write_text("0::/box/job\n")
    return root, own


def test_the_limit_of_any_group_around_holds(groups):
    assert free_memory(*groups) == LIMIT - USED + CACHED


def test_a_group_that_is_full_leaves_nothing(groups):
    (groups[0] / "box" / "memory.current").write_text(f"{LIMIT + 2 * CACHED}\n")
    assert free_memory(*groups) == 0


@pytest.mark.parametrize("text", ["", "0::/elsewhere\n", "12:memory:/v1\n"])
def test_without_a_limit_it_is_what_the_machine_has(tmp_path, text):
    own = tmp_path / "own"
    own.write_text(text)
    total = psutil.virtual_memory().total
    assert 0 < free_memory(tmp_path / "none", own) <= total
    assert 0 < free_memory(tmp_path / "none", tmp_path / "absent") <= total

"""Metrics by name: a real package with an entry point, and the ways a name can be wrong."""

from __future__ import annotations

import sys
import textwrap

import pytest

from mars_core.evaluation.objectives.record import AnswerRecord
from mars_core.evaluation.objectives.registry import SHIPPED, available, find_metric


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package with `mars.metrics` entry points on the path, as an installer lays it out."""

    def make(name, points, code="def error(answers):\n    return 0.25\n"):
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = "".join(f"{point} = {module}:error\n" for point in points)
        (info / "entry_points.txt").write_text(f"[mars.metrics]\n{lines}")

    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield make
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_metrics_are_found_by_name(name):
    found = find_metric(name)
    assert (found.name, found.identity, found.function) == (name, name, SHIPPED[name])


def test_an_installed_packages_metric_is_found_and_carries_its_version(install):
    install("my-metrics", ["my_error"])
    found = find_metric("my_error")
    assert found.identity == "my_error (my-metrics 1.2)"
    assert found.function([]) == 0.25
    assert available() == ("perplexity", *SHIPPED, "my_error")


def test_a_package_may_import_the_record_by_its_old_address(install):
    code = """
        from mars_core.objective.record import AnswerRecord

        def error(answers):
            return float(all(isinstance(answer, AnswerRecord) for answer in answers))
        """
    install("old-metrics", ["old_error"], code)
    record = AnswerRecord("a", 0, "vqa", (0.1,), (True,), "yes", "", None, (7,), str)
    assert find_metric("old_error").function([record]) == 1.0


def test_an_unknown_name_lists_what_there_is(install):
    install("my-metrics", ["my_error"])
    expected = "there are perplexity, token_error, exact_match_error, letter_error, my_error;"
    with pytest.raises(ValueError, match=expected):
        find_metric("their_error")


def test_a_path_is_no_name():
    with pytest.raises(ValueError, match="unknown objective"):
        find_metric("/tmp/metric.py:error")


def test_a_shipped_name_cannot_be_taken(install):
    install("my-metrics", ["token_error"])
    with pytest.raises(ValueError, match=r"my-metrics 1\.2 calls a metric 'token_error' as one that MARS ships"):
        find_metric("token_error")


def test_two_packages_with_one_name_are_refused(install):
    install("my-metrics", ["my_error"])
    install("her-metrics", ["my_error"])
    with pytest.raises(ValueError, match="both declare a metric 'my_error'"):
        find_metric("my_error")


@pytest.mark.parametrize(
    ("code", "message"),
    [("import nothing_of_this_name\n", "does not import: ModuleNotFoundError"), ("error = 3\n", "is 3: expected")],
)
def test_a_package_that_does_not_work_is_named(install, code, message):
    install("my-metrics", ["my_error"], code)
    with pytest.raises(ValueError, match=message):
        find_metric("my_error")

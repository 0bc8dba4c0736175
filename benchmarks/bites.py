"""Take each protection of docs/reliability.md away, and see that the test of it fails.

    python benchmarks/bites.py

A copy of the repository has one protection edited out of its source; the test that stands for it runs there, and must
fail. On a copy with nothing edited it must pass. One process imports the libraries and forks one for each test.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "bites.json"
COPIED = ("mars_core", "tasks", "flows", "deployments", "tests", "benchmarks")
LIBRARIES = ("pytest", "torch", "transformers", "peft", "pandas", "pyarrow.parquet", "mlflow", "prefect", "hypothesis",
             "safetensors.torch", "fsspec", "adlfs", "s3fs", "jinja2", "matplotlib.pyplot", "scipy.stats")  # fmt: skip


@dataclass(frozen=True)
class Bite:
    """A protection, how it is taken away, and the test that then fails.

    edits: text of `file` and what stands there without the protection.
    """

    protection: str
    file: str
    edits: tuple[tuple[str, str], ...]
    test: str


FILES, FOLDER, MIRROR = "tasks/storage/files.py", "tasks/storage/folder.py", "tasks/storage/mirror.py"
RUNS, CURVES, CHECKPOINTS = (
    "tasks/tracking/runs.py",
    "tasks/tracking/live_curves.py",
    "mars_core/training/checkpoints.py",
)
IMAGES, TRAIN_PACK = "mars_core/data/images.py", "mars_core/packing/train.py"
FOLDERS_TEST, DISK_TEST = "tests/tasks/storage/test_folder.py", "tests/tasks/storage/test_disk_faults.py"
TRANSFER_TEST, TOLD_TEST = "tests/tasks/storage/test_transfer.py", "tests/tasks/tracking/test_told_it_failed.py"
IMAGES_TEST, PACK_TEST = "tests/mars_core/data/test_images.py", "tests/mars_core/packing/test_train_pack.py"
FLUSHED = "        _to_disk(temporary)\n        temporary.replace(path)\n        _to_disk(path.parent)\n    finally:\n"
UNLINKED = "        temporary.unlink(missing_ok=True)\n"

BITES = (
    Bite("files are written beside their place and renamed", FILES,
         (("    temporary = Path(name)\n", "    Path(name).unlink()\n    temporary = path\n"),
          (UNLINKED, "        pass\n")),
         f"{FOLDERS_TEST}::test_write_that_fails_leaves_the_old_file"),
    Bite("content reaches the disk before its name does", FILES,
         ((FLUSHED + UNLINKED, FLUSHED.replace("        _to_disk(temporary)\n", "") + UNLINKED),),
         f"{DISK_TEST}::test_what_is_in_a_file_reaches_the_disk_before_its_name_does"),
    Bite("a full disk leaves nothing beside what was there", FILES, ((UNLINKED, "        pass\n"),),
         f"{DISK_TEST}::test_a_full_disk_leaves_the_file_as_it_was_and_nothing_beside_it"),
    Bite("a quota that ends with the last byte is an error", FILES,
         (("if error.errno not in (errno.EINVAL", "if False and error.errno not in (errno.EINVAL"),),
         f"{DISK_TEST}::test_a_quota_that_ends_with_the_last_byte_is_noticed"),
    Bite("what MLflow had no room for is sent later", CURVES,
         (("            if not self._warned:\n",
           "            self._waiting.clear()\n            if not self._warned:\n"),),
         f"{DISK_TEST}::test_what_mlflow_had_no_room_for_is_sent_later_and_once"),
    Bite("the cache of images may have no room", "tasks/inputs/image_cache.py",
         (("except (OSError, sqlite3.Error) as error:", "except KeyError as error:"),),
         f"{DISK_TEST}::test_a_full_disk_under_the_cache_of_images_costs_only_time"),
    Bite("a manifest has a hash of each output", FOLDER,
         (("file_hash(revision.path(name)) != digest", "not revision.path(name).is_file()"),),
         f"{FOLDERS_TEST}::test_a_changed_output_is_named"),
    Bite("a manifest that is half a JSON counts as not finished", FOLDER,
         (("    except ValueError as error:\n        show_message(f\"{stage}:",
           "    except KeyError as error:\n        show_message(f\"{stage}:"),),
         f"{FOLDERS_TEST}::test_a_damaged_manifest_is_named_and_its_stage_can_run_again"),
    Bite("a pack's state has a hash over all tensors", "tasks/calibration/state.py",
         (('metadata.get("sha256", "") not in ("", _digest(metadata["state"], tensors))', "False"),),
         "tests/tasks/calibration/test_packs.py::test_a_bit_that_the_disk_has_flipped_is_found_wherever_it_is"),
    Bite("of two processes that are given a pack, the second writes nothing", "tasks/calibration/train.py",
         (("        if not missing_runs(study, [run]):\n", "        if False:\n"),),
         "tests/tasks/calibration/test_superseded.py::test_a_process_that_comes_second_writes_nothing"),
    Bite("states of packs that have ended are deleted", "tasks/calibration/packs.py",
         (("        drop_state(path.parent)\n", "        pass\n"),),
         "tests/tasks/calibration/test_packs.py::"
         "test_nothing_is_left_of_packs_that_were_killed_when_all_of_their_runs_were_stored"),
    Bite("a checkpoint has a hash of each file", CHECKPOINTS, ((" and _hash(checkpoint / name) == digest", ""),),
         "tests/mars_core/training/test_checkpoints.py::test_a_damaged_file_makes_the_one_before_it_the_last"),
    Bite("a checkpoint whose best one is lost is not gone on with", CHECKPOINTS,
         (("if one not in broken and not _best_is_there(one, broken)", "if False"),),
         "tests/mars_core/training/test_checkpoints.py::"
         "test_one_whose_best_checkpoint_is_damaged_or_gone_is_not_gone_on_with"),
    Bite("a run's summary has the hash of its metrics", "tasks/calibration/stored.py",
         (('if record.get("metrics_sha256", "") not in ("", file_hash(metrics)):', "if False:"),),
         "tests/tasks/calibration/test_damaged_runs.py::test_a_bit_that_flipped_in_the_metrics_is_found"),
    Bite("MLflow runs are found again by their tags", RUNS,
         (("    known = find_run(experiment, tags, \"attributes.status = 'RUNNING'\")\n    if known is not None:\n"
           "        tag(known, links.prefect_tags())\n        _log_missing_params",
           "    known = None\n    if known is not None:\n"
           "        tag(known, links.prefect_tags())\n        _log_missing_params"),),
         f"{TOLD_TEST}::test_a_pack_that_is_told_of_failures_leaves_what_an_undisturbed_one_does"),
    Bite("metrics that are sent twice have the same time both times", CURVES,
         (("self._waiting, times=self._times)", "self._waiting)"),),
         f"{TOLD_TEST}::test_entries_of_a_curve_that_arrived_though_it_was_said_they_did_not_are_there_once"),
    Bite("parameters that a killed process did not come to are logged later", RUNS,
         (("        _log_missing_params(known, parameters)\n        return known\n", "        return known\n"),),
         f"{TOLD_TEST}::test_parameters_that_a_killed_process_did_not_come_to_are_logged_later"),
    Bite("a finished run that is made again is tagged", RUNS,
         (('            client.set_tag(run.info.run_id, SUPERSEDED_TAG, "true")\n', "            pass\n"),),
         "tests/tasks/tracking/test_runs.py::test_a_finished_run_that_is_made_again_from_the_same_inputs_is_tagged"),
    Bite("one command at a time on a study", "tasks/study/lock.py", (("        lock.acquire()\n", "        pass\n"),),
         "tests/tasks/study/test_lock.py::test_a_second_process_is_refused_and_told_who_holds_the_study"),
    Bite("a stale copy is not put over what another machine published", MIRROR,
         (("            version = _same_there(mirror, name, digest)\n",
           "            version = _replace(mirror, name)\n"),
          ("            _same_there(mirror, name, file_hash(mirror.here(name)))\n", "            pass\n")),
         f"{TRANSFER_TEST}::test_stale_results_never_overwrite_newer_ones"),
    Bite("of two machines that open a revision at once, one does", MIRROR,
         (('_put(mirror, name, mode="create")', '_put(mirror, name, mode="overwrite")'),
          ("            version = _same_there(mirror, name, digest)\n",
           "            version = _replace(mirror, name)\n")),
         f"{TRANSFER_TEST}::test_a_revision_is_opened_by_one_machine_only"),
    Bite("a run whose loss is no number is dropped from its pack", TRAIN_PACK,
         (("        if math.isfinite(loss):", "        if True:"),
          ("        if found.loss <= LARGEST_LOSS:", "        if True:")),
         f"{PACK_TEST}::test_a_pack_whose_runs_have_all_diverged_ends"),
    Bite("a pack that is out of memory goes on with fewer runs at once", "mars_core/packing/adapter_batches.py",
         (("    return isinstance(error, torch.OutOfMemoryError) or", "    return False and"),),
         f"{PACK_TEST}::test_out_of_memory_in_evaluation_does_not_narrow_training"),
    Bite("a pickle in the result store is refused", "flows/results.py",
         (("    PickleSerializer.loads = refuse_pickle  # type: ignore[method-assign]\n", ""),),
         "tests/test_no_way_in.py::test_a_pickle_that_somebody_put_into_the_result_store_is_not_read"),
    Bite("passwords are masked", "tasks/running/addresses.py",
         (('    return SECRET_QUERY.sub(r"\\1***", CREDENTIALS.sub("***@", text))', "    return text"),),
         "tests/tasks/running/test_addresses.py::test_no_password_is_shown"),
    Bite("markup of others is escaped in Markdown", "mars_core/markdown.py",
         (('    return _MARKUP.sub(lambda match: "\\\\" + match[0], escaped)', "    return str(text)"),),
         "tests/mars_core/test_markdown.py::test_nothing_of_it_becomes_markup"),
    Bite("markup of others is escaped in the report", "mars_core/report/render.py",
         (("        autoescape=True,", "        autoescape=False,"),),
         "tests/mars_core/report/test_render_report.py::test_untrusted_strings_are_escaped"),
    Bite("image paths stay in their folder", IMAGES,
         (("    if not file.is_relative_to(folder):", "    if False:"),),
         f"{IMAGES_TEST}::test_links_out_of_the_folder_are_refused_and_links_within_are_not"),
    Bite("images of too many pixels are refused by their header", IMAGES,
         (("        if width * height > MOST_PIXELS:", "        if False:"),),
         f"{IMAGES_TEST}::test_a_bomb_is_refused_by_its_header_also_where_pils_own_limit_was_taken_off"),
)  # fmt: skip


def without(bite: Bite, folder: Path) -> None:
    """Edit the protection out of a copy of the repository.

    Raises:
        ValueError: the source no longer has the text that the protection consists of.
    """
    file = folder / bite.file
    text = file.read_text(encoding="utf-8")
    for old, new in bite.edits:
        if text.count(old) != 1:
            raise ValueError(f"{bite.protection}: {old!r} stands {text.count(old)} times in {bite.file}, expected once")
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")


def copy_repository(folder: Path) -> None:
    """What tests need of the repository."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def run_tests(folder: Path, tests: list[str]) -> tuple[int, str]:
    """Pytest's exit code for tests in a copy, run by a process of its own, and what it printed."""
    log = folder / "pytest.log"
    child = os.fork()
    if child == 0:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        pytest = importlib.import_module("pytest")
        os._exit(int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", *tests])))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


def check_they_pass(bites: Sequence[Bite], scratch: Path) -> None:
    """Run the tests where nothing is taken away.

    Raises:
        SystemExit: one of them fails.
    """
    folder = scratch / "whole"
    copy_repository(folder)
    code, said = run_tests(folder, [bite.test for bite in bites])
    if code:
        raise SystemExit(f"tests fail with all protections in place:\n{said[-6000:]}")


def tried(bite: Bite, folder: Path) -> dict[str, object]:
    """What became of a test without its protection."""
    began = time.monotonic()
    copy_repository(folder)
    without(bite, folder)
    code, said = run_tests(folder, [bite.test])
    came = {0: "passes", 1: "fails"}.get(code, f"pytest ended with {code}")
    errors = [line[1:].strip() for line in said.splitlines() if line.startswith("E  ")]
    shutil.rmtree(folder)
    return {
        "protection": bite.protection,
        "taken out of": bite.file,
        "test": bite.test,
        "without it the test": came,
        "says": re.sub(r"/\S*/", "", errors[0])[:160] if errors else "",
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Try each protection, and record what its test did; fails where a test does not bite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--only", help="those whose protection has these words in it; the others' rows stay")
    asked = parser.parse_args()
    bites = [bite for bite in BITES if asked.only is None or asked.only in bite.protection]
    known = json.loads(asked.output.read_text()) if asked.output.is_file() else []
    rows = {row["protection"]: row for row in known if asked.only is not None}
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "benchmarks")]
    os.environ.pop("PYTHONPATH", None)
    for library in LIBRARIES:
        with contextlib.suppress(ImportError), contextlib.redirect_stderr(io.StringIO()):
            importlib.import_module(library)
    with tempfile.TemporaryDirectory() as scratch:
        check_they_pass(bites, Path(scratch))
        print(f"all of {len(bites)} tests pass with the protections in place", flush=True)
        for number, bite in enumerate(bites):
            rows[bite.protection] = tried(bite, Path(scratch, str(number)))
            print(json.dumps(rows[bite.protection]), flush=True)
            ordered = [rows[one.protection] for one in BITES if one.protection in rows]
            asked.output.write_text(json.dumps(ordered, indent=2) + "\n")
    toothless = [name for name, row in rows.items() if row["without it the test"] != "fails"]
    print(f"{len(rows) - len(toothless)} of {len(BITES)} tests fail without their protection")
    raise SystemExit(f"these do not bite: {toothless}" if toothless else 0)


if __name__ == "__main__":
    main()

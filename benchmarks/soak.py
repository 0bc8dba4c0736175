"""Night after night on one small study whose data change, in one process: what memory and folder grow by.

    python benchmarks/soak.py --nights 200

Of four nights, one finds rows added, one rows removed, one a row changed, and one nothing. Each night ends with what
`mars clean --yes` does under the default policy. Slopes are fitted by least squares to the second half of the nights.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
    os.environ.pop(name, None)
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np  # noqa: E402

from benchmarks.faults.small_study import build_materials, leave_prefect_out, new_study, run_study  # noqa: E402
from flows.nightly import nightly_flow  # noqa: E402
from tasks.nightly import run as night_run  # noqa: E402
from tasks.retention.delete import Deletion, delete  # noqa: E402
from tasks.retention.find import plan_cleaning  # noqa: E402
from tasks.settings.study import StudyConfig, write_study  # noqa: E402
from tasks.storage.location import working_folder  # noqa: E402
from tasks.tracking.champion import find_champions  # noqa: E402

RESULT = Path(__file__).parent / "results" / "soak.json"
KINDS = ("added", "removed", "changed", "nothing")


def change(file: Path, night: int) -> str:
    """Change the training data as the night has it; gives how."""
    rows, kind = json.loads(file.read_text()), KINDS[night % len(KINDS)]
    if kind == "added":
        rows.append(rows[night % len(rows)] | {"id": f"night-{night}"})
    elif kind == "removed":
        del rows[0]
    elif kind == "changed":
        rows[night % len(rows)]["conversations"][-1]["value"] = f"number {night}"
    file.write_text(json.dumps(rows))
    return kind


def sizes(study: Path) -> dict[str, int]:
    """Bytes of the study's own files, and of MLflow's store and artifacts in it, which no policy deletes."""
    found = {"study_bytes": 0, "mlflow_bytes": 0}
    for path in study.rglob("*"):
        if path.is_file():
            of_mlflow = path.relative_to(study).parts[0] in ("mlflow.db", "mlartifacts")
            found["mlflow_bytes" if of_mlflow else "study_bytes"] += path.stat().st_size
    return found


def memory() -> dict[str, int]:
    """Resident bytes, open files and threads of this process now."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "rss_bytes": int(fields["VmRSS"].split()[0]) * 1024,
        "open_files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": int(fields["Threads"]),
    }


def night(config: StudyConfig, number: int) -> dict[str, Any]:
    """Change the data, run a night, clean, and measure."""
    kind, began = change(Path(config.data.train), number), time.perf_counter()
    came = nightly_flow(config.study)
    folder = working_folder(config.study)
    cleaning = plan_cleaning(config, find_champions(folder))
    failed = delete(config.study, folder, [Deletion(item.path, item.manifests) for item in cleaning.items])
    return {
        "night": number,
        "kind": kind,
        "outcome": came["outcome"],
        "revision": came["revision"],
        "trained_runs": came["trained_runs"],
        "not_deleted": len(failed),
        "seconds": round(time.perf_counter() - began, 2),
        **sizes(folder),
        **memory(),
    }


def slope(nights: Sequence[dict[str, Any]], name: str) -> float:
    """Growth a night over the second half, by least squares."""
    half = nights[len(nights) // 2 :]
    return float(np.polyfit([one["night"] for one in half], [one[name] for one in half], 1)[0])


def summary(nights: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the nights came to."""
    measured = ("rss_bytes", "open_files", "threads", "study_bytes", "mlflow_bytes")
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "nights": len(nights),
        "by_kind": dict(Counter(one["kind"] for one in nights)),
        "by_outcome": dict(Counter(one["outcome"] for one in nights)),
        "revisions": nights[-1]["revision"],
        "not_deleted": sum(one["not_deleted"] for one in nights),
        "growth_a_night": {name: round(slope(nights, name), 2) for name in measured},
        "first": {name: nights[0][name] for name in measured},
        "last": {name: nights[-1][name] for name in measured},
        "processor_seconds": round(used.ru_utime + used.ru_stime),
        "each": list(nights),
    }


def main() -> None:
    """Run the nights and record them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0, help="of processor time, after which no night begins")
    parser.add_argument("--output", type=Path, default=RESULT)
    asked = parser.parse_args()
    leave_prefect_out()
    night_run.create_markdown_artifact = lambda *_, **__: None
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        folder = Path(scratch)
        os.environ["MARS_CACHE"], os.environ["PREFECT_HOME"] = str(folder / "cache"), str(folder / "prefect")
        build_materials(folder / "materials")
        config = new_study(folder / "materials", folder / "study")
        calibration = config.calibration.model_copy(update={"samples": 16, "pack_runs": 4})
        config = config.model_copy(update={"calibration": calibration})
        write_study(config, folder / "study" / "study.yaml")
        run_study(config)
        nights: list[dict[str, Any]] = []
        while len(nights) < asked.nights and time.process_time() < 60 * asked.minutes:
            nights.append(night(config, len(nights)))
            print(json.dumps(nights[-1]), flush=True)
            if len(nights) > 3:
                asked.output.write_text(json.dumps(summary(nights), indent=2) + "\n")
        shutil.rmtree(folder / "study")


if __name__ == "__main__":
    main()

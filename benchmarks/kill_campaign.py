"""Kill a study again and again, and compare what it comes to with an undisturbed one.

    python benchmarks/kill_campaign.py --kills 1000

Each study is killed several times, at named points (before and after every fsync and rename, in the middle of a
checkpoint, around every call of MLflow) and at random times, by SIGKILL, by SIGTERM, or stopped first and then killed.
It is started again each time, and then left to finish. Lost or double rows, other laws, another choice, another adapter
or other scores than those of an undisturbed study count as a loss.

One process imports everything and forks one for each start, so a kill costs about what the study has to do again. Every
study's kills are written down before the next study begins: the same command goes on where it was ended.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from scipy.stats import beta

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["GIT_PYTHON_REFRESH"] = "quiet"
for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
    os.environ.pop(name, None)
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.faults.points import SIGNALS, Death, Points  # noqa: E402
from benchmarks.faults.small_study import (  # noqa: E402
    build_materials,
    keep_in_memory,
    leave_prefect_out,
    new_study,
    note_costs,
    results_of,
    run_study,
    study_config,
)

RESULT = Path(__file__).parent / "results" / "kill_campaign.json"
# At random times: of all starts, and how long they have at most. A study is left to finish after so many kills.
AT_RANDOM, RANDOM_SECONDS, MOST_KILLS, LIMIT_SECONDS = 0.1, 4.0, 80, 600.0
POINTS_OF_A_STUDY, ENOUGH = 0.6, 10


def in_child(work: Callable[[], Any], log: Path) -> Any:
    """What a function gives in a process of its own, as JSON; what it prints goes into a log."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _print_into(log)
        with os.fdopen(write, "w") as out:
            json.dump(work(), out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as found:
        sent = found.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"a process ended with status {status}, see {log}")
    return json.loads(sent)


def _print_into(log: Path) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


class Campaign:
    """What every start needs: materials, the undisturbed result, the points there are."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.materials = folder, folder / "materials"
        self.log = folder / "log.txt"
        asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        self.commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()

    def prepare(self) -> None:
        """Build what studies start from, run one undisturbed, and have this process know all that it needed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ["MARS_CACHE"] = str(self.folder / "cache")
        os.environ["PREFECT_HOME"] = str(self.folder / "prefect")
        if not self.materials.is_dir():
            in_child(lambda: build_materials(self.folder / "being-made"), self.log)
            (self.folder / "being-made").replace(self.materials)
        leave_prefect_out()
        shutil.rmtree(self.folder / "undisturbed", ignore_errors=True)
        known = self.folder / "undisturbed.json"  # goes with the code that it was made by, as the whole folder does
        found = json.loads(known.read_text()) if known.is_file() else {}
        if not found:
            found["modules"], found["cost"], _, _, _ = self._undisturbed("first")
        for module in found["modules"]:
            with suppress(Exception):  # a module that can only be imported by another one
                importlib.import_module(module)
        keep_in_memory(study_config(self.materials, self.folder), found["cost"])
        if "expected" not in found:
            _, _, found["expected"], found["points"], found["seconds"] = self._undisturbed("second")
            manifests = (self.folder / "undisturbed" / "second").glob("revisions/*/manifests/*.json")
            found["stages"] = [file.stem for file in sorted(manifests, key=lambda file: file.stat().st_mtime_ns)]
            known.write_text(json.dumps(found))
        self.expected, self.points = found["expected"], found["points"]
        self.seconds, self.stages = found["seconds"], found["stages"]
        shutil.rmtree(self.folder / "undisturbed", ignore_errors=True)

    def _undisturbed(self, name: str) -> tuple[list[str], Any, dict[str, Any], dict[str, int], float]:
        config = new_study(self.materials, self.folder / "undisturbed" / name)

        def work() -> Any:
            costs = note_costs() if name == "first" else []
            before = set(sys.modules)
            points, began = Points(None, 2), time.perf_counter()
            points.watch()
            run_study(config)
            seconds = time.perf_counter() - began
            new = [module for module in sys.modules if module not in before]
            return new, costs[0] if costs else None, results_of(config), dict(points.seen), seconds

        return in_child(work, self.log)

    def start(self, config: Any, death: Death | None, after: float | None) -> tuple[str, str | None]:
        """Start a study once. Gives how the process ended (killed, done, failed, hung), and the point it died at.

        after: seconds after which it is killed from outside.
        """
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            _print_into(self.log)
            try:
                Points(death if after is None else None, write).watch()
                run_study(config)
            except BaseException:  # noqa: BLE001 - nothing of this process may go on in a copy of it
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(write)
        ended = self._follow(child, SIGNALS[death.signal] if death and after is not None else None, after)
        with os.fdopen(read) as said:
            point = said.read().strip()
        return ended, point or None

    def _follow(self, child: int, sent: int | None, after: float | None) -> str:
        began = time.monotonic()
        while True:
            pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                time.sleep(0.05)
                os.kill(child, signal.SIGKILL)
            elif pid:
                return "killed" if os.WIFSIGNALED(status) else "done" if os.WEXITSTATUS(status) == 0 else "failed"
            elif sent is not None and after is not None and time.monotonic() - began > after:
                os.kill(child, sent)
                sent = None
            elif time.monotonic() - began > LIMIT_SECONDS:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "hung"
            time.sleep(0.01)

    def study(self, number: int, seed: int, hits: Counter[str]) -> dict[str, Any]:
        """Kill one study again and again, let it finish, and compare.

        Some of the points are chosen, those hit least first; each start dies at whichever it comes to first.
        """
        chance = random.Random(f"{seed}:{number}")
        folder = self.folder / "studies" / f"{number:05d}"
        shutil.rmtree(folder, ignore_errors=True)
        config = new_study(self.materials, folder)
        wanted = self._wanted(chance, hits)
        kills: list[dict[str, Any]] = []
        ended = "killed"
        while ended == "killed" and wanted and len(kills) < MOST_KILLS:
            name = chance.choice(list(SIGNALS))
            after = chance.uniform(0, RANDOM_SECONDS) if chance.random() < AT_RANDOM else None
            ended, died_at = self.start(config, Death(wanted, name), after)
            if ended == "killed":
                point = died_at if died_at and after is None else "random time"
                kills.append({"signal": name, "point": point, "stage": self._stage(folder), "after": after})
                wanted.pop(point, None)
        if ended == "killed":
            ended, _ = self.start(config, None, None)
        loss = f"the study {ended}" if ended != "done" else None
        if loss is None:
            found = in_child(lambda: results_of(config), self.log)
            loss = json.dumps(differences(self.expected, found)) if found != self.expected else None
        if loss is None:
            shutil.rmtree(folder)
        return {"study": number, "seed": seed, "commit": self.commit, "kills": kills, "loss": loss}

    def _wanted(self, chance: random.Random, hits: Counter[str]) -> dict[str, int]:
        """Points to die at, and at which time of coming by: most of those hit too seldom, else some of all."""
        rare = [point for point in self.points if hits[point] < ENOUGH]
        chosen = [point for point in rare if not hits[point] or chance.random() < POINTS_OF_A_STUDY]
        chosen = chosen or [point for point in self.points if chance.random() < POINTS_OF_A_STUDY]
        return {point: chance.randint(1, min(2, self.points[point])) if hits[point] else 1 for point in chosen}

    def _stage(self, folder: Path) -> str:
        """The stage that a study is in: the first whose manifest is missing."""
        there = {file.stem for file in folder.glob("revisions/*/manifests/*.json")}
        return next((stage for stage in self.stages if stage not in there), "after all")


def differences(expected: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What is not as expected."""
    return {key: [expected[key], found[key]] for key in expected if expected[key] != found[key]}


def summary(records: list[dict[str, Any]], points: dict[str, int], seconds: float) -> dict[str, Any]:
    """The campaign's record: how many kills by signal and by point, how many losses, and what that bounds."""
    kills = [kill for record in records for kill in record["kills"]]
    losses = [record for record in records if record["loss"]]
    by_point = Counter(kill["point"] for kill in kills)
    return {
        "kills": len(kills),
        "studies": len(records),
        "losses": len(losses),
        "lost_studies": [{key: loss[key] for key in ("study", "seed", "loss")} for loss in losses],
        "loss_per_kill_below_at_95_percent": bound(len(losses), len(kills)),
        "by_signal": dict(sorted(Counter(kill["signal"] for kill in kills).items())),
        "by_point": {name: by_point[name] for name in [*points, "random time"]},
        "least_hit_point": min((by_point[name] for name in points), default=0),
        "by_commit": {
            commit: {
                "kills": sum(len(one["kills"]) for one in found),
                "losses": sum(one["loss"] is not None for one in found),
            }
            for commit, found in _by_commit(records).items()
        },
        "by_stage": dict(sorted(Counter(kill["stage"] for kill in kills).items())),
        "seconds_of_an_undisturbed_study": round(seconds, 1),
        "seeds": sorted({record["seed"] for record in records}),
    }


def _by_commit(records: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault(record.get("commit", "not noted"), []).append(record)
    return found


def bound(losses: int, kills: int) -> float | None:
    """Upper end of the exact one-sided 95% interval (Clopper-Pearson) of a rate; without losses about 3 / kills."""
    return float(beta.ppf(0.95, losses + 1, kills - losses)) if kills > losses else None


def main() -> None:
    """Run, or go on with, a campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("kill-campaign"), help="where studies and the record lie")
    parser.add_argument("--minutes", type=float, help="end after so long; the same command goes on from there")
    parser.add_argument("--output", type=Path, default=RESULT)
    asked = parser.parse_args()
    campaign = Campaign(asked.folder.resolve())
    campaign.prepare()
    print(f"{len(campaign.points)} points; an undisturbed study takes {campaign.seconds:.1f} s", flush=True)
    record_file = campaign.folder / "record.jsonl"
    lines = record_file.read_text().splitlines() if record_file.is_file() else []
    records = [json.loads(line) for line in lines]
    end = time.monotonic() + 60 * asked.minutes if asked.minutes else float("inf")
    while sum(len(record["kills"]) for record in records) < asked.kills and time.monotonic() < end:
        hits = Counter(kill["point"] for record in records for kill in record["kills"])
        began = time.monotonic()
        records.append(campaign.study(len(records), asked.seed, hits))
        with record_file.open("a") as file:
            file.write(json.dumps(records[-1]) + "\n")
        last = records[-1]
        took, used = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"study {last['study']}: {len(last['kills'])} kills in {took:.0f} s, loss: {last['loss']} "
            f"({used.ru_utime + used.ru_stime:.0f} s of a processor until now)",
            flush=True,
        )
        asked.output.write_text(json.dumps(summary(records, campaign.points, campaign.seconds), indent=2) + "\n")
    print(json.dumps(summary(records, campaign.points, campaign.seconds), indent=2))


if __name__ == "__main__":
    main()

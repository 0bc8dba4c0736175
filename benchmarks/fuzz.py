"""Feed damaged and nonsensical input to everything that reads what users or disks may have spoilt.

    python benchmarks/fuzz.py --inputs 20000

A reader may take an input or refuse it by a ValueError, which the command line shows as one message with exit code 2.
Anything else (another exception, or more than ten seconds of processor time) is a finding, and is recorded with its
input. Counts add up over calls: each call goes on after the inputs that were tried before.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

RESULT = Path(__file__).parent / "results" / "fuzz.json"
MADE_BEFORE = Path(__file__).parents[1] / "tests" / "tasks" / "study" / "made_before"
BASELINE = Path(__file__).parents[1] / "tasks" / "settings" / "presets" / "baselines" / "dora.yaml"
AT_ONCE, SECONDS = 500, 10

ODD_TEXT = ("", " ", "\0", "\ud800", "𝕏", "../x", "/etc/passwd", "<image>", "1e999", "nan", "null", "\n")
ODD_NUMBERS = (
    0,
    1,
    -1,
    2**31,
    2**53 + 1,
    -(2**63),
    2**64,
    0.0,
    -0.0,
    0.5,
    1e-320,
    1e308,
    math.inf,
    -math.inf,
    math.nan,
)

Chance = random.Random
Inputs = Callable[[Chance], bytes]
"""Makes an input: of seeded chance alone, without a library's search for it, which takes longer than most readers."""


def text(chance: Chance, most: int) -> str:
    """A short text, of letters as a rule."""
    last = chance.choice((0x7F, 0x7F, 0x2FF, 0x1FFFF))
    return "".join(chr(chance.randint(0, last)) for _ in range(chance.randint(0, most)))


def scalar(chance: Chance) -> Any:
    """A value that holds no others."""
    return chance.choice((
        lambda: None, lambda: chance.random() < 0.5, lambda: chance.randint(-(2**70), 2**70),
        lambda: chance.randint(-3, 20), lambda: chance.choice(ODD_NUMBERS), lambda: chance.uniform(-10, 10),
        lambda: text(chance, 12), lambda: chance.choice(ODD_TEXT),
    ))()  # fmt: skip


def anything(chance: Chance, depth: int = 2) -> Any:
    """A value, nested or not."""
    kind = chance.randint(0, 3) if depth else 0
    if kind == 2:
        return [anything(chance, depth - 1) for _ in range(chance.randint(0, 3))]
    if kind == 3:
        return {text(chance, 6): anything(chance, depth - 1) for _ in range(chance.randint(0, 3))}
    return scalar(chance)


def one_of(*ways: Inputs) -> Inputs:
    """Inputs made in one of these ways."""
    return lambda chance: chance.choice(ways)(chance)


@dataclass(frozen=True)
class Reader:
    """Something that reads. inputs: what it is given, as bytes. read: how, from a file."""

    inputs: Inputs
    read: Callable[[Path], Any]
    name: str = "input"


@dataclass
class Count:
    """What came of a reader's inputs."""

    inputs: int = 0
    taken: int = 0
    refused: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)


def changed(chance: Chance, value: Any) -> Any:
    """A nested value in which something is another, is missing or has come in."""
    value = json.loads(json.dumps(value))
    for _ in range(chance.randint(0, 3)):
        places = list(_places(value))
        if not places:
            break
        container, key = chance.choice(places)
        what = chance.choice(["other", "gone", "more", "twice"])
        if what == "other":
            container[key] = anything(chance)
        elif what == "gone":
            del container[key]
        elif what == "more" and isinstance(container, dict):
            container[text(chance, 8)] = anything(chance)
        elif isinstance(container, list):
            container.append(container[key])
    return value


def _places(value: Any) -> Any:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)


def damage(chance: Chance, data: bytes) -> bytes:
    """Bytes of which some are others, some are missing, or some have come in."""
    spoilt = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randint(0, max(0, len(spoilt) - 1))
        match chance.choice(["flip", "byte", "cut", "drop", "insert"]):
            case "flip" if spoilt:
                spoilt[place] ^= 1 << chance.randint(0, 7)
            case "byte" if spoilt:
                spoilt[place] = chance.randint(0, 255)
            case "cut":
                del spoilt[place:]
            case "drop":
                del spoilt[place : place + chance.randint(1, 16)]
            case "insert":
                spoilt[place:place] = chance.randbytes(chance.randint(0, 8))
    return bytes(spoilt)


def damaged(data: bytes) -> Inputs:
    """Damaged copies of a file."""
    return lambda chance: damage(chance, data)


def as_json(value: Any) -> bytes:
    """JSON as Python writes it, NaN and lone surrogates too."""
    return json.dumps(value).encode()


def written(value: Any, write: Callable[[Any], bytes]) -> Inputs:
    """The text of a value, changed in its structure, or in its bytes, or that of something else."""
    return one_of(
        lambda chance: write(changed(chance, value)), damaged(write(value)), lambda chance: write(anything(chance))
    )


def json_of(value: Any) -> Inputs:
    """JSON texts that may be like that of a value."""
    return written(value, as_json)


def yaml_of(value: Any) -> Inputs:
    """The same as YAML."""
    return written(value, lambda one: yaml.safe_dump(one, allow_unicode=False).encode("utf-8", "replace"))


def table_bytes(kind: str, columns: dict[str, list[Any]]) -> bytes:
    """A table as CSV or Parquet."""
    import io

    import pandas as pd

    buffer = io.BytesIO()
    table = pd.DataFrame(columns)
    table.to_csv(buffer, index=False) if kind == "csv" else table.to_parquet(buffer)
    return buffer.getvalue()


def table(chance: Chance, kind: str, columns: dict[str, list[Any]]) -> bytes:
    """A table with columns that hold something else, or are missing."""
    columns = {name: list(values) for name, values in columns.items()}
    for _ in range(chance.randint(0, 3)):
        name = chance.choice(sorted(columns)) if columns else "x"
        rows = len(next(iter(columns.values()), []))
        match chance.choice(["cell", "column", "gone", "more"]):
            case "cell" if columns and rows:
                columns[name] = [str(value) for value in columns[name]]
                columns[name][chance.randrange(rows)] = str(scalar(chance)).encode("utf-8", "replace").decode()
            case "column" if columns:
                columns[name] = [float(chance.choice((*ODD_NUMBERS, 3.5))) for _ in range(rows)]
            case "gone":
                columns.pop(name, None)
            case "more":
                columns["".join(chance.choices("abc_0", k=3))] = [chance.randint(-5, 5)] * rows
    return table_bytes(kind, columns)


def tables(kind: str, columns: dict[str, list[Any]]) -> Inputs:
    """Tables with odd columns, and damaged files of tables."""
    return one_of(lambda chance: table(chance, kind, columns), damaged(table_bytes(kind, columns)))


def readers(folder: Path) -> dict[str, Reader]:
    """Every reader by its name."""
    return data_readers(folder) | {
        "study file": Reader(yaml_of(STUDY), _study, "study.yaml"),
        "baseline file": Reader(yaml_of(yaml.safe_load(BASELINE.read_text(encoding="utf-8"))), _baseline, "mine.yaml"),
        "laws fit, CSV": Reader(tables("csv", POINTS), _laws, "points.csv"),
        "laws fit, Parquet": Reader(tables("parquet", POINTS), _laws, "points.parquet"),
        "import, CSV": Reader(tables("csv", RUNS), _imported, "runs.csv"),
        "import, Parquet": Reader(tables("parquet", RUNS), _imported, "runs.parquet"),
        "stored JSON": Reader(one_of(*(stored(name) for name in RECORDS)), _record, "stored.json"),
        "stored Parquet": Reader(damaged(metrics_table()), _metrics, "run.parquet"),
        "state of a pack": Reader(damaged(pack_state(folder)), _state, "state.safetensors"),
    }


STUDY = {
    "study": "runs/demo",
    "model": "org/model",
    "data": {"train": "train.json", "images": "images", "format": "llava_json"},
    "recipe": {"learning_rate": 1e-4, "batch_size": 8, "targets": {"llm": "q_proj"}},
    "calibration": {"ranks": {"me": [8, 16], "llm": [8, 16]}, "seeds": [0], "samples": 1024, "learning_rates": "auto"},
    "search": {"ranks": [8, 16, 32], "objective": "perplexity"},
    "final": {"epochs": 1},
    "upstream": [{"name": "vqa", "data": "vqa.json"}],
    "family": {"me": "model.vision", "projector": ["model.p"], "llm": "model.llm", "unused": ["x.*"]},
}
POINTS = {
    "r_me": [2, 2, 4, 4, 8, 8, 2, 4, 8, 16],
    "r_llm": [2, 4, 2, 4, 2, 4, 8, 8, 8, 16],
    "D": [64, 128, 64, 128, 256, 256, 64, 128, 256, 512],
    "loss": [2.0, 1.9, 1.95, 1.8, 1.7, 1.65, 1.9, 1.75, 1.6, 1.4],
}
RUNS = {
    "r_me": [8, 8, 16, 16],
    "r_llm": [4, 4, 4, 4],
    "step": [8, 16, 8, 16],
    "loss": [2.0, 1.5, 1.9, 1.4],
    "batch_size": [8, 8, 8, 8],
    "lr": [1e-4] * 4,
    "seed": [0] * 4,
}


def _study(path: Path) -> Any:
    from tasks.settings.study import read_study

    return read_study(path)


def _baseline(path: Path) -> Any:
    from tasks.settings.baselines import read_baseline

    return read_baseline(str(path))


def _laws(path: Path) -> Any:
    from flows.cli.laws import read_points
    from mars_core.fitting.table import read_table
    from mars_core.laws import get_law

    return read_table(get_law("performance"), read_points(path), None)


def _imported(path: Path) -> Any:
    from mars_core.importing import Sizes, read_runs, rename_columns
    from tasks.importing.runs import _table

    return read_runs(rename_columns(_table(path), {}), Sizes(8), skip_bad=False)


RECORDS = {"laws": "laws", "choice": "choice", "standing": "standing", "levels": "levels", "data": "data"}


def stored(name: str) -> Inputs:
    """A record of a study as it is stored, changed; its kind stands before it."""
    value = json.loads((MADE_BEFORE / f"{name}.json").read_text(encoding="utf-8"))
    inputs = json_of(value["levels"] if name == "levels" else value)
    return lambda chance: name.encode() + b"\n" + inputs(chance)


def _record(path: Path) -> Any:
    from mars_core.convergence import LossLevels
    from mars_core.drift import DataSnapshot
    from mars_core.search import Choice
    from mars_core.search.fitted_laws import FittedLaws
    from tasks.nightly.champion import Champion
    from tasks.storage.files import read_json

    kinds: dict[bytes, Any] = {
        b"laws": FittedLaws, b"choice": Choice, b"standing": Champion, b"levels": LossLevels, b"data": DataSnapshot,
    }  # fmt: skip
    name, _, data = path.read_bytes().partition(b"\n")
    path.write_bytes(data)
    return kinds[name].from_json(read_json(path))


def metrics_table() -> bytes:
    """Checkpoint metrics of one run as Parquet."""
    import io

    import pandas as pd
    import pyarrow.parquet as pq

    from mars_core.metrics.schema import SCHEMA, SCHEMA_VERSION, to_table

    row: dict[str, Any] = {field.name: 1 if str(field.type).startswith("int") else 0.5 for field in SCHEMA}
    row |= {field.name: "x" for field in SCHEMA if str(field.type) == "string"}
    row |= {"schema_version": SCHEMA_VERSION, "objective": "perplexity", "val_objective": float("nan")}
    row |= {"val_loss": 0.0, "val_perplexity": 1.0, "samples_seen": 8, "unique_samples": 8}
    rows = pd.DataFrame([row | {"step": step} for step in (1, 2, 4)], columns=SCHEMA.names)
    buffer = io.BytesIO()
    pq.write_table(to_table(rows), buffer)
    return buffer.getvalue()


def _metrics(path: Path) -> Any:
    from tasks.calibration.stored import read_metrics

    return read_metrics(path)


def pack_state(folder: Path) -> bytes:
    """The state of a small pack."""
    import torch

    from mars_core.packing.state import PackState
    from tasks.calibration.state import write_state

    tensors = {"0.weights": torch.arange(5.0), "0.generator": torch.Generator().get_state()[:64]}
    write_state(folder, PackState(2, (2, 4), 1.0, tensors, [{"pair": [2, 2]}]))
    return (folder / "state.safetensors").read_bytes()


def _state(path: Path) -> Any:
    from tasks.calibration.state import read_state

    return read_state(path.parent, (2, 4))


def data_readers(folder: Path) -> dict[str, Reader]:
    """Readers of datasets and of images."""
    from PIL import Image

    (folder / "images").mkdir()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(folder / "images" / "a.png")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(folder / "a.jpg")
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a cat"}]
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "a cat"}]
    rows = {
        "llava_json": [{"id": "1", "image": "a.png", "conversations": talk}],
        "sharegpt": [{"conversations": talk, "images": ["a.png"]}],
        "messages": [{"messages": turns, "images": ["a.png"]}],
    }
    of_json = {
        f"data, {name}": Reader(_json_or_lines(value), _dataset(name, folder / "images"), "train.json")
        for name, value in rows.items()
    }
    columns = {"question": ["What?", "Who?"], "answer": ["a", "b"], "id": [1, 2]}
    nested = {"messages": [turns[:2], turns[:2]], "images": [["a.png"], ["a.png"]]}
    return of_json | {
        "data, Parquet": Reader(
            one_of(tables("parquet", columns), damaged(table_bytes("parquet", nested))),
            _dataset("parquet", folder / "images"),
            "train.parquet",
        ),
        "data, datasets": Reader(damaged(_arrow(nested)), _arrow_dataset(folder / "images"), "data-0.arrow"),
        "data, ScienceQA": Reader(json_of(SCIENCE), _science(folder / "images"), "problems.json"),
        "image, PNG": Reader(damaged((folder / "images" / "a.png").read_bytes()), _image, "a.png"),
        "image, JPEG": Reader(damaged((folder / "a.jpg").read_bytes()), _image, "a.jpg"),
    }


SCIENCE = {
    "1": {
        "question": "Which?", "choices": ["a", "b"], "answer": 0, "hint": "", "image": "image.png", "task": "closed",
        "grade": "grade2", "subject": "natural science", "topic": "x", "category": "x", "skill": "x", "lecture": "",
        "solution": "", "split": "train",
    }
}  # fmt: skip


def _json_or_lines(rows: list[Any]) -> Inputs:
    return one_of(json_of(rows), lambda chance: b"\n".join(map(as_json, changed(chance, rows))))


def _all(name: str | None, place: Path, images: Path) -> int:
    from mars_core.data.readers import read_rows

    return sum(1 for _ in read_rows(place, images, name))


def _dataset(name: str, images: Path) -> Callable[[Path], Any]:
    return lambda path: _all(name, path, images)


def _arrow(columns: dict[str, list[Any]]) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    made = pa.table(columns)
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made)
    return bytes(sink.getvalue())


def _arrow_dataset(images: Path) -> Callable[[Path], Any]:
    def read(path: Path) -> int:
        (path.parent / "dataset_info.json").write_text("{}")
        state = {"_data_files": [{"filename": path.name}], "_split": None}
        (path.parent / "state.json").write_text(json.dumps(state))
        return _all("datasets", path.parent, images)

    return read


def _science(images: Path) -> Callable[[Path], Any]:
    def read(path: Path) -> int:
        (path.parent / "pid_splits.json").write_text(json.dumps({"train": ["1"], "val": [], "test": []}))
        return _all("scienceqa", path.parent, images)

    return read


def _image(path: Path) -> Any:
    from mars_core.data.images import image_size, load_image
    from mars_core.data.records import PathImage

    image_size(PathImage(path.name, path.parent))
    return load_image(PathImage(path.name, path.parent))


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def try_input(reader: Reader, data: bytes, seconds: float = SECONDS) -> str:
    """What a reader does with an input: taken, refused, or the end of a traceback."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder) / reader.name
        path.write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # of processor time
        try:
            reader.read(path)
        except ValueError:
            return "refused"
        except BaseException:  # noqa: BLE001 - these are what is looked for
            return traceback.format_exc(limit=-4)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return "taken"


def fuzz(reader: Reader, name: str, count: Count, most: int, end: float) -> None:
    """Try inputs until a reader has had so many in all; each one's number decides what it is."""
    while count.inputs < most and time.monotonic() < end:
        data = reader.inputs(random.Random(f"{name} {count.inputs}"))
        came = try_input(reader, data)
        count.inputs += 1
        count.taken += came == "taken"
        count.refused += came == "refused"
        if came not in ("taken", "refused"):
            known = [finding["ends"] for finding in count.findings]
            ends = re.sub(r"[\w/]*/tmp\w+/|\d+", "", came.strip().splitlines()[-1])[:200]
            where = came.strip().splitlines()[-3].strip()[:200] if came.count("\n") > 3 else ""
            if (where, ends) not in [tuple(one) for one in known]:
                count.findings.append({"ends": [where, ends], "input": data[:2000].hex(), "traceback": came})


def main() -> None:
    """Try inputs until each reader has had as many as asked for, or time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000, help="of each reader, over all calls")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--reader", action="append", help="one of the readers; may be given again")
    parser.add_argument("--output", type=Path, default=RESULT)
    asked = parser.parse_args()
    signal.signal(signal.SIGPROF, _too_long)
    counts = {name: Count(**one) for name, one in _before(asked.output).items()}
    with tempfile.TemporaryDirectory() as scratch:
        known = readers(Path(scratch))
        names = asked.reader or list(known)
        for name in names:
            try_input(known[name], b"", seconds=600)  # it imports what it needs
        end = time.monotonic() + 60 * asked.minutes
        while left := [name for name in names if counts.setdefault(name, Count()).inputs < asked.inputs]:
            if time.monotonic() > end:
                break
            name = min(left, key=lambda one: counts[one].inputs)
            fuzz(known[name], name, counts[name], min(counts[name].inputs + AT_ONCE, asked.inputs), end)
            asked.output.write_text(json.dumps({name: vars(one) for name, one in counts.items()}, indent=2) + "\n")
    for name, one in counts.items():
        print(f"{name}: {one.inputs} inputs, {one.taken} taken, {one.refused} refused, {len(one.findings)} findings")


def _before(output: Path) -> dict[str, Any]:
    return json.loads(output.read_text()) if output.is_file() else {}


if __name__ == "__main__":
    main()

"""Build the demo's data set: pictures and LLaVA-style JSON, the same form that users' own data take."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mars_core.demo.drawings import DRAWING_COLOURS, Drawing, load_drawings, openmoji_attribution, openmoji_version
from mars_core.demo.questions import TASKS, sample_turns
from mars_core.demo.scenes import by_colour, render_scene, sample_scene

SPLITS: tuple[str, ...] = ("train", "validation", "test")
_SPLIT_SHARES = (0.70, 0.12, 0.18)  # of the drawings, per main colour
_FORMAT_VERSION = 4  # raise when the same arguments would give other data
_MANIFEST = "manifest.json"

Progress = Callable[[int, int], None]
"""Called with (samples written, samples in all)."""


@dataclass(frozen=True)
class DemoData:
    """Where the built data lie: one JSON file per split and the folder their image paths are relative to."""

    folder: Path

    @property
    def train(self) -> Path:
        """Training samples."""
        return self.folder / "train.json"

    @property
    def validation(self) -> Path:
        """Calibration validation samples; their drawings stand in no other split."""
        return self.folder / "validation.json"

    @property
    def test(self) -> Path:
        """Test samples; their drawings stand in no other split."""
        return self.folder / "test.json"

    @property
    def images(self) -> Path:
        """Folder of the PNG pictures."""
        return self.folder / "images"


@dataclass(frozen=True)
class _Key:
    """Everything the data depend on."""

    n_train: int
    n_validation: int
    n_test: int
    seed: int
    openmoji: str
    format_version: int = _FORMAT_VERSION

    def size(self, split: str) -> int:
        return {"train": self.n_train, "validation": self.n_validation, "test": self.n_test}[split]

    @property
    def total(self) -> int:
        return sum(self.size(split) for split in SPLITS)


def build_demo_data(
    folder: Path,
    *,
    n_train: int = 8192,
    n_validation: int = 256,
    n_test: int = 512,
    seed: int = 0,
    progress: Progress | None = None,
) -> DemoData:
    """Build the demo data in `folder`, or return at once when the same data are already there.

    The result is the same byte for byte for the same arguments and package versions. It is written beside
    `folder` first and then moved into place, so that an interrupted build leaves nothing behind that looks done.

    Raises:
        ValueError: a split would be empty, or `folder` holds something that this function did not write.
    """
    key = _Key(n_train, n_validation, n_test, seed, openmoji_version())
    _check(folder, key)
    if _manifest(folder) != asdict(key):
        _build(folder, key, progress)
    return DemoData(folder)


def is_asked_about(drawing: Drawing) -> bool:
    """Whether the demo shows this drawing: it has a kind and one of the main colours."""
    return drawing.kind is not None and drawing.colour in DRAWING_COLOURS


def split_drawings(drawings: Sequence[Drawing], seed: int) -> dict[str, list[Drawing]]:
    """Share the drawings out to the splits, colour by colour, so that no drawing stands in two of them.

    Every colour stands in every split; drawings that the demo does not ask about are left out.
    """
    usable = [drawing for drawing in drawings if is_asked_about(drawing)]
    shared: dict[str, list[Drawing]] = defaultdict(list)
    for colour, group in by_colour(usable).items():
        order = sorted(group, key=lambda drawing: drawing.code)
        random.Random(f"drawings-{seed}-{colour}").shuffle(order)
        for split, part in zip(SPLITS, _cut(order), strict=True):
            shared[split] += part
    return dict(shared)


def _cut(order: list[Drawing]) -> tuple[list[Drawing], list[Drawing], list[Drawing]]:
    n_validation = max(1, round(_SPLIT_SHARES[1] * len(order)))
    n_test = max(1, round(_SPLIT_SHARES[2] * len(order)))
    held_out = n_validation + n_test
    return order[held_out:], order[:n_validation], order[n_validation:held_out]


def _check(folder: Path, key: _Key) -> None:
    for split in SPLITS:
        if key.size(split) < 1:
            raise ValueError(f"n_{split} must be at least 1, got {key.size(split)}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder for the demo data")
    if folder.is_dir() and any(folder.iterdir()) and _manifest(folder) is None:
        raise ValueError(f"{folder} holds other files; give an empty or new folder for the demo data")


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The key of the data in `folder`, or None when there are none."""
    path = folder / _MANIFEST
    if not path.is_file():
        return None
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def _build(folder: Path, key: _Key, progress: Progress | None) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        new = Path(temporary) / "data"
        _write(DemoData(new), key, progress)
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)


def _write(data: DemoData, key: _Key, progress: Progress | None) -> None:
    data.images.mkdir(parents=True)
    drawings = split_drawings(load_drawings(with_kind_only=True), key.seed)
    seen: set[bytes] = set()
    done = 0
    for split in SPLITS:
        records = []
        source = _Source(split, by_colour(drawings[split]), random.Random(f"{split}-{key.seed}"), seen)
        for index in range(key.size(split)):
            record, picture = source.sample(index)
            picture.save(data.folder / "images" / record["image"], format="PNG")
            records.append(record)
            done += 1
            if progress is not None:
                progress(done, key.total)
        write_records(data.folder / f"{split}.json", records)
    (data.folder / "ATTRIBUTION.md").write_text(_attribution(), encoding="utf-8")
    write_records(data.folder / _MANIFEST, asdict(key))


@dataclass(frozen=True)
class _Source:
    """Samples of one split. seen: digests of all pictures so far, over all splits."""

    split: str
    groups: dict[str, list[Drawing]]
    rng: random.Random
    seen: set[bytes]

    def sample(self, index: int) -> tuple[dict[str, Any], Image.Image]:
        """One LLaVA-style record and its picture, which equals no picture before."""
        task = self.rng.choices([name for name, _ in TASKS], [share for _, share in TASKS])[0]
        while True:
            scene = sample_scene(self.groups, self.rng)
            picture = render_scene(scene)
            digest = hashlib.sha256(picture.tobytes()).digest()
            if digest not in self.seen:
                break
        self.seen.add(digest)
        return llava_record(f"{self.split}-{index:05d}", task, sample_turns(task, scene, self.rng)), picture


def llava_record(name: str, task: str, turns: list[tuple[str, str]]) -> dict[str, Any]:
    """A LLaVA-style record of one picture, NAME.png, and its (prompt, answer) turns."""
    conversations = []
    for number, (prompt, answer) in enumerate(turns):
        value = f"<image>\n{prompt}" if number == 0 else prompt
        conversations += [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": f"{name}.png", "task": task, "conversations": conversations}


def write_records(path: Path, content: object) -> None:
    """Write what a data set holds so that equal content gives equal bytes."""
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _attribution() -> str:
    return (
        "# Attribution\n\n"
        f"{openmoji_attribution()}\n\n"
        f"The pictures in this folder are composed of OpenMoji drawings (version {openmoji_version()}, "
        "https://openmoji.org), scaled and placed on coloured grounds. As adapted material they are licensed under\n"
        "the Creative Commons Attribution-ShareAlike 4.0 International licence (CC BY-SA 4.0),\n"
        "https://creativecommons.org/licenses/by-sa/4.0/. If you share them or pictures made from them, name\n"
        "OpenMoji, link the licence, say what you changed, and use the same licence.\n\n"
        "The names of the drawings are Unicode's, taken from the Python package `emoji`.\n"
    )

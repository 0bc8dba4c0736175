"""Train the blocks of RankBench that are missing, until they are done or the time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mars_core import __version__
from mars_core.rankbench.backbones import load_backbone, make_backbone, weights_digest
from mars_core.rankbench.blocks import Block
from mars_core.rankbench.cells import Backbone, Cell
from mars_core.rankbench.data import load_task, write_task
from mars_core.rankbench.rates import best_rates
from mars_core.rankbench.train import Bench, train_block
from mars_core.ranks import RankPair
from tasks.bench.store import Made, made_of, missing_blocks, path_of, read_block, write_block
from tasks.storage.files import replacing_folder

Say = Callable[[str], object]


def run_bench(folder: Path, cells: Sequence[Cell], minutes: float, say: Say, device: str = "cpu") -> int:
    """Train missing blocks of the cells and give their number: of all cells what replay needs first, then the rest.

    Args:
        minutes: after which no further block is begun.

    Raises:
        ValueError: stored blocks of a cell were made with another backbone or other data.
    """
    ends, done = time.monotonic() + 60 * minutes, 0
    for needed in (True, False):
        for cell in cells:
            blocks = [block for block in missing_blocks(folder, (cell,)) if block.needed is needed]
            if blocks and time.monotonic() < ends:
                done += _run_blocks(folder, cell, blocks, ends, say, device)
    return done


def _run_blocks(folder: Path, cell: Cell, blocks: Sequence[Block], ends: float, say: Say, device: str) -> int:
    with TemporaryDirectory(prefix="rankbench-") as temporary:
        bench, made = _prepared(folder, cell, Path(temporary), device)
        for done, block in enumerate(blocks):
            if time.monotonic() >= ends:
                say(f"the time is up, {len(blocks) - done} blocks of {cell.name} stay to be trained")
                return done
            _require_same(folder, block, made)
            say(f"{cell.name} {block.name}: {_train(folder, bench, block, made):.0f} s")
    return len(blocks)


def backbone_folder(folder: Path, name: Backbone) -> Path:
    """Where a backbone lies."""
    return folder / "backbones" / name


def _prepared(folder: Path, cell: Cell, temporary: Path, device: str) -> tuple[Bench, Made]:
    backbone = backbone_folder(folder, cell.backbone)
    if not backbone.exists():
        with replacing_folder(backbone) as new:
            make_backbone(cell.backbone, new, lambda part, step, steps, loss: None)
    base = load_backbone(backbone, device)
    write_task(temporary, cell.task)
    data = load_task(temporary, base.processor)
    versions = {"mars": __version__, "torch": torch.__version__}
    threads = torch.get_num_threads()
    return Bench(base, data), Made(
        weights_digest(backbone), data.digest, **versions, seconds=0.0, threads=threads, date=""
    )


def _require_same(folder: Path, block: Block, made: Made) -> None:
    """Insist that what is stored of the cell was made from the same backbone and data."""
    for path in sorted(path_of(folder, block).parent.glob("*.parquet")):
        kind, rule, seed = path.stem.split("-")
        stored = made_of(folder, Block(block.cell, kind, rule, int(seed.removeprefix("seed"))))  # type: ignore[arg-type]
        if (stored.backbone, stored.data) != (made.backbone, made.data):
            raise ValueError(
                f"{path} was made with backbone {stored.backbone} and data {stored.data}, here they are "
                f"{made.backbone} and {made.data}: use the package versions of then, or another folder"
            )


def _train(folder: Path, bench: Bench, block: Block, made: Made) -> float:
    started = time.perf_counter()
    rows = train_block(bench, block, _best(folder, block))
    seconds = time.perf_counter() - started
    date = datetime.now(UTC).date().isoformat()
    write_block(folder, block, rows, replace(made, seconds=round(seconds, 1), date=date))
    return seconds


def _best(folder: Path, block: Block) -> dict[RankPair, float]:
    """Best rates for the runs that judge, by the cell's runs at several rates of the same alpha rule."""
    if block.kind != "judge":
        return {}
    own = [Block(block.cell, "rates", block.rule, 0), Block(block.cell, "calibration", block.rule, 0)]
    source = next(one for one in own if path_of(folder, one).exists())
    return best_rates(read_block(folder, source), block.cell)

"""How long a quiet night takes to read and hash a dataset: random picture files, from the page cache.

python benchmarks/quiet_night.py --images 4000 --kilobytes 100
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from tasks.config import DataConfig
from tasks.data import load_data

RESULT = Path(__file__).parent / "results" / "quiet_night.json"


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--kilobytes", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder), options.images, options.kilobytes * 1000)
        started = time.perf_counter()
        load_data(data)
        seconds = time.perf_counter() - started
    megabytes = options.images * options.kilobytes / 1000
    result = {
        "images": options.images,
        "megabytes": megabytes,
        "cores": os.cpu_count(),
        "seconds": round(seconds, 2),
        "megabytes_per_second": round(megabytes / seconds),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def write_data(folder: Path, images: int, size: int) -> DataConfig:
    """A dataset of files that hold random bytes: nothing decodes them."""
    rows = []
    for number in range(images):
        (folder / f"{number}.jpg").write_bytes(os.urandom(size))
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"Number {number}."}]
        rows.append({"id": str(number), "image": f"{number}.jpg", "conversations": turns})
    (folder / "train.json").write_text(json.dumps(rows))
    return DataConfig(train=str(folder / "train.json"))


if __name__ == "__main__":
    main()

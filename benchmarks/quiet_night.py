"""How long a quiet night takes to read and hash a dataset: pictures of noise, from the page cache.

python benchmarks/quiet_night.py --images 4000 --kilobytes 100
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.inputs.data import load_data
from tasks.settings.data import DataConfig

RESULT = Path(__file__).parent / "results" / "quiet_night.json"


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--kilobytes", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MARS_CACHE"] = str(Path(folder) / "cache")
        data = write_data(Path(folder), options.images, options.kilobytes * 1000)
        load_data(data)  # the first night decodes every picture
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
    """A dataset of uncompressed pictures of about `size` bytes each, no two alike."""
    side, random, rows = round((size / 3) ** 0.5), np.random.default_rng(0), []
    for number in range(images):
        pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.bmp")
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"Number {number}."}]
        rows.append({"id": str(number), "image": f"{number}.bmp", "conversations": turns})
    (folder / "train.json").write_text(json.dumps(rows))
    return DataConfig(train=str(folder / "train.json"))


if __name__ == "__main__":
    main()

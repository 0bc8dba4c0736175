"""Memory and time to read a LLaVA JSON of 158,000 rows, and to look at its text, against `json.load`.

Run: python benchmarks/read_large_json.py [--rows 158000] > benchmarks/results/read-large-json.json
Each way runs in a process of its own; its peak memory less that of the bare imports is what it takes.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mars_core.data.hashing import data_hash
from mars_core.data.readers import read_rows, read_samples

WORDS = ["the", "a", "dog", "bus", "street", "red", "white", "left", "upper", "corner", "picture", "because"]


def write_rows(path: Path, rows: int) -> None:
    """Write rows of the size and form of LLaVA-Instruct-158K (about 1.5 kB, up to four exchanges)."""
    random.seed(0)

    def text(words: int) -> str:
        return " ".join(random.choices(WORDS, k=words))

    with path.open("w", encoding="utf-8") as stream:
        stream.write("[")
        for row in range(rows):
            talk = []
            for exchange in range(random.choice([1, 1, 4])):
                marker = "" if exchange else "<image>\n"
                talk += [{"from": "human", "value": marker + text(12)}, {"from": "gpt", "value": text(110)}]
            record = {"id": f"{row:012d}", "image": f"coco/train2017/{row:012d}.jpg", "conversations": talk}
            stream.write(("," if row else "") + "\n" + json.dumps(record))
        stream.write("\n]\n")


def _keep_samples(path: Path) -> int:
    return len(read_samples(path, format="llava_json"))


def _pass_over_rows(path: Path) -> int:
    return sum(1 for _ in read_rows(path, format="llava_json"))


def _hash_all_text(path: Path) -> int:
    samples = read_samples(path, format="llava_json")
    data_hash(samples, {image: "" for sample in samples for image in sample.images})
    return len(samples)


def _json_load(path: Path) -> int:
    return len(json.loads(path.read_text(encoding="utf-8")))


WAYS: dict[str, Callable[[Path], int]] = {
    "imports alone": lambda path: 0,
    "pass over the rows": _pass_over_rows,
    "keep all samples": _keep_samples,
    "keep all samples, then read all text again": _hash_all_text,
    "json.load": _json_load,
}


def measure(way: str, path: Path) -> dict[str, Any]:
    """Run one way here; its peak memory is the process's."""
    begin = time.perf_counter()
    rows = WAYS[way](path)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"way": way, "rows": rows, "seconds": round(seconds, 2), "peak_rss_MiB": round(peak)}


def main() -> None:
    """Write the file, run every way, print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=158_000)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--file", type=Path)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "llava.json"
        write_rows(path, options.rows)
        command = [sys.executable, __file__, "--file", str(path), "--way"]
        results = [json.loads(subprocess.check_output([*command, way])) for way in WAYS]
        print(json.dumps({"file_MiB": round(path.stat().st_size / 2**20), "results": results}, indent=2))


if __name__ == "__main__":
    main()

"""A study in an S3-compatible store on loopback: killed on one machine, gone on with on another."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from tests.flows.conftest import write_small_study

pytestmark = pytest.mark.stack

BUCKET = "mars-bucket"
STUDY = f"s3://{BUCKET}/team/small"
REVISION = f"{BUCKET}/team/small/revisions/001"
MARS = Path(sys.executable).with_name("mars")
LIMIT_SECONDS = 1800


@dataclass(frozen=True)
class Server:
    """A running moto server: how machines reach it, and the test's own look into its bucket."""

    environment: dict[str, str]
    filesystem: Any

    def objects(self, folder: str = BUCKET) -> dict[str, tuple[str, Any]]:
        """ETag and time of writing of every object."""
        self.filesystem.invalidate_cache()
        found = self.filesystem.find(folder, detail=True)
        return {name: (info["ETag"], info["LastModified"]) for name, info in found.items()}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    s3fs = pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (tmp_path / "moto.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: is_listening(port), process, tmp_path / "moto.log", limit=120)
        filesystem = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=address, use_listings_cache=False)
        filesystem.mkdir(BUCKET)
        yield Server(keys | {"FSSPEC_S3_ENDPOINT_URL": address}, filesystem)
    finally:
        process.terminate()
        process.wait()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, process: subprocess.Popen, log: Path, limit: float = LIMIT_SECONDS) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


class Machine:
    """A machine of its own: its cache, its Prefect home, nothing shared but the store."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.cache, self.log = folder / "cache", folder / "log.txt"
        folder.mkdir()
        own = {"MARS_CACHE": str(self.cache), "PREFECT_HOME": str(folder / "prefect")}
        shared = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        self.environment = shared | server.environment | own

    def start(self, *command: str) -> subprocess.Popen:
        with self.log.open("w") as log:
            return subprocess.Popen(
                [MARS, *command], env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def run(self, *command: str) -> str:
        process = self.start(*command)
        output, _ = process.communicate(timeout=LIMIT_SECONDS)
        assert process.returncode == 0, self.log.read_text()
        return output


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to a command and to the servers it started."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in family:
        child.kill()
    process.communicate()


def test_a_study_killed_on_one_machine_is_finished_by_another(server, demo_data, tmp_path):
    server.filesystem.put(str(demo_data), f"{BUCKET}/data", recursive=True)
    study = write_study_at_urls(tmp_path, demo_data)
    first, second = Machine(tmp_path / "first", server), Machine(tmp_path / "second", server)

    process = first.start("run", str(study))
    wait_for(lambda: len(trained(server)) >= 1, process, first.log)
    kill(process)
    before = server.objects(f"{REVISION}/calibration")
    assert f"{REVISION}/manifests/calibrate.json" not in server.objects()

    output = second.run("run", STUDY, "--json")
    summary = json.loads(output[output.index("{") :])
    assert summary["report"] == f"s3://{REVISION}/report.html"
    assert summary["adapter"].startswith(f"s3://{REVISION}/final/")
    after = server.objects()
    runs = {name: after[name] for name in before if name.removesuffix(".json") + ".parquet" in before}
    assert runs
    assert runs == {name: before[name] for name in runs}  # what the first machine trained was not trained again
    assert f"{REVISION}/report.html" in after
    assert not [name for name in after if re.search(r"\.db|sqlite|mlartifacts|/cache/|checkpoints-", name)]
    assert list(second.cache.rglob("mlflow.db"))
    check_manifests(server)
    check_adapter(server, summary["adapter"], tmp_path / "adapter")

    first.run("run", str(study))
    said = first.log.read_text()
    stages = [name for name in after if "/manifests/" in name and "/card-" not in name]  # cards are kept silently
    assert len(re.findall("already done", said)) == len(stages)
    assert server.objects(REVISION) == {name: entry for name, entry in after.items() if name.startswith(REVISION)}
    check_cleaning(server, second)


def check_cleaning(server: Server, machine: Machine) -> None:
    """Of three revisions, the newest and the one of the champion are kept."""
    folder = REVISION.rpartition("/")[0]
    for number in ("002", "003"):
        server.filesystem.copy(REVISION, f"{folder}/{number}", recursive=True)
        # Without the final run, which is the registered champion: a revision that holds that one is kept.
        server.filesystem.rm(f"{folder}/{number}/final", recursive=True)
    settings = yaml.safe_load(server.filesystem.cat_file(f"{BUCKET}/team/small/study.yaml"))
    settings["retention"]["revisions"] = 1
    server.filesystem.pipe_file(f"{BUCKET}/team/small/study.yaml", yaml.safe_dump(settings).encode())
    before = server.objects(folder)
    output = machine.run("clean", STUDY, "--yes", "--json")
    cleaned = json.loads(output[output.index("{") :])
    assert [item["path"] for item in cleaned["items"] if item["kind"] == "old revision"] == ["revisions/002"]
    assert cleaned["failed"] == []
    assert server.objects(folder) == {name: it for name, it in before.items() if not name.startswith(f"{folder}/002/")}


def write_study_at_urls(folder: Path, data: Path) -> Path:
    """The small study, with its folder and its data in the bucket."""
    write_small_study(folder, data)
    values = yaml.safe_load((folder / "study.yaml").read_text())
    values["study"] = STUDY
    values["calibration"]["pack_runs"] = 1  # so that some packs are published while others are still to train
    files = {name: f"s3://{BUCKET}/data/{name}.json" for name in ("train", "validation", "test")}
    values["data"] |= files | {"images": f"s3://{BUCKET}/data/images"}
    (folder / "study.yaml").write_text(yaml.safe_dump(values))
    return folder / "study.yaml"


def trained(server: Server) -> list[str]:
    return [name for name in server.objects() if re.search(r"/calibration/\w+\.json$", name)]


def check_manifests(server: Server) -> None:
    """Every output that a manifest names is in the bucket, with the content that it says."""
    manifests = [name for name in server.objects() if "/manifests/" in name]
    stages = {Path(name).stem.partition("-")[0] for name in manifests}
    assert stages == {"calibrate", "fit", "search", "finetune", "card", "evaluate", "report"}
    for name in manifests:
        for output, digest in json.loads(server.filesystem.cat_file(name))["outputs"].items():
            if digest is not None:
                content = server.filesystem.cat_file(f"{REVISION}/{output}")
                assert hashlib.sha256(content).hexdigest() == digest, output


def check_adapter(server: Server, url: str, folder: Path) -> None:
    server.filesystem.get(url, str(folder), recursive=True)
    weights = load_file(folder / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)
    assert (folder / "adapter_config.json").is_file()


def test_a_bucket_that_is_not_there_is_one_message(server, demo_data, tmp_path):
    study = write_study_at_urls(tmp_path, demo_data)
    values = yaml.safe_load(study.read_text())
    values["study"] = "s3://no-such-bucket/study"
    values["data"] = {"train": str(demo_data / "train.json"), "images": str(demo_data / "images")}
    values["data"] |= {"validation_samples": 8, "test_samples": 8}
    study.write_text(yaml.safe_dump(values))
    machine = Machine(tmp_path / "machine", server)
    process = machine.start("calibrate", str(study))
    process.communicate(timeout=LIMIT_SECONDS)
    said = machine.log.read_text()
    assert process.returncode == 2, said
    assert "s3://no-such-bucket/study" in said
    assert "make the bucket" in said
    assert "Traceback" not in said

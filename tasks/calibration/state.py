"""The state of a pack under way, so that a killed pack goes on from its last checkpoint.

STUDY/revisions/NNN/calibration/state/PACK_ID/state.safetensors holds the tensors, and in its header as JSON the
rest: one file, so that it is replaced as a whole. It is deleted when the pack has finished. Its header has a hash of
all that is in it: what a disk has changed is not gone on with.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mars_core.packing.state import LAYOUT, PackState
from tasks.storage.files import replacing
from tasks.storage.folder import Revision

FILE = "state.safetensors"


def state_folder(revision: Revision, pack_id: str) -> Path:
    """Where the state of a pack lies."""
    return revision.path("calibration", "state", pack_id)


def write_state(folder: Path, state: PackState) -> None:
    """Store a state in place of the one before."""
    rest = {
        "step": state.step,
        "checkpoint_steps": list(state.checkpoint_steps),
        "seconds": state.seconds,
        "members": list(state.runs),
        "layout": state.layout,
    }
    text = json.dumps(rest)
    metadata = {"state": text, "sha256": _digest(text, state.tensors)}
    with replacing(folder / FILE) as temporary:
        save_file(dict(state.tensors), str(temporary), metadata=metadata)


def has_state(folder: Path) -> bool:
    """Whether a pack has left a state, be it one that cannot be gone on with."""
    return (folder / FILE).is_file()


def read_state(folder: Path, checkpoint_steps: Sequence[int]) -> PackState | None:
    """The stored state, None where there is none to go on with: the pack then starts again.

    One that cannot be read is none, nor is one of an earlier version's layout, or one that was measured at other steps
    than are asked for now.
    """
    if not has_state(folder):
        return None
    try:
        with safe_open(str(folder / FILE), framework="pt") as file:
            metadata = file.metadata()
            rest = json.loads(metadata["state"])
            if rest["checkpoint_steps"] != list(checkpoint_steps) or rest.get("layout") != LAYOUT:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            # States of before it was written have no hash.
            if metadata.get("sha256", "") not in ("", _digest(metadata["state"], tensors)):
                return None
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError):
        return None
    return PackState(rest["step"], tuple(checkpoint_steps), rest["seconds"], tensors, rest["members"])


def _digest(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, and the text beside them."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        bytes_of: Any = tensor.reshape(-1).view(torch.uint8).numpy()  # NumPy's types know no buffers
        found.update(bytes_of)
    return found.hexdigest()


def drop_state(folder: Path) -> None:
    """Delete the state of a pack that has finished."""
    shutil.rmtree(folder, ignore_errors=True)

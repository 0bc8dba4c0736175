"""The state of a pack under way, so that a killed pack goes on from its last checkpoint.

STUDY/revisions/NNN/calibration/state/PACK_ID/state.safetensors holds the tensors, and in its header as JSON the
rest: one file, so that it is replaced as a whole. It is deleted when the pack has finished.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mars_core.packing.state import PackState
from tasks.store import Revision, replacing

FILE = "state.safetensors"


def state_folder(revision: Revision, pack_id: str) -> Path:
    """Where the state of a pack lies."""
    return revision.path("calibration", "state", pack_id)


def write_state(folder: Path, state: PackState) -> None:
    """Store a state in place of the one before."""
    rest = {"step": state.step, "seconds": state.seconds, "members": list(state.members)}
    with replacing(folder / FILE) as temporary:
        save_file(dict(state.tensors), str(temporary), metadata={"state": json.dumps(rest)})


def read_state(folder: Path) -> PackState | None:
    """The stored state, None where there is none that can be read (the pack then starts again)."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            rest = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError):
        return None
    return PackState(rest["step"], rest["seconds"], tensors, rest["members"])


def drop_state(folder: Path) -> None:
    """Delete the state of a pack that has finished."""
    shutil.rmtree(folder, ignore_errors=True)

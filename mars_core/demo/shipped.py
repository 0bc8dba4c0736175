"""Where the backbone that ships with the demo lies."""

from __future__ import annotations

from pathlib import Path


def demo_backbone_path() -> Path:
    """Folder of the demo's backbone, a checkpoint that transformers loads (LLaVA-OneVision, about 1.2M parameters).

    Raises:
        FileNotFoundError: the checkpoint is missing from the installation.
    """
    folder = Path(__file__).parent / "backbone"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"no checkpoint in {folder}: reinstall the package, or rebuild it with "
            "`python -m mars_core.demo.build_backbone`"
        )
    return folder

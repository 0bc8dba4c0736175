"""The `upstream` section: what the base model could do before, to see what a fine-tune makes it forget."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.settings.data import DataConfig
from tasks.settings.section import Section


class UpstreamTask(Section):
    """One dataset that nothing is trained on: what base model and adapters answer differently was forgotten."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$", max_length=60, description="Name of the task in tables and in MLflow"
    )
    data: str = Field(min_length=1, description="Questions and answers: a file or a folder; a path or a URL")
    images: str | None = Field(None, description="Folder that image paths are relative to (default: the file's folder)")
    format: Literal["llava_json", "sharegpt", "messages", "scienceqa", "parquet", "datasets"] | None = Field(
        None, description="Format of the data (default: found by looking at it)"
    )
    split: str = Field("test", description="Split to read where `data` is a folder of several")
    metric: Literal["accuracy", "cider-d"] = Field(
        "accuracy",
        description="`accuracy`: share of answers matched exactly, teacher-forced; `cider-d`: captions are generated "
        "and compared with the answers",
    )
    samples: int = Field(500, ge=2, description="Samples that are asked at most, with the task mixture of all")

    def as_data(self) -> DataConfig:
        """The same location as a `data` section, whose readers and mirrors then serve it."""
        return DataConfig(train=self.data, images=self.images, format=self.format, train_split=self.split)

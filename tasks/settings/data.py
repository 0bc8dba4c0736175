"""The `data` section: where the samples are and how they are split."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.settings.section import Section


class DataConfig(Section):
    """Where the samples are and how they are split."""

    train: str = Field(
        min_length=1,
        description="Training data: a file (JSON, JSON lines, Parquet) or a folder (see the docs); a path or a URL, as "
        "all of these",
    )
    images: str | None = Field(None, description="Folder that image paths are relative to (default: the file's folder)")
    validation: str | None = Field(
        None, description="Calibration validation file; split off the training file if absent"
    )
    test: str | None = Field(None, description="Test file; split off the training file if absent")
    format: Literal["llava_json", "sharegpt", "messages", "scienceqa", "imagefolder", "parquet", "datasets"] | None = (
        Field(None, description="Format of the data (default: found by looking at it)")
    )
    train_split: str = Field("train", description="Split to read where `train` is a folder of several")
    validation_split: str = Field("validation", description="Split to read where `validation` is a folder of several")
    test_split: str = Field("test", description="Split to read where `test` is a folder of several")
    near_duplicates: Literal["together", "ignore"] = Field(
        "together", description="Whether images that are nearly the same stay in one split when MARS splits the data"
    )
    shared_images: Literal["refuse", "note"] = Field(
        "refuse",
        description="Whether an image that stands in two of the given files is refused, or only noted: published "
        "splits may share some",
    )
    validation_samples: int = Field(
        500, ge=1, description="Samples of the calibration validation set, if split off the training file"
    )
    test_samples: int | None = Field(
        None,
        ge=1,
        description="Samples of the test set (default: 500 where it is split off the training file, else all of it)",
    )

"""The data and the base model that a study's settings name."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from mars_core.data.dataset import EncodedDataset
from mars_core.data.lengths import TokenCounter
from mars_core.data.records import Sample
from mars_core.data.subsets import nested_order
from mars_core.metrics.identity import content_hash
from mars_core.models.loading import Base
from mars_core.models.partition import Partition
from tasks.inputs.base_model import (
    load_study_base,
    model_fingerprint,
    resolve_device,
    study_dtype,
    study_processor,
    study_skeleton,
)
from tasks.inputs.data import StudyData, load_data
from tasks.inputs.upstream import upstream_hash, upstream_samples
from tasks.running.kept import keep, kept
from tasks.settings.study import StudyConfig
from tasks.settings.upstream import UpstreamTask
from tasks.storage.files import read_json, write_json
from tasks.storage.location import working_folder


class Inputs:
    """A study's data and base model: each is read when it is first asked for and kept as long as this is.

    To look at files afresh, open others.
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self._usable: dict[str, tuple[Sample, ...]] = {}
        self._calibration: tuple[int, EncodedDataset] | None = None

    @cached_property
    def data(self) -> StudyData:
        """The samples in three splits.

        Raises:
            ValueError: rows that make no sample, images in two splits, or too few samples.
        """
        return load_data(self.config.data)

    @cached_property
    def processor(self) -> Any:
        """The base model's processor; its weights are not read."""
        return study_processor(self.config)

    @cached_property
    def partition(self) -> Partition:
        """The partition of the base model, with the layers that the recipe adapts; its weights are not read."""
        return study_skeleton(self.config)[1]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the base model, and of how it is read where that changes results."""
        return model_fingerprint(self.config)

    @cached_property
    def base_model(self) -> Base:
        """The frozen base model on one device, with the layers that the recipe adapts."""
        return load_study_base(self.config, resolve_device(self.config.device), study_dtype(self.config))

    @property
    def final_base_model(self) -> Base:
        """The frozen base model as the final run and the test take it: over all GPUs where the study asks for that."""
        return self._spread_model if self.config.loading.spread else self.base_model

    @cached_property
    def _spread_model(self) -> Base:
        vars(self).pop("base_model", None)  # it would take this one's place on the first GPU
        return load_study_base(self.config, resolve_device(self.config.device), study_dtype(self.config), spread=True)

    def drop_models(self) -> None:
        """Give the base model's memory back: it was changed by training, or others need the memory."""
        for name in ("base_model", "_spread_model"):
            vars(self).pop(name, None)

    def usable(self, split: str) -> tuple[Sample, ...]:
        """Samples of a split (train, validation or test) that are short enough.

        Measuring takes about a millisecond a sample, so its result is kept in the study folder.

        Raises:
            ValueError: no sample is short enough.
        """
        if split not in self._usable:
            self._usable[split] = self._short_enough(split)
        return self._usable[split]

    def usable_digests(self, split: str) -> list[str]:
        """Digest of each sample of `usable`, in its order."""
        kept = {id(sample) for sample in self.usable(split)}
        both = zip(self.data.parts[split], self.data.digests[split], strict=True)
        return [digest for sample, digest in both if id(sample) in kept]

    def dropped(self, split: str) -> int:
        """How many samples of a split are longer than `recipe.max_tokens`."""
        return len(self.data.parts[split]) - len(self.usable(split))

    def calibration_set(self, data_seed: int | None = None) -> EncodedDataset:
        """The first `calibration.samples` usable training samples of the nested order, by default the study's own.

        Every prefix of the order keeps the mixture of task types.
        """
        seed = self.config.calibration.data_seed if data_seed is None else data_seed
        if self._calibration is None or self._calibration[0] != seed:  # one at a time: encoded images take memory
            self._calibration = (seed, self._ordered(seed))
        return self._calibration[1]

    @cached_property
    def validation_set(self) -> EncodedDataset:
        """The calibration validation set."""
        return self._encoded(self.usable("validation"))

    @cached_property
    def training_set(self) -> EncodedDataset:
        """The whole training set."""
        return self._encoded(self.usable("train"))

    @cached_property
    def upstream(self) -> dict[UpstreamTask, tuple[Sample, ...]]:
        """Samples of each upstream task.

        Raises:
            ValueError: the data cannot be read, or fewer than two samples of a task are short enough.
        """
        limit = self.config.recipe.max_tokens
        return {task: upstream_samples(task, self.processor, limit) for task in self.config.upstream}

    @cached_property
    def upstream_hash(self) -> str:
        """Hash of what upstream scores depend on but the model."""
        return upstream_hash(self.upstream)

    def test_set(self) -> EncodedDataset:
        """The test set; only the evaluation reads it."""
        return self._encoded(self.usable("test"))

    def _ordered(self, data_seed: int) -> EncodedDataset:
        usable = self.usable("train")
        order = nested_order([sample.task for sample in usable], data_seed)
        return self._encoded(tuple(usable[index] for index in order[: self.config.calibration.samples]))

    def _encoded(self, samples: tuple[Sample, ...]) -> EncodedDataset:
        return EncodedDataset(samples, self.processor)

    def _short_enough(self, split: str) -> tuple[Sample, ...]:
        samples = self.data.parts[split]
        kept = self._measured(split, samples)
        if not kept:
            raise ValueError(
                f"every one of the {len(samples)} {split} samples has more than {self.config.recipe.max_tokens} "
                "tokens: raise recipe.max_tokens"
            )
        return tuple(samples[index] for index in kept)

    def _measured(self, split: str, samples: tuple[Sample, ...]) -> list[int]:
        limit = self.config.recipe.max_tokens
        made_of = [self.data.data_hash, self.fingerprint, limit, split]
        path = working_folder(self.config.study) / "cache" / f"short-enough-{content_hash(made_of)}.json"
        if path.is_file():
            return [int(index) for index in read_json(path)]
        count = TokenCounter(self.processor)
        kept = [index for index, sample in enumerate(samples) if count(sample) <= limit]
        write_json(path, kept)
        return kept


def open_inputs(config: StudyConfig) -> Inputs:
    """The inputs of a study: those that the present block has open, else opened now."""
    found = kept(Inputs, config)
    if found is None:
        found = Inputs(config)
        keep(found)
    return found

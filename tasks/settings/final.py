"""The sections about what follows the choice: final run, scores, time limits, what is kept."""

from __future__ import annotations

from pydantic import Field

from tasks.settings.section import Section


class FinalConfig(Section):
    """The final fine-tune."""

    epochs: float = Field(
        1.0, gt=0, description="Passes over the training set (the paper: 3 on LLaVA, 12 on ScienceQA)"
    )
    seed: int = Field(0, description="Seed of adapters and sample order")
    compare_uniform: bool = Field(True, description="Also train the uniform-rank default at the same budget")
    accelerate: str | None = Field(
        None,
        description="Configuration file of accelerate: train in its processes, by DDP or FSDP, to the same batch size "
        "(default: in one process, on one GPU)",
    )


class EvaluationConfig(Section):
    """What the test split is scored by, beside perplexity."""

    answer_tokens: int = Field(
        16,
        ge=0,
        le=512,
        description="Test answers of at most this many tokens are also generated (greedily, at most this long) and "
        "scored by option letter or exact match; 0 for none",
    )


class TimeoutConfig(Section):
    """How long training may take; what takes longer is ended as TimedOut, keeps its checkpoints and can go on later."""

    calibration_pack_hours: float | None = Field(
        None, gt=0, description="Longest that one calibration pack may train (default: no limit)"
    )
    final_run_hours: float | None = Field(
        None, gt=0, description="Longest that one final run (or baseline) may train (default: no limit)"
    )
    evaluation_hours: float | None = Field(
        None, gt=0, description="Longest that scoring on the test split may take (default: no limit)"
    )


class RetentionConfig(Section):
    """What `mars clean` keeps of what a study no longer needs; what it needs is kept in any case."""

    revisions: int = Field(3, ge=1, description="Newest revisions that are kept whole")
    snapshots: bool = Field(False, description="Keep adapter snapshots after the laws were fitted")
    checkpoints: bool = Field(False, description="Keep resume states and checkpoints that nothing will go on from")
    other_adapters: bool = Field(
        True, description="Keep final adapters that are neither chosen nor the uniform default"
    )
    caches: bool = Field(True, description="Keep caches; they are made again when needed")

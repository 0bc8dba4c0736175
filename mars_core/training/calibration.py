"""What a calibration run gives: a short fine-tune of one rank pair with one seed, measured at checkpoints.

`mars_core.packing` trains the runs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Checkpoint:
    """What is measured at one checkpoint of one run.

    step: optimizer steps done. train_loss: mean batch loss since the last checkpoint; val_loss: over the
    calibration validation set (both nats per answer token). lr: rate of the last step. grad_norm_me,
    grad_norm_llm: gradient norms of the last step before clipping, the projector counted with the LLM whose
    rank it has; 0 without adapters. wall_seconds: the run's share of its
    pack's time so far (time / runs). peak_memory_bytes: of the process or device. val_objective: value of the
    search's metric on the same answers, None where perplexity is the objective, NaN where the metric has none.
    clipped_share: of the steps so far, those whose gradient was clipped; None where it is not known.
    """

    step: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    lr: float
    grad_norm_me: float
    grad_norm_llm: float
    wall_seconds: float
    peak_memory_bytes: int
    val_objective: float | None = None
    clipped_share: float | None = None


@dataclass(frozen=True)
class CalibrationRun:
    """Checkpoints of one run.

    diverged_at: the first step whose loss was not finite, or whose validation perplexity overflows; None if none.
    """

    checkpoints: tuple[Checkpoint, ...]
    diverged_at: int | None

"""A study file that fits a model, its data and this machine, with the reason of every setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from mars_core.data.check import DataReport
from mars_core.data.lengths import TokenCounter
from mars_core.models.partition import Partition
from mars_core.planning.devices import Device
from tasks.inputs.data import check_data
from tasks.inputs.opened import open_inputs
from tasks.planning.cost import cost_on_device
from tasks.settings.presets.studies import Files, named_files
from tasks.settings.study import StudyConfig
from tasks.storage.files import replacing

PAPERS_RANKS = (8, 16, 32, 64)
MOST_TOKENS = 4096
"""Samples above it are taken whole only where they are more than one in a hundred."""
LEARNING_RATE = 2e-4
ROOM_OF_CPU = 0.8
"""Share of the free memory that training may take on a CPU, where other programs live too."""
SCORED: int = StudyConfig.model_fields["evaluation_batch_size"].default
CPU_FLOPS = 5e10
"""Of a core or two; time is not what is looked at here."""


@dataclass(frozen=True)
class Fitted:
    """Settings of a study file beside study, model and data, and by setting why it is so."""

    settings: Mapping[str, Any]
    reasons: Mapping[str, str]


def fit_study(given: Files) -> tuple[StudyConfig, Fitted]:
    """Look at every row and at the model's shapes, and settle what depends on them.

    Raises:
        ValueError: data or model cannot be used, or nothing fits into this machine's memory.
    """
    named = named_files(given)
    bare = StudyConfig.model_validate(named)
    inputs = open_inputs(bare)
    report = check_data(bare.data, measure=TokenCounter(inputs.processor).measure)
    report.raise_if_bad()
    parts = [_tokens(report), _batch(report), _ranks(inputs.partition), _sizes(report, bare), _dtype()]
    fitted = Fitted(
        _merged([part.settings for part in parts]),
        {name: reason for part in parts for name, reason in part.reasons.items()},
    )
    return _within_memory(named, fitted)


def write_fitted(given: Files, output: Path, *, replace: bool) -> dict[str, str]:
    """Write the study file, short, with a comment at what was settled; returns the reasons by setting.

    Raises:
        ValueError: as `fit_study`, or the file is there and may not be replaced.
    """
    if output.exists() and not replace:
        raise ValueError(f"{output} exists: give another name with -o, or --force to write over it")
    config, fitted = fit_study(given)
    text = _commented(_merged([named_files(given), fitted.settings]), fitted.reasons)
    StudyConfig.model_validate(yaml.safe_load(text))
    with replacing(output) as temporary:
        temporary.write_text(f"# Written by mars init for {config.model}; look first: mars calibrate --dry-run\n{text}")
    return dict(fitted.reasons)


def _tokens(report: DataReport) -> Fitted:
    tokens = report.tokens
    if tokens is None:
        return Fitted({}, {})
    longest = tokens.sample.largest
    taken = longest if longest <= MOST_TOKENS else max(MOST_TOKENS, tokens.sample.p99)
    limit = max(256, -(-taken // 256) * 256)
    left_out = "all fit" if longest <= limit else f"the longest has {longest} and is dropped"
    reason = f"99% of the samples have up to {tokens.sample.p99} tokens, {left_out}"
    return Fitted({"recipe": {"max_tokens": limit}}, {"max_tokens": reason})


def _batch(report: DataReport) -> Fitted:
    batch = 8 if report.rows >= 800 else 4
    reason = "the paper's" if batch == 8 else f"{report.rows} samples would be few steps at the paper's 8"
    return Fitted({"recipe": {"batch_size": batch}}, {"batch_size": f"{reason}; memory is micro_batch_size's matter"})


def _ranks(partition: Partition) -> Fitted:
    widths = {name: partition.largest_rank(name) for name in ("me", "projector", "llm") if partition.group(name)}
    narrowest = min(widths.values())
    kept = [rank for rank in PAPERS_RANKS if rank <= narrowest]
    if len(kept) == len(PAPERS_RANKS):
        return Fitted({"calibration": {"ranks": kept}}, {"ranks": "the paper's; every layer is wide enough"})
    largest = 2 ** (narrowest.bit_length() - 1)
    kept = [rank for rank in (largest // 8, largest // 4, largest // 2, largest) if rank]
    which = min(widths, key=lambda name: widths[name])
    return Fitted(
        {"calibration": {"ranks": kept}}, {"ranks": f"the narrowest layer of the {which} is {narrowest} wide"}
    )


def _sizes(report: DataReport, bare: StudyConfig) -> Fitted:
    """Splits and calibration sizes for data that are fewer than the defaults suppose."""
    settings: dict[str, Any] = {"data": {}, "calibration": {"learning_rates": "auto"}}
    settings["recipe"] = {"learning_rate": LEARNING_RATE}
    reasons = {
        "learning_rates": "no choice of ranks makes up for a wrong rate; leave it out to train at learning_rate alone",
        "learning_rate": "where the search for rates begins",
    }
    train, tenth = report.rows, max(1, report.rows // 10)
    for part in ("validation", "test"):
        if getattr(bare.data, part) is None and tenth < 500:
            settings["data"][f"{part}_samples"] = tenth
            reasons[f"{part}_samples"] = f"a tenth of the {report.rows} samples"
            train -= tenth
    if train < 2048:
        settings["calibration"]["smallest_size"] = max(8, 2 ** (train.bit_length() - 6))
        reasons["smallest_size"] = f"five doublings up to the {train} samples that there are"
    return Fitted(settings, reasons)


def _dtype() -> Fitted:
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return Fitted({"recipe": {"dtype": "bfloat16"}}, {"dtype": "the GPU multiplies it faster, at half the memory"})
    return Fitted({"recipe": {"dtype": "float32"}}, {"dtype": "there is no GPU here with units for bfloat16"})


def device_here() -> Device:
    """This machine's device as the planner knows one; its speed is not known and does not matter for memory."""
    if torch.cuda.is_available():
        return Device(torch.cuda.get_device_name(0), int(torch.cuda.mem_get_info()[1]), CPU_FLOPS, CPU_FLOPS)
    return Device("this machine", int(ROOM_OF_CPU * psutil.virtual_memory().available), None, CPU_FLOPS)


def _within_memory(named: Mapping[str, Any], fitted: Fitted) -> tuple[StudyConfig, Fitted]:
    """Halve the samples per pass, then compute activations again, then keep the weights in 4 bits, until it fits."""
    device = device_here()
    batch = fitted.settings["recipe"]["batch_size"]
    passes = [batch >> halvings for halvings in range(batch.bit_length())]
    ways = [_smaller(size, batch) if size < batch else {} for size in passes]
    ways.append(_smaller(1, batch) | {"loading": {"gradient_checkpointing": True}})
    if device.bf16_flops is not None:
        ways.append(_smaller(1, batch) | {"loading": {"gradient_checkpointing": True, "four_bit": True}})
    needed = 0
    for way in ways:
        settings = _merged([fitted.settings, way])
        config = StudyConfig.model_validate(_merged([named, settings]))
        cost = cost_on_device(config, device)
        if cost["calibration"]["fits"] and cost["final"]["fits"]:
            gib = cost["final"]["memory_bytes"]["total"] / 2**30
            why = f"the final run takes about {gib:.2g} GiB of {device.memory_bytes / 2**30:.0f} on {device.label}"
            reasons = {
                name: why for name in ("micro_batch_size", "gradient_checkpointing", "four_bit") if name in str(way)
            }
            return config, Fitted(settings, {**fitted.reasons, **(reasons or {"memory": why})})
        needed = max(cost[phase]["memory_bytes"]["total"] for phase in ("calibration", "final"))
    raise ValueError(
        f"{named['model']} does not fit into the {device.memory_bytes / 2**30:.0f} GiB of {device.label}: one sample "
        f"at a time takes {needed / 2**30:.0f} GiB; take a smaller model, or a machine with more memory (`mars "
        "calibrate --dry-run --device NAME` counts for others)"
    )


def _smaller(size: int, batch: int) -> dict[str, Any]:
    """Fewer samples per pass, in training and in scoring alike; neither changes a result."""
    return {"micro_batch_size": size, "evaluation_batch_size": max(1, SCORED * size // batch)}


def _merged(parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Sections of several parts together."""
    merged: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            merged[name] = {**merged.get(name, {}), **value} if isinstance(value, Mapping) else value
    return {name: value for name, value in merged.items() if value != {}}


class _Lists(yaml.SafeDumper):
    """YAML with sections line by line and lists in one line, as people write study files."""


_Lists.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


def _commented(values: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
    text = yaml.dump(dict(values), Dumper=_Lists, sort_keys=False, allow_unicode=True, width=1000)
    lines = []
    for line in text.splitlines():
        name = line.strip().partition(":")[0]
        lines.append(f"{line}  # {reasons[name]}" if name in reasons else line)
    return "\n".join(lines) + "\n"

"""How an estimate of time and memory is printed."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from flows.cli.output import console

LOW, HIGH = 0.15, 0.40


def print_cost(found: dict[str, Any]) -> None:
    """Print a planner's estimate with what it assumes."""
    samples = found["samples"]
    console.print(
        f"{found['device']}, {found['peak_tflops']:g} TFLOP/s at its peak; {found['parameters'] / 1e9:.2f} B "
        f"parameters; "
        f"{samples['looked_at']} samples looked at: {samples['mean_tokens']:g} tokens each "
        f"({samples['mean_answer_tokens']:g} of answers), {samples['mean_patches']:g} image patches; the longest of "
        f"all {samples['counted']} usable samples has {samples['longest_tokens']}, and memory is counted for such"
    )
    table = Table(
        "", "time", "of it scoring", "weights", "adapters, Adam", "training", "scoring", "memory in all", "fits"
    )
    for phase in ("calibration", "final"):
        table.add_row(phase, *_cells(found[phase]))
    console.print(table)
    calibration = found["calibration"]
    console.print(
        f"calibration: {calibration['runs_at_once']} runs' activations at once, in {calibration['packs']} "
        f"{'pack' if calibration['packs'] == 1 else 'packs'}; final: the largest pair that the search may choose"
    )
    console.print(
        f"The time assumes {found['utilisation']:.0%} of the peak. That is an assumption, not a measurement: between "
        f"{LOW:.0%} and {HIGH:.0%} it is {found['utilisation'] / LOW:.1f} to {found['utilisation'] / HIGH:.1f} times "
        "this. Loading, decoding images and writing come on top. `--dry-run` without `--on` measures on the machine it "
        "runs on."
    )
    for note in found["notes"]:
        console.print(f"note: {note}")


def _cells(phase: dict[str, Any]) -> list[str]:
    memory = phase["memory_bytes"]
    sizes = [f"{memory[part] / 1e9:.1f} GB" for part in ("weights", "adapters", "training", "scoring", "total")]
    usable = f"{phase['usable_bytes'] / 1e9:.0f} GB"
    times = [duration(phase["seconds"]), duration(phase["scoring_seconds"])]
    return [*times, *sizes, f"yes, of {usable}" if phase["fits"] else f"no: {usable} usable"]


def duration(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

"""The demo study: bundled data and backbone, written as a study file like a user's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mars_core.demo import build_demo_data, demo_backbone_path
from mars_core.demo.upstream import build_upstream_data
from tasks.running.progress import progress_bar, show_message
from tasks.settings.calibration import CalibrationConfig
from tasks.settings.data import DataConfig
from tasks.settings.recipe import RecipeConfig
from tasks.settings.study import StudyConfig, read_study, write_study
from tasks.settings.upstream import UpstreamTask


@dataclass(frozen=True)
class DemoSizes:
    """Samples of the splits and of each upstream task; by default what two cores get through in minutes."""

    train: int = 2048
    validation: int = 128
    test: int = 256
    upstream: int = 100


def prepare_demo(folder: Path, sizes: DemoSizes = DemoSizes()) -> StudyConfig:
    """Build the demo's data where they are missing and write its study file; returns the study."""
    with progress_bar("demo data", sizes.train + sizes.validation + sizes.test) as advance:
        data = build_demo_data(
            folder / "data",
            n_train=sizes.train,
            n_validation=sizes.validation,
            n_test=sizes.test,
            progress=lambda done, _: advance(done),
        )
    before = build_upstream_data(folder / "upstream", n_samples=sizes.upstream)
    study = folder / "study.yaml"
    config = StudyConfig(
        study=str((folder / "study").resolve()),
        model=str(demo_backbone_path()),
        data=DataConfig(
            train=str(data.train.resolve()),
            validation=str(data.validation.resolve()),
            test=str(data.test.resolve()),
            images=str(data.images.resolve()),
        ),
        # The rate is what many guides give for LoRA; the calibration shows what it costs here.
        recipe=RecipeConfig(learning_rate=2e-4, max_tokens=512),
        # Pairs that cannot be told apart are not trained again: a demo has to end in minutes.
        calibration=CalibrationConfig(
            ranks=(2, 6, 16), learning_rates="auto", confirm_runs=0, samples=1024, smallest_size=32
        ),
        # What the backbone could do before it saw the demo's data: what it forgets of that is measured.
        upstream=(
            UpstreamTask(name="reading", data=str(before.reading.resolve())),
            UpstreamTask(name="looks", data=str(before.looks.resolve()), images=str(before.images.resolve())),
        ),
        evaluation_batch_size=64,
    )
    write_study(config, study)
    show_message(f"demo study: {study}")
    return read_study(study)

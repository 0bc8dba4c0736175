"""The calibration as a stage."""

from __future__ import annotations

from tasks.calibration.stored import calibration_outputs
from tasks.study.stage import Stage

CALIBRATE = Stage("calibrate", inputs=lambda study, _: study.plan.inputs_hash, outputs=calibration_outputs)

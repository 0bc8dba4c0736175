"""Reading sounds: WAV files to samples of one channel, at the rate that a model's processor expects."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.io import wavfile
from scipy.signal import resample_poly

from mars_core.data.images import content_hash, image_bytes
from mars_core.data.records import ImageRef, PathSound, Sample

Waveform: TypeAlias = NDArray[np.float32]


def load_sound(sound: PathSound, rate: int) -> Waveform:
    """Samples in [-1, 1], shape (length,): channels averaged, resampled to `rate` per second.

    Raises:
        ValueError: the file cannot be found, is no WAV file, or is empty.
    """
    data = image_bytes(sound)
    try:
        stored, samples = wavfile.read(io.BytesIO(data))
    except (ValueError, EOFError, struct.error, UnboundLocalError) as error:
        raise ValueError(
            f"unreadable sound {str(sound)!r} ({error}): give a WAV file (`ffmpeg -i SOUND SOUND.wav` makes one), or "
            "remove the row"
        ) from error
    if not samples.size:
        raise ValueError(f"sound {str(sound)!r} is empty: replace the file or remove the row")
    wave = _scaled(samples)
    wave = wave.mean(axis=1) if wave.ndim > 1 else wave
    common = math.gcd(stored, rate)
    return np.asarray(resample_poly(wave, rate // common, stored // common), dtype=np.float32)


def sound_hashes(samples: Iterable[Sample]) -> dict[ImageRef, str]:
    """Content hash of every sound of the samples, each read once.

    Raises:
        ValueError: one cannot be found.
    """
    return {sound: content_hash(sound) for sound in dict.fromkeys(one for sample in samples for one in sample.sounds)}


def sampling_rate(processor: Any) -> int:
    """Samples a second that a model's processor expects.

    Raises:
        ValueError: it takes no sounds.
    """
    rate = getattr(getattr(processor, "feature_extractor", None), "sampling_rate", None)
    if rate is None:
        raise ValueError(
            f"the row has a sound, and {type(processor).__name__} takes none: choose a model that hears, or remove the "
            "row"
        )
    return int(rate)


def _scaled(samples: NDArray[Any]) -> NDArray[np.float64]:
    """Integers by their range (8 bits are unsigned around 128); fractions as they are."""
    if not np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float64)
    limits = np.iinfo(samples.dtype)
    middle = 0 if limits.min else (limits.max + 1) // 2
    return (samples.astype(np.float64) - middle) / (limits.max + 1 - middle)

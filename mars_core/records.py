"""Records that are stored as JSON: frozen dataclasses that are written and read by their own field types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, PlainValidator, TypeAdapter


def _floats(value: Any) -> NDArray[np.float64]:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, OverflowError) as error:  # pydantic lets these through
        raise ValueError(f"no array of numbers: {error}") from error


FloatArray = Annotated[NDArray[np.float64], PlainValidator(_floats)]
"""An array of floats as the field of a record: nested lists in JSON."""


Float = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number that may not be finite: null in JSON, not a number when it is read again."""


class Record:
    """Base of a frozen dataclass that is stored as JSON.

    `stored_too` names properties that are written beside the fields, for people and other programs; they are not read.
    """

    stored_too: ClassVar[tuple[str, ...]] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON values: lists for tuples and arrays, null for numbers that are not finite."""
        stored: dict[str, Any] = json_safe(self)
        return stored

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote, in this version or an earlier one; what is not a field is passed over.

        Raises:
            ValueError: a field is missing or has another type.
        """
        kind: type = cls
        if not isinstance(stored, Mapping):
            raise ValueError(f"a stored {cls.__name__} is {type(stored).__name__}, expected an object")
        record: Self = _reader(kind).validate_python(dict(stored))
        return record


@cache
def _reader(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def json_safe(value: Any) -> Any:
    """Nested value with lists for tuples, plain numbers for NumPy's, and None for what is not finite."""
    if is_dataclass(value) and not isinstance(value, type):
        names = [*(one.name for one in fields(value)), *getattr(value, "stored_too", ())]
        return {name: json_safe(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return json_safe(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

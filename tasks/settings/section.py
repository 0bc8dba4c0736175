"""What the sections of a study file have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Rank = Annotated[int, Field(ge=0, le=4096)]
Rate = Annotated[float, Field(gt=0)]
"""A LoRA rank as a study file gives it."""

BOTH, EACH = "(both modules)", "(each module)"
"""Marks of the two ways to give ranks; errors leave them out."""


def _title(name: str, info: Any) -> str:
    return name.replace("_", " ").capitalize()


def _for_the_form(schema: dict[str, Any]) -> None:
    # A form shows a choice of types as tabs with "None" chosen; an optional value is better one empty field. A whole
    # optional section keeps its tabs: empty, its required fields would be missed.
    for field in schema.get("properties", {}).values():
        kinds = [kind for kind in field.get("anyOf", []) if kind != {"type": "null"}]
        if len(kinds) == 1 and "$ref" not in kinds[0]:
            del field["anyOf"]
            del field["default"]
            field |= kinds[0]
            if "enum" in field:
                field["enum"] = [*field["enum"], None]  # so that an absent choice may also be sent as null
        if "oneOf" in field:
            field["anyOf"] = field.pop("oneOf")  # the form knows no other


def _is_empty(value: Any) -> bool:
    return value in (None, "", []) or (isinstance(value, dict) and all(map(_is_empty, value.values())))


class Section(BaseModel):
    """What every section of a study file has in common: no unknown fields, and an empty field is an absent one."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, field_title_generator=_title, json_schema_extra=_for_the_form
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, values: Any) -> Any:
        """A field that was emptied in a form is one that was not given."""
        if not isinstance(values, dict):
            return values
        optional = {name for name, field in cls.model_fields.items() if field.default is None}
        return {name: value for name, value in values.items() if not (name in optional and _is_empty(value))}

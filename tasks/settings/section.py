"""What the sections of a study file have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Rank = Annotated[int, Field(ge=0, le=4096)]
Rate = Annotated[float, Field(gt=0)]
"""A LoRA rank as a study file gives it."""

BOTH, EACH = "(both modules)", "(each module)"
"""Marks of the two ways to give ranks; errors leave them out."""


TERMS = {"me": "Vision encoder", "llm": "LLM", "lora": "LoRA"}
"""Parts of names as people write them."""


def _title(name: str, info: Any) -> str:
    words = [TERMS.get(word, word) for word in name.split("_")]
    title = " ".join(words)
    return title[0].upper() + title[1:]


FIRST = {
    "StudyConfig": ("study", "model", "data", "recipe", "calibration", "search", "final", "device", "micro_batch_size"),
    "RecipeConfig": ("learning_rate", "batch_size", "max_tokens", "dtype", "lora_alpha", "targets"),
    "CalibrationConfig": ("ranks", "learning_rates", "samples", "seeds"),
}
"""Fields that most people set, by section: a form shows them first."""
FOLDED = {
    "StudyConfig": ("loading", "fit", "evaluation", "retention", "timeouts"),
    "RecipeConfig": ("module_learning_rates", "module_lora_alpha"),
}
"""Sections that few people set: a form shows their name, and their fields when it is chosen."""


def _for_the_form(schema: dict[str, Any], section: type[BaseModel]) -> None:
    _merge_optional(schema)
    for name in FOLDED.get(section.__name__, ()):
        field = schema["properties"][name]
        # The first is chosen when the form opens, whatever the default.
        field["anyOf"] = [{"type": "null"}, {"$ref": field.pop("$ref")}]
        field["default"] = None
        field["description"] = (section.model_fields[name].annotation.__doc__ or "").partition("\n")[0]
    for name, field in schema.get("properties", {}).items():
        if isinstance(field.get("default"), dict):  # an object here would open what is folded below
            kind = getattr(section.model_fields[name].annotation, "__name__", "")
            field["default"] |= dict.fromkeys(set(FOLDED.get(kind, ())) & field["default"].keys())
    first = [name for name in FIRST.get(section.__name__, ()) if name in schema["properties"]]
    folded = [name for name, field in schema.get("properties", {}).items() if _is_folded(field)]
    middle = [name for name in schema.get("properties", {}) if name not in (*first, *folded)]
    # Prefect's form sorts by it, at every level; a database may keep the fields in any order.
    for position, name in enumerate((*first, *middle, *(name for name in folded if name not in first))):
        schema["properties"][name]["position"] = position


def _is_folded(field: dict[str, Any]) -> bool:
    return any("$ref" in kind for kind in field.get("anyOf", [])) and {"type": "null"} in field["anyOf"]


def _merge_optional(schema: dict[str, Any]) -> None:
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
        fields = cls.model_fields.items()
        optional = {name for name, field in fields if field.default is None or isinstance(field.default, Section)}
        return {name: value for name, value in values.items() if not (name in optional and _is_empty(value))}

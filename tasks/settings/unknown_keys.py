"""What to say of a key that a configuration does not have: the nearest that it has, and all of that section."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import get_args

from pydantic import BaseModel


def unknown_key(model: type[BaseModel], where: Sequence[str | int]) -> str:
    """Explain the unknown key at `where`, a path of keys whose last is the unknown one."""
    path = [str(part) for part in where]
    name, section = path[-1], _section_at(model, path[:-1])
    if section is None:
        return f"{'.'.join(path)}: there is no such key"
    known = list(section.model_fields)
    holder = ".".join(path[:-1])
    suggestion = _nearest(name, known, holder) or _elsewhere(model, name)
    meant = f", did you mean {suggestion}?" if suggestion else "."
    place = f"`{holder}`" if holder else "a study"
    return f"{'.'.join(path)}: there is no such key{meant} {place} has {', '.join(known)}"


def _nearest(name: str, known: Sequence[str], holder: str) -> str | None:
    near = difflib.get_close_matches(name, known, n=1)
    return ".".join(filter(None, [holder, near[0]])) if near else None


def _elsewhere(model: type[BaseModel], name: str) -> str | None:
    """The same key in another section, or one much like it."""
    deepest_first = sorted(_paths(model), key=lambda path: -path.count("."))
    dotted = {path.rpartition(".")[2]: path for path in deepest_first}
    near = difflib.get_close_matches(name, dotted, n=1, cutoff=0.8)
    return dotted[near[0]] if near else None


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        inner = _model_in(field.annotation)
        if inner is not None:
            yield from _paths(inner, f"{prefix}{name}.")


def _section_at(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    section: type[BaseModel] | None = model
    for part in path:
        field = section.model_fields.get(part) if section is not None else None
        section = _model_in(field.annotation) if field is not None else None
    return section


def _model_in(annotation: object) -> type[BaseModel] | None:
    """The section in an annotation, however deep in unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for kind in get_args(annotation) if (found := _model_in(kind)) is not None), None)

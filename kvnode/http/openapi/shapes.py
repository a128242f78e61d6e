"""JSON Schema in few words: objects that have these fields and no others, numbers and texts with their bounds."""

from __future__ import annotations

from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Schema = dict[str, Any]

INTEGER_MAX = 2**53 - 1  # JSON numbers are exact up to there


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def closed(required: Schema | None = None, optional: Schema | None = None, about: str = "") -> Schema:
    """An object with these fields; whatever else is in it is a fault."""
    required = required or {}
    schema: Schema = {"type": "object", "additionalProperties": False, "properties": required | (optional or {})}
    schema |= {"required": list(required)} if required else {}
    return schema | ({"description": about} if about else {})


def one_of(variants: dict[str, Schema]) -> Schema:
    """An object with exactly one of these fields, which says what it is."""
    return {"oneOf": [closed({name: content}) for name, content in variants.items()]}


def whole(least: int = 0, most: int = INTEGER_MAX, about: str = "") -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most} | ({"description": about} if about else {})


def text(about: str = "", **bounds: Any) -> Schema:
    return {"type": "string", **bounds} | ({"description": about} if about else {})


def several(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    schema: Schema = {"type": "array", "items": items, "minItems": least}
    return schema if most is None else schema | {"maxItems": most}


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def record(kind: type) -> Schema:
    """The JSON object that `dataclasses.asdict` makes of a frozen record: it changes as the record does."""
    hints = get_type_hints(kind)
    return closed({field.name: _hinted(hints[field.name]) for field in fields(kind)})


def _hinted(hint: Any) -> Schema:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, UnionType):
        variants = [_hinted(each) for each in inner if each is not NoneType]
        if all("enum" in each for each in variants):
            variants = [{"enum": [name for each in variants for name in each["enum"]]}]
        if NoneType in inner:
            variants.append({"type": "null"})
        return variants[0] if len(variants) == 1 else {"anyOf": variants}
    if origin is tuple:
        return several(_hinted(inner[0]))
    if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
        return record(hint)
    plain = {str: "string", bool: "boolean", int: "integer", float: "number"}
    return {"type": plain[hint]}

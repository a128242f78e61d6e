"""JSON Schema in few words: objects that have these fields and no others, numbers and texts with their bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Schema = dict[str, Any]

INTEGER_MAX = 2**53 - 1  # JSON numbers are exact up to there


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def closed(required: Schema | None = None, optional: Schema | None = None, about: str = "", title: str = "") -> Schema:
    """An object with these fields; whatever else is in it is a fault. `title`: what it is called among variants."""
    required = required or {}
    schema: Schema = {"type": "object", "additionalProperties": False, "properties": required | (optional or {})}
    schema |= {"required": list(required)} if required else {}
    return schema | ({"description": about} if about else {}) | ({"title": title} if title else {})


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


def named(schemas: Mapping[str, Schema]) -> dict[str, Schema]:
    """The same components, and every object inside of one as another: generators name a class after each.

    A name is the way to it: `Outcome`, its variant `get`: `OutcomeGet`. Two ways to one name are a fault of ours.
    """
    found: dict[str, Schema] = {}

    def component(name: str, schema: Schema) -> None:
        assert name not in found, f"two schemas would be called {name}"
        found[name] = {}  # its place, before those that are inside of it
        found[name] = {word: inner(name, word, value) for word, value in schema.items() if word != "title"}

    def inner(name: str, word: str, value: Any) -> Any:
        if word == "properties":
            return {field: lifted(name + _pascal(field), schema) for field, schema in value.items()}
        if word in ("oneOf", "anyOf"):
            return [lifted(name + _variant(schema, number), schema) for number, schema in enumerate(value, 1)]
        if word in ("items", "additionalProperties") and isinstance(value, dict):
            return lifted(f"{name}Item", value)
        return value

    def lifted(name: str, schema: Schema) -> Schema:
        if schema.get("type") == "object" and "properties" in schema:
            component(name, schema)
            return ref(name)
        return {word: inner(name, word, value) for word, value in schema.items()}

    for name, schema in schemas.items():
        component(name, schema)
    return found


def _variant(schema: Schema, number: int) -> str:
    """What tells a variant from the others: its title, its one field, the value of a field that is fixed, a number."""
    if "title" in schema:
        return _pascal(schema["title"])
    properties: Schema = schema.get("properties", {})
    fixed = [str(each["enum"][0]) for each in properties.values() if len(each.get("enum", ())) == 1]
    if len(properties) == 1 or fixed:
        return _pascal(fixed[0] if fixed else next(iter(properties)))
    return str(number) if properties else ""


def _pascal(text: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in text.split("_"))

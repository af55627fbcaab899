"""Front matter `json_schema:` or `fields:` → the JSON schema that every answer must follow.

Pure functions. Invariants:
- a schema that loads describes one object with named fields, and refers to nothing outside itself,
  so that no check needs the network;
- JSON is strict: no NaN, no lone surrogate, nothing after the value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

Json = Any
"""A decoded JSON value."""
Schema = dict[str, Any]

MAX_PROBLEM_CHARS: Final = 200
MAX_SAMPLE_DEPTH: Final = 8
_SAMPLE_TEXT: Final = "sample"
_QUOTE_IT: Final = "YAML reads yes, no, on, off, true and false as booleans: put it in quotes"


class FieldsError(ValueError):
    """An unusable schema or list of fields, or an answer that breaks one; ``path``: the keys that
    lead to the problem."""

    def __init__(self, problem: str, *path: str | int) -> None:
        super().__init__(problem)
        self.problem, self.path = problem, path


def schema_of_fields(given: Mapping[object, object]) -> Schema:
    """The schema of `fields:` (name → description, or list of allowed values); all are required.

    Raises FieldsError.
    """
    if not given:
        raise FieldsError("names no field")
    properties = {_field_name(name): _property(name, value) for name, value in given.items()}
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


def _field_name(name: object) -> str:
    if isinstance(name, bool):
        raise FieldsError(f"the field `{name}` is not text; {_QUOTE_IT}")
    if not isinstance(name, str) or not name.isidentifier():
        rule = "a name is letters, digits and _, and does not start with a digit"
        raise FieldsError(f"`{name}` cannot be a field; {rule}", str(name))
    return name


def _property(name: object, value: object) -> Schema:
    path = str(name)
    if isinstance(value, str) and value.strip():
        return {"type": "string", "description": value.strip()}
    if not isinstance(value, list) or not value:
        problem = "needs a description, or the list of its allowed values"
        raise FieldsError(f"the field `{name}` {problem}", path)
    for place, allowed in enumerate(value):
        if isinstance(allowed, bool):
            problem = f"`{allowed}` is not text; {_QUOTE_IT}"
            raise FieldsError(f"the field `{name}`: {problem}", path, place)
        if not isinstance(allowed, str | int | float):
            problem = f"an allowed value is text or a number, not {allowed!r}"
            raise FieldsError(f"the field `{name}`: {problem}", path, place)
        if allowed in value[:place]:
            raise FieldsError(f"the field `{name}` lists `{allowed}` twice", path, place)
    kind = {"type": "string"} if all(isinstance(v, str) for v in value) else {}
    return {**kind, "enum": value}


def check_schema(given: Mapping[object, object]) -> Schema:
    """The schema as plain JSON. Raises FieldsError unless it is the schema of one object."""
    import jsonschema

    try:
        schema: Schema = msgspec.json.decode(msgspec.json.encode(given))
    except (TypeError, ValueError, RecursionError) as error:
        raise FieldsError(f"is not JSON ({error})") from None
    try:
        jsonschema.validators.validator_for(
            schema, default=jsonschema.Draft202012Validator
        ).check_schema(schema)
    except jsonschema.SchemaError as error:
        found = jsonschema.exceptions.best_match([error])  # the most helpful of several
        raise FieldsError(f"is not a JSON schema: {_short(found.message)}", *found.path) from None
    except RecursionError:
        raise FieldsError("is nested too deeply") from None
    if schema.get("type") != "object":
        raise FieldsError("must have `type: object`, and name its fields under `properties`")
    if not schema.get("properties"):
        raise FieldsError("names no field; list them under `properties`")
    for path, reference in _references(schema):
        _check_reference(schema, path, reference)
    return schema


def _references(value: Json, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, str]]:
    """Every `$ref` and the keys that lead to it."""
    entries: Any = ()
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    for key, inner in entries:
        if key in ("$ref", "$dynamicRef") and isinstance(inner, str):
            yield (*path, key), inner
        else:
            yield from _references(inner, (*path, key))


def _check_reference(schema: Schema, path: tuple[str | int, ...], reference: str) -> None:
    import referencing.exceptions
    import referencing.jsonschema

    resource = referencing.jsonschema.DRAFT202012.create_resource(schema)
    resolver = referencing.Registry().with_resource("", resource).resolver()
    try:
        resolver.lookup(reference)
    except referencing.exceptions.Unresolvable:
        problem = "cannot be resolved; a schema can only refer to its own parts (#/$defs/…)"
        raise FieldsError(f"`$ref: {reference}` {problem}", *path) from None


def field_names(schema: Schema) -> tuple[str, ...]:
    """The fields, in the order in which they are answered."""
    return tuple(schema["properties"])


def described(schema: Schema) -> str:
    """The fields as text for a prompt, one line each: name, description and allowed values."""
    lines = []
    for name, given in schema["properties"].items():
        field = given if isinstance(given, dict) else {}
        allowed = ", ".join(_shown(value) for value in field.get("enum", ()))
        parts = [field.get("description", ""), f"one of {allowed}" if allowed else ""]
        lines.append(": ".join(filter(None, [f"- {name}", "; ".join(filter(None, parts))])))
    return "\n".join(lines)


def _shown(value: Json) -> str:
    return value if isinstance(value, str) else encode(value)


def encode(value: Json) -> str:
    """Encode as compact JSON."""
    return msgspec.json.encode(value).decode()


# --- answers --------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _validator(schema: str) -> Any:
    import jsonschema  # here, since it takes 0.2 s and most runs have no schema
    from referencing import Registry

    parsed = msgspec.json.decode(schema)
    kind = jsonschema.validators.validator_for(parsed, default=jsonschema.Draft202012Validator)
    return kind(parsed, registry=Registry())


def decode_answer(text: str, schema: str) -> Json:
    """The fields of an answer. Raises FieldsError if it is not JSON or breaks the schema."""
    try:
        value = msgspec.json.decode(text.encode("utf-8", "surrogatepass"))
        broken = next(_validator(schema).iter_errors(value), None)
    except (ValueError, RecursionError) as error:
        raise FieldsError(f"it is not JSON ({_short(str(error))})") from None
    if broken is not None:
        where = broken.json_path.removeprefix("$").removeprefix(".")
        raise FieldsError(_short(f"{where}: {broken.message}" if where else broken.message))
    return value


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_PROBLEM_CHARS else text[:MAX_PROBLEM_CHARS] + "…"


def samples(schema: Schema) -> list[dict[str, Json]]:
    """Answers to try a template on: one with every field, one with only the required ones. Empty if
    no sample can be made that follows the schema."""
    properties, required = schema["properties"], schema.get("required", ())
    whole = {name: _sample(field, schema, 0) for name, field in properties.items()}
    least = {name: value for name, value in whole.items() if name in required}
    is_valid = _validator(encode(schema)).is_valid
    return [sample for sample in (whole, least) if is_valid(sample)]


def _sample(field: Json, schema: Schema, depth: int) -> Json:
    """A value that probably follows the schema of one field."""
    if not isinstance(field, dict) or depth > MAX_SAMPLE_DEPTH:
        return _SAMPLE_TEXT
    if isinstance(reference := field.get("$ref"), str):
        return _sample(_part(schema, reference), schema, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in field:
            return _sample(field[key][0], schema, depth + 1)
    if "const" in field:
        return field["const"]
    if "enum" in field:
        return field["enum"][0]
    kind = field.get("type", "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = field.get("properties", {})
        return {name: _sample(inner, schema, depth + 1) for name, inner in properties.items()}
    if kind == "array":
        count = max(1, field.get("minItems", 1))
        return [_sample(field.get("items"), schema, depth + 1)] * min(count, 100)
    if kind in ("integer", "number"):
        return field.get("minimum", 1)
    if kind == "string":
        return _SAMPLE_TEXT.ljust(min(field.get("minLength", 0), 1000), "e")[
            : field.get("maxLength", 1000)
        ]
    return {"boolean": True, "null": None}.get(kind)


def _part(schema: Schema, reference: str) -> Json:
    part: Json = schema
    for key in reference.removeprefix("#").strip("/").split("/"):
        part = part.get(key) if isinstance(part, dict) else None
    return part

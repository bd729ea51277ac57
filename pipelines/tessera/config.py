"""Strict configuration: YAML layers over typed sections, and errors that name file, key and nearest match.

A room declares a `Section`; `load` reads layers of YAML (base, then the target's overlay, then `--set`), merges them
key by key and validates once. YAML is read without tags, and a key given twice is an error. Knows no room.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from tessera.errors import ConfigError

EXECUTION: JsonDict = {"execution_only": True}
"""`Field(json_schema_extra=EXECUTION)` marks what cannot change an output: it stays out of fingerprints."""

SECRET = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


class Section(BaseModel):
    """A part of the configuration: frozen, no unknown keys, no NaN; a line of documentation under each field."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    def identity(self) -> dict[str, Any]:
        """The fields that can change an output, as JSON values: what goes into a fingerprint."""
        return {
            name: _identity(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if not _execution_only(field)
        }


SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True)
class Layer:
    """One source of configuration: values and the name that errors call them by."""

    origin: str
    values: Mapping[str, Any]


def load(schema: type[SectionT], *, layers: Sequence[Layer]) -> SectionT:
    """Merges `layers`, later over earlier, and validates them against `schema`.

    Mappings merge key by key; lists and scalars replace.

    Raises:
        ConfigError: naming the layer, the key, what was found and, for an unknown key, the nearest known one.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer.values)
    try:
        return schema.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_explain(error, schema=schema, layers=layers)) from None


def read_yaml(path: Path) -> Layer:
    """Reads one YAML mapping as a layer; tags, duplicate keys and other documents are refused."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give an existing file") from None
    values = _parse(text, origin=str(path))
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found a {type(values).__name__}, wanted a mapping of sections")
    return Layer(origin=str(path), values=values)


def parse_set(assignments: Iterable[str]) -> list[Layer]:
    """`section.key=value` with a YAML value, as one layer each."""
    layers = []
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {assignment!r}: wanted section.key=value, such as train.steps=200")
        values: Any = _parse(value, origin=f"--set {key}")
        for part in reversed(key.split(".")):
            values = {part: values}
        layers.append(Layer(origin="--set", values=values))
    return layers


def resolve_secret(value: str) -> str:
    """Replaces `${env:NAME}` by the environment's value; call it where the value is used, never before."""

    def lookup(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"the configuration names ${{env:{match[1]}}}, which is not set; export {match[1]}")
        return os.environ[match[1]]

    return SECRET.sub(lookup, value)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice; SafeLoader itself refuses tags that make objects."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice; keep one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parse(text: str, *, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "is not YAML"
        raise ConfigError(f"{origin}{where}: {problem}") from None


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _explain(error: ValidationError, *, schema: type[Section], layers: Sequence[Layer]) -> str:
    """The first fault of `error` as one line: origin, key, fault, and the nearest known key if it is unknown."""
    fault = error.errors(include_url=False)[0]
    location = list(fault["loc"])
    key = ".".join(str(part) for part in location)
    origin = next((layer.origin for layer in reversed(layers) if _holds(layer.values, location)), "configuration")
    if fault["type"] == "extra_forbidden":
        known = _known_keys(schema, location[:-1])
        nearest = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys here: {', '.join(sorted(known))}"
        return f"{origin}: unknown key {key}; {hint}"
    if fault["type"] == "missing":
        return f"{origin}: {key} is missing; give it a value"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    found = fault["input"]
    shown = f"found {found!r}; " if isinstance(found, (str, int, float, bool, type(None))) else ""
    return f"{origin}: {key}: {shown}{message[0].lower()}{message[1:]}" if key else f"{origin}: {message}"


def _holds(values: Any, location: Sequence[Any]) -> bool:
    """Whether `values` reaches to `location`, or to the mapping that should hold its last part."""
    for part in location[:-1]:
        if (isinstance(values, Mapping) and part in values) or (
            isinstance(values, list) and isinstance(part, int) and part < len(values)
        ):
            values = values[part]
        else:
            return False
    if not location or isinstance(values, list):
        return True
    return isinstance(values, Mapping) and (location[-1] in values or len(location) > 1)


def _known_keys(schema: type[Section], location: Sequence[Any]) -> list[str]:
    model: Any = schema
    for part in location:
        if isinstance(part, int):
            continue
        model = _section_in(model.model_fields[part].annotation)
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _section_in(annotation: Any) -> type[Section] | None:
    """The Section inside an annotation such as `Section | None` or `list[Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for argument in get_args(annotation) if (found := _section_in(argument))), None)


def _execution_only(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("execution_only"))


def _identity(value: Any) -> Any:
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, (list, tuple)):
        return [_identity(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _identity(item) for key, item in value.items()}
    return value.as_posix() if isinstance(value, Path) else value

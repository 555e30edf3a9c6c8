"""A pydantic model that reports every fault of a document at once, and the text that people get to read."""

import difflib
import logging
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, TypeAdapter, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from servd.exceptions import ConfigError

Fault = tuple[tuple[str | int, ...], str]
"""Where (keys and indexes from the object down) and why."""


Place = Callable[[tuple[str | int, ...]], str]

MAX_DEPTH = 100
"""Levels of nesting in a document; deeper ones are refused before anything recurses into them."""

MAX_PROBLEMS = 1000
"""Problems that are told one by one: nobody reads more."""

_LONGEST_VALUE = 80

logger = logging.getLogger(__name__)


class Document(BaseModel):
    """A model that refuses unknown keys and reports all its faults at once, cross-field ones included.

    Subclasses override `prepare` for what is more than one field's type; `hints` says how to get what a key
    of later releases gives; `also` has the JSON Schema of keys and values that `prepare` takes beyond the fields;
    `without_effect` has the keys of later releases that are taken but change nothing, with the type of their values
    (or null): a slip in one of them is a fault like any other.
    """

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        protected_namespaces=(),
        # most processes use one model or two of all they load
        defer_build=True,
    )
    later_names: ClassVar[Mapping[str, str]] = {}
    hints: ClassVar[Mapping[str, str]] = {}
    also: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    without_effect: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def prepare(cls, raw: dict[str, Any]) -> list[Fault]:  # noqa: ARG003
        """Bring `raw` (a private copy) into the 2.5 form, in place; gives the faults that types don't show."""
        return []

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The JSON Schema with the keys and values of later releases."""
        found = handler.resolve_ref_schema(handler(core_schema))
        properties = found.setdefault("properties", {})
        for later, era in cls.later_names.items():
            properties[later] = {**properties[era], "title": f"Same as {era}"}
        for name, further in cls.also.items():
            own = properties.get(name)
            properties[name] = {"anyOf": [own, dict(further)]} if own else dict(further)
        for name, kind in cls.without_effect.items():
            properties[name] = {"anyOf": [_adapter(kind).json_schema(), {"type": "null"}]}
        return found

    @model_validator(mode="wrap")
    @classmethod
    def _report_everything(cls, value: Any, handler: Any) -> Any:
        if not isinstance(value, Mapping):
            return handler(value)
        raw = dict(value)
        faults = to_era_names(raw, cls.later_names)
        written = {era: later for later, era in cls.later_names.items() if later in value}
        faults += cls._take_out(raw)
        faults += cls.prepare(raw)
        details = [_detail(loc, "value_error", reason, _at(value, loc)) for loc, reason in faults]
        result = None
        try:
            result = handler(raw)
        except ValidationError as error:
            for found in error.errors(include_url=False):
                loc = found["loc"]
                first = written.get(str(loc[0]), loc[0]) if loc else ""
                reason = cls._reason(found)
                details.append(_detail((first, *loc[1:]) if loc else (), found["type"], reason, found["input"]))
        if details:
            raise ValidationError.from_exception_data(cls.__name__, details)
        return result

    @classmethod
    def _take_out(cls, raw: dict[str, Any]) -> list[Fault]:
        """Remove what has no effect, in place, and warn of it; a fault for each value that the key could not have."""
        faults: list[Fault] = []
        for key in cls.without_effect.keys() & raw.keys():
            value = raw.pop(key)
            if value is None:
                continue
            try:
                _adapter(cls.without_effect[key]).validate_python(value)
            except ValidationError as error:
                faults += [
                    ((key, *found["loc"]), str(found["msg"]).removeprefix("Value error, "))
                    for found in error.errors(include_url=False)
                ]
            else:
                logger.warning(
                    "%s: %s has no effect, it is an option of later releases of Ray Serve", cls.__name__, key
                )
        return faults

    @classmethod
    def _reason(cls, found: Any) -> str:
        if found["type"] != "extra_forbidden" or len(found["loc"]) != 1:
            return str(found["msg"]).removeprefix("Value error, ")
        key = str(found["loc"][0])
        if key in cls.hints:
            return f"servd has no {key}" + (f": {cls.hints[key]}" if cls.hints[key] else "")
        near = difflib.get_close_matches(key.lower(), [*cls.model_fields, *cls.later_names], n=1, cutoff=0.6)
        if near:
            return f"unknown key, did you mean {near[0]!r}?"
        return f"unknown key; {cls.__name__} has {', '.join(cls.model_fields)}"


def _adapter(kind: Any) -> TypeAdapter[Any]:
    # made where one is needed: most documents have none of these keys
    config = None if isinstance(kind, type) and issubclass(kind, BaseModel) else ConfigDict(allow_inf_nan=False)
    return TypeAdapter(kind, config=config)


def _detail(loc: tuple[str | int, ...], kind: str, reason: str, given: Any) -> InitErrorDetails:
    # also where the key is misspelt
    is_secret = any("pass" in str(key).lower() for key in loc[-1:])
    return InitErrorDetails(type=PydanticCustomError(kind, reason), loc=loc, input="***" if is_secret else given)


def _at(value: Any, loc: tuple[str | int, ...]) -> Any:
    for key in loc:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return value
    return value


def to_era_names(raw: dict[str, Any], later_names: Mapping[str, str]) -> list[Fault]:
    """Rename keys of later releases to their 2.5 names, in place; a fault for each option given twice."""
    faults: list[Fault] = []
    for later, era in later_names.items():
        if later not in raw:
            continue
        if era in raw:
            faults.append(((later,), f"{era} and {later} are two spellings of one option: give one of them"))
            del raw[later]
        else:
            raw[era] = raw.pop(later)
    return faults


D = TypeVar("D", bound=Document)


def validated(model: type[D], raw: Any, place: Place | None = None) -> D:
    """`raw` (parsed JSON or YAML) as a `model`.

    Args:
        place: where the value at a location stands in its file, if it came from one.

    Raises:
        ConfigError: lists the model's name and every fault with its place.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{model.__name__}: the document must be an object, got {_kind(raw)}")
    try:
        _check_values(raw)
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(problems_text(error, place)) from None
    except ValueError as error:
        raise ConfigError(f"{model.__name__}: {error}") from None


def problems_text(error: ValidationError, place: Place | None = None) -> str:
    """Model name, number of problems, then one line each: place, reason, value."""
    found = error.errors(include_url=False)
    if place is not None:
        found.sort(key=lambda problem: [int(number) for number in place(problem["loc"]).rsplit(":", 2)[1:]])
    lines = [f"{error.title}: {len(found)} {'problem' if len(found) == 1 else 'problems'}"]
    for problem in found[:MAX_PROBLEMS]:
        dotted = ".".join(str(key) for key in problem["loc"]) or "(top level)"
        where = f"{place(problem['loc'])}: {dotted}" if place else dotted
        reason = str(problem["msg"]).removeprefix("Value error, ")
        given = "" if problem["type"] == "missing" else f" (got {_shortened(problem['input'])})"
        lines.append(f"  {where}: {reason}{given}")
    if len(found) > MAX_PROBLEMS:
        lines.append(f"  and {len(found) - MAX_PROBLEMS} more")
    return "\n".join(lines)


def _shortened(value: Any) -> str:
    if isinstance(value, dict | list):
        return _kind(value)
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _check_values(document: Any) -> None:
    """Refuse what could not be stored: deep nesting, keys that are no strings, lone surrogates."""
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        if not level:
            return
        below: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                for key in value:
                    if not isinstance(key, str):
                        raise ValueError(f"the key {key!r} is no string: quote it")
                    _check_text(key)
                below.extend(value.values())
            elif isinstance(value, list | tuple):
                below.extend(value)
            elif isinstance(value, str):
                _check_text(value)
        level = below
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")


def _check_text(text: str) -> None:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{text!r} holds a lone surrogate, which is no character")

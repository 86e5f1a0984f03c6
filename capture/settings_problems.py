"""What is wrong with the settings: where, what was found, what was expected. Never a secret. Pure."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from capture.errors import ConfigError, RelayError, UsageError
from capture.settings_models import CameraSettings, Settings
from capture.source import redact

Key = tuple[str, ...]

_LONGEST_SHOWN = 80  # characters
_SECRETS = {("ingest", "token"), ("broker", "url")}
_CAMERA_SECRETS = {"source", "user", "password"}
_PLAINER = {
    "extra_forbidden": "no such setting; see the README for all of them",
    "missing": "missing; expected a value",
    "string_type": "expected a text, in quotes",
    "model_type": "expected a table",
    "dict_type": "expected a table",
}


@dataclass(frozen=True)
class Value:
    """A value and where it came from: ``--cloud``, ``RELAY_CLOUD`` or ``relay.toml: ingest.url``."""

    value: object
    where: str
    file: str | None = None


Layer = dict[Key, Value]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `found` is None where it could be a secret, or there is nothing."""

    key: Key
    where: str
    expected: str
    found: str | None = None
    file: str | None = None

    @property
    def camera(self) -> str | None:
        """The camera whose trouble this is alone."""
        return self.key[1] if self.key[0] == "cameras" and len(self.key) > 1 else None

    def __str__(self) -> str:
        found = "" if self.found is None else f"found {self.found}; "
        return f"{self.where}: {found}{self.expected}"


def shown_key(key: Iterable[str]) -> str:
    """Return a key as people write it; a part that is no plain word in quotes, and without a login in it."""
    return ".".join(
        part if re.fullmatch(r"[\w<>-]+", part, re.ASCII) else json.dumps(redact(part, ()))[:_LONGEST_SHOWN]
        for part in key
    )


def as_error(problems: Sequence[Problem]) -> RelayError:
    """Return all of it as one error: of usage when a flag is wrong, of configuration otherwise."""
    wrong_flag = any(problem.where.startswith("--") for problem in problems)
    lines = [str(problem) for problem in problems]
    message = lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} settings are wrong:", *lines])
    return (UsageError if wrong_flag else ConfigError)(message)


def problems_of(error: ValidationError, layer: Layer) -> list[Problem]:
    """Return what a validation found."""
    return [_problem(details, layer) for details in error.errors(include_url=False)]


def _problem(details: ErrorDetails, layer: Layer) -> Problem:
    key = tuple(str(part) for part in details["loc"] if part != "[key]")
    origin = _origin(key, layer)
    where = shown_key(key)
    if origin is not None:
        where = f"{origin.file}: {where}" if origin.file else origin.where
    text = _words(details, key)
    found = json.dumps(details["input"])[:_LONGEST_SHOWN] if _may_show(key, details) else None
    return Problem(key, where, text, found, origin.file if origin else None)


def _words(details: ErrorDetails, key: Key) -> str:
    text = _PLAINER.get(details["type"], details["msg"].removeprefix("Value error, "))
    if details["type"] == "extra_forbidden" and (close := _did_you_mean(key)):
        return f"no such setting; did you mean {close}?"
    if details["type"] == "missing" and key[:1] == ("cameras",):
        return "missing; expected where the video comes from: rtsp://…, http://…, webcam:0, a file, or test:"
    return text[:1].lower() + text[1:]


def _origin(key: Key, layer: Layer) -> Value | None:
    """Return the value at fault: the one of this key, of a table around it, or of something in it."""
    for length in range(len(key), 0, -1):
        if key[:length] in layer:
            return layer[key[:length]]
    inside = (value for each, value in layer.items() if each[: len(key)] == key)
    beside = (value for each, value in layer.items() if each[:2] == key[:2] and value.file)
    return next(inside, None) or (next(beside, None) if key[:1] == ("cameras",) else None)


def _did_you_mean(key: Key) -> str | None:
    *parents, last = key
    close = get_close_matches(last, _keys_of(tuple(parents)), n=1)
    return shown_key([*parents, close[0]]) if close else None


def _keys_of(parents: Key) -> list[str]:
    if not parents:
        return list(Settings.model_fields)
    if parents[0] == "cameras":
        return list(CameraSettings.model_fields)
    model = sections().get(parents[0])
    return list(model.model_fields) if model and len(parents) == 1 else []


def sections() -> Mapping[str, type[BaseModel]]:
    """Return the tables of the configuration with keys of their own, by name."""
    fields = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {
        name: kind for name, kind in fields.items() if isinstance(kind, type) and issubclass(kind, BaseModel)
    }


def _may_show(key: Key, details: ErrorDetails) -> bool:
    """Tell whether a wrong value may be quoted: never what is, or could hold, a secret."""
    value: Any = details["input"]
    if key[:2] in _SECRETS or details["type"] == "extra_forbidden" or len(key) < 2 + (key[0] == "cameras"):
        return False
    if key[0] == "cameras" and key[-1] in _CAMERA_SECRETS:
        return False
    return isinstance(value, int | float) or (isinstance(value, str) and not set(value) & set("@?="))

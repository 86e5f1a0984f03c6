"""Where settings come from: the door to the environment and to TOML. Flags beat variables beat the file."""

import os
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from capture.errors import ConfigError, RelayError, UsageError
from capture.segment import is_camera_id
from capture.settings_models import ENV_PREFIX, FLOWER_PREFIX
from capture.settings_problems import Key, Layer, Problem, Value, sections, shown_key
from capture.settings_secrets import is_secret
from capture.settings_values import CAMERA_ID_RULE
from capture.source import parse_source, redact

# Short names that operators type, beside RELAY_<SECTION>__<KEY> for every key.
ENV_SHORT: dict[str, str] = {
    "RELAY_CLOUD": "ingest.url",
    "RELAY_TOKEN": "ingest.token",
    "RELAY_TOKEN_FILE": "ingest.token_file",
    "RELAY_ON_REFUSED": "ingest.on_refused",
    "RELAY_SPOOL": "spool.path",
    "RELAY_BROKER": "broker.url",
    "RELAY_WEB": "web.listen",
    "RELAY_DRAIN_TIMEOUT": "drain_timeout",
    "RELAY_FFMPEG": "ffmpeg",
}
FLAGS: dict[str, str] = {
    "--cloud": "ingest.url",
    "--token": "ingest.token",
    "--token-file": "ingest.token_file",
    "--on-refused": "ingest.on_refused",
    "--spool": "spool.path",
    "--broker": "broker.url",
    "--web": "web.listen",
    "--segment-duration": "defaults.segment_seconds",
    "--fps": "defaults.fps",
    "--resolution": "defaults.resolution",
    "--drain-timeout": "drain_timeout",
}
LARGEST_FILE = 1024 * 1024  # bytes: a hundred cameras take some ten thousand
_REPORT = "FFREPORT"  # makes every ffmpeg write all that it does into a file, the camera's URL too
_DEPTH = 3  # cameras.<id>.<key>
_BESIDE = {("ingest", "token_file"), ("ingest", "ca_file")}


def child_environment(hidden: Collection[str] = ()) -> dict[str, str]:
    """Return our environment without our settings and Flower's, and without variables of our secrets."""
    left_out = {_REPORT, *hidden}
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith((ENV_PREFIX, FLOWER_PREFIX)) and key not in left_out
    }


# --- relay.toml ------------------------------------------------------------------------------------


def file_layer(path: Path) -> Layer:
    """Read relay.toml. Raises ConfigError when it cannot be read, or is no TOML."""
    tree = _parse(path, _read(path))
    layer = {key: Value(value, f"{path}: {shown_key(key)}", str(path)) for key, value in _flatten(tree, ())}
    for key, value in list(layer.items()):
        if key[0] == "cameras" and key[2:] == ("token_file",) and is_camera_id(key[1]):
            # Also when the rest of the table is wrong: what is owed from before goes with this token.
            layer["ingest", "token_files", key[1]] = replace(value, value=str(value.value))
    for key, value in layer.items():
        is_beside = key in _BESIDE or (key[:2] == ("ingest", "token_files") and len(key) == _DEPTH)
        if is_beside and isinstance(value.value, str):
            layer[key] = replace(value, value=str(path.absolute().parent / value.value))
    return layer


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}; "
            "expected a readable TOML file; check the path given with --config or RELAY_CONFIG"
        ) from None
    if len(content) > LARGEST_FILE:
        raise ConfigError(
            f"the configuration {path} has more than {LARGEST_FILE // 1024} KiB; expected TOML tables of "
            "settings; check the path given with --config or RELAY_CONFIG"
        )
    return content


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        words = f"line {line} is no UTF-8 text; save the file as UTF-8"
    except RecursionError:
        words = "it is nested too deeply; expected tables like [cameras.gate]"
    except ValueError as error:  # TOMLDecodeError, and what int() says of a number of thousands of digits
        words = _toml_words(error)
    raise ConfigError(f"{path} is not valid TOML: {words}")


def _toml_words(error: ValueError) -> str:
    if not isinstance(error, tomllib.TOMLDecodeError):
        return "it holds a number that is too long; mend that line"
    words = str(error)
    words = words[:1].lower() + words[1:]
    if "\\" in words or "escape" in words.lower():
        return f"{words}; write a text with a backslash in single quotes: 'a\\b'"
    return f"{words}; mend that line"


def _flatten(tree: Mapping[str, Any], prefix: Key) -> Iterator[tuple[Key, Any]]:
    for name, value in tree.items():
        key = (*prefix, name)
        # An empty table says that it is there; what is nested deeper than settings are is one wrong value.
        if isinstance(value, Mapping) and value and len(key) < _DEPTH and not is_secret(key):
            yield from _flatten(value, key)
        else:
            yield key, value


# --- environment, flags ----------------------------------------------------------------------------


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """Read the variables that are settings: the short names, and RELAY_<SECTION>__<KEY>."""
    layer: Layer = {}
    for name, value in environ.items():
        if name in ENV_SHORT:
            layer[_key(ENV_SHORT[name])] = Value(value, name)
        elif name.startswith(ENV_PREFIX) and "__" in name:
            section, _, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
            if section in sections():
                layer.setdefault((section, key), Value(value, name))
    return layer


def camera_variables(environ: Mapping[str, str], allowed: Collection[str]) -> list[Problem]:
    """Return a problem for each variable that looks like a camera's setting: there is no such thing.

    The `allowed` ones are named by references. An id is case-sensitive, and may hold what no variable can.
    """
    prefix = f"{ENV_PREFIX}CAMERAS__"
    expected = (
        "no such setting; cameras stand in relay.toml, and one alone in RELAY_SOURCE; "
        'a secret in the file can name a variable: password = { env = "NAME" }'
    )
    names = sorted(name for name in environ if name.startswith(prefix) and name not in allowed)
    return [Problem(("cameras",), shown_key([name]), expected) for name in names]


def flag_layer(flags: Mapping[str, object]) -> Layer:
    """Read flags by their names; None is not given."""
    return {_key(FLAGS[name]): Value(value, name) for name, value in flags.items() if value is not None}


def _key(dotted: str) -> Key:
    return tuple(dotted.split("."))


def given(flag: str | None, name: str, environ: Mapping[str, str], variable: str) -> Value | None:
    """Return what a flag or else its variable says, if either is given."""
    if flag is not None:
        return Value(flag, name)
    value = environ.get(variable)
    return Value(value, variable) if value else None


def camera_layer(source: Value, camera_id: Value | None, *, realtime: bool | None) -> Layer:
    """Return the one camera of the command line. Raises UsageError or ConfigError when it cannot be meant."""
    try:
        parsed = parse_source(str(source.value))
    except UsageError as error:
        raise _wrong(source, str(error)) from None
    if camera_id is not None and not is_camera_id(str(camera_id.value)):
        raise _wrong(camera_id, f"found {redact(str(camera_id.value), ())[:80]!r}; {CAMERA_ID_RULE}")
    camera = str(camera_id.value) if camera_id else parsed.camera_id()
    layer: Layer = {("cameras", camera, "source"): source}
    if realtime is not None:
        layer["cameras", camera, "realtime"] = Value(realtime, "--no-realtime")
    return layer


def _wrong(value: Value, words: str) -> RelayError:
    kind = UsageError if value.where.startswith("--") else ConfigError
    return kind(f"{value.where}: {words}")


# --- layers together -------------------------------------------------------------------------------


def drop_what_is_no_table(layer: Layer) -> list[Problem]:
    """Take values out that stand where a table has to be: others could not be laid over them."""
    problems = []
    for key, value in list(layer.items()):
        if len(key) == 1 and key[0] in {*sections(), "cameras"} and value.value != {}:
            del layer[key]
            problems.append(Problem(key, value.where, f"expected a table: [{key[0]}]", file=value.file))
    return problems


def unflatten(layer: Layer) -> dict[str, Any]:
    """Return the layer as nested tables. A value that stands where others need a table hides these."""
    tree: dict[str, Any] = {}
    for key, value in layer.items():
        if any(layer[key[:length]].value != {} for length in range(1, len(key)) if key[:length] in layer):
            continue
        *parents, last = key
        node = tree
        for parent in parents:
            node = cast("dict[str, Any]", node.setdefault(parent, {}))
        if value.value != {} or last not in node:
            node[last] = {} if value.value == {} else value.value
    return tree

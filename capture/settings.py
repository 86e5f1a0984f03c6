"""Settings: flags > ``RELAY_*`` environment > ``relay.toml`` > defaults, and every problem at once.

Each value keeps where it came from, so that a message can name the flag, variable or key to mend, and so
that a wrong flag is a usage error (2) while a wrong file or variable is a configuration error (78).
"""

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_core import ErrorDetails

from capture.errors import ConfigError, RelayError, UsageError
from capture.segment import CAMERA_PATTERN, is_camera_id
from capture.source import Source, parse_source

ENV_PREFIX = "RELAY_"
EXAMPLE_CLOUD = "https://cloud.example.com"
LOOPBACK = "127.0.0.1"
LAST_PORT = 65535

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"\s*(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>ms|s|m|h|d)?\s*")
_RESOLUTION = re.compile(r"(?P<width>[0-9]{2,5})x(?P<height>[0-9]{2,5})")
_LISTEN = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):)?(?P<port>[0-9]{1,5})")
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


def _seconds(value: object) -> object:
    """Read ``90``, ``"90"``, ``"90s"``, ``"1.5h"`` as seconds."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value)
    if match is None:
        raise ValueError('a duration is a number of seconds, or a number with ms, s, m, h or d: "1h"')
    return float(match["number"]) * _UNITS[match["unit"] or "s"]


def _comma_list(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _resolution(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _RESOLUTION.fullmatch(value)
    if match is None:
        raise ValueError("a resolution is WIDTHxHEIGHT in pixels: 1280x720")
    width, height = int(match["width"]), int(match["height"])
    if width % 2 or height % 2:
        raise ValueError("H.264 needs an even width and height: 1280x720")
    return (width, height)


def _cloud_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError(f"not a URL; expected something like {EXAMPLE_CLOUD}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"expected http:// or https:// and a host, like {EXAMPLE_CLOUD}")
    if "@" in parts.netloc:
        raise ValueError("holds a user name or password; give the key with RELAY_TOKEN instead")
    if parts.query or parts.fragment or re.search(r"[\s\x00-\x1f]", value):
        raise ValueError("expected no query, no fragment and no blanks after the host and path")
    return value.rstrip("/")


def _token(value: SecretStr) -> SecretStr:
    return SecretStr(check_token(value.get_secret_value()))


def check_token(text: str) -> str:
    """Return a token without the blanks around it; ValueError unless a header can carry it."""
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise ValueError(
            "the token is empty or holds blanks, control or non-ASCII characters; "
            "expected one line of printable ASCII, as the cloud issued it"
        )
    return token


def _source(value: SecretStr) -> SecretStr:
    try:
        parse_source(value.get_secret_value())
    except RelayError as error:
        raise ValueError(str(error)) from None
    return value


def _broker_url(value: SecretStr) -> SecretStr:
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in {"redis", "rediss", "redis+socket"}:
        raise ValueError("expected redis://HOST:PORT/0, rediss://… or redis+socket:///PATH")
    return value


def _listen(value: object) -> object:
    """Read ``8090``, ``"8090"``, ``"192.0.2.7:8090"`` or ``"[::1]:8090"`` as HOST:PORT."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return value
    match = _LISTEN.fullmatch(value.strip())
    if match is None or int(match["port"]) > LAST_PORT:
        raise ValueError("expected PORT or HOST:PORT, like 8090 or 192.0.2.7:8090 (port 0: any free one)")
    return f"{match['host'] or LOOPBACK}:{int(match['port'])}"


def _success_code(value: int) -> int:
    if not 200 <= value <= 299:  # noqa: PLR2004 - what a success is called in HTTP
        raise ValueError("a success code lies between 200 and 299")
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=10 * 365 * 86400)]
Resolution = Annotated[tuple[int, int], BeforeValidator(_resolution)]
Fps = Annotated[float, Field(gt=0, le=240)]
SegmentSeconds = Annotated[Seconds, Field(ge=0.5, le=600)]
Audio = Literal["off", "copy", "aac"]
SourceText = Annotated[SecretStr, AfterValidator(_source)]
OnRefused = Literal["stop", "hold"]
Listen = Annotated[str, BeforeValidator(_listen)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)


class IngestSettings(_Section):
    """The cloud, and how an upload is tried."""

    url: Annotated[str, AfterValidator(_cloud_url)] | None = None
    token: Annotated[SecretStr, AfterValidator(_token)] | None = None
    token_file: Path | None = None
    success: Annotated[
        list[Annotated[int, AfterValidator(_success_code)]],
        BeforeValidator(_comma_list),
        Field(min_length=1),
    ] = [204]
    on_refused: OnRefused = "stop"
    attempt_seconds: Annotated[Seconds, Field(ge=1, le=600)] = 30.0
    slowest_uplink: Annotated[ByteSize, Field(ge=1000)] = ByteSize(64_000)
    tries: Annotated[int, Field(ge=1, le=10)] = 4
    ca_file: Path | None = None
    hold_probe_every: Annotated[Seconds, Field(ge=1)] = 30.0


class SpoolSettings(_Section):
    """Where segments wait, and for how long what is left stays."""

    path: Path = Path("spool")
    create: bool = True
    sweep_after: Annotated[Seconds, Field(ge=60)] = 3600.0
    keep_rejected: Annotated[Seconds, Field(ge=60)] = 7 * 86400.0
    recover_after: Annotated[Seconds, Field(ge=1)] = 15.0
    max_bytes: Annotated[ByteSize, Field(ge=1_000_000)] | None = None
    min_free: ByteSize | None = None
    retention: Annotated[Seconds, Field(ge=60)] | None = None


class BrokerSettings(_Section):
    """The Redis or Valkey server that carries the messages."""

    url: Annotated[SecretStr, AfterValidator(_broker_url)] = SecretStr("redis://127.0.0.1:6379/0")
    key_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:{}-]*$", max_length=64)] = ""


class WebSettings(_Section):
    """Where the agent serves its page and metrics, and a worker its metrics: HOST:PORT; None is off."""

    listen: Listen | None = None
    worker_listen: Listen | None = None


class CameraDefaults(_Section):
    """What a camera does unless its own table says otherwise."""

    segment_seconds: SegmentSeconds = 10.0
    fps: Fps | None = None
    resolution: Resolution | None = None
    audio: Audio = "off"
    realtime: bool = True


class CameraSettings(_Section):
    """One camera. What is None comes from ``[defaults]``."""

    source: SourceText
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    segment_seconds: SegmentSeconds | None = None
    fps: Fps | None = None
    resolution: Resolution | None = None
    audio: Audio | None = None
    realtime: bool | None = None
    enabled: bool = True

    def parsed_source(self) -> Source:
        return parse_source(self.source.get_secret_value())

    def over(self, defaults: CameraDefaults) -> CameraDefaults:
        """Return the defaults with this camera's own values over them."""
        own = {key: value for key in CameraDefaults.model_fields if (value := getattr(self, key)) is not None}
        return defaults.model_copy(update=own)


class Settings(_Section):
    """Everything that can be set."""

    ingest: IngestSettings = IngestSettings()
    spool: SpoolSettings = SpoolSettings()
    broker: BrokerSettings = BrokerSettings()
    web: WebSettings = WebSettings()
    defaults: CameraDefaults = CameraDefaults()
    cameras: dict[Annotated[str, Field(pattern=rf"^{CAMERA_PATTERN}$")], CameraSettings] = {}
    drain_timeout: Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=3600)] = 10.0
    ffmpeg: Path | None = None

    def secrets(self) -> tuple[str, ...]:
        """Return every string that must never be printed."""
        found = [self.ingest.token.get_secret_value()] if self.ingest.token else []
        for camera in self.cameras.values():
            found += camera.parsed_source().secrets()
        password = urlsplit(self.broker.url.get_secret_value()).password
        return tuple([*found, password] if password else found)

    def worker_environment(self) -> dict[str, str]:
        """Return the variables that give a worker these settings; no camera source is among them."""
        found = {}
        for section in ("ingest", "spool", "broker", "web"):
            model: BaseModel = getattr(self, section)
            for key, value in model:
                if value is not None:
                    found[f"{ENV_PREFIX}{section}__{key}".upper()] = _as_text(value)
        return found


def _as_text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return str(value)


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

_Layer = dict[str, tuple[object, str]]  # dotted key -> value and where it came from


def _flatten(tree: Mapping[str, Any], where: str, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, where, f"{dotted}\0")
        else:
            yield dotted, value, f"{where}: {dotted.replace(chr(0), '.')}"


def _toml_layer(path: Path) -> _Layer:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}; "
            "expected a readable TOML file; check the path given with --config or RELAY_CONFIG"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}; mend that line") from None
    return {dotted: (value, where) for dotted, value, where in _flatten(tree, str(path))}


def _environment_layer(environ: Mapping[str, str]) -> _Layer:
    layer: _Layer = {}
    for name, value in environ.items():
        if name in ENV_SHORT:
            layer[ENV_SHORT[name].replace(".", "\0")] = (value, name)
        elif name.startswith(ENV_PREFIX) and "__" in name:
            section, _, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
            if section in {"ingest", "spool", "broker", "web", "defaults"}:
                layer.setdefault(f"{section}\0{key}", (value, name))
    return layer


def _unflatten(layer: _Layer) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for dotted, (value, _) in layer.items():
        *parents, last = dotted.split("\0")
        node = tree
        for parent in parents:
            node = cast("dict[str, Any]", node.setdefault(parent, {}))
        node[last] = value
    return tree


@dataclass(frozen=True)
class _Given:
    """A value and where it came from."""

    text: str
    where: str

    def wrong(self, words: str) -> RelayError:
        kind = UsageError if self.where.startswith("--") else ConfigError
        return kind(f"{self.where}: {words}")


def _given(flag: str | None, name: str, environ: Mapping[str, str], variable: str) -> _Given | None:
    if flag is not None:
        return _Given(flag, name)
    value = environ.get(variable)
    return _Given(value, variable) if value else None


def _camera_layer(source: _Given, camera_id: _Given | None, *, realtime: bool | None) -> _Layer:
    try:
        parsed = parse_source(source.text)
    except UsageError as error:
        raise source.wrong(str(error)) from None
    if camera_id is not None and not is_camera_id(camera_id.text):
        raise camera_id.wrong(
            f"found {camera_id.text[:80]!r}; expected 1 to 64 ASCII letters, digits, "
            "'_', '.' or '-', beginning with a letter or digit"
        )
    camera = camera_id.text if camera_id else parsed.camera_id()
    layer: _Layer = {f"cameras\0{camera}\0source": (source.text, source.where)}
    if realtime is not None:
        layer[f"cameras\0{camera}\0realtime"] = (realtime, "--no-realtime")
    return layer


def load_settings(
    flags: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
    source: str | None = None,
    camera_id: str | None = None,
    realtime: bool | None = None,
) -> Settings:
    """Read all layers and check them.

    `flags` maps a flag's name to its value (None = not given). A `source` given on the command line
    replaces the cameras of the file: one camera, as typed. Raises UsageError when a flag is wrong,
    ConfigError otherwise; the message lists every problem.
    """
    environ = os.environ if environ is None else environ
    config = config or (Path(environ["RELAY_CONFIG"]) if environ.get("RELAY_CONFIG") else None)
    layer = _toml_layer(config) if config else {}
    layer |= _environment_layer(environ)
    layer |= {
        FLAGS[name].replace(".", "\0"): (value, name)
        for name, value in (flags or {}).items()
        if value is not None
    }
    given = _given(source, "--source", environ, "RELAY_SOURCE")
    if given is not None:
        layer = {key: value for key, value in layer.items() if not key.startswith("cameras\0")}
        named = _given(camera_id, "--camera-id", environ, "RELAY_CAMERA_ID")
        layer |= _camera_layer(given, named, realtime=realtime)
    _forget_weaker_token(layer, flags or {}, environ)
    try:
        return Settings.model_validate(_unflatten(layer))
    except ValidationError as error:
        raise _explain(error, layer) from None


def _forget_weaker_token(layer: _Layer, flags: Mapping[str, object], environ: Mapping[str, str]) -> None:
    """Let a stronger layer's token beat a weaker layer's token file, and the other way round."""
    keys = ("ingest\0token", "ingest\0token_file")
    if not all(key in layer for key in keys):
        return

    def strength(key: str) -> int:
        where = layer[key][1]
        return 2 if where in flags else 1 if where in environ else 0

    token, token_file = (strength(key) for key in keys)
    if token != token_file:
        del layer[keys[0] if token < token_file else keys[1]]


def _explain(error: ValidationError, layer: _Layer) -> RelayError:
    problems = [_problem(details, layer) for details in error.errors(include_url=False)]
    wrong_flag = any(where.startswith("--") for where, _ in problems)
    lines = [f"{where}: {text}" for where, text in problems]
    message = lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} settings are wrong:", *lines])
    return (UsageError if wrong_flag else ConfigError)(message)


def _problem(details: ErrorDetails, layer: _Layer) -> tuple[str, str]:
    path = [str(part) for part in details["loc"]]
    where = next(
        (layer[key][1] for length in range(len(path), 0, -1) if (key := "\0".join(path[:length])) in layer),
        ".".join(path),
    )
    text = details["msg"].removeprefix("Value error, ")
    if details["type"] == "extra_forbidden":
        return where, "no such setting; see the README for all of them"
    text = text[:1].lower() + text[1:]
    if not _may_show(path, details["input"]):
        return where, text
    return where, f"found {json.dumps(details['input'])[:80]}; {text}"


def _may_show(path: list[str], value: object) -> bool:
    """Tell whether a wrong value may be quoted: never what is, or could hold, a secret."""
    if path[-1:] in (["token"], ["source"]) or path[:2] == ["broker", "url"]:
        return False
    return isinstance(value, int | float) or (isinstance(value, str) and not set(value) & set("@?"))


def require_cloud(settings: Settings) -> str:
    """Return the cloud's URL; ConfigError unless both it and a token are set."""
    if settings.ingest.url is None:
        raise ConfigError(
            f"no cloud is set; expected its base URL, like {EXAMPLE_CLOUD}; "
            "give --cloud, or set RELAY_CLOUD, or ingest.url in relay.toml"
        )
    read_token(settings.ingest)
    return settings.ingest.url


def read_token(ingest: IngestSettings) -> str:
    """Return the token as it stands now; a token file is read anew at each call.

    Raises ConfigError when there is none, or it cannot be a token. The message never shows it.
    """
    if ingest.token is not None:
        return ingest.token.get_secret_value()
    if ingest.token_file is None:
        raise ConfigError(
            "no token is set; expected the key the cloud issued; set RELAY_TOKEN, "
            "or put it in a file and give --token-file"
        )
    try:
        with ingest.token_file.open(encoding="utf-8") as file:
            return check_token(file.read(8192))
    except OSError as error:
        raise ConfigError(
            f"cannot read the token file {ingest.token_file}: {error.strerror}; "
            "expected a file with the token on one line; check the path and who may read it"
        ) from None
    except ValueError as error:
        raise ConfigError(f"token file {ingest.token_file}: {error}") from None

"""What a single setting may be: durations, sizes, addresses, tokens, names. Pure."""

import re
import unicodedata
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from capture.errors import RelayError
from capture.hostname import ascii_host
from capture.segment import is_camera_id
from capture.source import parse_source
from capture.timetable import parse_timetable

EXAMPLE_CLOUD = "https://cloud.example.com"
CAMERA_ID_RULE = "expected 1 to 64 ASCII letters, digits, '_', '.' or '-', beginning with a letter or digit"
LONGEST_NAME = 200  # characters
LOOPBACK = "127.0.0.1"
LAST_PORT = 65535

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"\s*(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>ms|s|m|h|d)?\s*")
_RESOLUTION = re.compile(r"(?P<width>[0-9]{2,5})x(?P<height>[0-9]{2,5})")
_LISTEN = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):)?(?P<port>[0-9]{1,5})")
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


def seconds(value: object) -> object:
    """Read ``90``, ``"90"``, ``"90s"``, ``"1.5h"`` as seconds."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value)
    if match is None:
        raise ValueError('a duration is a number of seconds, or a number with ms, s, m, h or d: "1h"')
    return float(match["number"]) * _UNITS[match["unit"] or "s"]


def comma_list(value: object) -> object:
    """Read ``"200,204"`` as a list."""
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
    try:
        ascii_host(parts.hostname)
    except ValueError:
        raise ValueError("its host is no name as it stands; expected ASCII, or its xn-- form") from None
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
    try:
        split_broker_url(value.get_secret_value())
    except ValueError as error:
        raise ValueError(
            f"{error}; expected redis://HOST:PORT/0, rediss://… or redis+socket:///PATH, with special "
            "characters in a password as %XX"
        ) from None
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


def _max_rate(value: str) -> str:
    parse_timetable(value)
    return value


def split_broker_url(url: str) -> SplitResult:
    """Take a broker's URL apart, and refuse one whose password may be in the wrong part.

    Raises ValueError that never quotes the URL, which may hold the password anywhere. urllib's own words do
    quote it, as those about a port that is no number.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("it cannot be taken apart") from None
    if parts.scheme not in {"redis", "rediss", "redis+socket"}:
        raise ValueError("its scheme is none of these")
    if "@" in parts.path + parts.query or parts.fragment:
        raise ValueError("it has '@' or '#' where none may be")
    if parts.scheme == "redis+socket" and len(parts.path) <= 1:
        raise ValueError("it names no socket")
    return parts


def _success_code(value: int) -> int:
    if not 200 <= value <= 299:  # noqa: PLR2004 - what a success is called in HTTP
        raise ValueError("a success code lies between 200 and 299")
    return value


def _camera_id(value: str) -> str:
    if not is_camera_id(value):
        raise ValueError(CAMERA_ID_RULE)
    return value


def _name(value: str) -> str:
    """Refuse what would move a terminal's cursor, or show as nothing, where people read it."""
    if not value.strip():
        raise ValueError("the name is empty; expected what people call the camera, or no name at all")
    if any(unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} for char in value):
        raise ValueError("expected printable characters on one line; check what was pasted")
    if len(value) > LONGEST_NAME:
        raise ValueError(f"the name has {len(value)} characters; expected {LONGEST_NAME} at most")
    return value


def _path(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError("expected a path; no path holds a NUL character")
    return value


Seconds = Annotated[float, BeforeValidator(seconds), Field(gt=0, le=10 * 365 * 86400)]
Resolution = Annotated[tuple[int, int], BeforeValidator(_resolution)]
Fps = Annotated[float, Field(gt=0, le=240)]
SegmentSeconds = Annotated[Seconds, Field(ge=0.5, le=600)]
Audio = Literal["off", "copy", "aac"]
OnRefused = Literal["stop", "hold"]
CameraId = Annotated[str, AfterValidator(_camera_id)]
CameraName = Annotated[str, AfterValidator(_name)]
CloudUrl = Annotated[str, AfterValidator(_cloud_url)]
Token = Annotated[SecretStr, AfterValidator(_token)]
SourceText = Annotated[SecretStr, AfterValidator(_source)]
BrokerUrl = Annotated[SecretStr, AfterValidator(_broker_url)]
FilePath = Annotated[Path, AfterValidator(_path)]
MaxRate = Annotated[str, AfterValidator(_max_rate)]
Listen = Annotated[str, BeforeValidator(_listen)]
SuccessCode = Annotated[int, AfterValidator(_success_code)]

"""What a request asks of the sink, read out of bytes that nobody trusts."""

import base64
import binascii
import json
import math
import re
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

from capture.sink_http import Head
from capture.sink_store import CAMERA, SEQUENCE, SESSION, is_camera

CAMERAS: Final = "/api/cameras"
INGEST: Final = "/api/stream/ingest/"
HEALTH: Final = "/healthz"
SOURCE_TYPES: Final = ("rtsp", "webcam", "file", "test")

_DIGEST: Final = re.compile(r"(?:^|,)[ \t]*sha-256[ \t]*=[ \t]*([^,]*)")
_START: Final = re.compile(r"[0-9A-Za-z:.+-]{1,64}")


@dataclass(frozen=True)
class Asked:
    """Where a request is meant to go. `wrong` says why camera or key cannot be used."""

    route: str
    _: KW_ONLY
    camera: str | None = None
    session: str | None = None
    sequence: int | None = None
    wrong: str = ""


def read_asked(head: Head) -> Asked:
    """Find the route, the camera and the key of a request; nothing hostile comes through."""
    if head.path == CAMERAS:
        return Asked("cameras")
    if head.path == HEALTH:
        return Asked("health")
    camera = head.path.removeprefix(INGEST)
    if camera == head.path or not camera or "/" in camera:
        return Asked("none")
    return _read_ingest(camera, key=head.headers.get("idempotency-key"))


def _read_ingest(camera: str, *, key: str | None) -> Asked:
    if not is_camera(camera):
        return Asked("ingest", wrong=f"found a camera id that is not {CAMERA.pattern}")
    if key is None:
        return Asked("ingest", camera=camera)
    session, _, sequence = key.partition("/")
    if not SESSION.fullmatch(session) or not SEQUENCE.fullmatch(sequence):
        wrong = "found an Idempotency-Key that is not <session>/<sequence>"
        return Asked("ingest", camera=camera, wrong=wrong)
    return Asked("ingest", camera=camera, session=session, sequence=int(sequence))


def read_digest(text: str | None) -> bytes | None:
    """Take the SHA-256 from a Content-Digest (RFC 9530); ValueError when it is malformed."""
    match = _DIGEST.search(text) if text else None
    if match is None:
        return None
    value = match[1].strip()
    if len(value) < 2 or value[0] != ":" or value[-1] != ":":  # noqa: PLR2004
        raise ValueError(value)
    try:
        return base64.b64decode(value[1:-1], validate=True)
    except binascii.Error as error:
        raise ValueError(value) from error


def read_registration(raw: bytes) -> dict[str, Any] | str:
    """Read the payload of a camera, or say in a sentence what is wrong with it."""
    try:
        payload = json.loads(raw, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return "found a body that is no JSON"
    if not isinstance(payload, dict):
        return "found no JSON object"
    camera = payload.get("id")
    if not isinstance(camera, str) or not is_camera(camera):
        return f"found no id, or one that is not {CAMERA.pattern}"
    for name, kind in (("name", str), ("source_url", str), ("metadata", dict)):
        if name in payload and not isinstance(payload[name], kind):
            return f"found {name} of the wrong type"
    return _metadata_trouble(payload.get("metadata", {})) or payload


def _no_number(text: str) -> float:
    """Refuse what Python reads as a number and no other reader of JSON does."""
    raise ValueError(text)


def _metadata_trouble(metadata: dict[str, Any]) -> str:
    for name in ("managed_by", "ingest_transport"):
        if name in metadata and not isinstance(metadata[name], str):
            return f"found metadata.{name} of the wrong type"
    if metadata.get("source_type", SOURCE_TYPES[0]) not in SOURCE_TYPES:
        return f"found a metadata.source_type that is none of {', '.join(SOURCE_TYPES)}"
    return ""


def read_start(text: str | None) -> str:
    """Read the time a segment starts at; empty for what cannot be a time."""
    return text if text is not None and _START.fullmatch(text) else ""


def read_duration(text: str | None) -> float:
    """Read seconds; 0 for what is no duration, since a server may not mind what it did not ask."""
    try:
        seconds = float(text or 0.0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds >= 0 else 0.0

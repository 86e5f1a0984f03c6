"""Where the broker of a spool is, for commands that did not start it.

`up` runs a broker of its own on a socket in a directory with a random name; a note in the spool says where,
so that `status` and `requeue` find it. A stale note does no harm: the socket is gone, or nobody answers.
"""

import contextlib
import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from capture.settings import Settings
from capture.spool import Spool, read_json, write_json

_NOTE = "broker.json"


def note_broker(spool: Spool, url: str) -> None:
    """Note the URL of a broker of our own, which holds no secret. A full disk costs the note alone."""
    with contextlib.suppress(OSError):
        write_json(spool.state / _NOTE, {"url": url, "host": socket.gethostname()})


def with_broker_of(spool: Spool, settings: Settings) -> Settings:
    """Return settings with the broker that `up` noted for this spool, unless a broker was set."""
    if "url" in settings.broker.model_fields_set:
        return settings
    url = _noted_url(spool)
    if url is None:
        return settings
    return settings.model_copy(update={"broker": settings.broker.model_copy(update={"url": SecretStr(url)})})


def runtime_directory(spool: Spool) -> Path | None:
    """Return the private directory of the `up` that runs for this spool on this machine; None without one."""
    url = _noted_url(spool)
    return Path(unquote(urlsplit(url).path)).parent if url else None


def _noted_url(spool: Spool) -> str | None:
    note = read_json(spool.state / _NOTE)
    url = note.get("url")
    if not isinstance(url, str) or note.get("host") != socket.gethostname() or not _is_there(url):
        return None
    return url


def _is_there(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "redis+socket" and Path(unquote(parts.path)).is_socket()
    except (ValueError, OSError):
        return False

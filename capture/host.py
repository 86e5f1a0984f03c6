"""This machine, for files by host: those that share a spool need not share a line."""

import socket
import time
from contextlib import suppress
from pathlib import Path

_OLD_SECONDS = 86400.0


def host() -> str:
    """Return a name that all containers of a machine have in common, for as long as it runs."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return socket.gethostname()


def remove_old(own: Path, *, now: float | None = None) -> None:
    """Remove what other machines, and this one before it started anew, left beside a file ``what-<host>.x``.

    `now` in seconds since 1970, if it is not that of the system.
    """
    now = time.time() if now is None else now
    for path in own.parent.glob(f"{own.name.partition('-')[0]}-*{own.suffix}"):
        with suppress(OSError):
            if path != own and now - path.lstat().st_mtime > _OLD_SECONDS:
                path.unlink()

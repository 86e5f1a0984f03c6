"""What a service manager is told: ready, alive, reloading, stopping.

systemd's protocol: a datagram of `NAME=VALUE` lines to the socket that `NOTIFY_SOCKET` names, a path or,
with `@` in front, a name outside the file system. Without that variable nothing is said. It is never waited
for: a manager that does not read costs us nothing.
"""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

SOCKET_VARIABLE = "NOTIFY_SOCKET"
PID_VARIABLE = "WATCHDOG_PID"


class Notifier:
    """Speaks for this process. The children of a service inherit the variables, and keep silent."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get(SOCKET_VARIABLE, "")
        meant = environ.get(PID_VARIABLE, str(os.getpid())) == str(os.getpid())
        self._address = address.replace("@", "\0", 1) if meant and address[:1] in ("/", "@") else ""

    def ready(self) -> None:
        """Tell that the service does its work; also after a reload."""
        self._send("READY=1")

    def alive(self) -> None:
        """Tell that the main loop turns."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """Tell that the settings are read again; `ready` is due after it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Tell that the service ends."""
        self._send("STOPPING=1")

    def _send(self, lines: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(lines.encode(), self._address)

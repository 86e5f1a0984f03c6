"""What the kernel knows of a connection whose attempt failed: a slow line, or nobody there."""

import array
import contextlib
import fcntl
import socket
import struct
import sys
import termios
import weakref

# Who acknowledged anything within this time is there.
LIVING_SECONDS = 15.0
# tcpi_last_ack_recv in milliseconds, within struct tcp_info of linux/tcp.h.
_LAST_ACK = struct.Struct("=56xI")
_DROP = struct.pack("ii", 1, 0)


class Connection:
    """The sockets of a client: they stay the client's, and are looked at, or shut."""

    def __init__(self) -> None:
        self._used: socket.socket | None = None
        # Weak: one that the client lost, where a time limit came between two steps, is closed with its end.
        self._open: list[weakref.ref[socket.socket]] = []
        self.was_slow = False
        self.is_cut = False

    def is_new(self, found: socket.socket) -> None:
        """Note that the client has a new one, and uses it."""
        self._open = [each for each in self._open if (there := each()) is not None and there.fileno() >= 0]
        self._open.append(weakref.ref(found))
        self.is_used(found)
        if self.is_cut:
            _shut(found)

    def is_used(self, found: socket.socket) -> None:
        """Note which one the client uses now."""
        self._used = found

    def cut(self) -> None:
        """Shut it, and each that comes: who reads or writes it, in whatever thread, sees it end."""
        if self._used is not None:  # as long as it says so: its end, too, has to be acknowledged
            self.was_slow = is_slow(self._used)
        self.is_cut = True
        for each in self._open.copy():
            if (found := each()) is not None:
                _shut(found)

    def forget(self) -> None:
        """Begin an attempt."""
        self.was_slow = False

    def give_up(self) -> None:
        """Note whether bytes are still on their way to somebody who is there; its close is to drop them.

        Otherwise the kernel would go on sending what is left of a vain attempt, in the way of the next one:
        on a slow line that can be a minute's worth.
        """
        if self._used is not None:
            if not self.is_cut:
                self.was_slow = is_slow(self._used)
            with contextlib.suppress(OSError):
                self._used.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP)


def is_slow(connection: socket.socket) -> bool:
    """Tell whether the peer lives and has not taken everything yet; False where the kernel does not say.

    A window that is shut counts, as its probes are answered. A peer that has everything and does not answer
    is not slow, it hangs; one that acknowledges nothing is gone.
    """
    if sys.platform != "linux":
        return False
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_ACK.size)
        waiting = array.array("i", [0])
        fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, waiting)
        (silent_ms,) = _LAST_ACK.unpack(info)
    except (OSError, ValueError, struct.error):  # closed meanwhile
        return False
    return waiting[0] > 0 and silent_ms < LIVING_SECONDS * 1000


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Of the socket below TLS: the method of ssl.SSLSocket would go on in plain text.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)

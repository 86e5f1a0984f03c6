"""A local ingest that speaks what the cloud speaks: stores, verifies, counts, and plays faults.

::

    GET    /api/cameras                    200 with those that are registered
    POST   /api/cameras                    201 the first time, then 200; 400 for a bad payload
    POST   /api/stream/ingest/{camera_id}  204 stored; 400 empty, digest mismatch or bad key; 409
                                           stored before; 411 no length; 413 too large; 422 other
                                           bytes under a known key; 507 no room
    DELETE /api/stream/ingest/{camera_id}  204, or 404 for a camera that is not known
    GET    /healthz                        200

A wrong or missing X-API-Key is 401 before the body is used; other methods of these are 405, anything
else is 404. docs/openapi.yaml says the same for other servers. What is stored is described in
`sink_store`, the faults in `sink_faults`.
"""

import errno
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import structlog

from capture.errors import ConfigError
from capture.sink_exchange import Desk
from capture.sink_faults import Fault, FaultPlan, Hit
from capture.sink_http import TICK, Connection, PeerGoneError
from capture.sink_ledger import Counters, Ledger, SinkEvent
from capture.sink_store import Receipt, Store, verify

__all__ = [
    "Counters",
    "Fault",
    "FaultPlan",
    "Hit",
    "Receipt",
    "Sink",
    "SinkEvent",
    "verify",
]

MAX_BODY: Final = 512 * 1024 * 1024  # bytes
PEER_TIMEOUT: Final = 60.0  # seconds a peer may be silent, between requests and within one
STOP_GRACE: Final = 1.0  # seconds for requests at work to end, then once more after the cut
BACKLOG: Final = 256

log: Final = structlog.get_logger(__name__)


class Sink:
    """A threaded HTTP server over one directory; `with Sink(...) as sink` starts and stops it.

    After `start` the port stays the same, so that a stopped sink can be started again.
    """

    def __init__(
        self,
        directory: Path,
        *,
        token: str | None,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: FaultPlan | None = None,
        on_event: Callable[[SinkEvent], None] | None = None,
        tls: ssl.SSLContext | None = None,
        max_body: int = MAX_BODY,
        peer_timeout: float = PEER_TIMEOUT,
    ) -> None:
        self.directory = directory
        self.host = host
        self.port = port
        self.faults = FaultPlan() if faults is None else faults
        self._tls = tls
        self._peer_timeout = peer_timeout
        self._store = Store(directory)
        self._ledger = Ledger(on_event)
        self._desk = Desk(
            self._store, ledger=self._ledger, faults=self.faults, token=token, max_body=max_body
        )
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._lines: dict[threading.Thread, socket.socket] = {}
        self._door: threading.Thread | None = None
        self._listener: socket.socket | None = None

    @property
    def url(self) -> str:
        scheme = "http" if self._tls is None else "https"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"

    @property
    def cameras(self) -> dict[str, dict[str, Any]]:
        """The registered payloads by camera id."""
        return self._desk.registered()

    @property
    def ended(self) -> list[str]:
        """The camera ids that were deleted, in order."""
        return list(self._desk.ended)

    @property
    def counters(self) -> Counters:
        return self._ledger.counters()

    def receipts(self) -> list[Receipt]:
        """Return what is stored, in the order it came."""
        return self._store.receipts()

    def start(self) -> None:
        """Open the directory and the port; ConfigError when either is not to be had."""
        listener = self._bind()  # first: a port in use leaves nothing behind in the directory
        try:
            self._store.open()
        except BaseException:
            listener.close()
            raise
        self._stopping.clear()
        self._desk.revive()
        self.faults.begin()
        self._door = threading.Thread(target=self._keep_door, args=(listener,), name="sink-door", daemon=True)
        self._door.start()

    def stop(self) -> None:
        """Close the port, end every connection and then the store; bounded, and harmless twice."""
        self._stopping.set()
        if self._listener is not None:
            with suppress(OSError):  # wakes the door on Linux; elsewhere it wakes within a tick
                self._listener.shutdown(socket.SHUT_RDWR)
        if self._door is not None:
            self._door.join()
            self._door = None
        # Reading ends first, so that a segment stored this moment still gets its answer.
        self._cut(socket.SHUT_RD)
        self._join(STOP_GRACE)
        self._cut(socket.SHUT_RDWR)
        self._join(STOP_GRACE)
        self._store.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _bind(self, *, listening: bool = True) -> socket.socket:
        """Take the port; without listening, clients are refused and no one else gets it."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            listener = socket.socket(found[0], socket.SOCK_STREAM)
        except OSError as error:
            raise self._no_address(error) from error
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(found[4])
            if listening:
                listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise self._no_address(error) from error
        listener.settimeout(TICK)
        self.port = listener.getsockname()[1]
        return listener

    def _no_address(self, error: OSError) -> ConfigError:
        if error.errno == errno.EADDRINUSE:
            return ConfigError(
                f"found port {self.port} on {self.host} in use, expected it free; stop what "
                "listens there, or choose another port (0 takes any free one)"
            )
        return ConfigError(
            f"found {self.host} port {self.port} unusable ({error.strerror}), expected an address "
            "of this machine and a port this user may open; choose another one"
        )

    def _keep_door(self, listener: socket.socket) -> None:
        """Accept connections until the sink stops; close and open the door as the faults want."""
        self._listener = listener
        while self._listener is not None and not self._stopping.is_set():
            if self.faults.refusing():
                self._listener.close()
                self._listener = self._stay_closed()
            else:
                self._accept(self._listener)
        if self._listener is not None:
            self._listener.close()

    def _stay_closed(self) -> socket.socket | None:
        """Refuse everybody while the fault lasts; give back a listener, or None when stopping."""
        door: socket.socket | None = None
        while not self._stopping.is_set():
            self._cut(socket.SHUT_RDWR)
            try:
                door = door or self._bind(listening=False)
                if not self.faults.refusing():
                    door.listen(BACKLOG)
                    return door
            except (ConfigError, OSError) as error:
                log.warning("sink_port_lost", reason=str(error))
            self._stopping.wait(TICK)
        if door is not None:
            door.close()
        return None

    def _accept(self, door: socket.socket) -> None:
        try:
            sock, _ = door.accept()
        except TimeoutError:
            return
        except OSError as error:
            if not self._stopping.wait(TICK):
                log.warning("sink_accept_failed", reason=str(error))
            return
        thread = threading.Thread(target=self._attend, args=(sock,), name="sink-line", daemon=True)
        with self._lock:
            self._lines[thread] = sock
        thread.start()

    def _attend(self, sock: socket.socket) -> None:
        """Serve one connection, in its own thread, to its end."""
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(self._peer_timeout)
            sock = self._secure(sock)
            connection = Connection(sock, stopping=self._stopping)
            try:
                self._desk.serve(connection)
            finally:
                connection.close()
        except (PeerGoneError, OSError) as error:
            log.debug("sink_line_ended", reason=repr(error))
        except Exception:
            log.exception("sink_line_failed")
        finally:
            sock.close()
            with self._lock:
                self._lines.pop(threading.current_thread(), None)

    def _secure(self, sock: socket.socket) -> socket.socket:
        if self._tls is None:
            return sock
        # The wrapping takes the descriptor away from the plain socket, so `stop` needs the new one.
        secure = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._lines[threading.current_thread()] = secure
        if self._stopping.is_set():  # then the cut may have come before the line above
            secure.close()
            raise PeerGoneError
        try:
            secure.do_handshake()
        except BaseException:
            secure.close()
            raise
        return secure

    def _cut(self, how: int) -> None:
        """Shut every connection down; past TLS, which would lose its state under its reader."""
        with self._lock:
            socks = list(self._lines.values())
        for sock in socks:
            with suppress(OSError):
                socket.socket.shutdown(sock, how)

    def _join(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self._lock:
            threads = [thread for thread in self._lines if thread is not threading.current_thread()]
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

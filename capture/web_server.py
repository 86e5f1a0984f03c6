"""A small HTTP server beside the capture: one thread, GET and HEAD, everything bounded.

asyncio's streams, because the broker's client has loaded asyncio into the agent already, because a reader
that trickles costs them a few kilobytes instead of a thread, and because they are the standard library's.
Each connection carries one request; the number of connections, the head, and the time for each step are
limited: of those that have not asked yet the oldest makes way, and who asks while too many are being
answered is told to come back.
"""

import asyncio
import contextlib
import errno
import ipaddress
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog

from capture.errors import ConfigError
from capture.sink_http import Answer, BadHeadError, Head, parse_head

MOST_WAITING: Final = 64  # connections that have not asked yet
MOST_ANSWERED: Final = 64  # connections that have
ACCEPTED_AT_ONCE: Final = 8
HEAD_LIMIT: Final = 8 * 1024  # bytes
HEAD_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 15.0
SEND_SECONDS: Final = 15.0
STOP_SECONDS: Final = 2.0
_TURNS: Final = 5
_HEAD_END: Final = b"\r\n\r\n"
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")

# What every answer carries. Nothing is cached, framed, or given to another site's page.
_GUARDS: Final = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)
STRICT_POLICY: Final = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

# A handler gets what follows its path in the table: "" for the path itself.
Handler = Callable[[str], Awaitable[Answer]]

log = structlog.get_logger()


def answer(
    body: bytes | str, content_type: str, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    """Return an answer; a header given here stands instead of the one that all answers carry."""
    data = body if isinstance(body, bytes) else body.encode()
    return Answer(status, body=data, headers=(("Content-Type", content_type), *(headers or {}).items()))


def is_own_name(host: str, bound: str) -> bool:
    """Tell whether a Host header may name us, who listen on the address `bound`.

    On loopback only loopback's names may: a page of somebody else whose name was pointed at this machine
    would otherwise read the cameras. Elsewhere also addresses, this machine's name, names without a dot and
    those of the local network, none of which a stranger can point here.
    """
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match[1].strip("[]").lower()
    if name in {"localhost", bound.strip("[]").lower()}:
        return True
    address = _address(name)
    if _is_loopback(bound):
        return address is not None and address.is_loopback
    own = {socket.gethostname().lower()}
    return address is not None or "." not in name or name in own or name.endswith((".local", ".internal"))


def _is_loopback(host: str) -> bool:
    address = _address(host.strip("[]"))
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


class WebServer:
    """Serves a table of paths from its own thread. A key that ends in "/" also takes what is below it."""

    def __init__(self, listen: str, routes: Mapping[str, Handler], *, always: frozenset[str]) -> None:
        """Take HOST:PORT at once, so that a port in use is known before anything starts (ConfigError).

        `always` are the paths that are answered however many ask: they must take no time.
        """
        self._host, _, port = listen.rpartition(":")
        self._socket = _bind(self._host.strip("[]"), int(port))
        self._routes, self._always = routes, always
        self._waiting: dict[asyncio.StreamWriter, None] = {}  # the oldest first
        self._answering: set[asyncio.StreamWriter] = set()
        self._failing: set[str] = set()
        self._is_closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._main, name="web", daemon=True)

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._socket.getsockname()[1]}/"

    def start(self) -> None:
        self._thread.start()
        log.info("web_listening", url=self.url)
        if not _is_loopback(self._host):
            log.warning(
                "web_open_to_network",
                url=self.url,
                advice="who reaches it sees the pictures; put a proxy with a password before it",
            )

    def close(self) -> None:
        """End the thread and every connection, within `STOP_SECONDS`."""
        self._is_closing = True
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                loop.call_soon_threadsafe(stop.set)
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        self._socket.close()

    # --- the server's thread ---

    def _main(self) -> None:
        try:
            asyncio.run(self._listen())
        except Exception:
            log.exception("web_failed")

    async def _listen(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if self._is_closing:  # before there was anything to tell it to
            return
        server = await asyncio.start_server(
            self._attend, sock=self._socket, limit=HEAD_LIMIT, backlog=ACCEPTED_AT_ONCE
        )
        # asyncio takes the backlog for the number it accepts in one go, before any of them can be counted.
        self._socket.listen(MOST_WAITING)
        try:
            await self._stop.wait()
        finally:
            # Nobody is accepted any more, and who just was has reached `_attend`, before the server closes:
            # Python 3.11 fails on one that comes in between, and leaves it open.
            self._loop.remove_reader(self._socket.fileno())
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            server.close()
            for writer in [*self._waiting, *self._answering]:
                writer.transport.abort()

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end, whatever comes over it."""
        if len(self._waiting) >= MOST_WAITING:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.transport.abort()
        self._waiting[writer] = None
        try:
            await self._exchange(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # gone, or too slow
        except asyncio.CancelledError:
            pass  # the server ends, and with it this task
        finally:
            self._waiting.pop(writer, None)
            self._answering.discard(writer)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_head = False
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = parse_head((await reader.readuntil(_HEAD_END))[:-2])
            is_head = head.method == "HEAD"
            self._waiting.pop(writer, None)
            self._answering.add(writer)
            found = await self._answer(head)
        except BadHeadError as error:
            found = Answer.text(error.status, str(error))
        except asyncio.LimitOverrunError:
            found = Answer.text(431, f"found a head above {HEAD_LIMIT} bytes")
        async with asyncio.timeout(SEND_SECONDS):
            writer.write(_guarded(found).render(keep=False, bare=is_head))
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def _answer(self, head: Head) -> Answer:
        if (refused := _refusal(head, self._host)) is not None:
            return refused
        parent, slash, rest = head.path.rpartition("/")
        key, rest = (head.path, "") if head.path in self._routes else (parent + slash, rest)
        handler = self._routes.get(key)
        if handler is None or (rest and key == "/"):
            return Answer.text(404, "there is nothing here")
        if len(self._answering) > MOST_ANSWERED and key not in self._always:
            return Answer.text(503, "too many are asking; come back in a moment")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await handler(rest)
        except TimeoutError:
            return Answer.text(503, "no answer in time; the machine is busy")
        except Exception:
            if key not in self._failing:
                self._failing.add(key)
                log.exception("web_request_failed", path=key)
            return Answer.text(500, "this failed for a reason that is a bug; see the agent's log")
        self._failing.discard(key)
        return found


def _refusal(head: Head, bound: str) -> Answer | None:
    """Return why a request is not looked at; None if it is."""
    if head.method not in {"GET", "HEAD"}:
        refused = Answer.text(405, f"found {head.method}, expected GET or HEAD")
        return Answer(405, body=refused.body, headers=(*refused.headers, ("Allow", "GET, HEAD")))
    if not is_own_name(head.headers.get("host", ""), bound):
        return Answer.text(421, "found a Host that is not this machine's; use its address, or localhost")
    # Another site's page may link here, and neither embed nor fetch anything.
    fetched = head.headers.get("sec-fetch-mode", "navigate") != "navigate"
    if head.headers.get("sec-fetch-site") == "cross-site" and fetched:
        return Answer.text(403, "found a request from another site's page")
    return None


def _guarded(found: Answer) -> Answer:
    own = {name for name, _ in found.headers}
    guards = [*_GUARDS, ("Content-Security-Policy", STRICT_POLICY)]
    headers = (*found.headers, *(pair for pair in guards if pair[0] not in own))
    return Answer(found.status, body=found.body, headers=headers)


def _bind(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(found[0], socket.SOCK_STREAM)
    except OSError as error:
        raise _no_address(host, port, error) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found[4])
        listener.listen(MOST_WAITING)
    except OSError as error:
        listener.close()
        raise _no_address(host, port, error) from None
    return listener


def _no_address(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"found port {port} on {host} in use, expected it free for the page; stop what listens there, "
            "or give another with --web PORT (0 takes any free one)"
        )
    return ConfigError(
        f"found {host} port {port} unusable for the page ({error.strerror}), expected an address of this "
        "machine and a port this user may open; give another with --web HOST:PORT"
    )

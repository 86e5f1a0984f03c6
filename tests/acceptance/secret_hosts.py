"""What the relay talks to when secrets are searched for: a cloud and cameras that quote secrets, a broker.

They repeat what they are told, in every spelling: in the words of their answers, which logs, notes and
messages may repeat in turn.
"""

import base64
import http.server
import socket
import subprocess
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from capture.broker import _server_program
from tests.acceptance.secret_search import SPELLINGS, Secret
from tests.cameras.http import HttpCamera

# What an honest server's answer can hold; base64 of a key alone is nothing that anybody writes into one.
ECHOES = [name for name in SPELLINGS if "base64" not in name and "hex" not in name and name != "Basic"]
CUT_AT = 512  # bytes of an answer that are read
BODY_BYTES = 65536  # of a request that are kept


class Cloud:
    """An ingest that takes what has a known token, and quotes the token in every other answer.

    Cameras in `rejects` are answered with 400, all with 503 while it is `down`, unknown tokens with 401.
    """

    def __init__(self, tokens: Collection[str], *, rejects: Collection[str] = ()) -> None:
        self.down = False
        self.requests: list[tuple[str, bytes]] = []
        self.stored: set[tuple[str, str]] = set()  # camera, key
        self.registered: set[str] = set()
        self._tokens, self._rejects = set(tokens), set(rejects)
        self._echoes = 0
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def cameras(self) -> set[str]:
        """Return the cameras whose video came."""
        return {camera for camera, _ in self.stored}

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        cloud = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                cloud._note(self, body)
                status, words = cloud._answer(self.path, dict(self.headers))
                self.send_response(status)
                if status != 204:
                    self.send_header("Content-Length", str(len(words)))
                self.end_headers()
                if status != 204:
                    self.wfile.write(words)

            do_GET = do_DELETE = do_POST  # noqa: N815 - the names of the base

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _note(self, request: Any, body: bytes) -> None:
        """Keep all of a request but its key, which stands where it should."""
        heads = [f"{name}: {value}" for name, value in request.headers.items() if name != "X-API-Key"]
        head = "\n".join([f"{request.command} {request.path}", *heads]).encode()
        self.requests.append((f"{request.command} {request.path}", head + b"\n\n" + body[:BODY_BYTES]))

    def _answer(self, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        token, camera = headers.get("X-API-Key", ""), path.rpartition("/")[2]
        if token not in self._tokens:
            return 401, self._quote(token)
        if self.down:
            return 503, self._quote(token)
        if camera in self._rejects:
            return 400, self._quote(token)
        if "Idempotency-Key" in headers:
            self.stored.add((camera, headers["Idempotency-Key"]))
        return (200 if path == "/api/cameras" else 204), b"[]"

    def _quote(self, token: str) -> bytes:
        """Return words with the token in one spelling after the other; now and then cut off in its middle."""
        self._echoes += 1
        if self._echoes % 4 == 0:
            return b"no: " + b" " * (CUT_AT - 30) + token.encode()
        name = ECHOES[self._echoes % len(ECHOES)]
        return f"the key {SPELLINGS[name](token)} is not good".encode()


class EchoCamera:
    """Asks for a login, by HTTP or RTSP, and refuses it with words that hold it in several spellings."""

    def __init__(self) -> None:
        self.logins = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._attend, args=(connection,), daemon=True).start()

    def _attend(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(20)
            with connection.makefile("rb") as lines:
                while head := self._head(lines):
                    connection.sendall(self._answer(head))

    @staticmethod
    def _head(lines: Any) -> list[str]:
        found: list[str] = []
        while (line := lines.readline().decode("utf-8", "replace").strip()) or (not found and line):
            found.append(line)
        return found

    def _answer(self, head: list[str]) -> bytes:
        protocol = "RTSP/1.0" if head[0].endswith("RTSP/1.0") else "HTTP/1.1"
        fields = dict(line.partition(": ")[::2] for line in head[1:])
        login = fields.get("Authorization", "").removeprefix("Basic ")
        status = "401 Unauthorized"
        if login:
            status = f"400 {self._quote(login)}"
            self.logins += 1
        lines = [
            f"{protocol} {status}",
            f"CSeq: {fields.get('CSeq', 0)}",
            'WWW-Authenticate: Basic realm="r"',
        ]
        return "\r\n".join([*lines, "Content-Length: 0", "Connection: close", "", ""]).encode()

    def _quote(self, login: str) -> str:
        password = base64.b64decode(login).decode().partition(":")[2]
        names = [ECHOES[(2 * self.logins + number) % len(ECHOES)] for number in range(2)]
        return f"{login} or " + " or ".join(SPELLINGS[name](password) for name in names)


class LockedHttpCamera(HttpCamera):
    """An HTTP camera that streams to whoever has one of the logins; each is ``user:password``."""

    def __init__(self, ffmpeg: str, secrets: Collection[Secret]) -> None:
        logins = [f"{secret.user}:{secret.text}".encode() for secret in secrets]
        self._good = {f"Basic {base64.b64encode(login).decode()}" for login in logins}
        super().__init__(ffmpeg)

    def _handler(self, content_type: str) -> type[http.server.BaseHTTPRequestHandler]:
        base, camera = super()._handler(content_type), self

        class Locked(base):  # type: ignore[valid-type, misc]
            def do_GET(self) -> None:  # noqa: N802 - the name of the base
                if self.headers.get("Authorization") in camera._good:
                    super().do_GET()
                    return
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="r"')
                self.end_headers()

        return Locked


def free_port() -> int:
    """Return a port that is free at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def valkey(folder: Path, password: str) -> Iterator[tuple[int, "redis.Redis"]]:
    """Run a server that asks for a password, which stands on no command line; give its port and a client."""
    port = free_port()
    argv = [
        str(_server_program()),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(folder),
    ]
    with (folder / "valkey.log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        client = redis.Redis(port=port, socket_timeout=10, retry_on_error=[redis.ConnectionError])
        _wait_ready(client)
        client.config_set("requirepass", password)
        client.close()
        with redis.Redis(port=port, password=password, socket_timeout=10) as client:
            yield port, client
    finally:
        process.kill()
        process.wait()


def _wait_ready(client: "redis.Redis") -> None:
    for _ in range(200):
        with suppress(redis.ConnectionError):
            client.ping()
            return
        threading.Event().wait(0.05)
    raise TimeoutError("the broker of the test does not answer")

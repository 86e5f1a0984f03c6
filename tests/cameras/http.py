"""Cameras that send an endless stream over HTTP: MPEG-TS, or pictures one after the other (MJPEG)."""

import http.server
import socket
import subprocess
import threading
from contextlib import suppress
from typing import Self

TYPES = {"mpegts": "video/mp2t", "mjpeg": "multipart/x-mixed-replace;boundary=ffmpeg"}
ENCODERS = {
    "mpegts": ["-c:v", "libx264", "-preset", "ultrafast", "-g", "10", "-bf", "0", "-f", "mpegts"],
    "mjpeg": ["-c:v", "mjpeg", "-q:v", "5", "-f", "mpjpeg"],
}
TAKE_BYTES = 65536


class HttpCamera:
    """Serves an ffmpeg child's output to each who asks, at its pace and without an end.

    `stall` keeps connections and sends nothing, `resume` goes on, `drop` closes them all, `refuse` answers
    further requests with a status, `accept` serves again. `form` is ``mpegts`` or ``mjpeg``; `size`
    in pixels.
    """

    def __init__(
        self, ffmpeg: str, form: str = "mpegts", *, size: str = "320x180", fps: int = 10, port: int = 0
    ) -> None:
        pattern = f"testsrc2=size={size}:rate={fps}"
        self._command = [ffmpeg, "-nostdin", "-v", "error", "-re", "-f", "lavfi", "-i", pattern]
        self._command += [*ENCODERS[form], "-flush_packets", "1", "-"]
        self._goes = threading.Event()
        self._goes.set()
        self.refuses = 0
        self.requests = 0
        self._connections: set[socket.socket] = set()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), self._handler(TYPES[form]))
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/stream"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stall(self) -> None:
        self._goes.clear()

    def resume(self) -> None:
        self._goes.set()

    def refuse(self, status: int = 503) -> None:
        self.refuses = status

    def accept(self) -> None:
        self.refuses = 0

    def drop(self) -> None:
        """Close all connections, in mid-stream."""
        with self._guard:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._goes.set()
        self._server.shutdown()
        self.drop()
        with self._guard:
            for child in self._children:
                child.kill()
        self._server.server_close()  # waits for the threads of its connections
        self._thread.join(5)

    def _handler(self, content_type: str) -> type[http.server.BaseHTTPRequestHandler]:
        camera = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera.requests += 1
                self.send_response(camera.refuses or 200)
                self.send_header("Content-Type", content_type)
                self.end_headers()
                if not camera.refuses:
                    with suppress(OSError):
                        camera._play(self.connection)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _play(self, connection: socket.socket) -> None:
        with subprocess.Popen(self._command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as child:
            with self._guard:
                self._connections.add(connection)
                self._children.add(child)
            try:
                assert child.stdout
                while data := child.stdout.read1(TAKE_BYTES):  # type: ignore[attr-defined]
                    self._goes.wait()
                    connection.sendall(data)
            finally:
                child.kill()
                with self._guard:
                    self._connections.discard(connection)
                    self._children.discard(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

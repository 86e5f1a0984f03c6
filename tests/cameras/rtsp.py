"""The RTSP camera of the tests: a child that can be killed, frozen, restarted and told to misbehave."""

import functools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

PYTHON = "/usr/bin/python3"  # Debian's, for which GStreamer's bindings are packaged
SERVER = Path(__file__).with_name("rtsp_server.py")
PACKAGES = (
    "gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good "
    "gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly python3-gi"
)
START_SECONDS = 60.0  # generous: it loads GStreamer and encodes its clip


@functools.cache
def missing() -> str | None:
    """Say what an RTSP camera lacks here, None when it can run."""
    look = (
        "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer;"
        "Gst.init(None);"
        "names = 'x264enc x265enc rtph264pay rtph265pay rtpjpegpay voaacenc alawenc'.split();"
        "lost = [name for name in names if not Gst.ElementFactory.find(name)];"
        "raise SystemExit(f'no GStreamer element {lost}' if lost else 0)"
    )
    command = [PYTHON, "-W", "ignore", "-c", look]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{PYTHON}: {error.strerror}"
    if done.returncode == 0:
        return None
    return f"{done.stderr.strip().splitlines()[-1]}; apt-get install {PACKAGES}"


class RtspCamera:
    """A camera at one address for as long as it lives; options are those of `rtsp_server.OPTIONS`.

    It is started when made. `url` has user and password as `parse_source` takes them, percent-encoded.
    """

    def __init__(self, **options: Any) -> None:
        self.options: dict[str, Any] = {"path": "/live", "address": "127.0.0.1", "port": 0, **options}
        self._lines: list[tuple[float, str]] = []
        self._news = threading.Condition()
        self.start()

    @property
    def port(self) -> int:
        return self.options["port"]

    @property
    def url(self) -> str:
        login = ""
        if self.options.get("auth", "none") != "none":
            user, password = self.options.get("user", "admin"), self.options.get("password", "")
            login = f"{quote(user, safe='')}:{quote(password, safe='')}@"
        return self.url_with(login)

    def url_with(self, login: str) -> str:
        """Return its address with this text, ``user:password@``, before the host."""
        return f"rtsp://{login}{self.options['address']}:{self.port}{self.options['path']}"

    # --- its life ---

    def start(self) -> None:
        """Start it, at the same port as before; returns when it listens."""
        self.process = subprocess.Popen(
            [PYTHON, "-W", "ignore", str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        seen = len(self._lines)
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()
        try:
            self._write(json.dumps(self.options))
            ready = self.wait_for("ready", since=seen, timeout=START_SECONDS)
        except BaseException:
            self.kill()
            raise
        self.options["port"] = int(ready.split()[1])

    def kill(self) -> None:
        """Kill it hard: its connections are closed by the kernel, and its port refuses."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()

    def restart(self, **options: Any) -> None:
        """Kill it if it lives and start it at the same port, perhaps with other options."""
        if self.process.poll() is None:
            self.kill()
        self.options |= options
        self.start()

    def freeze(self) -> None:
        """Stop the process (SIGSTOP): connections stay, nothing is said, new ones are taken by the kernel."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self.process.stdin and not self.process.stdin.closed:
            self.kill()

    # --- what it is told, and what it tells ---

    def tell(self, command: str) -> None:
        """Have a command of `rtsp_server` obeyed."""
        seen = len(self._lines)
        self._write(command)
        self.wait_for(f"ok {command.split(maxsplit=1)[0]}", since=seen)

    def resize(self, size: str) -> None:
        """Switch the resolution, also of what is being sent."""
        self.options["size"] = size
        self.tell(f"size {size}")

    def said(self, word: str, *, since: int = 0) -> list[float]:
        """Return when it said such lines, in monotonic seconds; `since` leaves out the first ones."""
        return [moment for moment, line in self._lines[since:] if line.startswith(word)]

    @property
    def lines(self) -> list[tuple[float, str]]:
        return list(self._lines)

    def wait_for(self, word: str, *, since: int = 0, times: int = 1, timeout: float = 30.0) -> str:
        """Wait until it said so many lines that begin so, and return the last one."""

        def found() -> list[str]:
            return [line for _, line in self._lines[since:] if line.startswith(word)][:times]

        with self._news:
            self._news.wait_for(lambda: len(found()) == times or self.process.poll() is not None, timeout)
            lines = found()
        assert len(lines) == times, f"not {times} {word!r} within {timeout:g} s: {self._lines[-20:]}"
        return lines[-1]

    def _write(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout
        for line in process.stdout:
            with self._news:
                self._lines.append((time.monotonic(), line.strip()))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_required() -> bool:
    """Whether a missing package is a failure: where the project is checked, and not on somebody's laptop."""
    return bool(os.environ.get("CI"))


CameraMaker = Callable[..., RtspCamera]

"""The one door to child processes: own group, on the leash, read without ever waiting for ever."""

import enum
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from capture.errors import ConfigError

CHUNK: Final = 65536  # bytes taken from a stream at a time
DRAIN_LIMIT: Final = 1024 * 1024  # bytes; the largest pipe a user may have
KILL_DEADLINE: Final = 5.0  # seconds; a killed process that stays longer hangs in the kernel
DEATH_POLL: Final = 0.1  # seconds between looks at the child where the kernel has no pidfd
LEASH: Final = Path(__file__).with_name("leash.py")
NO_PIDFD: Final = -1


class Stream(enum.Enum):
    """Where an output of a child goes, unless it is a file descriptor."""

    PIPE = subprocess.PIPE
    NULL = subprocess.DEVNULL
    INHERIT = None


class Child:
    """A running process: leader of its own session and group, dead soon after we are.

    `script` is what it reads on standard input, at most what a pipe holds (64 KiB on Linux): no
    file, no argument, nothing that another user could read. Without one, standard input is empty.
    `env` is its whole environment, ours if not given; `pass_fds` stay open in it.

    On Linux the kernel sends `death_signal` when the *thread* that made this object ends: make it
    in a thread that lives at least as long as the child is wanted. Only the child itself gets it,
    not what it started.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        script: bytes = b"",
        stdout: Stream | int = Stream.NULL,
        stderr: Stream | int = Stream.INHERIT,
        pass_fds: Sequence[int] = (),
        death_signal: signal.Signals = signal.SIGKILL,
        resident_leash: bool = sys.platform != "linux",
    ) -> None:
        _require_program(argv[0], os.environ if env is None else env)
        stdin = _filled_pipe(script)
        try:
            self._process = subprocess.Popen(
                [*_leash(death_signal, resident=resident_leash), *argv],
                bufsize=0,
                env=env,
                stdin=stdin,
                stdout=_target(stdout),
                stderr=_target(stderr),
                pass_fds=pass_fds,
                start_new_session=True,
            )
        finally:
            os.close(stdin)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)

    @property
    def pid(self) -> int:
        """The process id; that of the leash where it stays resident. Also the group's id."""
        return self._process.pid

    @property
    def stdout_fd(self) -> int | None:
        """Our non-blocking end of its output, if that is a pipe."""
        return self._process.stdout.fileno() if self._process.stdout else None

    @property
    def stderr_fd(self) -> int | None:
        """Our non-blocking end of its messages, if that is a pipe."""
        return self._process.stderr.fileno() if self._process.stderr else None

    def poll(self) -> int | None:
        """Return None while it runs, then its exit code, or minus the signal that killed it."""
        return self._process.poll()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait up to `timeout` seconds for its end; return what `poll` returns."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout)
        return None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to it, if it still runs. A hard kill takes its whole group."""
        if number == signal.SIGKILL:
            self.kill_group()
        else:
            self._process.send_signal(number)

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end, and wake it if it is stopped, so that it can."""
        self.send_signal(number)
        self.send_signal(signal.SIGCONT)

    def kill_group(self) -> None:
        """Kill it and all that it started and that stayed in its group, at once."""
        if self.poll() is not None and _exists(self.pid):
            return  # a stranger has its number now, which no one gets before our group is empty
        with suppress(ProcessLookupError, PermissionError):  # macOS: not permitted on a zombie
            os.killpg(self.pid, signal.SIGKILL)

    def stop(self, grace: float, number: signal.Signals = signal.SIGTERM) -> int | None:
        """Terminate, wait `grace` seconds, kill what is left of the group; return as `poll` does.

        Only for a child whose output nobody has to read: one that blocks on a full pipe does not
        come to its signal. None means that not even the kill ended it.
        """
        self.terminate(number)
        self.wait(grace)
        self.kill_group()
        return self.wait(KILL_DEADLINE)

    def close(self) -> None:
        """Kill what still runs, reap it and close our ends of its pipes."""
        self.kill_group()
        self.wait(KILL_DEADLINE)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class Output:
    """What a child writes on its piped streams, as it comes, until both are at their end.

    A stream ends when its last writer closes it, or when the child is dead and what it left in the
    pipe has been read: something that the child started and that holds the pipe open is not
    waited for. Close it before the child. `wake` may be called from any thread and from a signal
    handler, everything else from one thread.
    """

    def __init__(self, child: Child) -> None:
        self._child = child
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._bell.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._streams: dict[str, int] = {}
        for name, fd in (("stdout", child.stdout_fd), ("stderr", child.stderr_fd)):
            if fd is not None:
                self._streams[name] = fd
                self._selector.register(fd, selectors.EVENT_READ, name)
        self._pidfd = _open_pidfd(child)
        if self._pidfd != NO_PIDFD:
            self._selector.register(self._pidfd, selectors.EVENT_READ)

    @property
    def eof(self) -> bool:
        """Whether nothing more will come; the child may live on."""
        return not self._streams

    def read(self, timeout: float) -> list[tuple[str, bytes]]:
        """Return what came on which stream, waiting for it at most `timeout` seconds.

        Nothing is returned when the time is over, or when `wake` was called. When the child died, all that
        it left is.
        """
        # To ask before each read is a system call for each report of each child; a pidfd tells by itself.
        if self._pidfd == NO_PIDFD and self._child.poll() is not None:
            return self._drain()
        ready = self._select(timeout)
        if any(key.fileobj == self._pidfd for key, _ in ready) and self._child.poll() is not None:
            return self._drain()
        chunks = []
        for key, _ in ready:
            if key.fileobj is self._ear:
                self._hear()
            elif key.data is not None and (data := self._take(key.data)):
                chunks.append((key.data, data))
        return chunks

    def wake(self) -> None:
        """Make the `read` that waits now, or the next one, return at once."""
        with suppress(OSError):  # full: it is about to wake; closed: nobody is there to be woken
            self._bell.send(b"\0")

    def close(self) -> None:
        """Forget the streams; the child keeps its own ends until it is closed."""
        self._streams.clear()
        self._selector.close()
        self._ear.close()
        self._bell.close()
        if self._pidfd != NO_PIDFD:
            os.close(self._pidfd)
            self._pidfd = NO_PIDFD

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _select(self, timeout: float) -> list[tuple[selectors.SelectorKey, int]]:
        if self._pidfd != NO_PIDFD:
            return self._selector.select(max(timeout, 0))
        deadline = time.monotonic() + timeout
        while True:
            left = max(deadline - time.monotonic(), 0)
            events = self._selector.select(min(left, DEATH_POLL))
            if events or left == 0 or self._child.poll() is not None:
                return events

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            self._ear.recv(CHUNK)

    def _take(self, name: str) -> bytes | None:
        """Return the next bytes of a stream, b"" at its end, None if there are none yet."""
        try:
            data = os.read(self._streams[name], CHUNK)
        except BlockingIOError:
            return None
        if not data:
            self._forget(name)
        return data

    def _drain(self) -> list[tuple[str, bytes]]:
        """Take what the dead child left: never more than a pipe holds, whoever still fills it."""
        chunks = []
        for name in list(self._streams):
            taken = 0
            while taken < DRAIN_LIMIT and (data := self._take(name)):
                taken += len(data)
                chunks.append((name, data))
            self._forget(name)
        return chunks

    def _forget(self, name: str) -> None:
        fd = self._streams.pop(name, None)
        if fd is not None:
            self._selector.unregister(fd)


class LineTail:
    """The last lines of a stream that may be endless: fed bytes, read as text fit to be shown.

    Lines end with a line feed or a carriage return, empty ones do not count. Longer ones than
    `max_line` are cut. `redact` sees each line when the tail is read, so that feeding stays cheap.
    """

    MARGIN: Final = 1024  # characters; the longest secret that a cut cannot halve into view

    def __init__(
        self,
        maxlen: int = 100,
        *,
        max_line: int = 1000,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self._maxlen = maxlen
        self._lines: deque[bytes] = deque(maxlen=maxlen)
        self._rest = b""
        self._max_line = max_line
        self._keep = max_line + self.MARGIN
        self._redact = redact

    def feed(self, data: bytes) -> None:
        """Take the next bytes, however they are split."""
        *whole, rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        self._lines.extend(line[: self._keep + 1] for line in whole if line)
        self._rest = rest[: self._keep + 1]

    def lines(self) -> list[str]:
        """Return the last lines, oldest first, an unfinished one included."""
        lines = [*self._lines, self._rest] if self._rest else [*self._lines]
        return [self._shown(line) for line in lines][-self._maxlen :]

    def _shown(self, line: bytes) -> str:
        text = line[: self._keep].decode(errors="replace")
        if self._redact is not None:
            text = self._redact(text)
        # What was cut off may have begun within a secret that its redactor then did not know.
        safe = max(len(text) - self.MARGIN, 0) if len(line) > self._keep else len(text)
        if min(safe, self._max_line) < len(text):
            text = text[: min(safe, self._max_line)] + "…"
        # A camera can put escape sequences into its names; a terminal would obey them.
        return "".join(each if each.isprintable() else " " for each in text)


def describe_exit(code: int) -> str:
    """Say in words what `Child.poll` returned: "exited with 1", "killed by SIGKILL"."""
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _leash(death_signal: signal.Signals, *, resident: bool) -> list[str]:
    flags = ["--resident"] if resident else []
    script = [sys.executable, "-I", "-S", str(LEASH)]
    return [*script, *flags, str(int(death_signal)), str(os.getpid()), "--"]


def _require_program(program: str, env: Mapping[str, str]) -> None:
    if shutil.which(program, path=env.get("PATH", os.defpath)) is None:
        raise ConfigError(
            f"There is no program {program!r} that could be run;"
            " install it, or say where it is with its full path."
        )


def _target(stream: Stream | int) -> int | None:
    return stream.value if isinstance(stream, Stream) else stream


def _filled_pipe(content: bytes) -> int:
    """Return the reading end of a pipe that holds `content` and then ends.

    It is filled before anybody reads, so that nothing can wait on a child that never does.
    """
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        written = os.write(writer, content) if content else 0
    except BlockingIOError:
        written = -1
    finally:
        os.close(writer)
    if written != len(content):
        os.close(reader)
        raise ValueError(f"a script of {len(content)} bytes is more than a pipe holds")
    return reader


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _open_pidfd(child: Child) -> int:
    """Return a descriptor that becomes readable when the child dies, or `NO_PIDFD`."""
    if sys.platform == "linux" and child.poll() is None:
        with suppress(OSError):  # an old kernel, or a sandbox
            return os.pidfd_open(child.pid)
    return NO_PIDFD

"""A first look at a file, before anything is made for it."""

import os
from collections.abc import Collection

from capture.clock import Clock
from capture.errors import SourceError
from capture.ffmpeg import explain, probe_command
from capture.process import Child, LineTail, Output, Stream
from capture.settings import child_environment
from capture.source import Source, SourceKind, redact

PROBE_SECONDS = 30.0  # for all of it; a file on a share that hangs is never read to its first frame
KILL_SECONDS = 2.0
_ADVICE = "expected a video file that this user may read; check the path given with --source"


def require_video(
    ffmpeg: str,
    source: Source,
    *,
    hidden: Collection[str] = (),
    seconds: float = PROBE_SECONDS,
    clock: Clock | None = None,
) -> None:
    """Raise SourceError for a file that cannot be read or holds no video; other sources may come up later.

    Takes `seconds` at most, and a moment more to end what hangs. ffmpeg does not inherit the `hidden`
    variables.
    """
    if source.kind is not SourceKind.FILE:
        return
    _require_readable(source)
    code, lines = _probe(ffmpeg, source, hidden, seconds=seconds, clock=clock or Clock())
    if code is None:
        raise SourceError(f"cannot capture {source}: no frame could be read within {seconds:g} s; {_ADVICE}")
    if code != 0:
        raise SourceError(f"cannot capture {source}: {explain(lines).cause}; {_ADVICE}")


def _require_readable(source: Source) -> None:
    try:
        # Without waiting: opening a named pipe would wait for somebody who writes to it.
        os.close(os.open(source.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        raise SourceError(f"cannot open {source.path}: {error.strerror}; {_ADVICE}") from None


def _probe(
    ffmpeg: str, source: Source, hidden: Collection[str], *, seconds: float, clock: Clock
) -> tuple[int | None, list[str]]:
    """Return the exit code, None for one that had to be ended, and the last lines it wrote."""
    command = probe_command(ffmpeg, source)
    tail = LineTail(redact=lambda line: redact(line, source.secrets()))
    deadline = clock.monotonic() + seconds
    with (
        Child(
            command.argv,
            script=command.script,
            env=child_environment(hidden),
            stdout=Stream.NULL,
            stderr=Stream.PIPE,
        ) as child,
        Output(child) as output,
    ):
        while not output.eof and (left := deadline - clock.monotonic()) > 0:
            for _, data in output.read(left):
                tail.feed(data)
        code = child.wait(max(0.0, deadline - clock.monotonic()))
        if code is None:
            child.stop(KILL_SECONDS)
    return code, tail.lines()

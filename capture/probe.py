"""A first look at a file, before anything is made for it."""

from collections.abc import Collection

from capture.errors import SourceError
from capture.ffmpeg import explain, probe_command
from capture.process import Child, LineTail, Output, Stream
from capture.settings import child_environment
from capture.source import Source, SourceKind, redact

PROBE_SECONDS = 10.0
_ADVICE = "expected a video file that this user may read; check the path given with --source"


def require_video(ffmpeg: str, source: Source, *, hidden: Collection[str] = ()) -> None:
    """Raise SourceError for a file that cannot be read or holds no video; other sources may come up later.

    ffmpeg does not inherit the `hidden` variables.
    """
    if source.kind is not SourceKind.FILE:
        return
    try:
        with source.path.open("rb"):
            pass
    except OSError as error:
        raise SourceError(f"cannot open {source.path}: {error.strerror}; {_ADVICE}") from None
    command = probe_command(ffmpeg, source)
    tail = LineTail(redact=lambda line: redact(line, source.secrets()))
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
        while not output.eof:
            for _, data in output.read(PROBE_SECONDS):
                tail.feed(data)
        code = child.wait(PROBE_SECONDS)
    if code != 0:
        raise SourceError(f"cannot capture {source}: {explain(tail.lines()).cause}; {_ADVICE}")

"""What the end of an ffmpeg means: a source at its end, one that cannot go on, or a loss. Pure decisions."""

from collections.abc import Sequence
from dataclasses import dataclass

from capture.errors import RelayError, SourceError, SpoolFullError
from capture.ffmpeg import Failure, FailureKind, explain
from capture.process import describe_exit
from capture.source import Source

_DISK = {FailureKind.DISK_FULL, FailureKind.OUTPUT}


@dataclass(frozen=True)
class Ending:
    """How an ffmpeg ended: exit code (None: it never started), last lines, and what was wrong before."""

    code: int | None
    lines: Sequence[str]
    complaint: str | None = None

    @property
    def failure(self) -> Failure:
        return explain(self.lines)

    @property
    def cause(self) -> str:
        """Why video was lost. ffmpeg exits with 0 also when a camera went away."""
        if self.complaint:
            return self.complaint
        if self.failure.kind is not FailureKind.UNKNOWN:
            return self.failure.cause
        if self.code == 0:
            return "the source ended"
        return "ffmpeg ended" if self.code is None else f"ffmpeg {describe_exit(self.code)}"


def is_over(ending: Ending, source: Source, *, segments: int) -> bool:
    """Tell whether a source is at its end; `segments` were closed so far.

    Raises RelayError, which says what to do, for one that cannot go on. Only a source with an end is ever
    over: captured in part, it would come from its start once more.
    """
    if not source.is_finite:
        return False
    failure, code, complaint = ending.failure, ending.code, ending.complaint
    if failure.kind in _DISK and segments:
        raise SpoolFullError(
            f"cannot go on capturing {source}: {failure.cause}; only its beginning was "
            "captured; make room, then start again"
        )
    if code is not None and code < 0 and not complaint:
        raise RelayError(
            f"cannot go on capturing {source}: ffmpeg {describe_exit(code)}; only its "
            "beginning was captured; see what ended it, then start again"
        )
    if failure.kind in _DISK or code is None:
        return False
    if code != 0 and (segments == 0 or complaint):
        raise _source_error(source, complaint or failure.cause, ending)
    if segments == 0:
        raise _source_error(source, complaint or "there is no video in it", None)
    return True


def _source_error(source: Source, found: str, ending: Ending | None) -> SourceError:
    last = ending.lines[-1:] if ending and ending.failure.kind is FailureKind.UNKNOWN else ()
    detail = f" (ffmpeg: {last[0]})" if last else ""
    return SourceError(
        f"cannot capture {source}: {found}{detail}; expected a file with video that ffmpeg "
        "can read; check the path given with --source"
    )

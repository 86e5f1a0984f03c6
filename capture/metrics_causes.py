"""The words by which gaps are counted: a cause in the journal is a sentence, a label is one of these."""

import errno
import os
from collections.abc import Mapping
from typing import Final

from capture.ffmpeg_output import FailureKind, kind_of

OTHER: Final = "other"
BUG: Final = "bug"
FFMPEG_ENDED: Final = "ffmpeg_ended"
SPOOL: Final = "spool_unusable"

# What the watchdog and the agent say themselves, as it stands in the journal.
_SENTENCES: Final[Mapping[str, str]] = {
    "no first frame": "no_first_frame",
    "no new frame": "no_new_frame",
    "no key frame": "no_key_frame",
    "no new segment": "no_new_segment",
    "ffmpeg is frozen": "ffmpeg_frozen",
    "ffmpeg does not run": "ffmpeg_frozen",
    "its times run ahead of the clock": "times_ahead",
    "its times fall behind the clock": "times_behind",
    "the source ended": "source_ended",
    "the agent was not running": "agent_not_running",
    "its settings changed": "settings_changed",
    "the session's directory was removed": "session_removed",
    os.strerror(errno.ENOSPC): "disk_full",
}
# The beginnings of sentences that go on with a number or a name.
_BEGINNINGS: Final[Mapping[str, str]] = {
    "ffmpeg ": FFMPEG_ENDED,
    "a bug of this program": BUG,
    "the spool": SPOOL,
    "there is no spool": SPOOL,
}
_BREAK: Final = "; then: "  # what came first counts

_KINDS: Final = {str(kind).replace(" ", "_") for kind in FailureKind}
CAUSES: Final = (*sorted({*_SENTENCES.values(), *_BEGINNINGS.values()} - _KINDS), *sorted(_KINDS), OTHER)


def cause_label(cause: object) -> str:
    """Return the word for a gap's cause; never anything but one of `CAUSES`."""
    if not isinstance(cause, str):
        return OTHER
    cause = cause.partition(_BREAK)[0]
    if (word := _SENTENCES.get(cause)) is not None:
        return word
    if (kind := kind_of(cause)) is not None:
        return str(kind).replace(" ", "_")
    return next((word for start, word in _BEGINNINGS.items() if cause.startswith(start)), OTHER)

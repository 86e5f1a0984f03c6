"""A line that is too slow for several uploads at once: those of a host then go one at a time.

The deadline of an attempt is made for one that has the line to itself. Four that share it get a quarter each,
none of them is done in time, and what was sent is thrown away. One after the other they are.

What is known is a small file by host, because its processes share the line: how large a segment was that
used up its time. Losing it is harmless: some attempts use up their time again.
"""

import contextlib
from collections.abc import Iterator

import structlog

from capture.host import host, remove_old
from capture.locks import exclusive, one_after_the_other
from capture.outcome import Kind, Outcome, attempt_seconds
from capture.settings import IngestSettings
from capture.spool import Spool, number_in, read_json

# An upload that takes less than this share of its time alone would also be in time beside as many others.
WIDE_SHARE = 1 / 8
# A segment much smaller than the one that was too large says nothing.
LIKE_SHARE = 1 / 4
KNOWN_SECONDS = 600.0
# New video waits for its turn for so much of what an attempt has on top of the time for its bytes.
WAIT_SHARE = 0.5
_LARGEST = 2.0**50  # bytes

log = structlog.get_logger()


class Narrow:
    """Whose turn it is on a slow line, for all processes of this host that share a spool."""

    def __init__(self, spool: Spool, settings: IngestSettings) -> None:
        self._spool = spool
        self._settings = settings
        name = f"narrow-{host()}"
        self._known = spool.state / f"{name}.json"
        self._turn = spool.state / f"{name}.lock"
        self._next = spool.state / f"{name}-live.lock"
        self._guard = spool.state / f"{name}-note.lock"

    def too_large(self) -> int:
        """Return the bytes of the segment that used up its time; 0 while the line counts as fast enough."""
        if not self._known.exists():
            return 0
        known = read_json(self._known)  # may be damaged
        at, size = number_in(known, "at"), number_in(known, "bytes")
        # A clock that was set back makes it young for ever: such a note does not count.
        is_young = 0 <= self._spool.clock.time() - at < KNOWN_SECONDS
        return int(size) if is_young and 0 < size < _LARGEST else 0

    @contextlib.contextmanager
    def turn(self, *, is_live: bool) -> Iterator[bool]:
        """Have the line for one attempt; yields False where somebody else has it.

        On a line that is fast enough everybody has it. On a slow one new video waits for it, one segment
        at a time, and no old one begins meanwhile.
        """
        if not self.too_large():
            yield True
            return
        with contextlib.ExitStack() as stack:
            try:
                with exclusive(self._next) as is_next:
                    wait = self._settings.attempt_seconds * WAIT_SHARE if is_live else 0.0
                    is_mine = is_next and stack.enter_context(exclusive(self._turn, wait=wait))
            except OSError:  # a full disk has no room for locks: uploads are what makes room
                is_mine = True
            yield is_mine

    def note(self, outcome: Outcome, *, size: int, seconds: float) -> None:
        """Note what an attempt tells of the line."""
        if outcome.is_slow:
            self._begin(size, seconds)
        elif outcome.kind is Kind.OK and (known := self.too_large()):
            whole = attempt_seconds(self._settings, size)
            if size >= known * LIKE_SHARE and seconds < whole * WIDE_SHARE:
                self._known.unlink(missing_ok=True)
                log.info("line_fast_again", bytes=size, seconds=round(seconds, 1))
            else:
                self._write(known)

    def _begin(self, size: int, seconds: float) -> None:
        """Note it, and say so once: those that shared the line all end at about the same time."""
        with one_after_the_other(self._guard):
            known = self.too_large()
            self._write(size)
        if not known:
            remove_old(self._known, now=self._spool.clock.time())
            then = "one upload at a time until one is fast"
            log.warning("line_slow", bytes=size, seconds=round(seconds), then=then)

    def _write(self, size: int) -> None:
        try:
            self._spool.write_for_sure(self._known, {"bytes": size, "at": self._spool.clock.time()})
        except OSError as error:  # what became of the segment matters more
            log.warning("line_not_noted", reason=error.strerror)

"""Segments that cannot be had: for a while they are left out of what is chosen, so that others go.

A hint, kept in memory by who chooses.
"""

from collections.abc import Collection
from itertools import islice

from capture.segment import SegmentName, SessionName


class Aside:
    """Those of one camera, `most` of them, for `seconds`; who was put here first is let back first."""

    def __init__(self, *, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._since: dict[tuple[SessionName, str], float] = {}
        self._names: dict[SessionName, set[str]] = {}
        self._let_back: set[tuple[SessionName, str]] = set()

    def put(self, session: SessionName, segment: SegmentName, *, now: float) -> None:
        """Leave a segment out from now on, if there is room."""
        name = str(segment)
        self._let_back.discard((session, name))
        if len(self._since) < self._most:
            self._since[session, name] = now
            self._names.setdefault(session, set()).add(name)

    def names(self, session: SessionName) -> Collection[str]:
        """Return those of one session."""
        return self._names.get(session, ())

    def shuts(self, session: SessionName) -> bool:
        """Tell whether there are more than fit, some of them in this session: all of it is left out then."""
        return len(self._since) >= self._most and session in self._names

    def let_back(self, most: int, *, now: float) -> None:
        """Let those back whose time is up, `most` of them at once."""
        first = islice(self._since.items(), most)
        due = {key for key, since in first if now - since >= self._seconds}
        for session, name in due:
            del self._since[session, name]
            names = self._names[session]
            names.discard(name)
            if not names:
                del self._names[session]
        self._let_back = due or self._let_back

    def had(self, session: SessionName, segment: SegmentName) -> None:
        """Note that one can be had: if it was let back, what kept it from that may be over for all."""
        if self._let_back and (session, str(segment)) in self._let_back:
            self._since.clear()
            self._names.clear()
            self._let_back.clear()

"""Lanes for the backlog: how many uploads of old segments may run at once, so that new ones find a way free.

A lane is a lock in the spool, held for as long as somebody sends from the backlog, and free as soon as that
process is gone, however it went. The number of lanes is a matter of those who ask.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from capture.locks import exclusive, one_after_the_other


class Lanes:
    """The lanes of one spool, below its `.state`."""

    def __init__(self, state: Path) -> None:
        self._state = state
        # Whoever counts has to try the locks, and must not be taken for a holder meanwhile.
        self._guard = state / "lanes.lock"

    @contextlib.contextmanager
    def take(self, most: int) -> Iterator[bool]:
        """Hold one of the first `most` lanes; yields False when all of them are taken."""
        with contextlib.ExitStack() as stack:
            with one_after_the_other(self._guard):
                is_mine = any(
                    stack.enter_context(exclusive(self._state / f"lane-{number}.lock"))
                    for number in range(most)
                )
            yield is_mine

    def busy(self) -> int:
        """Count the lanes that are held."""
        with one_after_the_other(self._guard):
            return sum(not self._is_free(path) for path in self._state.glob("lane-*.lock"))

    @staticmethod
    def _is_free(path: Path) -> bool:
        with exclusive(path) as is_free:
            return is_free

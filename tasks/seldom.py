"""Errors that strangers can cause as often as they like are logged seldom."""

import time
from collections.abc import Callable

import structlog

ADVICE = "see who else can write to the broker"

log = structlog.get_logger()


class Seldom:
    """Says the same at most once a minute, and how often it was so: who fills a queue shall fill no disk."""

    def __init__(self, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._said: dict[str, float] = {}
        self._kept_back: dict[str, int] = {}

    def __call__(self, event: str, *, reason: str, **fields: object) -> None:
        """Log an error. `reason` tells kinds apart, so it must be one of a few."""
        now = self._clock()
        if now - self._said.get(reason, float("-inf")) < self._seconds:
            self._kept_back[reason] = self._kept_back.get(reason, 0) + 1
            return
        self._said[reason] = now
        if more := self._kept_back.pop(reason, 0):
            fields["more_since_last"] = more
        log.error(event, reason=reason, **fields)


seldom = Seldom()

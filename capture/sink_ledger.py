"""What became of the requests to a sink: one event each, and the counts."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Final

import structlog

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SinkEvent:
    """What became of one request.

    `outcome` is one of stored, duplicate, conflict, digest_mismatch, bad_token, refused (any other
    4xx of ours), registered, listed, ended, healthy, faulted (a fault answered, or kept silent), aborted
    (the peer left, or the sink stopped), malformed, failed (the sink could not store). `status` is
    0 when no answer was sent; `seconds` runs from the request head to the answer.
    """

    outcome: str
    _: KW_ONLY
    method: str
    path: str
    status: int
    at: float
    seconds: float
    camera: str | None = None
    session: str | None = None
    sequence: int | None = None
    bytes: int = 0
    fault: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Counters:
    """A copy of the counts; `peak` is the highest number of requests at once for each camera."""

    requests: Mapping[tuple[str, int], int] = field(default_factory=dict)
    outcomes: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)
    peak: Mapping[str, int] = field(default_factory=dict)

    def outcome(self, name: str) -> int:
        return self.outcomes.get(name, 0)

    @property
    def rejected_tokens(self) -> int:
        return self.outcome("bad_token")

    @property
    def digest_mismatches(self) -> int:
        return self.outcome("digest_mismatch")

    @property
    def duplicates(self) -> int:
        return self.outcome("duplicate")

    @property
    def conflicts(self) -> int:
        return self.outcome("conflict")


class Ledger:
    """Counts requests and tells the listener; both are done before the answer is sent."""

    def __init__(self, on_event: Callable[[SinkEvent], None] | None = None) -> None:
        self._on_event = on_event
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._now: Counter[str] = Counter()
        self._peak: Counter[str] = Counter()

    @contextmanager
    def busy(self, camera: str | None) -> Iterator[None]:
        """Hold a place in the count of requests that a camera has at work at once."""
        if camera is None:
            yield
            return
        with self._lock:
            self._now[camera] += 1
            self._peak[camera] = max(self._peak[camera], self._now[camera])
        try:
            yield
        finally:
            with self._lock:
                self._now[camera] -= 1

    def settle(self, event: SinkEvent) -> None:
        method = event.method if event.method in METHODS else "OTHER"
        with self._lock:
            self._requests[method, event.status] += 1
            self._outcomes[event.outcome] += 1
            if event.fault is not None:
                self._faults[event.fault] += 1
        if event.outcome == "conflict":
            log.error("sink_conflict", camera=event.camera, reason=event.detail)
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            log.exception("sink_listener_failed")

    def counters(self) -> Counters:
        with self._lock:
            return Counters(
                requests=dict(self._requests),
                outcomes=dict(self._outcomes),
                faults=dict(self._faults),
                peak=dict(self._peak),
            )

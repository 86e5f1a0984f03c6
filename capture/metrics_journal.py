"""What a journal line counts for: the one place where segments and gaps become numbers. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from capture.journal import Event
from capture.metrics_catalogue import (
    CAPTURED,
    CAPTURED_BYTES,
    DELIVERED,
    DELIVERED_BYTES,
    DROPPED,
    DROPPED_BYTES,
    GAP_CAUSES,
    GAP_SECONDS,
    GAPS,
    REJECTED,
    REJECTED_BYTES,
    SALVAGED,
)
from capture.metrics_causes import cause_label
from capture.metrics_text import CameraNames, Counts, Labels, Metric

_SEGMENTS: Final[Mapping[Event, tuple[Metric, Metric]]] = {
    Event.CLOSED: (CAPTURED, CAPTURED_BYTES),
    Event.RECOVERED: (SALVAGED, CAPTURED_BYTES),
    Event.DELIVERED: (DELIVERED, DELIVERED_BYTES),
    Event.REJECTED: (REJECTED, REJECTED_BYTES),
    Event.DROPPED: (DROPPED, DROPPED_BYTES),
}


def counts_of(
    camera: str, event: Event, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Metric, Labels, float]]:
    """Yield what the lines of one event add to which metric; `camera` is its label."""
    if event is Event.GAP:
        yield GAPS, (camera,), float(len(rows))
        yield GAP_SECONDS, (camera,), sum(_number(row, "seconds") for row in rows)
        for row in rows:
            yield GAP_CAUSES, (camera, cause_label(row.get("cause"))), 1.0
    elif event in _SEGMENTS:
        count, size = _SEGMENTS[event]
        yield count, (camera,), float(len(rows))
        yield size, (camera,), sum(_number(row, "bytes") for row in rows)


def _number(row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


class JournalCounter:
    """Counts what this process writes into a journal: the journal's observer."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._names = CameraNames()

    def __call__(self, camera: str, event: Event, rows: Sequence[Mapping[str, Any]]) -> None:
        for metric, labels, amount in counts_of(self._names(camera), event, rows):
            self._counts.add(metric, labels, amount)

"""Metrics as Prometheus reads them: what one is, how counts are kept, and the text of all. Its one door."""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client import ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import (
    Metric as Family,
)
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
MOST_CAMERAS: Final = 500
OTHER: Final = "other"
SUM: Final = "sum"
INFINITE: Final = "+Inf"

Labels = tuple[str, ...]
Values = Mapping[Labels, float]


@dataclass(frozen=True)
class Metric:
    """One metric: its name as it is shown, what it counts, its labels; the upper bounds of a histogram."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Labels = ()
    buckets: tuple[float, ...] = ()

    def bucket(self, value: float) -> str:
        """Return the upper bound, as text, of the bucket that a value falls into."""
        position = bisect_left(self.buckets, value)
        return str(self.buckets[position]) if position < len(self.buckets) else INFINITE


class CameraNames:
    """The names that may be labels: the first `most` that were seen; all further ones are one "other"."""

    def __init__(self, most: int = MOST_CAMERAS) -> None:
        self._most = most
        self._seen: set[str] = set()

    def __call__(self, camera: str) -> str:
        """Return the label of a camera."""
        if camera not in self._seen:
            if len(self._seen) >= self._most:
                return OTHER
            self._seen.add(camera)
        return camera


class Counts:
    """Counts by metric and labels, for several threads.

    A histogram keeps two kinds of values, told apart by one label more: how many fell into each bucket, by
    its upper bound, and their sum.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._values: dict[tuple[str, Labels], float] = {}

    def add(self, metric: Metric, labels: Labels = (), amount: float = 1.0) -> None:
        """Count; what is not above zero is left out, because a counter never falls."""
        if not amount > 0:
            return
        key = (metric.name, labels)
        with self._guard:
            self._values[key] = value = self._values.get(key, 0.0) + amount
            self._changed(key, value)

    def _changed(self, key: tuple[str, Labels], value: float) -> None:
        """Do with a new value what else is to be done; a subclass may write it down."""

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        """Note one value of a histogram; below zero is zero."""
        value = max(0.0, value)
        self.add(metric, (*labels, metric.bucket(value)))
        self.add(metric, (*labels, SUM), value)

    def of(self, metric: Metric) -> dict[Labels, float]:
        """Return what was counted, by labels."""
        with self._guard:
            return {labels: value for (name, labels), value in self._values.items() if name == metric.name}


def render(found: Iterable[tuple[Metric, Values]]) -> bytes:
    """Return the text of metrics and of this process's own, as a scrape gets it."""
    return generate_latest(_Found([*(family(metric, values) for metric, values in found), *_process()]))


def family(metric: Metric, values: Values) -> Family:
    """Return one metric with its values in the library's form."""
    if metric.kind == "histogram":
        return _histogram(metric, values)
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    made = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in sorted(values.items()):
        made.add_metric(labels, value)
    return made


def _histogram(metric: Metric, values: Values) -> Family:
    made = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    bounds = [*map(str, metric.buckets), INFINITE]
    for labels in sorted({each[:-1] for each in values}):
        total, buckets = 0.0, []
        for bound in bounds:
            total += values.get((*labels, bound), 0.0)
            buckets.append((bound, total))
        made.add_metric(labels, buckets, sum_value=values.get((*labels, SUM), 0.0))
    return made


def _process() -> Iterator[Family]:
    """CPU, memory, open files and start time of this process, by their usual names."""
    yield from ProcessCollector(registry=None).collect()


class _Found(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families

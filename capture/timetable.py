"""How fast uploads may be, by the time of day: ``2Mbit``, ``08:00-18:00 2Mbit, 22:00-06:00 8Mbit``. Pure."""

import re
from dataclasses import dataclass
from datetime import time

SLOWEST_BITS = 64_000
_UNITS = {"kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9}
_RATE = re.compile(r"(?P<number>[0-9]{1,9}(?:\.[0-9]{1,6})?) ?(?P<unit>kbit|Mbit|Gbit)")
_RANGE = re.compile(r"(?P<begin>[0-9]{2}:[0-9]{2})-(?P<end>[0-9]{2}:[0-9]{2}) +(?P<rate>\S.*)")
_WORDS = (
    'expected a rate like "2Mbit", or times of the day with a rate for each: "08:00-18:00 2Mbit, '
    '18:00-08:00 10Mbit" (kbit, Mbit or Gbit a second, 64kbit at least)'
)


@dataclass(frozen=True)
class Span:
    """From `begin` to just before `end`, local time, over midnight if that is earlier; bytes per second."""

    begin: time
    end: time
    rate: float

    def holds(self, now: time) -> bool:
        if self.begin < self.end:
            return self.begin <= now < self.end
        return now >= self.begin or now < self.end


@dataclass(frozen=True)
class Timetable:
    """The first span that holds counts; outside of all of them nothing is limited."""

    spans: tuple[Span, ...]

    def rate(self, now: time) -> float | None:
        """Return the most bytes per second at a local time of day; None for no limit."""
        return next((span.rate for span in self.spans if span.holds(now)), None)

    @property
    def slowest(self) -> float:
        """The lowest rate of all."""
        return min(span.rate for span in self.spans)


def parse_timetable(text: str) -> Timetable:
    """Read a timetable. Raises ValueError with what was expected."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and (rate := _rate(parts[0])) is not None:
        return Timetable((Span(time.min, time.min, rate),))
    return Timetable(tuple(map(_span, parts)))


def _span(text: str) -> Span:
    match = _RANGE.fullmatch(text)
    rate = _rate(match["rate"]) if match else None
    try:
        if match is None or rate is None:
            raise ValueError
        begin, end = time.fromisoformat(match["begin"]), time.fromisoformat(match["end"])
    except ValueError:
        raise ValueError(_WORDS) from None
    return Span(begin, end, rate)


def _rate(text: str) -> float | None:
    match = _RATE.fullmatch(text)
    bits = float(match["number"]) * _UNITS[match["unit"]] if match else 0.0
    return bits / 8 if bits >= SLOWEST_BITS else None

"""What a storm will do: a list of strikes that follows from the seed alone.

When each one lands is up to the machine; which, in what order, on whom and for how long is written down
before anything starts. Kinds are dealt like cards: each comes once before any comes again, so that a minute
of storm has seen them all.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

LAYOUTS = ("up", "parts")
INGEST = ("503", "401", "429", "hang", "reset", "lost", "half", "trickle", "slow", "refuse")
PARTS = ("agent", "ffmpeg", "worker parent", "worker child", "beat", "broker")
CLOCK = "step clock"
STEPS = (-93600.0, -3600.0, -300.0, -30.0, 30.0, 300.0, 3600.0, 93600.0)  # seconds; 93600 is over a midnight
PAUSE = (0.4, 2.6)  # seconds between two strikes
FREEZE = (0.5, 5.0)
TROUBLE = (0.5, 6.0)
STEPPED = (3.0, 12.0)


@dataclass(frozen=True)
class Strike:
    """One fault: when (seconds from the start), what, on which of several, for how long, how far."""

    at: float
    kind: str
    pick: float = 0.0  # 0 … 1: which of those that there are by then
    seconds: float = 0.0
    step: float = 0.0

    def __str__(self) -> str:
        what = f"{self.kind} by {self.step:+.0f} s" if self.step else self.kind
        return f"{self.at:6.1f} s  {what}" + (f" for {self.seconds:.1f} s" if self.seconds else "")


def kinds(*, clock: bool) -> list[str]:
    """Return every kind of fault, the clock's only where it can be stepped."""
    kills = [f"kill {part}" for part in PARTS]
    freezes = [f"freeze {part}" for part in PARTS]
    ingest = [f"ingest {kind}" for kind in INGEST]
    return [*kills, *freezes, "flush broker", *ingest, *([CLOCK, CLOCK] if clock else [])]


def draw(seed: int, seconds: float, *, clock: bool) -> list[Strike]:
    """Return the strikes of a storm of that length. A longer one begins like a shorter one."""
    strikes = []
    for strike in _endless(random.Random(f"storm {seed}"), kinds(clock=clock)):
        if strike.at >= seconds:
            return strikes
        strikes.append(strike)
    raise AssertionError("an endless storm ended")


def layout_of(seed: int) -> str:
    """Return the layout that a seed stands for."""
    return random.Random(f"layout {seed}").choice(LAYOUTS)


def _endless(dice: random.Random, deck: list[str]) -> Iterator[Strike]:
    at = 0.0
    while True:
        for kind in dice.sample(deck, len(deck)):
            at = round(at + dice.uniform(*PAUSE), 1)
            yield _strike(dice, at, kind)


def _strike(dice: random.Random, at: float, kind: str) -> Strike:
    pick = round(dice.random(), 3)
    if kind == CLOCK:
        return Strike(at, kind, pick, round(dice.uniform(*STEPPED), 1), dice.choice(STEPS))
    spans = {"freeze": FREEZE, "ingest": TROUBLE}
    span = spans.get(kind.partition(" ")[0])
    return Strike(at, kind, pick, round(dice.uniform(*span), 1) if span else 0.0)

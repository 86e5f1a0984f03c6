"""After the storm: how soon new video passes, what that time is made of, and when the debts are paid."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import redis

from capture.sink import Sink
from tests.chaos.layouts import Layout
from tests.chaos.witness import Key, notes

CURRENT_SECONDS = 10.0
SETTLE_SECONDS = 90.0
POLL_SECONDS = 0.05
TICKS = 2
TICK_SECONDS = 14.0
RECOVER = "tasks.recover.recover"


@dataclass(frozen=True)
class Fresh:
    """The first new segment of one camera. Seconds: until it was begun, while written, until it arrived."""

    camera: str
    waited: float
    written: float
    sent: float

    @property
    def total(self) -> float:
        return self.waited + self.written + self.sent

    def __str__(self) -> str:
        return (
            f"{self.camera} {self.total:.1f} s = {self.waited:.1f} until it was begun"
            f" + {self.written:.1f} while it was written + {self.sent:.1f} until it had arrived"
        )


@dataclass
class Calm:
    """What the calm was like."""

    fresh: list[Fresh] = field(default_factory=list)
    paid_after: float | None = None
    ticks: list[float] = field(default_factory=list)  # seconds until each message for recover
    problems: list[str] = field(default_factory=list)


def wait_for_calm(layout: Layout, sink: Sink, kept: Path) -> Calm:
    """Wait until new video of every camera passes, then until nothing old is owed."""
    began = time.monotonic()
    calm = Calm()
    calm.fresh = _first_fresh(layout, sink, kept, began)
    late = [fresh for fresh in calm.fresh if fresh.total > CURRENT_SECONDS]
    calm.problems += [f"fresh video took more than {CURRENT_SECONDS:.0f} s: {fresh}" for fresh in late]
    missing = set(layout.cameras) - {fresh.camera for fresh in calm.fresh}
    calm.problems += [f"no fresh video of {camera} in {SETTLE_SECONDS:.0f} s" for camera in sorted(missing)]
    ended = len(sink.ended)
    old = _owed(layout.spool)
    while left := old & _owed(layout.spool):
        if time.monotonic() - began > SETTLE_SECONDS:
            calm.problems.append(
                f"{len(left)} old segments still owed after {SETTLE_SECONDS:.0f} s of calm: {min(left)} …"
            )
            break
        layout.ensure()
        time.sleep(POLL_SECONDS)
    else:
        calm.paid_after = time.monotonic() - began
    # Only now: while a backlog is sent, the workers themselves set recover to work.
    calm.ticks = _ticks(layout)
    if len(calm.ticks) < TICKS:
        calm.problems.append(
            f"beat is silent: {len(calm.ticks)} messages for recover in {TICK_SECONDS:.0f} s, due every five"
        )
    calm.problems += [
        f"the cloud was told that {camera} is over, and it runs" for camera in sink.ended[ended:]
    ]
    return calm


def _first_fresh(layout: Layout, sink: Sink, kept: Path, began: float) -> list[Fresh]:
    """Return the first segment of each camera that was begun in the calm and has arrived."""
    found: dict[str, Fresh] = {}
    looked_at: set[Key] = set()
    while len(found) < len(layout.cameras) and time.monotonic() - began < SETTLE_SECONDS:
        layout.ensure()
        time.sleep(POLL_SECONDS)
        now = time.monotonic()
        receipts = {(f"relay-segments-{r.camera}-{r.session}", r.sequence): r.camera for r in sink.receipts()}
        new = {key: camera for key, camera in receipts.items() if key not in looked_at}
        looked_at |= set(new)
        if new:
            times = _times(kept)
            for key, camera in new.items():
                opened, closed = times.get(key, (0.0, now))
                if opened >= began and camera not in found:
                    closed = min(closed, now)
                    found[camera] = Fresh(camera, opened - began, closed - opened, now - closed)
    return sorted(found.values(), key=lambda fresh: fresh.camera)


def _ticks(layout: Layout) -> list[float]:
    """Listen at the broker for the messages that set recover to work: without them a debt waits for ever."""
    began = time.monotonic()
    found: list[float] = []
    path = layout.broker_sockets()[0]
    # Workers that wait for messages make it talk all the time: its silence is a broker that is gone.
    client = redis.Redis(unix_socket_path=str(path), socket_timeout=TICK_SECONDS)
    with client, client.monitor() as monitor:
        while len(found) < TICKS and (now := time.monotonic() - began) < TICK_SECONDS:
            layout.ensure()
            command = monitor.next_command()["command"]
            found += [now] if command.startswith("LPUSH") and RECOVER in command else []
    return found


def _times(kept: Path) -> dict[Key, tuple[float, float]]:
    """Return when each segment was begun and when it was closed; monotonic seconds."""
    times: dict[Key, tuple[float, float]] = {}
    for note in notes(kept):
        key = (note["session"], note["sequence"])
        opened, closed = times.get(key, (0.0, float("inf")))
        times[key] = (note["at"], closed) if note["event"] == "opened" else (opened, note["at"])
    return times


def _owed(spool: Path) -> set[Path]:
    return set(spool.glob("relay-segments-*/*_*.ts"))

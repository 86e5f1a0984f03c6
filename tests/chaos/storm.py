"""The storm: the strikes of a plan, carried out one by one, each undone when its time is over."""

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import psutil
import redis

from capture.sink import Fault, Sink
from tests.chaos.clock import SteppedClock
from tests.chaos.layouts import Layout
from tests.chaos.plan import Strike

TICK_SECONDS = 0.05
LOADED_SECONDS = 1.0  # measured: a program has its libraries 35 ms after it was started
BACK_SECONDS = 6.0  # a part that was killed again and again is started after five


@dataclass
class Storm:
    """Carries out strikes on a running layout."""

    layout: Layout
    sink: Sink
    clock: SteppedClock | None
    done: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)  # nobody of that kind ran just then
    steps: list[tuple[float, float, float]] = field(default_factory=list)  # true time from, until, offset
    _unmoved: set[str] = field(default_factory=set)
    _undo: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _looks: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def rage(self, strikes: Sequence[Strike], tell: Callable[[Strike, str], None]) -> None:
        """Strike at the moments of the plan, later only where the machine is."""
        began = time.monotonic()
        for strike in strikes:
            while time.monotonic() - began < strike.at:
                self._tick()
            hit = self._strike(strike)
            (self.done if hit else self.missed)[strike.kind] += 1
            tell(strike, hit)
        self.end()

    def end(self) -> None:
        """Undo everything that still lasts: from here on it is calm."""
        for _, undo in self._undo:
            undo()
        self._undo.clear()
        self.sink.faults.clear()
        self._set_clock(0.0)

    def problems(self) -> list[str]:
        """Return what this storm could not do: then it has shown less than it says."""
        for _, look in self._looks:  # those of the last second: by now it is long over
            look()
        never = sorted(set(self.missed) - set(self.done))
        return [f"never found anybody to {kind}" for kind in never] + self._still_clocks()

    def _still_clocks(self) -> list[str]:
        """Return a problem for each part of the relay that did not live by the stepped clock."""
        return [f"the clock of {part} was not stepped" for part in sorted(self._unmoved)]

    def _tick(self) -> None:
        self.layout.ensure()
        now = time.monotonic()
        due = [act for at, act in (*self._undo, *self._looks) if at <= now]
        self._undo = [(at, undo) for at, undo in self._undo if at > now]
        self._looks = [(at, look) for at, look in self._looks if at > now]
        for act in due:
            act()
        time.sleep(TICK_SECONDS)

    def _later(self, seconds: float, undo: Callable[[], None]) -> None:
        self._undo.append((time.monotonic() + seconds, undo))

    def _strike(self, strike: Strike) -> str:
        """Do it; return on whom, empty if there was nobody."""
        what, _, whom = strike.kind.partition(" ")
        if what == "ingest":
            fault = f"{whom}+{strike.seconds:.1f}:path=any,method=any"
            self.sink.faults.clear()  # of two at once only the older one would play
            self.sink.faults.add(Fault.parse(fault))
            return whom
        if what == "flush":
            return self._flush()
        if what == "step":
            return self._step(strike)
        victims = self._victims(whom)
        if not victims:
            return ""
        victim = victims[int(strike.pick * len(victims))]
        with contextlib.suppress(psutil.NoSuchProcess):
            if what == "kill":
                victim.kill()
            else:
                victim.send_signal(signal.SIGSTOP)
                self._later(strike.seconds, lambda: _wake(victim))
            return str(victim.pid)
        return ""

    def _victims(self, part: str) -> list[psutil.Process]:
        """Return who there is; what was just killed gets some time to be back."""
        deadline = time.monotonic() + BACK_SECONDS
        while not (found := self.layout.parts().get(part, [])) and time.monotonic() < deadline:
            self._tick()
        return sorted(found, key=lambda process: process.pid)

    def _flush(self) -> str:
        wiped = ""
        for path in self.layout.broker_sockets():
            with contextlib.suppress(redis.RedisError, OSError):
                with redis.Redis(unix_socket_path=str(path), socket_timeout=1.0) as client:
                    client.flushall()
                wiped = path.parent.name
        return wiped

    def _step(self, strike: Strike) -> str:
        if self.clock is None:
            return ""
        self._set_clock(strike.step)
        self._later(strike.seconds, lambda: self._step_back(strike.step))
        self._doubt(self.clock, self.layout.parts())
        return f"{strike.step:+.0f} s"

    def _doubt(self, clock: SteppedClock, parts: Mapping[str, Sequence[psutil.Process]]) -> None:
        """Find who does not live by the clock. One that just starts has not loaded it yet: look again."""
        doubtful = [
            (part, each) for part, found in parts.items() for each in found if not clock.moves(each.pid)
        ]

        def look_again() -> None:
            self._unmoved |= {
                part for part, each in doubtful if each.is_running() and not clock.moves(each.pid)
            }

        self._looks.append((time.monotonic() + LOADED_SECONDS, look_again))

    def _step_back(self, offset: float) -> None:
        if self.clock is not None and self.clock.offset == offset:  # unless it was stepped again since
            self._set_clock(0.0)

    def _set_clock(self, offset: float) -> None:
        if self.clock is None:
            return
        now = time.time()
        if self.steps and self.steps[-1][1] == 0.0:
            self.steps[-1] = (self.steps[-1][0], now, self.steps[-1][2])
        if offset:
            self.steps.append((now, 0.0, offset))
        self.clock.step(offset)


def _wake(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGCONT)

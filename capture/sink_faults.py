"""The faults a sink can play, when each is on, and the short text they are written in.

A plan is a list of faults; on a request the first one plays that is on and fits. The text form,
for command lines, is::

    KIND[@START][+DURATION][#COUNT][:NAME=VALUE,...]

    503@10+8                 ten seconds after the start, for eight seconds, answer 503
    hang@5+3                 hold every segment for three seconds
    reset#3                  break off three uploads half-way
    429@0+5:Retry-After=2    a status with a header
    401:camera=gate,path=any a status for one camera, on every route

KIND is a status from 200 to 599 or a name from `KINDS`; 200 comes with the page of a captive
portal. START counts from the start of the sink; without DURATION a fault stays; COUNT is how many
requests it hits before it is spent. A NAME in small letters is a field of `Fault` (camera,
sequence, method, path, body, delay, rate, after), one with a capital is a header. A VALUE cannot
hold a comma.
"""

import math
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, Self

from capture.errors import UsageError

KINDS: Final = ("status", "hang", "refuse", "reset", "lost", "trickle", "slow", "half")
ROUTES: Final = ("ingest", "cameras", "any")
PORTAL: Final = b"<!doctype html><title>Welcome</title><p>Sign in to use this network.</p>\n"
FRAMING: Final = ("connection", "content-length", "transfer-encoding")

_TEXT: Final = re.compile(
    r"(?P<kind>[0-9]{3}|[a-z]+)"
    r"(?:@(?P<start>[0-9]+(?:\.[0-9]+)?))?"
    r"(?:\+(?P<duration>[0-9]+(?:\.[0-9]+)?))?"
    r"(?:#(?P<count>[0-9]{1,9}))?"
    r"(?::(?P<options>.+))?"
)
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e\xa0-\xff]*")
_OPTIONS: Final[dict[str, Callable[[str], object]]] = {
    "camera": str,
    "sequence": int,
    "method": str.upper,
    "path": str,
    "body": str.encode,
    "delay": float,
    "rate": float,
    "after": int,
}


@dataclass(frozen=True)
class Fault:
    """One way to misbehave, and when.

    ========  ==========================================================================
    status    answer `status` with `headers` and `body`, `delay` seconds late, storing nothing
    hang      read the request, answer only when the fault is over (nothing more if it never is)
    refuse    close the listener and cut every connection; one that is limited by `count`,
              `camera` or `sequence` resets the connections of the requests it hits instead
    reset     read `after` bytes of the body (half of it by default), then reset the connection
    lost      store the segment, then reset the connection instead of answering
    trickle   do the work, then answer one byte every `delay` seconds (1 by default)
    slow      read the body at `rate` bytes per second
    half      read `after` bytes of the body (half of it by default), then nothing
    ========  ==========================================================================

    `start` and `duration` are seconds. `method` may be "any"; `path` is one of `ROUTES`. A `refuse`
    without limits closes the door to everything, whatever `method` and `path` say.
    """

    kind: str
    _: KW_ONLY
    start: float = 0.0
    duration: float | None = None
    count: int | None = None
    camera: str | None = None
    sequence: int | None = None
    method: str = "POST"
    path: str = "ingest"
    status: int = 503
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    delay: float | None = None
    rate: float = 65536.0
    after: int | None = None

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("kind", self.kind in KINDS, f"one of {', '.join(KINDS)}"),
            ("path", self.path in ROUTES, f"one of {', '.join(ROUTES)}"),
            ("status", 200 <= self.status <= 599, "a status from 200 to 599"),  # noqa: PLR2004
            ("start", _at_least_zero(self.start), "seconds, 0 or more"),
            ("duration", self.duration is None or _above_zero(self.duration), "seconds above 0"),
            ("count", self.count is None or self.count > 0, "a whole number above 0"),
            ("delay", self.delay is None or _at_least_zero(self.delay), "seconds, 0 or more"),
            ("rate", _above_zero(self.rate), "bytes per second above 0"),
            ("after", self.after is None or self.after >= 0, "bytes, 0 or more"),
            ("headers", all(map(_fit_header, self.headers)), "headers that leave framing alone"),
        ):
            if not good:
                raise UsageError(f"found {name} {getattr(self, name)!r} in a fault; use {expected}")

    @property
    def name(self) -> str:
        """What people call it: the status code, or the kind."""
        return str(self.status) if self.kind == "status" else self.kind

    @property
    def closes_the_door(self) -> bool:
        limits = (self.count, self.camera, self.sequence)
        return self.kind == "refuse" and limits == (None, None, None)

    def fits(self, method: str, *, route: str, camera: str | None, sequence: int | None) -> bool:
        """Say whether it is meant for such a request, whatever the time."""
        if self.closes_the_door:
            return True
        return (
            self.method in ("any", "ANY", method)
            and self.path in ("any", route)
            and self.camera in (None, camera)
            and self.sequence in (None, sequence)
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form described at the top of this module."""
        match = _TEXT.fullmatch(text.strip())
        if match is None or not (match["kind"].isdigit() or match["kind"] in KINDS[1:]):
            raise _not_a_fault(text)
        kind, start, duration, count = match.group("kind", "start", "duration", "count")
        fields: dict[str, Any] = _kind_fields(kind) | _option_fields(text, match["options"])
        fields["start"] = float(start or 0.0)
        fields["duration"] = float(duration) if duration else None
        fields["count"] = int(count) if count else None
        try:
            return cls(**fields)
        except UsageError as error:
            raise UsageError(f"found the fault {text!r}: {error}") from None


@dataclass(frozen=True)
class Hit:
    """A fault that plays on one request; `over()` turns true when it has ended."""

    fault: Fault
    _: KW_ONLY
    over: Callable[[], bool]


class FaultPlan:
    """Says which fault plays on a request; safe to change from any thread while the sink runs."""

    def __init__(self, faults: Iterable[Fault] = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began: float | None = None
        self._turns = [_Turn(fault, origin=None) for fault in faults]

    @classmethod
    def parse(cls, texts: Iterable[str], *, clock: Callable[[], float] = time.monotonic) -> Self:
        """Read one fault per text."""
        return cls([Fault.parse(text) for text in texts], clock=clock)

    def begin(self) -> None:
        """Start the clock of the faults given so far; a second call changes nothing."""
        with self._lock:
            if self._began is None:
                self._began = self._clock()
                for turn in self._turns:
                    turn.origin = self._began

    def add(self, fault: Fault) -> None:
        """Put a fault at the end of the plan, its `start` counted from now."""
        with self._lock:
            origin = None if self._began is None else self._clock()
            self._turns.append(_Turn(fault, origin=origin))

    def remove(self, fault: Fault) -> None:
        """End every fault equal to this one."""
        with self._lock:
            for turn in self._turns:
                turn.removed |= turn.fault == fault
            self._turns = [turn for turn in self._turns if not turn.removed]

    def clear(self) -> None:
        """End every fault."""
        with self._lock:
            for turn in self._turns:
                turn.removed = True
            self._turns = []

    def active(self) -> list[str]:
        """Names of the faults that would play now, in order."""
        with self._lock:
            now = self._clock()
            return [turn.fault.name for turn in self._turns if turn.on(now)]

    def refusing(self) -> bool:
        """Say whether the listener has to be closed now."""
        with self._lock:
            now = self._clock()
            return any(turn.fault.closes_the_door and turn.on(now) for turn in self._turns)

    def take(
        self,
        method: str,
        *,
        route: str,
        camera: str | None = None,
        sequence: int | None = None,
    ) -> Hit | None:
        """Find the fault that plays on a request, and count the hit."""
        with self._lock:
            if not self._turns:
                return None
            now = self._clock()
            for turn in self._turns:
                fits = turn.fault.fits(method, route=route, camera=camera, sequence=sequence)
                if fits and turn.on(now):
                    turn.hits += 1
                    return self._hit(turn)
            return None

    def _hit(self, turn: "_Turn") -> Hit:
        return Hit(turn.fault, over=lambda: turn.over(self._clock()))


class _Turn:
    """One fault of a plan: when its clock began, and how often it has hit."""

    def __init__(self, fault: Fault, *, origin: float | None) -> None:
        self.fault = fault
        self.origin = origin
        self.hits = 0
        self.removed = False

    def on(self, now: float) -> bool:
        spent = self.fault.count is not None and self.hits >= self.fault.count
        begun = self.origin is not None and now >= self.origin + self.fault.start
        return begun and not spent and not self.over(now)

    def over(self, now: float) -> bool:
        """Past its time; a spent fault is not over for the requests it has hit."""
        if self.removed:
            return True
        if self.origin is None or self.fault.duration is None:
            return False
        return now >= self.origin + self.fault.start + self.fault.duration


def _kind_fields(kind: str) -> dict[str, Any]:
    if not kind.isdigit():
        return {"kind": kind}
    if kind == "200":
        html = (("Content-Type", "text/html"),)
        return {"kind": "status", "status": 200, "body": PORTAL, "headers": html}
    return {"kind": "status", "status": int(kind)}


def _option_fields(text: str, options: str | None) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    headers: list[tuple[str, str]] = []
    for option in options.split(",") if options else ():
        name, equals, value = option.strip().partition("=")
        if not equals or not (name[:1].isupper() or name in _OPTIONS):
            raise _not_a_fault(text)
        if name[:1].isupper():
            headers.append((name, value))
        else:
            fields[name] = _option(text, name, value=value)
    return fields | ({"headers": tuple(headers)} if headers else {})


def _option(text: str, name: str, *, value: str) -> object:
    try:
        return _OPTIONS[name](value)
    except ValueError:
        raise _not_a_fault(text) from None


def _not_a_fault(text: str) -> UsageError:
    return UsageError(
        f"found the fault {text!r}; expected KIND[@START][+DURATION][#COUNT][:NAME=VALUE,...] "
        f"with KIND a status from 200 to 599 or one of {', '.join(KINDS[1:])}; "
        "write for example 503@10+8, reset#3 or 429@0+5:Retry-After=2"
    )


def _fit_header(header: tuple[str, str]) -> bool:
    name, value = header
    fit = _HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)
    return bool(fit) and name.lower() not in FRAMING


def _at_least_zero(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _above_zero(value: float) -> bool:
    return math.isfinite(value) and value > 0

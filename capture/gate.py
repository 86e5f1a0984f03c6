"""The gate before every attempt: a circuit breaker for a cloud that is down, and a stop for a refused token.

Its state is a few small files in the spool, because the workers that must agree are several processes,
often on several hosts, and share nothing else that may be trusted to be there. Losing the state is
harmless: some attempts fail again.

Closed, everything passes; that costs two failed look-ups in a directory. After `FAILURES_TO_OPEN` failures
in a row it opens: one probe at a time, at growing and jittered intervals; the first success closes it.
"""

import fcntl
import hashlib
import hmac
import math
import os
import random
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from capture.locks import one_after_the_other
from capture.outcome import Kind, Outcome
from capture.segment import rfc3339
from capture.settings import IngestSettings
from capture.spool import Spool, read_json

FAILURES_TO_OPEN = 3
DEAR_FAILURE = 2  # a cloud that never answers costs a whole deadline each time: two of those are enough
FIRST_PROBE_SECONDS = 1.0
SLOWEST_PROBE_SECONDS = 5.0
PROBE_ANSWER_SECONDS = 5.0
PATIENT_PROBE_EVERY = 6
LONGEST_ASKED_SECONDS = 300.0
_BREAKER = "breaker.json"

ADVICE = {
    401: "the cloud does not know this token (401): give the current one with RELAY_TOKEN or --token-file, "
    "then start again; nothing was deleted",
    403: "the cloud forbids this token to send (403): ask the cloud's operator to allow it, or give another "
    "with RELAY_TOKEN or --token-file, then start again; nothing was deleted",
}


class Change(StrEnum):
    """What a report changed for everybody."""

    NONE = "none"
    DOWN = "down"  # the cloud counts as down from now on
    UP = "up"  # the way is open again


class Verdict(StrEnum):
    """What the gate says to one attempt."""

    GO = "go"
    PROBE = "probe"  # go, as the only one
    DOWN = "down"  # the cloud is down: not now
    REFUSED = "refused"  # the token is refused: not now


def probe_delay(probes: int, dice: float) -> float:
    """Return the seconds until the next probe, after `probes` failed ones. `dice` in 0 … 1."""
    slowest = min(SLOWEST_PROBE_SECONDS, FIRST_PROBE_SECONDS * 2.0 ** min(probes, 30))
    return slowest * (0.5 + 0.5 * dice)


def probe_answer_seconds(probes: int) -> float | None:
    """Return how long a probe waits for its answer: mostly not long, sometimes as long as any attempt.

    A cloud that hangs would otherwise hold the only probe for a whole deadline while it comes back;
    one that is slow but sound must still be able to pass.
    """
    return None if (probes + 1) % PATIENT_PROBE_EVERY == 0 else PROBE_ANSWER_SECONDS


def _number(state: dict[str, Any], key: str) -> float:
    """Return a number of a state file that may be damaged; 0 for anything else."""
    value = state.get(key)
    try:
        number = float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:
        return 0.0
    return number if math.isfinite(number) else 0.0


@dataclass
class Admission:
    """The gate's answer to one attempt, as a context; a probe holds the only probe slot until its end."""

    verdict: Verdict
    answer_seconds: float | None = None
    _slot: int | None = None

    @property
    def may_try(self) -> bool:
        return self.verdict in {Verdict.GO, Verdict.PROBE}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._slot is not None:
            os.close(self._slot)
            self._slot = None


class Gate:
    """Asked before an attempt, told after it."""

    def __init__(self, spool: Spool, settings: IngestSettings, *, dice: random.Random | None = None) -> None:
        self._spool = spool
        self._settings = settings
        self._breaker = spool.state / _BREAKER
        self._dice = dice or random.Random()  # noqa: S311 - jitter, not a secret

    def token_id(self, token: str) -> str:
        """Return a short name for a token that tells nothing about it."""
        return hmac.new(self._spool.id.encode(), token.encode(), hashlib.sha256).hexdigest()[:12]

    def _refused_path(self, token: str) -> Path:
        return self._spool.state / f"refused-{self.token_id(token)}.json"

    def refusal(self, token: str) -> dict[str, Any] | None:
        """Return status, time and advice when the cloud refused this token; None if it did not."""
        path = self._refused_path(token)
        return (read_json(path) or {"status": 401, "advice": ADVICE[401]}) if path.exists() else None

    def forgive(self, token: str) -> None:
        """Let this token knock again."""
        self._refused_path(token).unlink(missing_ok=True)

    def is_open(self) -> bool:
        """Tell whether the cloud counts as down."""
        return _number(read_json(self._breaker), "failures") >= FAILURES_TO_OPEN

    def outage(self) -> dict[str, Any]:
        """Return failures in a row, since when, and the reason; empty when the last attempt was answered."""
        return read_json(self._breaker)

    def admit(self, token: str) -> Admission:
        """Say whether an attempt may go out now."""
        refused = self._refused_path(token)
        if refused.exists():
            if self._settings.on_refused == "stop":
                return Admission(Verdict.REFUSED)
            due = _number(read_json(refused), "at") + self._settings.hold_probe_every
            return self._probe(Verdict.REFUSED, due=due, asked=self._settings.hold_probe_every)
        state = read_json(self._breaker)
        if _number(state, "failures") < FAILURES_TO_OPEN:
            return Admission(Verdict.GO)
        due, probes = _number(state, "probe_at"), int(_number(state, "probes"))
        return self._probe(
            Verdict.DOWN, due=due, probes=probes, asked=min(_number(state, "asked"), LONGEST_ASKED_SECONDS)
        )

    def _probe(self, otherwise: Verdict, *, due: float, asked: float, probes: int = 0) -> Admission:
        wait = due - self._spool.clock.time()
        if 0 < wait <= max(SLOWEST_PROBE_SECONDS, asked):  # a longer one is a clock that was set back
            return Admission(otherwise)
        slot = os.open(self._spool.state / "probe.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(slot)
            return Admission(otherwise)
        return Admission(Verdict.PROBE, probe_answer_seconds(probes), slot)

    def report(self, outcome: Outcome, token: str) -> Change:
        """Note an outcome; return what it changed."""
        if outcome.kind is Kind.TRANSIENT:
            return self._count_failure(outcome)
        if outcome.kind is Kind.FATAL:
            self._note_refusal(outcome, token)
            return Change.NONE
        was_down = self._reset(self._breaker)
        # A captive portal's page is an answer, but it says nothing about the token.
        accepted = outcome.kind is Kind.OK and self._reset(self._refused_path(token))
        return Change.UP if was_down or accepted else Change.NONE

    def _reset(self, path: Path) -> bool:
        was_shut = path != self._breaker or self.is_open()
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return was_shut

    def _count_failure(self, outcome: Outcome) -> Change:
        with one_after_the_other(self._spool.state / "breaker.lock"):
            state = read_json(self._breaker)
            before = int(_number(state, "failures"))
            failures = before + (DEAR_FAILURE if outcome.timed_out else 1)
            asked = min(outcome.retry_after or 0.0, LONGEST_ASKED_SECONDS)
            if asked:  # the cloud said itself for how long: nobody else needs to find out
                failures = max(failures, FAILURES_TO_OPEN)
            probes = int(_number(state, "probes")) + (failures > FAILURES_TO_OPEN)
            delay = max(probe_delay(probes, self._dice.random()), asked)
            self._spool.write_for_sure(
                self._breaker,
                {
                    "failures": failures,
                    "probes": probes,
                    "asked": asked,
                    "probe_at": self._spool.clock.time() + delay,
                    "since": state.get("since") or rfc3339(self._spool.clock.now()),
                    "reason": outcome.reason,
                },
            )
        return Change.DOWN if before < FAILURES_TO_OPEN <= failures else Change.NONE

    def _note_refusal(self, outcome: Outcome, token: str) -> None:
        note = {**self.refusal_note(outcome), "at": self._spool.clock.time()}
        self._spool.write_for_sure(self._refused_path(token), note)

    def refusal_note(self, outcome: Outcome) -> dict[str, Any]:
        """Return what `refused.json` says."""
        return {
            "status": outcome.status,
            "time": rfc3339(self._spool.clock.now()),
            "reason": outcome.reason,
            "advice": ADVICE.get(outcome.status, ADVICE[401]),
        }

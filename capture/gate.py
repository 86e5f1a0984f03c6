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
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from capture.locks import one_after_the_other
from capture.outcome import Kind, Outcome
from capture.segment import rfc3339
from capture.settings import IngestSettings
from capture.spool import Spool, number_in, read_json

FAILURES_TO_OPEN = 3
DEAR_FAILURE = 2  # a cloud that never answers costs a whole deadline each time: two of those are enough
FIRST_PROBE_SECONDS = 1.0
# Together below the ten seconds within which new video has to pass again after an outage.
SLOWEST_PROBE_SECONDS = 4.0
PROBE_ANSWER_SECONDS = 4.0
PATIENT_PROBE_EVERY = 6
LONGEST_ASKED_SECONDS = 300.0
LONGEST_HELD_SECONDS = 86400.0
PROBE_SLOT = "probe.lock"
PATIENT_SLOT = "probe-patient.lock"
_BREAKER = "breaker.json"

ADVICE = {
    401: "the cloud does not know this token (401): give the current one with RELAY_TOKEN or --token-file, "
    "then start again; nothing was deleted",
    403: "the cloud forbids this token to send (403): ask the cloud's operator to allow it, or give another "
    "with RELAY_TOKEN or --token-file, then start again; nothing was deleted",
}
OWN_ADVICE = {
    401: "the cloud does not know the token of camera {camera} (401): put the current one into {file}, "
    "which is read at each attempt; nothing was deleted",
    403: "the cloud forbids the token of camera {camera} to send (403): put another into {file}, or ask the "
    "cloud's operator to allow it and run `relay-capture requeue`; nothing was deleted",
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

    A cloud that hangs would otherwise hold the probe for a whole deadline while it comes back; one that is
    slow but sound must still be able to pass.
    """
    return None if (probes + 1) % PATIENT_PROBE_EVERY == 0 else PROBE_ANSWER_SECONDS


def _is_open(state: dict[str, Any]) -> bool:
    return number_in(state, "failures") >= FAILURES_TO_OPEN


def _removed(path: Path) -> bool:
    """Remove a file; tell whether it was there."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _token_id(spool_id: str, token: str) -> str:
    return hmac.new(spool_id.encode(), token.encode(), hashlib.sha256).hexdigest()[:12]


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


@dataclass(frozen=True)
class _Shut:
    """Why the gate is shut, and the seconds until a probe may pass (0 or less: now)."""

    verdict: Verdict
    wait: float
    probes: int = 0


class Gate:
    """Asked before an attempt, told after it."""

    def __init__(self, spool: Spool, settings: IngestSettings, *, dice: random.Random | None = None) -> None:
        self._spool = spool
        self._settings = settings
        self._breaker = spool.state / _BREAKER
        self._dice = dice or random.Random()  # noqa: S311 - jitter, not a secret
        # Asked before and after each attempt, of very few tokens.
        self._token_id = lru_cache(maxsize=16)(partial(_token_id, spool.id))
        self._refused_path = lru_cache(maxsize=16)(
            lambda token: spool.state / f"refused-{self.token_id(token)}.json"
        )

    def token_id(self, token: str) -> str:
        """Return a short name for a token that tells nothing about it."""
        return self._token_id(token)

    def refusal(self, token: str) -> dict[str, Any] | None:
        """Return status, time and advice when the cloud refused this token; None if it did not."""
        path = self._refused_path(token)
        return (read_json(path) or {"status": 401, "advice": ADVICE[401]}) if path.exists() else None

    def refuses_anybody(self) -> bool:
        """Tell whether any token is refused at present: a short look, for those who look often."""
        return next(self._spool.state.glob("refused-*.json"), None) is not None

    def forgive(self, token: str) -> None:
        """Let this token knock again."""
        self._refused_path(token).unlink(missing_ok=True)

    def is_open(self) -> bool:
        """Tell whether the cloud counts as down."""
        return _is_open(read_json(self._breaker))

    def outage(self) -> dict[str, Any]:
        """Return failures in a row, since when, and the reason; empty when the last attempt was answered."""
        return read_json(self._breaker)

    def admit(self, token: str) -> Admission:
        """Say whether an attempt may go out now."""
        shut = self._shut(token)
        if shut is None:
            return Admission(Verdict.GO)
        if shut.wait > 0:
            return Admission(shut.verdict)
        answer_seconds = probe_answer_seconds(shut.probes)
        if answer_seconds is None and (slot := self._take(PATIENT_SLOT)) is not None:
            # It may take long, and is not to stand in the way of the next short ones meanwhile.
            self._pass_turn()
            return Admission(Verdict.PROBE, None, slot)
        slot = self._take(PROBE_SLOT)
        if slot is None:
            return Admission(shut.verdict)
        return Admission(Verdict.PROBE, PROBE_ANSWER_SECONDS, slot)

    def is_due(self, token: str) -> bool:
        """Tell whether an attempt would go out now, if nobody else is at it."""
        shut = self._shut(token)
        return shut is None or (shut.wait <= 0 and math.isfinite(shut.wait))

    def next_probe_in(self) -> float:
        """Return the seconds until the next probe of a cloud that is down; 0 when one is due."""
        return max(0.0, self._probe_wait(read_json(self._breaker)))

    def _shut(self, token: str) -> "_Shut | None":
        """Return why and for how long the gate is shut for this token; None when it is open."""
        refused = self._refused_path(token)
        state = read_json(self._breaker)
        if refused.exists():
            if self._settings.on_refused == "stop":
                return _Shut(Verdict.REFUSED, math.inf)
            every = self._settings.hold_probe_every
            wait = self._wait(number_in(read_json(refused), "at") + every, asked=every)
            return _Shut(Verdict.REFUSED, wait, int(number_in(state, "probes")))
        if not _is_open(state):
            return None
        return _Shut(Verdict.DOWN, self._probe_wait(state), int(number_in(state, "probes")))

    def _probe_wait(self, state: dict[str, Any]) -> float:
        """Return the seconds until the next probe of a cloud that is down."""
        return self._wait(number_in(state, "probe_at"), asked=number_in(state, "asked"))

    def _wait(self, due: float, *, asked: float) -> float:
        """Return the seconds until a probe is due; a wait that nobody set is a clock that was set back."""
        wait = due - self._spool.clock.time()
        return wait if wait <= max(SLOWEST_PROBE_SECONDS, min(asked, LONGEST_HELD_SECONDS)) else 0.0

    def _take(self, slot: str) -> int | None:
        """Lock a slot for one attempt; None while somebody else has it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._spool.state / slot, flags, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def _pass_turn(self) -> None:
        """Let the next probe be due after its usual time, though this one has not come back."""
        with one_after_the_other(self._spool.state / "breaker.lock"):
            state = read_json(self._breaker)
            if state:
                probes = int(number_in(state, "probes")) + 1
                due = self._spool.clock.time() + probe_delay(probes, self._dice.random())
                self._spool.write_for_sure(self._breaker, {**state, "probes": probes, "probe_at": due})

    def report(
        self, outcome: Outcome, token: str, camera: str | None = None, *, is_probe: bool = True
    ) -> Change:
        """Note an outcome; return what it changed. `camera` is the one that the attempt was for.

        One that is no probe went out before the gate was shut, and knows nothing of why.
        """
        if outcome.kind is Kind.TRANSIENT:
            return self._count_failure(outcome, is_probe=is_probe)
        if outcome.kind is Kind.FATAL:
            self._note_refusal(outcome, token, camera)
            return Change.UP if self._close(read_json(self._breaker)) else Change.NONE
        state = read_json(self._breaker)
        if not is_probe and number_in(state, "asked") > 0 and self._probe_wait(state) > 0:
            return Change.NONE
        was_down = self._close(state)
        # A captive portal's page is an answer, but it says nothing about the token.
        accepted = is_probe and outcome.kind is Kind.OK and _removed(self._refused_path(token))
        return Change.UP if was_down or accepted else Change.NONE

    def _close(self, state: dict[str, Any]) -> bool:
        """Close the breaker, which was in that state; tell whether it was open."""
        return _removed(self._breaker) and _is_open(state)

    def _count_failure(self, outcome: Outcome, *, is_probe: bool) -> Change:
        with one_after_the_other(self._spool.state / "breaker.lock"):
            state = read_json(self._breaker)
            before = int(number_in(state, "failures"))
            failures = before + (DEAR_FAILURE if outcome.timed_out and not outcome.is_slow else 1)
            asked = min(outcome.retry_after or 0.0, LONGEST_ASKED_SECONDS)
            if asked:  # the cloud said itself for how long: nobody else needs to find out
                failures = max(failures, FAILURES_TO_OPEN)
            probes = int(number_in(state, "probes")) + (is_probe and failures > FAILURES_TO_OPEN)
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

    def _note_refusal(self, outcome: Outcome, token: str, camera: str | None) -> None:
        note = {**self.refusal_note(outcome, camera), "at": self._spool.clock.time()}
        self._spool.write_for_sure(self._refused_path(token), note)

    def refusal_note(self, outcome: Outcome, camera: str | None = None) -> dict[str, Any]:
        """Return what `refused.json` says; for a `camera` with a token of its own, where that stands."""
        advice = ADVICE.get(outcome.status, ADVICE[401])
        own = self._settings.token_files.get(camera) if camera is not None else None
        if own is not None:
            advice = OWN_ADVICE.get(outcome.status, OWN_ADVICE[401]).format(camera=camera, file=own)
        return {
            "status": outcome.status,
            "time": rfc3339(self._spool.clock.now()),
            "reason": outcome.reason,
            "advice": advice,
        }

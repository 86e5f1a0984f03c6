"""Uploads: one live segment per message, several backlog segments per message."""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial

import structlog

from capture.claim import Claim, HostileNameError, claim, parse_names
from capture.errors import ConfigError
from capture.gate import Verdict
from capture.handoff import END_SESSION, LIVE, UPLOAD_BATCH, UPLOAD_SEGMENT, Message, hint
from capture.metrics_catalogue import HeldBack
from capture.outcome import Kind, Outcome
from capture.segment import SessionName
from capture.spool import REFUSED_FILE, Debt
from capture.upkeep import is_over
from tasks.batch import Batch
from tasks.celery import (
    RefusedByCloudError,
    RejectedByCloudError,
    RelayTask,
    TransientError,
    app,
    tell_unfit,
)
from tasks.memory import LARGEST_BATCH
from tasks.metrics import held_back, metering
from tasks.seldom import ADVICE, seldom
from tasks.sending import Request, Steps
from tasks.worker import NOT_MOUNTED, Worker, this_worker

LOUD_AFTER = 3

log = structlog.get_logger()


@app.task(base=RelayTask, bind=True, name=UPLOAD_SEGMENT)
def upload_segment(self: RelayTask, session: str, segment: str) -> str:
    """Send one segment; say in a few words what became of it."""
    worker = this_worker()
    is_live = (self.request.delivery_info or {}).get("routing_key") == LIVE
    try:
        debt = Debt(*parse_names(session, segment))
    except HostileNameError as error:
        return _hostile(str(error))
    try:
        outcome = worker.sender.one(_upload(worker, debt, attempt=self.request.retries + 1, is_live=is_live))
    except OSError as error:
        return _trouble(worker, debt, error=error)
    if isinstance(outcome, str):
        return outcome
    _end_if_over(worker, [debt.session])
    return _conclude(worker, outcome, debt.camera)


@app.task(base=RelayTask, name=UPLOAD_BATCH)
def upload_batch(items: Sequence[Sequence[str]]) -> str:
    """Send several backlog segments, each on its own, while a lane is free for it."""
    try:
        debts = _parse_batch(items)
    except HostileNameError as error:
        return _hostile(str(error))
    worker = this_worker()
    if not worker.is_mounted():
        return NOT_MOUNTED
    with Batch(worker, debts) as batch:
        if not batch.has_lane:
            return "not now: as many others as may are sending from the backlog"
        worker.sender.many(
            batch.due(),
            partial(_try_one, worker),
            note=batch.note,
            is_over=batch.is_over,
            on_last=batch.leave_lane,
        )
    _end_if_over(worker, batch.tried)
    if batch.refusal is not None:
        _conclude(worker, *batch.refusal)
    return f"sent {batch.delivered} of {len(debts)}"


def _parse_batch(items: object) -> list[Debt]:
    if not isinstance(items, list) or len(items) > LARGEST_BATCH:
        raise HostileNameError("expected a short list of names")
    if not all(isinstance(item, list) and len(item) == 2 for item in items):  # noqa: PLR2004 - a pair
        raise HostileNameError("expected pairs of names")
    return [Debt(*parse_names(*item)) for item in items]


def _try_one(worker: Worker, debt: Debt) -> Steps:
    """Send one of a batch. What fails stays owed and must not hold up its neighbours."""
    try:
        return (yield from _upload(worker, debt, attempt=1))
    except OSError as error:
        return Outcome(Kind.TRANSIENT, 0, _trouble(worker, debt, error=error))
    except ConfigError as error:  # its token cannot be read
        tell_unfit(error)
        return Outcome(Kind.TRANSIENT, 0, str(error))


def _upload(worker: Worker, debt: Debt, *, attempt: int, is_live: bool = False) -> Steps:
    """Make one attempt, unless there is none to make: then return the reason."""
    try:
        found = claim(worker.spool, debt.session, debt.segment, close_removed=worker.closer.close)
    except HostileNameError as error:
        return _hostile(str(error))
    if found is None:
        return "nothing to do: gone, or in other hands"
    with found:
        if found.finish_delivered():
            return "already delivered"
        if is_live and attempt == 1 and _is_late(worker, found):
            worker.leave_to_recover()
            worker.meter.held_back(HeldBack.NEWER_FIRST)
            return "left to recover: newer video waits"
        outcome = yield from _attempt(worker, found, attempt, is_live=is_live)
    if not isinstance(outcome, str) and outcome.kind is Kind.OK:
        worker.meter.confirmed(found, is_live=is_live)
    return outcome


def _trouble(worker: Worker, debt: Debt, *, error: OSError) -> str:
    """Say that this machine's disk or mount is in trouble. It costs the attempt; the segment stays owed."""
    worker.meter.local_error()
    if not worker.is_mounted():
        return NOT_MOUNTED
    log.error(
        "segment_not_sent",
        camera=debt.camera,
        session=str(debt.session),
        segment=str(debt.segment),
        reason=error.strerror,
    )
    return f"owed: this machine: {error.strerror}"


def _is_late(worker: Worker, found: Claim) -> bool:
    """Tell whether newer video waits behind a segment that recover looks after by now anyway.

    Where uploads are slower than the cameras for a while, or stood still, the newest goes first.
    """
    age = worker.spool.clock.time() - found.written_at
    return age > worker.settings.spool.recover_after and worker.memory.live_waits()


def _end_if_over(worker: Worker, sessions: Iterable[SessionName]) -> None:
    """Have the stream ended as soon as the last segment of an ended session is gone.

    Asked once for each session of a batch: looking takes a twentieth of an upload.
    """
    for session in sessions:
        with suppress(OSError):  # what was sent is sent; recover looks again
            if is_over(worker.spool, session):
                hint(worker.app, Message(END_SESSION, (str(session),)))


def _hostile(found: str) -> str:
    seldom("message_refused", reason="its names are not ours", found=found, advice=ADVICE)
    metering.meter().message_refused()
    return "refused: not a segment of this spool"


def _attempt(worker: Worker, claimed: Claim, attempt: int, *, is_live: bool) -> Steps:
    # Before the gate is asked: who has no turn on the line must not take one of its probes.
    with worker.narrow.turn(is_live=is_live) as is_mine:
        if is_mine:
            return (yield from _attempt_now(worker, claimed, attempt, is_live=is_live))
    worker.meter.held_back(HeldBack.SLOW_LINE)
    return "owed: the line is slow, and another has it"


def _attempt_now(worker: Worker, claimed: Claim, attempt: int, *, is_live: bool) -> Steps:
    camera = claimed.session.camera
    token = worker.token(camera)
    with worker.gate.admit(token) as admission:
        if not admission.may_try:
            worker.meter.held_back(held_back(admission.verdict))
            return "owed: " + (
                "the token is refused" if admission.verdict is Verdict.REFUSED else "the cloud is down"
            )
        is_probe = admission.verdict is Verdict.PROBE
        # A probe in a hurry says nothing on a slow line, and leaves it full.
        patience = None if is_probe and worker.narrow.too_large() else admission.answer_seconds
        begun = time.monotonic()
        outcome, sha256 = yield Request(claimed, token, patience, is_live)
        seconds = time.monotonic() - begun
        worker.meter.attempted(claimed, outcome, seconds=seconds, attempt=attempt)
        if outcome.kind is Kind.FATAL:  # everybody else has to know first, whatever happens here
            worker.report(outcome, token, camera, is_probe=is_probe)
            _settle(worker, claimed, outcome, sha256, attempt)
        else:
            try:
                _settle(worker, claimed, outcome, sha256, attempt)
            finally:  # the cloud has answered, whatever our disk says
                worker.report(outcome, token, camera, is_probe=is_probe)
        _note_line(worker, claimed, outcome, seconds, is_live=is_live)
    if is_probe and outcome.kind is Kind.TRANSIENT:
        worker.probe_again()
    return outcome


def _note_line(worker: Worker, claimed: Claim, outcome: Outcome, seconds: float, *, is_live: bool) -> None:
    """Note what an attempt tells of the line; where uploads go one at a time, what made way may go now."""
    worker.narrow.note(outcome, size=claimed.size, seconds=seconds)
    if is_live and outcome.kind is Kind.OK and worker.narrow.too_large():  # a batch does so itself
        worker.leave_to_recover()


def _settle(worker: Worker, claimed: Claim, outcome: Outcome, sha256: str, attempt: int) -> None:
    """Write down what became of the segment, before anything else can happen."""
    if outcome.kind is Kind.OK:
        claimed.delivered(sha256=sha256, status=outcome.status, attempts=attempt)
        worker.spool.clear_rejects(claimed.session.camera)
        _end_refusal(worker, claimed.session)
        return
    names = {
        "camera": claimed.session.camera,
        "session": str(claimed.session),
        "segment": str(claimed.segment),
    }
    if outcome.kind is Kind.REJECTED:
        claimed.rejected(status=outcome.status, reason=outcome.reason)
        in_a_row = worker.spool.count_reject(claimed.session.camera)
        log.warning("segment_rejected", reason=outcome.reason, **names)
        if in_a_row % LOUD_AFTER == 0:
            log.error(
                "camera_rejected_repeatedly",
                in_a_row=in_a_row,
                reason=outcome.reason,
                advice="ask why the cloud will not take this camera's video; "
                "then `relay-capture requeue --rejected` sends it again",
                **names,
            )
    elif outcome.kind is Kind.FATAL:
        note = worker.gate.refusal_note(outcome, claimed.session.camera)
        worker.spool.write_for_sure(worker.spool.session_path(claimed.session) / REFUSED_FILE, note)
        log.error("token_refused", reason=outcome.reason, advice=note["advice"], **names)


def _end_refusal(worker: Worker, session: SessionName) -> None:
    """The token is good again, or another: what the gate turned away meanwhile has no message any more."""
    note = worker.spool.session_path(session) / REFUSED_FILE
    if note.exists():
        note.unlink(missing_ok=True)
        worker.recover_soon(afresh=True)


def _conclude(worker: Worker, outcome: Outcome, camera: str) -> str:
    """Turn an outcome into what Celery and Flower show."""
    if outcome.kind is Kind.OK:
        return f"delivered: {outcome.reason}"
    if outcome.kind is Kind.REJECTED:
        raise RejectedByCloudError(f"rejected: {outcome.reason}")
    if outcome.kind is Kind.FATAL:
        advice = worker.gate.refusal_note(outcome, camera)["advice"]
        raise RefusedByCloudError(f"{outcome.reason}: {advice}")
    if worker.gate.is_open():
        # Others find out when the cloud is back; recover brings this one then.
        return f"owed: the cloud is down: {outcome.reason}"
    raise TransientError(outcome.reason, outcome.retry_after)

"""Recover: what is owed but has no message gets one; dead sessions are salvaged, the cloud is told."""

import contextlib

import structlog

from capture.handoff import (
    BACKLOG,
    END_SESSION,
    LIVE,
    RECOVER,
    REGISTER_CAMERA,
    UPLOAD_BATCH,
    Message,
    publish,
    time_limits,
    upload_message,
)
from capture.locks import exclusive
from capture.outcome import attempt_seconds
from capture.recovery import Picked
from capture.segment import SessionName
from capture.upkeep import ENDED_NOTE, REGISTERED_NOTE, close_dead_sessions, note_asked, to_end, to_register
from tasks.batch import LONGEST_BATCH_SECONDS
from tasks.celery import RelayTask, app
from tasks.memory import Remembered
from tasks.tokens import Tokens
from tasks.worker import Worker, this_worker

SOON = 2.0  # seconds
ROUND_SECONDS = 0.5  # a round is nearly always shorter
STARVED_SECONDS = 15.0

log = structlog.get_logger()


@app.task(base=RelayTask, name=RECOVER)
def recover(going: object = False, afresh: object = False) -> str:  # noqa: FBT002 - a message's arguments
    """Run one round, unless another worker is at it.

    `going` says that uploads succeed just now, after an outage or in the middle of a backlog: for some
    seconds then whoever waits is not left to the live queue for long. `afresh` says that nobody counts as
    having a message.
    """
    worker = this_worker()
    return worker.while_mounted(lambda: _recover(worker, going=going is True, afresh=afresh is True))


def _recover(worker: Worker, *, going: bool, afresh: bool) -> str:
    # In the middle of a backlog only the next batches count; the rest is for the ticks.
    is_tick = afresh or not going
    if is_tick:
        _salvage(worker)
    # A lane is free where something is going: that must not wait for beat because two ask at once.
    with exclusive(worker.spool.state / "recover.lock", wait=ROUND_SECONDS if going else 0.0) as mine:
        if not mine:
            return "another worker is at it"
        return _round(worker, going=going, afresh=afresh, is_tick=is_tick)


def _salvage(worker: Worker) -> None:
    """Close dead sessions, one process at a time: that can take long, and nobody's messages wait for it."""
    with contextlib.ExitStack() as stack:
        try:
            is_mine = stack.enter_context(exclusive(worker.spool.state / "salvage.lock"))
        except OSError:  # a full disk has no room for a lock
            is_mine = True
        for session, segments in close_dead_sessions(worker.spool) if is_mine else []:
            log.info("session_salvaged", camera=session.camera, session=str(session), segments=segments)


def _round(worker: Worker, *, going: bool, afresh: bool, is_tick: bool) -> str:
    worker.meter.recover_ran()
    if afresh:
        worker.memory.clear()
    if going:
        worker.memory.note_going()
    remembered = worker.memory.load()
    tokens = Tokens(worker)
    if tokens.all_stopped():
        return "the token is refused: nothing is sent"
    # Down, or held back because the token is refused: either way one segment at a time goes to the gate.
    if worker.gate.is_open() or not tokens.any_good():
        return _send_probe(worker, remembered, tokens)
    if is_tick:
        _tell_the_cloud(worker, remembered, tokens)
    _probe_refused(worker, remembered, tokens)
    patience = _patience(worker, remembered, afresh=afresh)
    return _send_batches(worker, remembered, tokens, older_than=patience)


def _patience(worker: Worker, remembered: Remembered, *, afresh: bool) -> float:
    """Return for how many seconds a segment is left to its live message.

    At the end of an outage for none: what was closed during it has lost its message at the gate.
    """
    patience = worker.settings.spool.recover_after
    if afresh:
        return 0.0
    return min(patience, SOON) if remembered.going else patience


def _send_probe(worker: Worker, remembered: Remembered, tokens: Tokens) -> str:
    """While the cloud is down a message ends at the gate, so nobody counts as having one."""
    if remembered.backlog or not tokens.any_may_knock():
        return "the cloud is down: no probe is due"
    worker.memory.clear()
    # Its live message ended at the gate, so it may be young.
    picked = worker.shortlist.pick_probe(older_than=SOON, only=tokens.may_knock)
    for probe in picked:
        debt = probe.debt
        publish(
            worker.app,
            upload_message(worker.settings.ingest, debt.session, debt.segment, probe.size, BACKLOG),
        )
        worker.meter.recovered(1)
    return f"the cloud is down: sent {len(picked)} probe"


def _probe_refused(worker: Worker, remembered: Remembered, tokens: Tokens) -> None:
    """While others send, let a camera whose own token is refused try it when that is due."""
    if not tokens.differ:
        return
    names = (SessionName.parse(key.partition("/")[0]) for key in remembered.sent)
    asked = {name.camera for name in names if name is not None}
    picked = worker.shortlist.pick(
        1, older_than=SOON, only=lambda camera: camera not in asked and tokens.is_held_and_due(camera)
    )
    if picked:
        _send_batch(worker, picked, BACKLOG)


def _send_batches(worker: Worker, remembered: Remembered, tokens: Tokens, *, older_than: float) -> str:
    """Fill the lanes that are free: one batch each."""
    running = worker.lanes.busy()
    waiting = remembered.backlog
    free = min(remembered.window, remembered.lanes) - running - waiting
    if free <= 0:
        return (
            _help_the_starved(worker, remembered, tokens)
            if waiting and not running
            else "all lanes are taken"
        )
    # With nothing waiting and nobody sending, a message that is remembered went down with its worker.
    sent = remembered.sent if running or waiting else {}
    picked = worker.shortlist.pick(
        free * remembered.size,
        older_than=older_than,
        skip={*sent, *remembered.failed},
        after=remembered.turn,
        only=tokens.is_good,
    )
    if not picked:
        return "nothing waits"
    size = -(-len(picked) // free)
    for first in range(0, len(picked), size):
        _send_batch(worker, picked[first : first + size], BACKLOG)
    return f"sent messages for {len(picked)} segments"


def _help_the_starved(worker: Worker, remembered: Remembered, tokens: Tokens) -> str:
    """Where new segments keep all workers busy, let one of the backlog in among them now and then."""
    if any(remembered.now - at < STARVED_SECONDS for at in remembered.sent.values()):
        return "the last batch is not taken yet"
    picked = worker.shortlist.pick(1, older_than=0.0, after=remembered.turn, only=tokens.is_good)
    if picked:
        _send_batch(worker, picked, LIVE)
    return "the last batch was not taken for long: one segment goes among the new ones"


def _send_batch(worker: Worker, picked: list[Picked], queue: str) -> None:
    """Send one message for all of these, and remember who has one."""
    worker.memory.note_sent([each.debt.key for each in picked], turn=picked[-1].debt.camera)
    names = [[str(each.debt.session), str(each.debt.segment)] for each in picked]
    longest = max(attempt_seconds(worker.settings.ingest, each.size) for each in picked)
    publish(worker.app, Message(UPLOAD_BATCH, (names,), queue, time_limits(LONGEST_BATCH_SECONDS + longest)))
    worker.meter.recovered(len(picked))


def _tell_the_cloud(worker: Worker, remembered: Remembered, tokens: Tokens) -> None:
    if remembered.live:
        return
    for session in filter(lambda session: tokens.is_good(session.camera), to_register(worker.spool)):
        publish(worker.app, Message(REGISTER_CAMERA, (str(session),)))
        _note_asked(worker, session, REGISTERED_NOTE)
    for session in filter(lambda session: tokens.is_good(session.camera), to_end(worker.spool)):
        publish(worker.app, Message(END_SESSION, (str(session),)))
        _note_asked(worker, session, ENDED_NOTE)


def _note_asked(worker: Worker, session: SessionName, note: str) -> None:
    with contextlib.suppress(OSError):
        note_asked(worker.spool, session, note)

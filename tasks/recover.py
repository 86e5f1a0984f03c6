"""Recover: what is owed but has no message gets one, a window at a time; dead sessions are salvaged."""

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
    waiting,
)
from capture.locks import exclusive
from capture.outcome import attempt_seconds
from capture.segment import SessionName
from capture.upkeep import (
    ENDED_NOTE,
    REGISTERED_NOTE,
    Picked,
    Recovery,
    close_dead_sessions,
    note_asked,
    to_end,
    to_register,
)
from tasks.celery import RelayTask, app
from tasks.worker import Worker, this_worker

BATCH = 8
SOON = 2.0  # seconds
GOING_SECONDS = 20.0
GOING_FILE = "going"

log = structlog.get_logger()


@app.task(base=RelayTask, name=RECOVER)
def recover(going: object = False) -> str:  # noqa: FBT002 - a message's argument
    """Run one round, unless another worker is at it.

    `going` says that uploads succeed just now, after an outage or in the middle of a backlog: then whoever
    waits need not be left to the live queue for long.
    """
    worker = this_worker()
    with exclusive(worker.spool.state / "recover.lock") as mine:
        return _round(worker, going=going is True) if mine else "another worker is at it"


def _round(worker: Worker, *, going: bool) -> str:
    worker.spool.check_mounted()
    for session, segments in close_dead_sessions(worker.spool):
        log.info("session_salvaged", camera=session.camera, session=str(session), segments=segments)
    is_refused = worker.gate.refusal(worker.token()) is not None
    if is_refused and worker.settings.ingest.on_refused == "stop":
        return "the token is refused: nothing is sent"
    # Down, or held back because the token is refused: either way one segment at a time goes to the gate.
    is_down = worker.gate.is_open() or is_refused
    _tell_the_cloud(worker, is_down=is_down)
    if waiting(app, BACKLOG):
        return "the last window is not taken yet"
    patience = worker.settings.spool.recover_after
    if _is_going(worker, going=going):
        patience = min(patience, SOON)
    recovery = Recovery.load(worker.spool, recover_after=patience)
    picked = recovery.pick(is_down=is_down)
    for message in _messages(worker, picked, is_down=is_down):
        publish(app, message)
    # A probe that fails ends its message: its segment must not wait for one that is gone.
    with contextlib.suppress(OSError):  # it only saves duplicates
        recovery.save([] if is_down else picked)
    return f"sent messages for {len(picked)} segments"


def _is_going(worker: Worker, *, going: bool) -> bool:
    """Tell whether uploads began to succeed within the last seconds; note it when they do.

    What was closed just before that has lost its message at the gate, and is too young for this round.
    """
    mark = worker.spool.state / GOING_FILE
    with contextlib.suppress(OSError):
        if going:
            mark.touch()
        return 0 <= worker.spool.clock.time() - mark.stat().st_mtime < GOING_SECONDS
    return going


def _tell_the_cloud(worker: Worker, *, is_down: bool) -> None:
    if is_down or waiting(app, LIVE):
        return
    for session in to_register(worker.spool):
        publish(app, Message(REGISTER_CAMERA, (str(session),)))
        _note_asked(worker, session, REGISTERED_NOTE)
    for session in to_end(worker.spool):
        publish(app, Message(END_SESSION, (str(session),)))
        _note_asked(worker, session, ENDED_NOTE)


def _note_asked(worker: Worker, session: SessionName, note: str) -> None:
    with contextlib.suppress(OSError):
        note_asked(worker.spool, session, note)


def _messages(worker: Worker, picked: list[Picked], *, is_down: bool) -> list[Message]:
    ingest = worker.settings.ingest
    if is_down:
        return [upload_message(ingest, p.debt.session, p.debt.segment, p.size, BACKLOG) for p in picked]
    found = []
    for first in range(0, len(picked), BATCH):
        batch = picked[first : first + BATCH]
        names = [[str(p.debt.session), str(p.debt.segment)] for p in batch]
        limits = time_limits(sum(attempt_seconds(ingest, p.size) for p in batch))
        found.append(Message(UPLOAD_BATCH, (names,), BACKLOG, limits))
    return found

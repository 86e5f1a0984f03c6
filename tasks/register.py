"""What the cloud is told about a camera: that it starts, and that its stream is over.

That it was told is a small file in the session directory, so that `recover` can see what is still to be
said after any crash.
"""

import json
from collections.abc import Callable
from typing import Any

import structlog

from capture.claim import HostileNameError, parse_session
from capture.handoff import END_SESSION, REGISTER_CAMERA
from capture.locks import exclusive
from capture.outcome import Kind, Outcome
from capture.segment import SessionName, rfc3339
from capture.spool import REFUSED_FILE, read_json, write_json
from capture.upkeep import (
    ENDED_NOTE,
    REGISTERED_NOTE,
    REJECTED_AGAIN_SECONDS,
    is_over,
    is_told,
    superseded,
)
from tasks.celery import RefusedByCloudError, RelayTask, TransientError, app
from tasks.seldom import ADVICE, seldom
from tasks.worker import Worker, this_worker

TELLING_LOCK = ".telling.lock"
_CONFLICT = 409
_AGAIN = f"capture goes on; tried again in {REJECTED_AGAIN_SECONDS / 60:.0f} minutes"

log = structlog.get_logger()


def registration(camera: str, info: dict[str, Any]) -> bytes:
    """Return the registration payload. The source's address stays here."""
    return json.dumps(
        {
            "id": camera,
            "name": str(info.get("name") or camera),
            "source_url": "",
            "metadata": {
                "managed_by": "relay-capture",
                "ingest_transport": "http_mpegts",
                "source_type": str(info.get("source_type") or "rtsp"),
            },
        }
    ).encode()


@app.task(base=RelayTask, bind=True, name=REGISTER_CAMERA)
def register_camera(self: RelayTask, session: str) -> str:
    """Register the camera of a session."""
    del self
    worker = this_worker()
    name = _known(worker, session)
    if isinstance(name, str):
        return name
    return _register(worker, name)


def _register(worker: Worker, name: SessionName) -> str:
    payload = registration(name.camera, worker.spool.session_info(name))
    return _tell(worker, name, REGISTERED_NOTE, lambda token: worker.ingest.register(payload, token))


@app.task(base=RelayTask, bind=True, name=END_SESSION)
def end_session(self: RelayTask, session: str) -> str:
    """End the camera's stream, once its session is over, owes nothing, and no later one runs."""
    del self
    worker = this_worker()
    name = _known(worker, session)
    if isinstance(name, str):
        return name
    if not is_over(worker.spool, name):
        return "not yet: the session runs or still owes"
    if superseded(worker.spool, name):
        _note(worker, name, ENDED_NOTE, "a later session of this camera goes on")
        return "nothing to say: a later session of this camera goes on"
    if not is_told(worker.spool, name, REGISTERED_NOTE):  # the cloud was down all the while
        _register(worker, name)
    return _tell(worker, name, ENDED_NOTE, lambda token: worker.ingest.end_stream(name.camera, token))


def _known(worker: Worker, session: str) -> SessionName | str:
    try:
        name = parse_session(session)
    except HostileNameError as error:
        seldom("message_refused", reason="its names are not ours", found=str(error), advice=ADVICE)
        worker.meter.message_refused()
        return "refused: not a session of this spool"
    return name if worker.spool.has_session(name) else "nothing to do: the session is gone"


def _note(worker: Worker, name: SessionName, file: str, answer: str, *, rejected: bool = False) -> None:
    note = {"time": rfc3339(worker.spool.clock.now()), "answer": answer, "rejected": rejected}
    write_json(worker.spool.session_path(name) / file, note)


def _tell(worker: Worker, name: SessionName, file: str, request: Callable[[str], Outcome]) -> str:
    def tell() -> str:
        with exclusive(worker.spool.session_path(name) / TELLING_LOCK) as mine:
            if not mine:
                return "another worker is at it"
            if is_told(worker.spool, name, file):
                return "the cloud knows"
            return _ask(worker, name, file, request)

    return worker.while_mounted(tell)  # recover tells the cloud when it is back


def _ask(worker: Worker, name: SessionName, file: str, request: Callable[[str], Outcome]) -> str:
    token, names = worker.token(name.camera), {"camera": name.camera, "session": str(name)}
    with worker.gate.admit(token) as admission:
        if not admission.may_try:
            return f"not now: {admission.verdict}"
        outcome = request(token)
        worker.report(outcome, token, name.camera)
    if outcome.kind is Kind.TRANSIENT:
        raise TransientError(outcome.reason, outcome.retry_after)
    if outcome.kind is Kind.FATAL:
        worker.meter.token_refused()
        note = worker.gate.refusal_note(outcome, name.camera)
        write_json(worker.spool.session_path(name) / REFUSED_FILE, note)
        log.error("token_refused", reason=outcome.reason, advice=note["advice"], **names)
        raise RefusedByCloudError(f"{outcome.reason}: {note['advice']}")
    _report(worker, name, file, outcome)
    _note(worker, name, file, outcome.reason, rejected=outcome.kind is Kind.REJECTED)
    return outcome.reason


def _report(worker: Worker, name: SessionName, file: str, outcome: Outcome) -> None:
    """Log what the cloud said against it, once in a session for the same words."""
    event = "registration_rejected" if file == REGISTERED_NOTE else "stream_end_rejected"
    if outcome.kind is Kind.REJECTED:
        if read_json(worker.spool.session_path(name) / file).get("answer") != outcome.reason:
            log.error(event, camera=name.camera, session=str(name), reason=outcome.reason, then=_AGAIN)
    elif outcome.status == _CONFLICT:
        log.warning(
            event,
            camera=name.camera,
            session=str(name),
            reason=outcome.reason,
            then="taken as done already",
        )

"""What the sink answers to each request, and how it plays a fault on it."""

import hmac
import json
import secrets
import threading
import time
from dataclasses import KW_ONLY, dataclass
from itertools import count
from typing import Any, Final

import structlog

from capture.sink_faults import FaultPlan, Hit
from capture.sink_http import Answer, BadHeadError, Connection, Head, PeerGoneError
from capture.sink_ledger import Ledger, SinkEvent
from capture.sink_request import (
    Asked,
    read_asked,
    read_digest,
    read_duration,
    read_registration,
    read_start,
)
from capture.sink_store import Draft, Key, Store, StoreClosedError

REGISTRATION_LIMIT: Final = 64 * 1024  # bytes of JSON for one camera
ALLOWED: Final = {"cameras": "GET, HEAD, POST", "ingest": "POST, DELETE", "health": "GET, HEAD"}

log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Verdict:
    """How a request ends; without an answer the connection is reset."""

    outcome: str
    _: KW_ONLY
    answer: Answer | None
    bytes: int = 0
    detail: str = ""

    @classmethod
    def no(cls, outcome: str, *, status: int, why: str) -> "Verdict":
        return cls(outcome, answer=Answer.text(status, why), detail=why)


class Desk:
    """Answers the requests of every connection, from their threads."""

    def __init__(
        self, store: Store, *, ledger: Ledger, faults: FaultPlan, token: str | None, max_body: int
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._faults = faults
        self._token = None if token is None else token.encode()
        self._max_body = max_body
        self._lock = threading.Lock()
        self._live: set[str] = set()
        self._unkeyed = f"unkeyed-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        self._unkeyed += f"-{secrets.token_hex(3)}"
        self._numbers = count(1)
        self.cameras: dict[str, dict[str, Any]] = {}
        self.ended: list[str] = []

    def serve(self, connection: Connection) -> None:
        """Answer request after request until the connection has had its last one."""
        staying = True
        while staying:
            try:
                head = connection.read_head()
            except BadHeadError as bad:
                self._turn_away(connection, bad)
                return
            staying = head is not None and self._exchange(connection, head)

    def _turn_away(self, connection: Connection, bad: BadHeadError) -> None:
        event = SinkEvent(
            "malformed",
            method="OTHER",
            path="",
            status=bad.status,
            at=time.time(),
            seconds=0.0,
            detail=str(bad),
        )
        self._ledger.settle(event)
        connection.send(Answer.text(bad.status, str(bad)).render(keep=False))
        connection.linger()

    def _exchange(self, connection: Connection, head: Head) -> bool:
        """Answer one request; say whether the connection may have another."""
        began = time.monotonic()
        asked = read_asked(head)
        hit = self._faults.take(head.method, route=asked.route, camera=asked.camera, sequence=asked.sequence)
        try:
            with self._ledger.busy(asked.camera):
                verdict = self._verdict(connection, head, asked=asked, hit=hit)
        except (PeerGoneError, StoreClosedError) as gone:
            verdict = Verdict("aborted", answer=None)
            self._settle(verdict, head=head, asked=asked, hit=hit, began=began)
            raise PeerGoneError from gone
        self._settle(verdict, head=head, asked=asked, hit=hit, began=began)
        return self._reply(connection, head, verdict=verdict, hit=hit)

    def _settle(self, verdict: Verdict, *, head: Head, asked: Asked, hit: Hit | None, began: float) -> None:
        event = SinkEvent(
            verdict.outcome,
            method=head.method,
            path=head.path[:200],
            status=verdict.answer.status if verdict.answer else 0,
            at=time.time(),
            seconds=time.monotonic() - began,
            camera=asked.camera,
            session=asked.session,
            sequence=asked.sequence,
            bytes=verdict.bytes,
            fault=hit.fault.name if hit else None,
            detail=verdict.detail,
        )
        self._ledger.settle(event)

    def _reply(self, connection: Connection, head: Head, *, verdict: Verdict, hit: Hit | None) -> bool:
        if verdict.answer is None:
            connection.reset()
            return False
        keep = connection.can_stay(head)
        raw = verdict.answer.render(keep=keep, bare=head.method == "HEAD")
        if hit is not None and hit.fault.kind == "trickle":
            raw = _trickle(connection, raw, hit=hit)
        connection.send(raw)
        if keep:
            connection.skip(connection.left)
        elif connection.left or head.chunked:
            connection.linger()
        return keep

    def _verdict(self, connection: Connection, head: Head, *, asked: Asked, hit: Hit | None) -> Verdict:
        self._count_attempt(head, asked)
        played = _play(connection, hit) if hit is not None else None
        if played is not None:
            return played
        verdict = self._route(connection, head, asked=asked, hit=hit)
        if hit is not None and hit.fault.kind == "lost":
            return Verdict(verdict.outcome, answer=None, bytes=verdict.bytes, detail="answer lost")
        return verdict

    def _count_attempt(self, head: Head, asked: Asked) -> None:
        if head.method == "POST" and asked.camera and asked.session and asked.sequence is not None:
            self._store.seen(Key(asked.camera, asked.session, asked.sequence))

    def _route(self, connection: Connection, head: Head, *, asked: Asked, hit: Hit | None) -> Verdict:
        if asked.route == "ingest" and head.method == "POST":
            return self._ingest(connection, head, asked=asked, hit=hit)
        _hold(connection, hit)
        if asked.route == "health" and head.method in ("GET", "HEAD"):
            return Verdict("healthy", answer=Answer.text(200, "ok"))
        if asked.route == "cameras" and head.method == "POST":
            return self._register(connection, head)
        if asked.route == "cameras" and head.method in ("GET", "HEAD"):
            return self._list(head)
        if asked.route == "ingest" and head.method == "DELETE":
            return self._end(head, asked)
        return _nothing(head, asked)

    def _deny(self, head: Head, *, asked: Asked, most: int) -> Verdict | None:
        """Say why a request cannot be served, looking at its head alone."""
        if self._token is not None:
            given = head.headers.get("x-api-key", "").encode("latin-1")
            if not hmac.compare_digest(given, self._token):
                return Verdict.no("bad_token", status=401, why="found a wrong or missing X-API-Key")
        if asked.wrong:
            return Verdict.no("refused", status=400, why=asked.wrong)
        if head.method == "POST" and (head.chunked or head.length is None):
            why = "found a body without Content-Length"
            return Verdict.no("refused", status=411, why=why)
        if (head.length or 0) > most:
            why = f"found a body of {head.length} bytes, expected at most {most}"
            return Verdict.no("refused", status=413, why=why)
        return None

    def _ingest(self, connection: Connection, head: Head, *, asked: Asked, hit: Hit | None) -> Verdict:
        denied = self._deny(head, asked=asked, most=self._max_body)
        if denied is not None:
            _hold(connection, hit)
            return denied
        try:
            declared = read_digest(head.headers.get("content-digest"))
        except ValueError:
            return Verdict.no("refused", status=400, why="found a malformed Content-Digest")
        try:
            draft = self._store.receive(connection.pieces(rate=lambda: _rate(hit)))
            return self._commit(connection, head, asked=asked, hit=hit, draft=(draft, declared))
        except OSError:
            log.exception("sink_store_failed")
            return Verdict.no("failed", status=507, why="the sink could not store the segment")

    def _commit(
        self,
        connection: Connection,
        head: Head,
        *,
        asked: Asked,
        hit: Hit | None,
        draft: tuple[Draft, bytes | None],
    ) -> Verdict:
        body, declared = draft
        try:
            _hold(connection, hit)
        except PeerGoneError:
            body.discard()
            raise
        if not body.bytes:
            body.discard()
            return Verdict.no("refused", status=400, why="found an empty body, expected a segment")
        if declared is not None and declared.hex() != body.sha256:
            body.discard()
            why = f"found sha-256 {body.sha256}, expected {declared.hex()} by Content-Digest"
            return Verdict.no("digest_mismatch", status=400, why=why)
        return self._keep(body, head=head, asked=asked)

    def _keep(self, body: Draft, *, head: Head, asked: Asked) -> Verdict:
        key = self._key(asked)
        kept = self._store.keep(
            body,
            key=key,
            start=read_start(head.headers.get("x-segment-start")),
            duration=read_duration(head.headers.get("x-segment-duration")),
        )
        name = f"{key.session}/{key.sequence}"
        if kept == "conflict":
            why = f"found other bytes under the key {name} than those stored"
            return Verdict.no("conflict", status=422, why=why)
        if kept == "duplicate":
            why = f"found the key {name} stored already"
            return Verdict.no("duplicate", status=409, why=why)
        with self._lock:
            self._live.add(key.camera)
        return Verdict("stored", answer=Answer(204), bytes=body.bytes)

    def _key(self, asked: Asked) -> Key:
        camera = asked.camera or ""
        if asked.session is None or asked.sequence is None:
            return Key(camera, self._unkeyed, next(self._numbers))
        return Key(camera, asked.session, asked.sequence)

    def _register(self, connection: Connection, head: Head) -> Verdict:
        denied = self._deny(head, asked=Asked("cameras"), most=REGISTRATION_LIMIT)
        if denied is not None and denied.answer is not None and denied.answer.status == 413:  # noqa: PLR2004
            return Verdict.no("refused", status=400, why=denied.detail)
        if denied is not None:
            return denied
        payload = read_registration(b"".join(map(bytes, connection.pieces())))
        if isinstance(payload, str):
            return Verdict.no("refused", status=400, why=payload)
        with self._lock:
            new = payload["id"] not in self.cameras
            self.cameras[payload["id"]] = payload
            self._live.add(payload["id"])
        body = json.dumps({"id": payload["id"]}).encode()
        headers = (("Content-Type", "application/json"),)
        answer = Answer(201 if new else 200, body=body, headers=headers)
        return Verdict("registered", answer=answer, detail=payload["id"])

    def _list(self, head: Head) -> Verdict:
        """Answer with the cameras that are registered: this is how a token is tried without sending video."""
        denied = self._deny(head, asked=Asked("cameras"), most=REGISTRATION_LIMIT)
        if denied is not None:
            return denied
        body = json.dumps(list(self.registered().values())).encode()
        return Verdict(
            "listed", answer=Answer(200, body=body, headers=(("Content-Type", "application/json"),))
        )

    def _end(self, head: Head, asked: Asked) -> Verdict:
        denied = self._deny(head, asked=asked, most=self._max_body)
        if denied is not None:
            return denied
        camera = asked.camera or ""
        with self._lock:
            if camera not in self._live:
                return Verdict.no("refused", status=404, why="found no such camera")
            self._live.discard(camera)
            self.ended.append(camera)
        return Verdict("ended", answer=Answer(204))

    def revive(self) -> None:
        """Count the cameras that the store has segments of as known."""
        with self._lock:
            self._live |= self._store.cameras()

    def registered(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            return dict(self.cameras)


def _nothing(head: Head, asked: Asked) -> Verdict:
    """Say that an address, or this method of it, is not served."""
    allowed = ALLOWED.get(asked.route)
    if allowed is None:
        return Verdict.no("refused", status=404, why="found nothing at this address")
    why = f"found {head.method}, expected {allowed}"
    said = Answer.text(405, why)
    return Verdict(
        "refused", answer=Answer(405, body=said.body, headers=(*said.headers, ("Allow", allowed))), detail=why
    )


def _play(connection: Connection, hit: Hit) -> Verdict | None:
    """Play the faults that end a request without looking at it."""
    fault = hit.fault
    if fault.kind == "status":
        if fault.delay:
            connection.pause(fault.delay)
        answer = Answer(fault.status, body=fault.body, headers=fault.headers)
        return Verdict("faulted", answer=answer)
    if fault.kind in ("reset", "half"):
        connection.skip(connection.left // 2 if fault.after is None else fault.after)
    if fault.kind == "half":
        connection.hold(hit.over)
    if fault.kind in ("refuse", "reset", "half"):
        return Verdict("faulted", answer=None)
    return None


def _hold(connection: Connection, hit: Hit | None) -> None:
    if hit is not None and hit.fault.kind == "hang":
        connection.hold(hit.over)


def _rate(hit: Hit | None) -> float | None:
    if hit is None or hit.fault.kind != "slow" or hit.over():
        return None
    return hit.fault.rate


def _trickle(connection: Connection, raw: bytes, *, hit: Hit) -> bytes:
    """Send byte by byte while the fault lasts; give back what is left."""
    delay = 1.0 if hit.fault.delay is None else hit.fault.delay
    for position in range(len(raw)):
        if hit.over():
            return raw[position:]
        connection.send(raw[position : position + 1])
        connection.pause(delay)
    return b""

"""What the spool, the journal's last minutes and the broker say about how things are. Asks no cloud."""

import contextlib
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from capture.broker import queue_lengths, shown_url
from capture.broker_note import with_broker_of
from capture.errors import ConfigError
from capture.gate import FAILURES_TO_OPEN, Gate
from capture.handoff import BACKLOG, LIVE
from capture.retention import default_min_free
from capture.segment import SessionName, open_name, rfc3339
from capture.settings import Settings, SpoolSettings, read_token
from capture.source import redact
from capture.spool import OPEN, REJECTED, SESSION_LOCK, Spool, read_json
from capture.status_journal import TAIL_BYTES, Gaps, Journals, read_recent, summarise

__all__ = ["TAIL_BYTES", "CameraStatus", "Gaps", "Status", "read_recent", "read_status", "summarise", "watch"]

QUIET_SECONDS = 15.0  # within which a camera that gives nothing is noticed

State = Literal["recording", "ended", "interrupted", "never ran"]


@dataclass(frozen=True)
class CameraStatus:
    """One camera. Ages and times in seconds; None where there is nothing to measure.

    `words` says how it is to a person: its `state`, or "starting", "no video" or "switched off".
    ``writing_age`` is how long ago ffmpeg wrote to the segment that is open.
    """

    id: str
    configured: bool
    state: State
    sessions: int = 0
    newest_segment_end: str | None = None
    newest_segment_age: float | None = None
    owed: int = 0
    owed_bytes: int = 0
    oldest_owed_age: float | None = None
    rejected: int = 0
    closed_bytes_per_second: float = 0.0
    delivered_bytes_per_second: float = 0.0
    last_delivered_age: float | None = None
    name: str | None = None
    words: str = ""
    writing_age: float | None = None
    gaps: Gaps = field(default_factory=Gaps)


@dataclass(frozen=True)
class BrokerStatus:
    """The broker: where, whether it answers, and how many messages wait in each queue."""

    url: str
    reachable: bool
    queues: Mapping[str, int] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class IngestStatus:
    """What the workers found out about the cloud: `state`, since when, why, and what to do about it."""

    state: Literal["ok", "failing", "down", "refused", "unknown"]
    since: str | None = None
    reason: str | None = None
    advice: str | None = None
    failures_in_a_row: int = 0
    last_delivered_age: float | None = None


@dataclass(frozen=True)
class Status:
    """Everything. Its JSON is this, field by field, and `"format": 1`; fields are added, never renamed.

    ``drain_seconds`` is the time until nothing is owed at the rates of the last minutes, None when the debt
    does not shrink. ``full_in_seconds`` is the time until there is no room at those rates, and the oldest of
    what is owed goes: until `spool.max_bytes` or `spool.min_free` is reached, whichever comes first. None
    when it does not fill up; ``full_in_seconds_without_uploads`` is the same if nothing more were delivered.
    """

    time: str
    spool: str
    free_bytes: int
    total_bytes: int
    owed: int
    owed_bytes: int
    rejected: int
    drain_seconds: float | None
    full_in_seconds: float | None
    full_in_seconds_without_uploads: float | None
    broker: BrokerStatus
    ingest: IngestStatus
    cameras: tuple[CameraStatus, ...]

    def as_json(self) -> dict[str, Any]:
        return {"format": 1, **asdict(self)}


def read_status(spool: Spool, settings: Settings, journals: Journals | None = None) -> Status:
    """Look once. Raises OSError when the spool cannot be read.

    Whoever looks again and again keeps the `journals`: they are then read as far as they grew.
    """
    journals = journals or Journals()
    sessions: dict[str, list[SessionName]] = {}
    for name in spool.sessions():
        sessions.setdefault(name.camera, []).append(name)
    ids = sorted({*sessions, *settings.cameras, *spool.journal.cameras()})
    cameras = tuple(_camera(spool, settings, each, sessions.get(each, []), journals) for each in ids)
    closed = sum(camera.closed_bytes_per_second for camera in cameras)
    delivered = sum(camera.delivered_bytes_per_second for camera in cameras)
    owed_bytes = sum(camera.owed_bytes for camera in cameras)
    disk = shutil.disk_usage(spool.root)
    left = _room_left(settings.spool, owed_bytes, free=disk.free, total=disk.total)
    return Status(
        time=rfc3339(spool.clock.now()),
        spool=str(spool.root),
        free_bytes=disk.free,
        total_bytes=disk.total,
        owed=sum(camera.owed for camera in cameras),
        owed_bytes=owed_bytes,
        rejected=sum(camera.rejected for camera in cameras),
        drain_seconds=_time_for(owed_bytes, delivered - closed),
        full_in_seconds=_time_for(left, closed - delivered),
        full_in_seconds_without_uploads=_time_for(left, closed),
        broker=read_broker(spool, settings),
        ingest=read_ingest(spool, settings, _youngest(camera.last_delivered_age for camera in cameras)),
        cameras=cameras,
    )


def _room_left(settings: SpoolSettings, owed_bytes: int, *, free: int, total: int) -> int:
    """Return how many bytes more may be owed before the oldest go. Rejected ones go first."""
    floor = default_min_free(total) if settings.min_free is None else int(settings.min_free)
    left = free - floor
    if settings.max_bytes is not None:
        left = min(left, int(settings.max_bytes) - owed_bytes)
    return max(0, left)


def _time_for(amount: float, rate: float) -> float | None:
    """Return the seconds that an amount takes; 0 for no amount, None at a rate that gets nowhere."""
    if amount == 0:
        return 0.0
    return round(amount / rate, 1) if rate >= 1 else None


# --- cameras ---------------------------------------------------------------------------------------


def _camera(
    spool: Spool, settings: Settings, camera: str, sessions: list[SessionName], journals: Journals
) -> CameraStatus:
    now = spool.clock.now()
    recent = journals.recent(spool.journal.directory / camera, now)
    state = _state(spool, sessions, has_history=recent.last_closed is not None)
    set_up = settings.cameras.get(camera)
    writing_age = _writing_age(spool, sessions[-1]) if state == "recording" else None
    debt = _debt(spool, sessions)
    ends = [debt.newest] if debt.newest else []
    ends += [recent.last_closed.end] if recent.last_closed else []
    return CameraStatus(
        camera,
        configured=camera in settings.cameras,
        state=state,
        sessions=len(sessions),
        newest_segment_end=rfc3339(max(ends)) if ends else None,
        newest_segment_age=_age(now, max(ends, default=None)),
        owed=debt.count,
        owed_bytes=debt.bytes,
        oldest_owed_age=_age(now, debt.oldest),
        rejected=sum(len(spool.segments(name, REJECTED)) for name in sessions),
        closed_bytes_per_second=recent.closed_bytes_per_second,
        delivered_bytes_per_second=recent.delivered_bytes_per_second,
        last_delivered_age=_age(now, recent.last_delivered),
        name=set_up.name if set_up else None,
        words=_state_words(
            spool,
            state,
            sessions,
            video_age=_youngest([writing_age, _age(now, max(ends, default=None))]),
            is_off=bool(set_up and not set_up.enabled),
        ),
        writing_age=writing_age,
        gaps=recent.gaps,
    )


def _writing_age(spool: Spool, session: SessionName) -> float | None:
    """Return how long ago the open segment grew; None where none is open."""
    numbers = spool.open_segments(session)
    if not numbers:
        return None
    try:
        written_at = (spool.session_path(session) / OPEN / open_name(numbers[-1])).lstat().st_mtime
    except FileNotFoundError:  # closed meanwhile
        return 0.0
    return round(max(0.0, spool.clock.time() - written_at), 3)


def _state_words(
    spool: Spool, state: State, sessions: list[SessionName], *, video_age: float | None, is_off: bool
) -> str:
    """Say how a camera is. A session that lives says only that its agent does."""
    if state != "recording":
        return "switched off" if is_off else state
    if video_age is not None and video_age <= QUIET_SECONDS:
        return "recording"
    # A session's id begins with its start, and sorts as the times do.
    lately = f"{spool.clock.now() - timedelta(seconds=QUIET_SECONDS):%Y%m%dT%H%M%SZ}"
    return "starting" if sessions[-1].id >= lately else "no video"


@dataclass
class _Debt:
    count: int = 0
    bytes: int = 0
    oldest: datetime | None = None
    newest: datetime | None = None


def _debt(spool: Spool, sessions: list[SessionName]) -> _Debt:
    """Add up what a camera owes; an empty file was delivered (see `capture.claim`)."""
    debt = _Debt()
    for session in sessions:
        path = spool.session_path(session)
        for segment in spool.segments(session):
            with contextlib.suppress(FileNotFoundError):
                size = (path / str(segment)).lstat().st_size
                if size:
                    debt.count += 1
                    debt.bytes += size
                    debt.oldest = min(debt.oldest or segment.end, segment.end)
                    debt.newest = max(debt.newest or segment.end, segment.end)
    return debt


def _age(now: datetime, moment: datetime | None) -> float | None:
    return None if moment is None else round(max(0.0, (now - moment).total_seconds()), 3)


def _state(spool: Spool, sessions: list[SessionName], *, has_history: bool) -> State:
    if not sessions:
        return "ended" if has_history else "never ran"
    infos = [(name, spool.session_info(name)) for name in sessions]
    if any(info.get("ended_at") is None and _lives(spool, name, info) for name, info in infos):
        return "recording"
    return "ended" if all(info.get("ended_at") is not None for _, info in infos) else "interrupted"


def _lives(spool: Spool, name: SessionName, info: Mapping[str, Any]) -> bool:
    """Tell whether a session's agent or ffmpeg lives: by its lock, which reaches as far as this host."""
    path = spool.session_path(name)
    try:
        if info.get("host") != socket.gethostname():
            seconds = info.get("segment_seconds")
            length = float(seconds) if isinstance(seconds, int | float) else 10.0
            return spool.clock.time() - path.lstat().st_mtime < max(60.0, 5 * length)
        descriptor = os.open(path / SESSION_LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


# --- the others ------------------------------------------------------------------------------------


def read_broker(spool: Spool, settings: Settings) -> BrokerStatus:
    """Ask the broker, within a second."""
    is_set = "url" in settings.broker.model_fields_set
    settings = with_broker_of(spool, settings)
    url = settings.broker.url.get_secret_value()
    try:
        queues = queue_lengths(url, [LIVE, BACKLOG], settings.broker.key_prefix, timeout=1.0)
    except ConfigError as error:
        reason = redact(str(error), settings.secrets())
        if not is_set:
            reason = f"no broker is set, `up` does not run here with this spool, and {_shown(url)} is silent"
        return BrokerStatus(redact(_shown(url), settings.secrets()), reachable=False, reason=reason)
    return BrokerStatus(shown_url(url), reachable=True, queues=queues)


def _shown(url: str) -> str:
    try:
        return shown_url(url)
    except ConfigError:
        return "(malformed)"


def _youngest(ages: Iterable[float | None]) -> float | None:
    return min((age for age in ages if age is not None), default=None)


def read_ingest(spool: Spool, settings: Settings, last_delivered_age: float | None = None) -> IngestStatus:
    """Look at what the workers noted about the cloud, beside the age of the last delivery in seconds."""
    last = last_delivered_age
    refusal = _refusal(spool, settings, last)
    if refusal is not None:
        since, reason, advice = (_text(refusal.get(key)) for key in ("time", "reason", "advice"))
        return IngestStatus("refused", since, reason, advice, last_delivered_age=last)
    outage = Gate(spool, settings.ingest).outage()
    failures = outage.get("failures")
    failures = failures if isinstance(failures, int) else 0
    if failures:
        since, reason = _text(outage.get("since")), _text(outage.get("reason"))
        state: Literal["down", "failing"] = "down" if failures >= FAILURES_TO_OPEN else "failing"
        return IngestStatus(state, since, reason, None, failures, last)
    return IngestStatus("unknown" if last is None else "ok", last_delivered_age=last)


def _refusal(spool: Spool, settings: Settings, last_delivered_age: float | None) -> dict[str, Any] | None:
    """Return the note about a refused token: of ours if we know any, else of the last one that was refused.

    A delivery since then means that another token took its place.
    """
    gate, is_known = Gate(spool, settings.ingest), False
    for camera in (None, *settings.ingest.token_files):
        with contextlib.suppress(ConfigError):
            found = gate.refusal(read_token(settings.ingest, camera))
            is_known = True
            if found is not None:
                return found
    if is_known:
        return None
    notes = [(_mtime(path), read_json(path)) for path in spool.state.glob("refused-*.json")]
    when, note = max(notes, key=lambda pair: pair[0], default=(0.0, {}))
    if last_delivered_age is not None and spool.clock.time() - last_delivered_age > when:
        return None
    return note or None


def _mtime(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def watch(look: Callable[[], None], seconds: float) -> None:
    """Look again and again, until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            look()
            time.sleep(seconds)

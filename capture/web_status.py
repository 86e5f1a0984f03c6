"""What the page shows: the cameras as this agent runs them, beside what the spool and its journal tell."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final, cast

from capture.camera import CameraStatus as Live
from capture.source import redact
from capture.status import CameraStatus, Status
from capture.supervision import State
from capture.words import seconds_text

WORDS: Mapping[State, str] = {
    State.STARTING: "starting",
    State.RUNNING: "recording",
    State.BACKOFF: "retrying",
    State.STOPPING: "stopping",
    State.STOPPED: "ended",
    State.FATAL: "failed",
}


MISCONFIGURED: Final = "misconfigured"
OLD_SECONDS: Final = 120.0  # of facts; they are read anew whenever somebody looks
_FREE_TEXT: Final = {"trouble", "cause", "reason", "advice", "found"}


@dataclass(frozen=True)
class Facts:
    """What was read of the spool, and when (monotonic seconds); `trouble` where it could not be."""

    status: Status | None = None
    trouble: str | None = None
    read_at: float = 0.0


def status_json(
    live: Sequence[Live],
    names: Mapping[str, str],
    facts: Facts,
    *,
    now: float | None = None,
    faulty: Mapping[str, Sequence[str]] = MappingProxyType({}),
    secrets: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the page's data: the fields of ``status --json``, and each camera's present state.

    `now` is monotonic seconds, `faulty` what is wrong with cameras that could not be set up. Cameras of this
    agent come first, in the order of their ids; then those that it does not run and that are faulty, owe
    something, hold rejected segments, or are recorded by somebody else.
    """
    now = time.monotonic() if now is None else now
    since = max(0.0, now - facts.read_at)
    status = facts.status
    known = {camera.id: camera for camera in status.cameras} if status else {}
    running = {camera.id: camera for camera in live}
    wrong = {camera: problems for camera, problems in faulty.items() if camera not in running}
    others = [camera for camera in known.values() if camera.id not in running and _matters(camera)]
    cameras = [_live(running[each], names, known.get(each), now, since) for each in sorted(running)]
    cameras += [_faulty(each, wrong[each], known.get(each), since) for each in sorted(wrong)]
    cameras += [_other(camera, since) for camera in others if camera.id not in wrong]
    found = {key: value for key, value in asdict(status).items() if key != "cameras"} if status else {}
    found |= {
        "facts_age": round(since, 1) if status else None,
        "trouble": facts.trouble or (_old(since) if status and since > OLD_SECONDS else None),
        "cameras": cameras,
    }
    return cast("dict[str, Any]", without_secrets(found, secrets))


def without_secrets(value: object, secrets: Sequence[str]) -> object:
    """Return JSON with its free texts masked: ffmpeg, the broker and the cloud may have said anything."""
    if isinstance(value, dict):
        return {
            key: redact(item, secrets)
            if key in _FREE_TEXT and isinstance(item, str)
            else without_secrets(item, secrets)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item, secrets) for item in value]
    return value


def _old(seconds: float) -> str:
    return f"the spool takes long to read: what is shown of it was so {seconds_text(seconds)} ago"


def _matters(camera: CameraStatus) -> bool:
    return bool(camera.owed or camera.rejected or camera.configured or camera.state == "recording")


def _live(
    live: Live, names: Mapping[str, str], known: CameraStatus | None, now: float, since: float
) -> dict[str, Any]:
    base = _base(known or CameraStatus(live.id, configured=True, state="never ran"), since)
    if live.last_segment_at is not None:
        base["newest_segment_age"] = round(max(0.0, now - live.last_segment_at), 1)
    # What a camera in trouble says of itself, where it says something.
    trouble = live.error or (getattr(live, "trouble", None) if live.state is not State.RUNNING else None)
    return base | {
        "name": names.get(live.id) or live.id,
        "runs_here": True,
        "state": str(live.state),
        "words": WORDS[live.state],
        "trouble": str(trouble) if trouble else None,
        "restarts": live.restarts,
        "segments": live.segments,
        "frames": live.frames,
    }


def _faulty(camera: str, problems: Sequence[str], known: CameraStatus | None, since: float) -> dict[str, Any]:
    base = _base(known or CameraStatus(camera, configured=True, state="never ran"), since)
    told = {"state": MISCONFIGURED, "words": MISCONFIGURED, "trouble": "; ".join(problems)}
    return base | {"name": camera, "runs_here": False, **told}


def _other(known: CameraStatus, since: float) -> dict[str, Any]:
    base = _base(known, since)
    return base | {"name": known.name or known.id, "runs_here": False, "state": known.words, "trouble": None}


def _base(known: CameraStatus, since: float) -> dict[str, Any]:
    """Return a camera's facts with their ages as they are by now, `since` seconds after they were read."""
    found = asdict(known)
    for key, value in found.items():
        if key.endswith("_age") and value is not None:
            found[key] = round(value + since, 1)
    return found

"""Whether the agent lives, and whether it does its work: what `/healthz` and `/readyz` answer."""

import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from capture.camera import CameraStatus
from capture.clock import Clock
from capture.errors import ConfigError
from capture.spool import Spool
from capture.status import BrokerStatus, IngestStatus
from capture.supervision import State
from capture.words import many

STILL_SECONDS = 30.0  # a tick comes every 0.2 s; a stop may take some, and a slow disk more
_WELL = {State.RUNNING, State.STOPPING, State.STOPPED}


class Heartbeat:
    """When the main loop last came round. `beat` from one thread, `age` from any."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._lock = threading.Lock()
        self._last = self._clock.monotonic()

    def beat(self) -> None:
        with self._lock:
            self._last = self._clock.monotonic()

    def age(self) -> float:
        """Return the seconds since."""
        with self._lock:
            return self._clock.monotonic() - self._last

    def is_alive(self) -> bool:
        return self.age() < STILL_SECONDS


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. What is not `required` is told, and does not make us unready."""

    name: str
    ok: bool
    found: str
    required: bool = True


@dataclass(frozen=True)
class Readiness:
    """All checks, and what follows from them."""

    checks: tuple[Check, ...]

    @property
    def is_ready(self) -> bool:
        return all(check.ok for check in self.checks if check.required)

    def as_json(self) -> dict[str, Any]:
        return {"ready": self.is_ready, "checks": [asdict(check) for check in self.checks]}


def check_loop(heartbeat: Heartbeat) -> Check:
    """Tell whether the agent's main loop goes round."""
    return Check("loop", heartbeat.is_alive(), f"the main loop came round {heartbeat.age():.1f} s ago")


def check_spool(spool: Spool) -> Check:
    """Tell whether the spool is mounted, ours, and can be written."""
    try:
        spool.check_mounted()
    except ConfigError as error:
        return Check("spool", ok=False, found=str(error))
    if not os.access(spool.root, os.W_OK | os.X_OK):
        return Check("spool", ok=False, found=f"{spool.root} cannot be written by this user")
    return Check("spool", ok=True, found=f"{spool.root} is mounted and can be written")


def check_cameras(cameras: Sequence[CameraStatus]) -> Check:
    """Tell whether anything is captured: one camera of several that is down leaves the others their relay."""
    well = sum(camera.state in _WELL for camera in cameras)
    ill = [f"{camera.id} {camera.state}" for camera in cameras if camera.state not in _WELL]
    found = f"{well} of {many(len(cameras), 'camera')} captured" + (f"; {', '.join(ill)}" if ill else "")
    return Check("cameras", ok=well > 0, found=found)


def check_broker(broker: BrokerStatus) -> Check:
    """Tell whether messages get out; without them segments wait in the spool, and capture goes on."""
    found = "answers" if broker.reachable else str(broker.reason)
    return Check("broker", broker.reachable, found, required=False)


def check_ingest(ingest: IngestStatus) -> Check:
    """Tell whether the cloud takes segments: a refused token needs a person, an outage only time."""
    ok = ingest.state in {"ok", "unknown"}
    found = ingest.state if ok else f"{ingest.state} since {ingest.since}: {ingest.reason}"
    return Check("ingest", ok, found, required=ingest.state == "refused")


def readiness(
    heartbeat: Heartbeat,
    spool: Spool,
    cameras: Sequence[CameraStatus],
    *,
    broker: BrokerStatus,
    ingest: IngestStatus,
) -> Readiness:
    """Look at everything that can be looked at here and now; touches the disk."""
    return Readiness(
        (
            check_loop(heartbeat),
            check_spool(spool),
            check_cameras(cameras),
            check_broker(broker),
            check_ingest(ingest),
        )
    )

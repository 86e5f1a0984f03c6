"""What a worker process holds between tasks: the spool, the gate, one warm client.

All of it is made at first use in the process that uses it: a client that came over a fork would share its
connection with its siblings and mix their bodies.
"""

import os
import ssl
import time
from collections.abc import Callable
from datetime import date

import structlog
from celery import Celery

from capture.errors import RelayError
from capture.gate import SLOWEST_PROBE_SECONDS, Change, Gate
from capture.handoff import RECOVER, Message, hint
from capture.ingest import Ingest, tls_context
from capture.lanes import Lanes
from capture.limiter import Limiter
from capture.live_bytes import LiveBytes
from capture.narrow import Narrow
from capture.outcome import Outcome
from capture.recovery import Shortlist
from capture.settings import Settings, read_token
from capture.spool import Spool
from capture.timetable import parse_timetable
from tasks.celery import app, settings
from tasks.closer import Closer
from tasks.memory import Memory
from tasks.metrics import metering
from tasks.sending import Sender

LEFT_SECONDS = 2.0
NOT_MOUNTED = "the spool is not mounted"

log = structlog.get_logger()


class Worker:
    """One process's open things."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        self.settings = settings
        self.app = app
        self.spool = Spool.open(settings.spool.path)
        self.gate = Gate(self.spool, settings.ingest)
        self.memory = Memory(app, self.spool.id)
        self.lanes = Lanes(self.spool.state)
        self.narrow = Narrow(self.spool, settings.ingest)
        self.shortlist = Shortlist(self.spool)
        self.closer = Closer()
        self.meter = metering.meter()
        self.meter.watch(self.spool.journal)
        self._left_at = float("-inf")
        self._is_mounted = True
        self.journals_trimmed_on: date | None = None
        self._tls: ssl.SSLContext | None = None
        live = LiveBytes(self.spool.state)
        self.sender = Sender(self._client, live, is_slow=lambda: bool(self.narrow.too_large()))

    @property
    def ingest(self) -> Ingest:
        """The warm client."""
        return self.sender.ingest

    def _client(self, unsent_bytes: int | None) -> Ingest:
        # Reading the authorities takes 20 ms: once per process, also when a client is dropped.
        self._tls = self._tls or tls_context(self.settings.ingest.ca_file)
        return Ingest(self.settings.ingest, tls=self._tls, limit=self._limit(), unsent_bytes=unsent_bytes)

    def _limit(self) -> Limiter | None:
        rate = self.settings.ingest.max_rate
        return None if rate is None else Limiter(self.spool.state, parse_timetable(rate))

    def is_mounted(self) -> bool:
        """Tell whether the spool is there; says so when that changes."""
        try:
            self.spool.check_mounted()
        except RelayError as error:
            if self._is_mounted:
                log.error("spool_not_mounted", reason=str(error), then="nothing is written until it is back")
            self._is_mounted = False
            return False
        if not self._is_mounted:
            log.info("spool_mounted_again")
        self._is_mounted = True
        return True

    def while_mounted(self, act: Callable[[], str]) -> str:
        """Return what comes of it, or NOT_MOUNTED where the spool is away, or goes meanwhile."""
        if not self.is_mounted():
            return NOT_MOUNTED
        try:
            return act()
        except OSError:
            if self.is_mounted():
                raise
            return NOT_MOUNTED

    def report(self, outcome: Outcome, token: str, camera: str, *, is_probe: bool = True) -> None:
        """Tell the gate of an attempt for a camera, and everybody of what that changed."""
        change = self.gate.report(outcome, token, camera, is_probe=is_probe)
        if change is Change.DOWN:
            log.warning("ingest_down", reason=outcome.reason, then="one probe at a time until it answers")
        elif change is Change.UP:
            log.info("ingest_reachable")
            self.recover_soon(afresh=True)

    def recover_soon(self, *, afresh: bool = False) -> None:
        """Have a round of recover without waiting for beat; `afresh` if what it remembers does not count."""
        hint(self.app, Message(RECOVER, (True, afresh)))

    def probe_again(self) -> None:
        """Have recover send the next probe when it is due; beat does so where that is long."""
        wait = self.gate.next_probe_in()
        if wait <= SLOWEST_PROBE_SECONDS:
            hint(self.app, Message(RECOVER, (), options={"countdown": wait}))

    def leave_to_recover(self) -> None:
        """A segment was passed over in favour of newer ones: have recover look after such soon."""
        now = time.monotonic()
        if now - self._left_at >= LEFT_SECONDS:  # one of very many
            self._left_at = now
            self.recover_soon()

    def token(self, camera: str | None = None) -> str:
        """The token as it stands now, a camera's own if it has one. Raises ConfigError without one."""
        return read_token(self.settings.ingest, camera)


class _PerProcess:
    """Hands out the worker of the running process."""

    def __init__(self) -> None:
        self._pid = 0
        self._worker: Worker | None = None

    def get(self) -> Worker:
        if self._worker is None or self._pid != os.getpid():
            self._worker, self._pid = Worker(settings, app), os.getpid()
        return self._worker


_this_process = _PerProcess()


def this_worker() -> Worker:
    """Return the worker of this process. Raises RelayError when the spool cannot be used."""
    return _this_process.get()

"""The agent's metrics: counts as things happen, looks at the spool in a thread of their own, one text.

    metrics = AgentMetrics(agent, spool)
    content_type, body = metrics.scrape()

A scrape takes what is known and waits for no disk, no broker and no cloud. The spool is looked at while
somebody scrapes, and not more often than is fair: a look that took a second is not repeated for ten.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from capture.agent import Agent
from capture.errors import RelayError
from capture.holdings import Holdings
from capture.metrics_agent import Facts, Moment, agent_rows
from capture.metrics_journal import JournalCounter
from capture.metrics_text import CONTENT_TYPE, CameraNames, Counts, render
from capture.settings import Settings
from capture.spool import REJECTED, Spool
from capture.status import read_status
from capture.status_journal import Journals

LOOK_SECONDS: Final = 10.0
SETTLE_SECONDS: Final = 2.0  # the first look comes before `up` has started its broker
BUSY_SHARE: Final = 10.0
IDLE_SECONDS: Final = 180.0  # nobody has scraped for so long: nobody looks

log = structlog.get_logger()


class Look:
    """Reads facts again and again in a daemon thread, as long as somebody asks for them."""

    def __init__(self, read: Callable[[], Facts], *, every: float = LOOK_SECONDS) -> None:
        self._read = read
        self._every = every
        self._facts: Facts | None = None
        self._is_readable = True
        self._asked_at = time.monotonic()
        self._asked = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ask it to end; not waited for, because a spool can hang."""
        self._stopping.set()
        self._asked.set()

    def latest(self) -> tuple[Facts | None, bool]:
        """Return the last facts, None before there are any, and whether the last look succeeded."""
        self._asked_at = time.monotonic()
        self._asked.set()
        return self._facts, self._is_readable

    def _main(self) -> None:
        pause = min(SETTLE_SECONDS, self._every)
        while not self._stopping.is_set():
            begun = time.monotonic()
            self._look()
            took = time.monotonic() - begun
            self._stopping.wait(max(pause, BUSY_SHARE * took))
            pause = self._every
            if time.monotonic() - self._asked_at > IDLE_SECONDS:
                self._asked.clear()
                self._asked.wait()

    def _look(self) -> None:
        try:
            self._facts, self._is_readable = self._read(), True
        except (OSError, RelayError) as error:
            if self._is_readable:  # the capture says more about it
                reason = error.strerror if isinstance(error, OSError) else str(error)
                log.warning("metrics_spool_unreadable", reason=reason, then="looked at again")
            self._is_readable = False
        except Exception:
            if self._is_readable:
                log.exception("metrics_look_failed")
            self._is_readable = False


class AgentMetrics:
    """All metrics of one agent."""

    def __init__(self, agent: Agent, spool: Spool, *, look_every: float = LOOK_SECONDS) -> None:
        """Begin to count and to look. At most one for a spool object: it becomes its journal's observer."""
        self._agent = agent
        self._spool = spool
        self._holdings = Holdings(spool)
        self._journals = Journals()
        self._counts = Counts()
        self._names = CameraNames()
        for camera in sorted(agent.cameras):
            self._names(camera)  # our own before those of others
        spool.journal.observer = JournalCounter(self._counts)
        self._look = Look(self._read, every=look_every)
        self._look.start()

    def close(self) -> None:
        self._spool.journal.observer = None
        self._look.close()

    def scrape(self) -> tuple[str, bytes]:
        """Return the content type and the text of all metrics. For any thread; takes milliseconds."""
        facts, is_readable = self._look.latest()
        moment = Moment(
            live=self._agent.statuses(),
            cameras=camera_numbers(self._agent.settings),
            facts=facts,
            is_readable=is_readable,
            wall=self._spool.clock.time(),
            now=time.monotonic(),
            names=self._names,
        )
        return CONTENT_TYPE, render(agent_rows(moment, self._counts))

    def _read(self) -> Facts:
        self._spool.check_mounted()
        begun = time.monotonic()
        status = read_status(self._spool, self._agent.settings, self._journals)
        self._holdings.look()
        being_written, _, _ = self._holdings.measure()
        rejected = sum(self._holdings.by_camera(REJECTED).values())
        sizes = {"owed": self._holdings.closed - rejected, "rejected": rejected, "open": being_written}
        return Facts(status, sizes, begun)


def camera_numbers(settings: Settings) -> dict[str, int]:
    """Count the cameras of the configuration."""
    enabled = sum(camera.enabled for camera in settings.cameras.values())
    # Loaded leniently, settings name the cameras whose tables are wrong.
    faulty = len(getattr(settings, "faulty_cameras", ()))
    return {"enabled": enabled, "disabled": len(settings.cameras) - enabled, "faulty": faulty}

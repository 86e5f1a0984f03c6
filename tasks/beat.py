"""Celery's beat, made fit for a clock that is stepped, and with a pulse.

Celery plans by the wall time of the last tick. A clock that is set back by an hour, as that of a machine
without a battery is when it first hears of the true time, would silence it for that hour, and `recover`
with it.
"""

import time
from datetime import timedelta
from typing import Any

import structlog
from celery import beat
from celery.signals import beat_init

from capture.liveness import Liveness
from capture.pulse import pulse_directory
from capture.spool import STATE
from tasks.celery import settings
from tasks.consumer import RECONNECT_SECONDS

LARGEST_DRIFT = 2.0  # seconds of wall time beyond those that have passed
LONG_AGO = timedelta(days=1)

log = structlog.get_logger()


class Scheduler(beat.Scheduler):
    """The fixed schedule of celeryconfig.py, in memory. Ticks at once when the wall clock was stepped."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Celery's signature
        super().__init__(*args, **options)
        self._alive = Liveness(pulse_directory(settings.spool.path / STATE), "beat")
        self._offset = time.time() - time.monotonic()

    def watch(self) -> None:
        """End the process when it stands still for long."""
        self._alive.watch()

    def tick(self, *args: Any, **options: Any) -> float:  # noqa: ANN401 - Celery's signature
        """Send what is due; return the seconds until the next look."""
        self._alive.beat()
        offset = time.time() - time.monotonic()
        if abs(offset - self._offset) > LARGEST_DRIFT:
            log.info("clock_stepped", seconds=round(offset - self._offset), then="the schedule begins anew")
            self._begin_anew()
        self._offset = offset
        return float(super().tick(*args, **options))

    def close(self) -> None:
        """End."""
        self._alive.end()
        super().close()

    def _ensure_connected(self) -> Any:  # noqa: ANN401 - Celery's
        """Wait for the broker as long as it takes: look every few seconds, and show our pulse meanwhile."""
        return self.connection.ensure_connection(
            lambda error, wait: log.warning("broker_unreachable", reason=str(error), again_in=wait),
            self.app.conf.broker_connection_max_retries,
            interval_max=RECONNECT_SECONDS,
            callback=self._alive.beat,
        )

    def _begin_anew(self) -> None:
        for entry in self.schedule.values():
            entry.last_run_at = entry.default_now() - LONG_AGO  # one tick too many does no harm
        self._heap = None  # its order is that of wall times, too


@beat_init.connect
def _watch(sender: beat.Service, **_: Any) -> None:  # noqa: ANN401 - Celery's signature
    if isinstance(sender.scheduler, Scheduler):
        sender.scheduler.watch()

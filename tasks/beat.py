"""Celery's beat, made fit for a clock that is stepped, and with a pulse.

Celery plans by the wall clock: one that is set back by an hour would stop `recover` for an hour.
"""

from typing import Any

import structlog
from celery import beat

from capture.pulse import PulseFile, pulse_directory
from capture.spool import STATE
from tasks.celery import settings

log = structlog.get_logger()


class Scheduler(beat.Scheduler):
    """The fixed schedule of celeryconfig.py, in memory."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Celery's signature
        super().__init__(*args, **options)
        self._pulse = PulseFile(pulse_directory(settings.spool.path / STATE), "beat")

    def tick(self, *args: Any, **options: Any) -> float:  # noqa: ANN401 - Celery's signature
        """Send what is due; return the seconds until the next look."""
        self._pulse.beat()
        self._mend_steps()
        return float(super().tick(*args, **options))

    def close(self) -> None:
        """End."""
        self._pulse.end()
        super().close()

    def _mend_steps(self) -> None:
        """Bring what was last sent in the future, by a clock that was set back since, to now."""
        entries = self.schedule.values()
        late = [entry for entry in entries if entry.last_run_at and entry.last_run_at > entry.default_now()]
        for entry in late:
            entry.last_run_at = entry.default_now()
        if late:
            log.warning("clock_set_back", then="the schedule goes on from now")
            self._heap = None

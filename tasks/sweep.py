"""The sweep: session directories that are over for an hour, and days of the journal beyond its limit."""

import structlog

from capture.handoff import SWEEP
from capture.journal_trim import trim_journals
from capture.upkeep import drop_expired
from capture.upkeep import sweep as sweep_spool
from tasks.celery import RelayTask, app
from tasks.worker import Worker, this_worker

log = structlog.get_logger()


@app.task(base=RelayTask, name=SWEEP)
def sweep() -> str:
    """Remove what is over; say how much."""
    worker = this_worker()
    return worker.while_mounted(lambda: _sweep(worker))


def _sweep(worker: Worker) -> str:
    limits = worker.settings.spool
    if limits.retention is not None and (count := drop_expired(worker.spool, limits.retention)):
        log.error("segments_dropped", count=count, limit="spool.retention")
    _trim_journals(worker, limits.keep_journal)
    removed = sweep_spool(worker.spool, sweep_after=limits.sweep_after, keep_rejected=limits.keep_rejected)
    worker.meter.swept(len(removed))
    return f"removed {len(removed)} session directories"


def _trim_journals(worker: Worker, keep_seconds: float) -> None:
    """Do so once on each day."""
    today = worker.spool.clock.now().date()
    if worker.journals_trimmed_on != today:
        if days := trim_journals(worker.spool, keep_seconds):
            log.info("journal_trimmed", days=days, limit="spool.keep_journal")
        worker.journals_trimmed_on = today

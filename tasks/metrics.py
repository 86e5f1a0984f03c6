"""What a worker measures, when `web.worker_listen` is set: what becomes of uploads, and how long it takes.

Children count into files (`tasks.metrics_store`), the main process adds them up and serves the sum. Off, as
it is by default, every hook is a call of an empty method.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import structlog
from celery import Celery, bootsteps

from capture.broker import RuntimeDir
from capture.claim import Claim
from capture.clock import Clock
from capture.errors import ConfigError
from capture.gate import Verdict
from capture.handoff import BACKLOG, LIVE
from capture.journal import Journal
from capture.metrics_agent import Row, build_values
from capture.metrics_catalogue import (
    ATTEMPT_SECONDS,
    ATTEMPTS,
    BUILD,
    CONFIRM_SECONDS,
    HELD_BACK,
    LOCAL_ERRORS,
    PROCESSES,
    RECOVER_ROUNDS,
    RECOVER_SENT,
    REFUSED_MESSAGES,
    RETRIES,
    SWEEPS,
    SWEPT,
    TIME,
    TOKEN_REFUSALS,
    WORKER_COUNTERS,
    HeldBack,
    UploadOutcome,
)
from capture.metrics_journal import JournalCounter
from capture.metrics_text import INFINITE, CameraNames, Counts, Labels, Metric, render
from capture.outcome import Kind, Outcome
from capture.settings import Settings
from tasks.metrics_server import MetricsServer
from tasks.metrics_store import FileCounts, Store

TIDY_SECONDS: Final = 30.0

log = structlog.get_logger()


class NoMeter:
    """What the tasks tell, and nobody counts."""

    def watch(self, journal: Journal) -> None:
        """Count what this process writes into a journal."""

    def attempted(self, claim: Claim, outcome: Outcome, *, seconds: float, attempt: int) -> None:
        """An upload went out, and this came of it after so many seconds."""

    def confirmed(self, claim: Claim, *, is_live: bool) -> None:
        """The cloud has a segment, and the journal says so."""

    def held_back(self, reason: HeldBack) -> None:
        """An upload did not go out."""

    def token_refused(self) -> None:
        """The cloud answered 401 or 403."""

    def message_refused(self) -> None:
        """A message was not one of ours."""

    def local_error(self) -> None:
        """Our own disk or mount kept a segment from being sent."""

    def recovered(self, segments: int) -> None:
        """Recover sent messages for so many segments."""

    def recover_ran(self) -> None:
        """A round of recover was run."""

    def swept(self, sessions: int) -> None:
        """A sweep removed so many session directories."""

    def close(self) -> None:
        """Nothing more is counted."""


class Meter(NoMeter):
    """Counts all of it."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self._clock = Clock()
        self._names = CameraNames()

    def watch(self, journal: Journal) -> None:
        journal.observer = JournalCounter(self.counts)

    def attempted(self, claim: Claim, outcome: Outcome, *, seconds: float, attempt: int) -> None:
        camera, word = self._names(claim.session.camera), upload_outcome(outcome)
        self.counts.add(ATTEMPTS, (camera, word))
        self.counts.observe(ATTEMPT_SECONDS, (word,), seconds)
        if attempt > 1:
            self.counts.add(RETRIES, (camera,))
        if outcome.kind is Kind.FATAL:
            self.token_refused()

    def confirmed(self, claim: Claim, *, is_live: bool) -> None:
        age = self._clock.time() - claim.segment.end.timestamp()
        self.counts.observe(CONFIRM_SECONDS, (LIVE if is_live else BACKLOG,), age)

    def held_back(self, reason: HeldBack) -> None:
        self.counts.add(HELD_BACK, (reason,))

    def token_refused(self) -> None:
        self.counts.add(TOKEN_REFUSALS)

    def message_refused(self) -> None:
        self.counts.add(REFUSED_MESSAGES)

    def local_error(self) -> None:
        self.counts.add(LOCAL_ERRORS)

    def recovered(self, segments: int) -> None:
        self.counts.add(RECOVER_SENT, (), segments)

    def recover_ran(self) -> None:
        self.counts.add(RECOVER_ROUNDS)

    def swept(self, sessions: int) -> None:
        self.counts.add(SWEEPS)
        self.counts.add(SWEPT, (), sessions)

    def close(self) -> None:
        if isinstance(self.counts, FileCounts):
            self.counts.close()


def upload_outcome(outcome: Outcome) -> UploadOutcome:
    """Return the word for what came of an upload. A retry to come changes nothing: the attempt is over."""
    if outcome.kind is Kind.TRANSIENT and outcome.timed_out:
        return UploadOutcome.DEADLINE
    return UploadOutcome(outcome.kind)


def held_back(verdict: Verdict) -> HeldBack:
    """Return the word for a gate that is shut."""
    return HeldBack.TOKEN_REFUSED if verdict is Verdict.REFUSED else HeldBack.BREAKER_OPEN


class _Metering:
    """Hands out the meter of the running process."""

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._off = NoMeter()
        self._meter = self._off
        self._pid = 0

    def switch(self, directory: Path | None) -> None:
        """Let this process and its children count into a directory, or not at all."""
        self._meter.close()
        self._directory, self._meter, self._pid = directory, self._off, 0

    def meter(self) -> NoMeter:
        if self._directory is None or self._pid == os.getpid():
            return self._meter
        self._meter.close()  # a parent's, come over the fork: its lock stays with the parent
        self._meter, self._pid = self._made(self._directory), os.getpid()
        return self._meter

    def _made(self, directory: Path) -> NoMeter:
        try:
            return Meter(FileCounts(directory))
        except OSError as error:
            log.warning("metrics_not_counted", reason=error.strerror, then="this process goes on without")
            return self._off


metering = _Metering()


# --- the main process -------------------------------------------------------------------------------


def worker_rows(store: Store, *, processes: int, wall: float) -> Iterator[Row]:
    """Yield every metric of a worker. Counters begin at zero wherever their labels are known."""
    yield BUILD, build_values("worker")
    yield TIME, {(): wall}
    yield PROCESSES, {(): float(processes)}
    found = store.totals(WORKER_COUNTERS)
    cameras = {labels[0] for metric in found if metric.labels[:1] == ("camera",) for labels in found[metric]}
    for metric, values in found.items():
        yield metric, {**dict.fromkeys(_beginnings(metric, sorted(cameras)), 0.0), **values}


def _beginnings(metric: Metric, cameras: list[str]) -> Iterator[Labels]:
    """Yield the labels under which a counter is zero before anything happened."""
    if metric is ATTEMPTS:
        yield from ((camera, outcome) for camera in cameras for outcome in UploadOutcome)
    elif metric is ATTEMPT_SECONDS:
        yield from ((outcome, INFINITE) for outcome in UploadOutcome)
    elif metric is CONFIRM_SECONDS:
        yield from ((queue, INFINITE) for queue in (LIVE, BACKLOG))
    elif metric is HELD_BACK:
        yield from ((reason,) for reason in HeldBack)
    elif metric.labels == ("camera",):
        yield from ((camera,) for camera in cameras)
    else:
        yield ()


class MetricsStep(bootsteps.StartStopStep):
    """A step of the worker's main process: the files' directory before the first fork, then the server."""

    requires = ("celery.worker.components:Pool",)
    settings: Settings  # given by `install`

    def __init__(self, worker: Any, **_: Any) -> None:  # noqa: ANN401 - Celery's signature
        super().__init__(worker)
        self._listen = self.settings.web.worker_listen or ""
        self._directory: RuntimeDir | None = None
        self._server: MetricsServer | None = None
        self._reason: str | None = None
        if self._listen:
            self._make_directory()
        self.enabled = self._directory is not None

    def _make_directory(self) -> None:
        try:
            self._directory = RuntimeDir(Path(tempfile.gettempdir()))
        except (ConfigError, OSError) as error:
            log.error("metrics_not_served", reason=str(error), then="the worker goes on without")
            return
        self._store = Store(self._directory.path)
        metering.switch(self._directory.path)

    def start(self, worker: Any) -> None:  # noqa: ANN401
        self._turn(worker)
        worker.timer.call_repeatedly(TIDY_SECONDS, self._turn, (worker,))

    def _turn(self, worker: Any) -> None:  # noqa: ANN401
        """Tidy up, and try for the address again where somebody else had it: uploads do not wait for it."""
        self._store.tidy()
        if self._server is not None:
            return
        try:
            self._server = MetricsServer(self._listen, lambda: self._text(worker))
        except OSError as error:
            if self._reason != error.strerror:
                self._reason = error.strerror
                log.error(
                    "metrics_not_served",
                    listen=self._listen,
                    reason=error.strerror,
                    then="tried again",
                    advice="give each worker of a machine its own port with RELAY_WEB__WORKER_LISTEN",
                )
            return
        self._server.start()
        log.info("metrics_served", url=f"http://{self._server.host}:{self._server.port}/metrics")

    def _text(self, worker: Any) -> bytes:  # noqa: ANN401
        return render(worker_rows(self._store, processes=worker.pool.num_processes, wall=Clock().time()))

    def stop(self, worker: Any) -> None:  # noqa: ANN401
        del worker
        self._close()

    def terminate(self, worker: Any) -> None:  # noqa: ANN401
        del worker
        self._close()

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        metering.switch(None)
        if self._directory is not None:
            self._directory.close()


def install(app: Celery, settings: Settings) -> None:
    """Have every worker of an app measure, if it is to."""
    MetricsStep.settings = settings
    app.steps["worker"].add(MetricsStep)

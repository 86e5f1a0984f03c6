"""One camera: a thread that keeps an ffmpeg running and turns what it closes into owed segments.

The thread does nothing but this camera's work, so that a slow disk or a broken source of one never holds
up another. It reads ffmpeg's output until ffmpeg is gone, also while it stops it: an ffmpeg that cannot
write to a full pipe never gets to its signal.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import structlog

from capture.clock import Clock
from capture.errors import ConfigError, RelayError, SourceError, SpoolFullError
from capture.ffmpeg import (
    CaptureOptions,
    Failure,
    FailureKind,
    Progress,
    SegmentClosed,
    StdoutParser,
    capture_command,
    explain,
)
from capture.process import Child, LineTail, Output, Stream, describe_exit
from capture.segment import SessionName
from capture.session import Owed, Session
from capture.settings import child_environment
from capture.source import Source, redact
from capture.spool import Spool
from capture.supervision import Ladder, State, Timeline, Watchdog
from capture.upkeep import close_dead_sessions, note_gap

TICK_SECONDS = 1.0
SHORT_TICK_SECONDS = 0.05
STOP_GRACE_SECONDS = 3.0
SHORTEST_GAP_SECONDS = 0.5
_DISK = {FailureKind.DISK_FULL, FailureKind.OUTPUT}

log = structlog.get_logger()


@dataclass(frozen=True)
class CameraPlan:
    """What to capture, and how. The `hidden` variables hold secrets, also those of other cameras."""

    id: str
    name: str
    source: Source
    options: CaptureOptions
    hidden: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(frozen=True)
class CameraStatus:
    """How a camera is, at one moment. `last_segment_at` is monotonic seconds."""

    id: str
    state: State
    segments: int
    frames: int
    restarts: int
    last_segment_at: float | None
    error: RelayError | None


@dataclass
class _Run:
    """One run of ffmpeg."""

    watchdog: Watchdog
    timeline: Timeline
    tail: LineTail
    begun: float
    segments: int = 0
    complaint: str | None = None


class Camera:
    """Captures one camera until it ends, fails for good, or is stopped."""

    def __init__(
        self,
        plan: CameraPlan,
        *,
        spool: Spool,
        ffmpeg: str,
        on_owed: Callable[[SessionName, Owed], None],
        on_session: Callable[[SessionName, Literal["started", "ended"]], None],
        clock: Clock | None = None,
    ) -> None:
        self.plan = plan
        self._spool = spool
        self._ffmpeg = ffmpeg
        self._on_owed = on_owed
        self._on_session = on_session
        self._clock = clock or Clock()
        self._log = log.bind(camera=plan.id)
        self._stopping = threading.Event()
        self._output: Output | None = None
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self._main, name=f"camera {plan.id}", daemon=True)
        self._state = State.STARTING
        self._segments = 0
        self._frames_before = 0
        self._frames_now = 0
        self._restarts = 0
        self._next_sequence = 1
        self._last_segment_at: float | None = None
        self._video_until: datetime | None = None
        self._gap_cause: str | None = None
        self._error: RelayError | None = None

    # --- from other threads ---

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask it to finish the open segment and end; returns at once."""
        self._stopping.set()
        with self._guard:
            if self._output is not None:
                self._output.wake()

    def join(self, timeout: float) -> bool:
        """Wait for its end; True when it is there."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def status(self) -> CameraStatus:
        return CameraStatus(
            self.plan.id,
            self._state,
            self._segments,
            self._frames_before + self._frames_now,
            self._restarts,
            self._last_segment_at,
            self._error,
        )

    # --- the camera's thread ---

    def _main(self) -> None:
        try:
            self._salvage_earlier()
            while (session := self._start_session()) is not None:
                with session:
                    if self._capture(session):
                        self._end(session)
                        break
            self._become(State.FATAL if self._error else State.STOPPED)
        except Exception:  # noqa: BLE001 - the thread ends here; logged with its traceback
            self._log.exception("camera_failed")
            self._error = RelayError(f"camera {self.plan.id} failed for a reason that is a bug; see the log")
            self._become(State.FATAL)

    def _become(self, state: State) -> None:
        self._state = state

    def _salvage_earlier(self) -> None:
        try:
            for session, segments in close_dead_sessions(self._spool, self.plan.id):
                self._log.info("session_salvaged", session=str(session), segments=segments)
            last = self._spool.journal.last_segment(self.plan.id)
        except OSError as error:
            self._log.warning("salvage_postponed", reason=error.strerror, then="recover does it")
            return
        if last is not None and last.end < self._clock.now():
            self._video_until, self._gap_cause = last.end, "the agent was not running"

    def _start_session(self) -> Session | None:
        """Make the session directory; with no room or no mount, wait for them."""
        ladder = Ladder()
        while not self._stopping.is_set():
            try:
                session = Session.start(
                    self._spool,
                    self.plan.id,
                    display_name=self.plan.name,
                    source=self.plan.source,
                    segment_seconds=self.plan.options.segment_seconds,
                )
            except (OSError, RelayError) as error:
                self._become(State.BACKOFF)
                if ladder.failures == 0:
                    self._log.error("session_not_started", reason=_words(error), then="tried again")
                self._stopping.wait(ladder.delay_after(0.0))
                continue
            self._log.info("session_started", session=str(session.name), source=str(self.plan.source))
            self._on_session(session.name, "started")
            return session
        return None

    def _end(self, session: Session) -> None:
        self._note_gap(self._clock.now())
        try:
            session.end()
        except OSError as error:
            self._log.warning("session_end_not_noted", reason=error.strerror, then="recover does it")
        self._on_session(session.name, "ended")
        self._log.info("session_ended", session=str(session.name), segments=self._segments)

    def _capture(self, session: Session) -> bool:
        """Capture until the end; False if the session's directory was taken away and a new one is needed."""
        ladder = Ladder()
        while not self._stopping.is_set():
            if not session.touch():
                self._log.error("session_vanished", session=str(session.name), then="a new one is started")
                self._gap_cause = self._gap_cause or "the session's directory was removed"
                return False
            run = self._run_once(session)
            if run is None:
                return True
            wait = ladder.delay_after(self._clock.monotonic() - run.begun)
            self._become(State.BACKOFF)
            self._log.warning(
                "capture_interrupted",
                reason=self._gap_cause,
                failures=ladder.failures,
                again_in=wait,
            )
            self._log.debug("ffmpeg_said", lines=run.tail.lines())
            self._restarts += 1
            self._stopping.wait(wait)
        return True

    def _run_once(self, session: Session) -> _Run | None:
        """Run ffmpeg once. Returns the run if it should be tried again, None when this was all."""
        run = _Run(
            Watchdog(self._clock.monotonic()),
            Timeline(self._clock.now(), paced=self._is_paced()),
            LineTail(redact=lambda line: redact(line, self.plan.source.secrets())),
            self._clock.monotonic(),
        )
        self._become(State.STARTING)
        code = self._run_ffmpeg(session, run)
        self._frames_before += self._frames_now
        self._frames_now = 0
        self._salvage_own(session)
        if self._stopping.is_set():
            return None
        return self._judge(run, code)

    def _is_paced(self) -> bool:
        return self.plan.options.realtime or not self.plan.source.is_finite

    def _judge(self, run: _Run, code: int | None) -> _Run | None:
        failure = explain(run.tail.lines())
        is_finite = self.plan.source.is_finite
        if is_finite and failure.kind in _DISK and self._segments:  # from its start it would come twice
            self._error = SpoolFullError(
                f"cannot go on capturing {self.plan.source}: {failure.cause}; only its beginning was "
                "captured; make room, then start again"
            )
            return None
        if is_finite and code is not None and code < 0 and not run.complaint:
            self._error = RelayError(
                f"cannot go on capturing {self.plan.source}: ffmpeg {describe_exit(code)}; only its "
                "beginning was captured; see what ended it, then start again"
            )
            return None
        if is_finite and failure.kind not in _DISK and code is not None:
            if code != 0 and (self._segments == 0 or run.complaint):
                self._error = self._source_error(failure, run)
            elif self._segments == 0:
                self._error = self._source_error(
                    Failure(FailureKind.NO_VIDEO, "there is no video in it"), run
                )
            elif code != 0:
                self._log.warning("source_ended_early", reason=failure.cause)
            return None
        self._gap_cause = run.complaint or _cause(failure, code)
        return run

    def _source_error(self, failure: Failure, run: _Run) -> SourceError:
        last = run.tail.lines()[-1:]
        found = run.complaint or failure.cause
        detail = f" (ffmpeg: {last[0]})" if last and failure.kind is FailureKind.UNKNOWN else ""
        return SourceError(
            f"cannot capture {self.plan.source}: {found}{detail}; expected a file with video that ffmpeg "
            "can read; check the path given with --source"
        )

    def _run_ffmpeg(self, session: Session, run: _Run) -> int | None:
        command = capture_command(
            self._ffmpeg,
            self.plan.source,
            self.plan.options,
            open_dir=session.open_directory,
            first_sequence=self._next_sequence,
        )
        try:
            session.spool.check_mounted()
            child = Child(
                command.argv,
                script=command.script,
                env=child_environment(self.plan.hidden),
                stdout=Stream.PIPE,
                stderr=Stream.PIPE,
                pass_fds=(session.lock,),
            )
        except (OSError, ConfigError) as error:
            run.complaint = _words(error)
            return None
        with child, Output(child) as output:
            with self._guard:
                self._output = output
            try:
                return self._follow(child, output, session, run)
            finally:
                with self._guard:
                    self._output = None

    def _follow(self, child: Child, output: Output, session: Session, run: _Run) -> int | None:
        """Read until ffmpeg is gone; end it when asked to, or when it stalls."""
        parser = StdoutParser()
        kill_at: float | None = None
        while not output.eof or child.poll() is None:
            now = self._clock.monotonic()
            wait = TICK_SECONDS if kill_at is None else max(SHORT_TICK_SECONDS, kill_at - now)
            for stream, data in output.read(min(TICK_SECONDS, wait)):
                if stream == "stderr":
                    run.tail.feed(data)
                    continue
                for event in parser.feed(data):
                    self._take(event, session, run)
            now = self._clock.monotonic()
            if kill_at is not None:
                if now >= kill_at:
                    child.kill_group()
                continue
            run.complaint = run.watchdog.complaint(now)
            if self._stopping.is_set() or run.complaint:
                self._become(State.STOPPING)
                child.terminate()
                kill_at = now + STOP_GRACE_SECONDS
        return child.poll()

    def _take(self, event: SegmentClosed | Progress, session: Session, run: _Run) -> None:
        if isinstance(event, Progress):
            run.watchdog.see(event.frames, self._clock.monotonic())
            self._frames_now = max(self._frames_now, event.frames)
            if event.frames and self._state is State.STARTING:
                self._become(State.RUNNING)
                self._log.info("capture_running")
            return
        self._next_sequence = event.sequence + 1
        start = run.timeline.place(event.start, event.end, self._clock.now())
        self._note_gap(start)
        try:
            owed = session.close_segment(event.sequence, start, event.end - event.start)
        except OSError as error:
            self._log.error(
                "segment_not_closed",
                sequence=event.sequence,
                reason=error.strerror,
                then="salvaged later",
            )
            return
        if owed is None:
            self._log.error("segment_empty", sequence=event.sequence, reason="ffmpeg could not write it")
            return
        run.segments += 1
        self._publish(session, owed)

    def _publish(self, session: Session, owed: Owed) -> None:
        self._segments += 1
        self._video_until = owed.segment.end
        self._last_segment_at = self._clock.monotonic()
        self._log.debug("segment_closed", segment=str(owed.segment), bytes=owed.size)
        self._on_owed(session.name, owed)

    def _salvage_own(self, session: Session) -> None:
        """Close what this ffmpeg left open when it died."""
        try:
            numbers = session.spool.open_segments(session.name)
            self._next_sequence = max([self._next_sequence, *(number + 1 for number in numbers)])
            salvaged = session.salvage()
        except OSError as error:
            self._log.warning("salvage_postponed", reason=error.strerror, then="recover does it")
            return
        for owed in salvaged:
            self._log.info("segment_salvaged", segment=str(owed.segment), bytes=owed.size)
            self._publish(session, owed)

    def _note_gap(self, until: datetime) -> None:
        """Journal the time without video that ends now, if there was one and we know why."""
        since, cause = self._video_until, self._gap_cause
        self._gap_cause = None
        if since is None or cause is None:
            return
        if (until - since).total_seconds() >= SHORTEST_GAP_SECONDS:
            note_gap(self._spool, self.plan.id, start=since, end=until, cause=cause)


def _cause(failure: Failure, code: int | None) -> str:
    """Say why a live source was lost. ffmpeg exits with 0 also when a camera went away."""
    if failure.kind is not FailureKind.UNKNOWN:
        return failure.cause
    if code == 0:
        return "the source ended"
    return "ffmpeg ended" if code is None else f"ffmpeg {describe_exit(code)}"


def _words(error: OSError | RelayError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)

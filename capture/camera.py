"""One camera: a thread that keeps an ffmpeg running and turns what it closes into owed segments.

The thread does nothing but this camera's work, so that a slow disk or a broken source of one never holds
up another. Whatever goes wrong in it, a bug too, is tried again on the ladder; only a source that has an end
is given up, because it would come from its beginning once more.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

import structlog

from capture.clock import Clock
from capture.ending import Ending, is_over
from capture.errors import ConfigError, RelayError
from capture.ffmpeg import CaptureOptions, capture_command, least_wait
from capture.recorder import OnOwed, OnSession, Recorder
from capture.run import STOP_GRACE_SECONDS, Run
from capture.scan import NOT_CARRIED
from capture.session import Session
from capture.source import Source
from capture.spool import Spool
from capture.supervision import (
    MOST_RUNAWAYS,
    NO_FIRST_FRAME,
    TIMES_AHEAD,
    TIMES_BEHIND,
    TOLERATED_DRIFT,
    TOLERATED_RUNAWAY,
    Ladder,
    State,
)
from capture.upkeep import close_dead_sessions
from capture.watch import Watch, in_words

__all__ = ["NOT_RUNNING", "SETTINGS_CHANGED", "STOP_GRACE_SECONDS", "Camera", "CameraPlan", "CameraStatus"]

JITTER = 0.1  # share of each wait
# Why there was no video before a camera's first.
NOT_RUNNING = "the agent was not running"
SETTINGS_CHANGED = "its settings changed"

log = structlog.get_logger()


@dataclass(frozen=True)
class CameraPlan:
    """What to capture, and how. The `hidden` variables hold secrets, also those of other cameras."""

    id: str
    name: str
    source: Source
    options: CaptureOptions
    hidden: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(frozen=True, kw_only=True)
class CameraStatus:
    """How a camera is, at one moment.

    `last_segment_at` and `last_frame_at` are monotonic seconds, `bytes` those of closed segments. `trouble`
    is why there is no video at the moment, None while there is some; `error` is why it was given up.
    `codec`, `width` and `height` (pixels) are those of the segments, None before a key frame came.
    """

    id: str
    state: State
    segments: int
    frames: int
    bytes: int
    restarts: int
    last_segment_at: float | None
    last_frame_at: float | None
    codec: str | None
    width: int | None
    height: int | None
    gaps: int
    last_gap_cause: str | None
    trouble: str | None
    error: RelayError | None


class Camera:
    """Captures one camera until it ends, fails for good, or is stopped."""

    def __init__(
        self,
        plan: CameraPlan,
        *,
        spool: Spool,
        ffmpeg: str,
        on_owed: OnOwed,
        on_session: OnSession,
        away: str = NOT_RUNNING,
        clock: Clock | None = None,
    ) -> None:
        """`away` is why there was no video between its last segment, if there is any, and now."""
        self.plan = plan
        self._away = away
        self._spool = spool
        self._ffmpeg = ffmpeg
        self._clock = clock or Clock()
        self._log = log.bind(camera=plan.id)
        self._recorder = Recorder(
            plan.id, spool=spool, start=self._start_session, on_owed=on_owed, on_session=on_session
        )
        self._stopping = threading.Event()
        self._guard = threading.Lock()
        self._run: Run | None = None
        self._thread = threading.Thread(target=self._main, name=f"camera {plan.id}", daemon=True)
        self._options = plan.options
        self._state = State.STARTING
        self._frames_before = 0
        self._watch: Watch | None = None
        self._restarts = 0
        self._tries = 0  # in a row without a first frame
        self._runaways = 0
        self._last_frame_at: float | None = None
        self._begun_at: datetime | None = None
        self._trouble: str | None = None
        self._error: RelayError | None = None

    # --- from other threads ---

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask it to finish the open segment and end; returns at once."""
        self._stopping.set()
        with self._guard:
            if self._run is not None:
                self._run.stop()

    def join(self, timeout: float) -> bool:
        """Wait for its end; True when it is there."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def status(self) -> CameraStatus:
        picture, watch = self._recorder.picture, self._watch
        return CameraStatus(
            id=self.plan.id,
            state=self._state,
            segments=self._recorder.segments,
            frames=self._frames_before + (watch.frames if watch else 0),
            bytes=self._recorder.bytes,
            restarts=self._restarts,
            last_segment_at=self._recorder.last_segment_at,
            last_frame_at=self._last_frame_at,
            codec=picture.codec if picture else None,
            width=picture.width if picture else None,
            height=picture.height if picture else None,
            gaps=self._recorder.gaps.count,
            last_gap_cause=self._recorder.gaps.last_cause,
            trouble=self._trouble,
            error=self._error,
        )

    # --- the camera's thread ---

    def _main(self) -> None:
        self._begun_at = self._clock.now()
        self._guarded(self._salvage_earlier)
        ladder = Ladder(jitter=JITTER)
        is_done = False
        while not is_done and not self._stopping.is_set():
            begun = self._clock.monotonic()
            try:
                self._capture(ladder)
                is_done = True
            except Exception as error:  # noqa: BLE001 - logged with its traceback, and tried again
                is_done = not self._survive(error)
                if not is_done:
                    self._pause(ladder.delay_after(self._clock.monotonic() - begun), ladder)
        self._guarded(lambda: self._recorder.end(self._clock.now()))
        self._become(State.FATAL if self._error else State.STOPPED)

    def _guarded(self, act: Callable[[], None]) -> None:
        """Do what must not keep the camera from anything else."""
        try:
            act()
        except Exception:  # noqa: BLE001 - logged with its traceback
            self._log.exception("camera_failed", then="it goes on without that")

    def _survive(self, error: Exception) -> bool:
        """Make good what a bug left behind; False when the camera cannot go on."""
        self._log.exception("camera_failed", then="tried again")
        kind = type(error).__name__
        self._lost(f"a bug of this program ({kind}); its log has more")
        self._guarded(self._recorder.forget)
        if self.plan.source.is_finite and self._recorder.segments:
            self._error = RelayError(
                f"camera {self.plan.id} failed for a reason that is a bug ({kind}); only the beginning of "
                f"{self.plan.source} was captured; see the log"
            )
            return False
        return True

    def _become(self, state: State) -> None:
        self._state = state

    def _lost(self, cause: str) -> None:
        self._trouble = cause
        self._recorder.gaps.lost(cause, since=self._begun_at or self._clock.now())

    def _pause(self, seconds: float, ladder: Ladder) -> None:
        """Wait before the next try."""
        self._become(State.BACKOFF)
        self._restarts += 1
        self._log.warning(
            "capture_interrupted", reason=self._trouble, failures=ladder.failures, again_in=round(seconds, 1)
        )
        self._stopping.wait(seconds)

    def _salvage_earlier(self) -> None:
        try:
            for session, segments in close_dead_sessions(self._spool, self.plan.id):
                self._log.info("session_salvaged", session=str(session), segments=segments)
        except OSError as error:
            self._log.warning("salvage_postponed", reason=error.strerror, then="recover does it")
        try:
            last = self._spool.journal.last_told(self.plan.id)
        except OSError as error:
            self._log.warning("gap_not_noted", reason=error.strerror)
            return
        if last is not None:  # it may be later than now: a clock without a battery begins in the past
            self._recorder.gaps.resume_from(last)
            self._recorder.gaps.lost(self._away, since=last)

    def _start_session(self) -> Session:
        session = Session.start(
            self._spool,
            self.plan.id,
            display_name=self.plan.name,
            source=self.plan.source,
            segment_seconds=self.plan.options.segment_seconds,
        )
        self._log.info("session_started", session=str(session.name), source=str(self.plan.source))
        return session

    def _writable_session(self) -> tuple[Session, int] | None:
        """Return where to write to; with no room or no mount, wait for them. None when asked to stop."""
        ladder = Ladder(jitter=JITTER)
        while not self._stopping.is_set():
            session = self._recorder.session
            if session is not None and not session.touch():
                self._log.error("session_vanished", session=str(session.name), then="a new one is started")
                self._lost("the session's directory was removed")
                self._recorder.forget()
            try:
                return self._recorder.begin()
            except (OSError, RelayError) as error:
                self._become(State.BACKOFF)
                self._lost(in_words(error))
                if ladder.failures == 0:
                    self._log.error("session_not_started", reason=in_words(error), then="tried again")
                self._stopping.wait(ladder.delay_after(0.0))
        return None

    def _capture(self, ladder: Ladder) -> None:
        """Capture until the end of the source, or until asked to stop."""
        while (where := self._writable_session()) is not None:
            watch = Watch(
                self.plan.source,
                self._options,
                recorder=self._recorder,
                tries=self._tries,
                tolerated_drift=TOLERATED_RUNAWAY if self._runaways >= MOST_RUNAWAYS else TOLERATED_DRIFT,
                clock=self._clock,
                log=self._log,
                on_frame=self._on_frame,
            )
            ending = self._run_ffmpeg(watch, *where)
            self._frames_before += watch.frames
            self._watch = None
            changed = self._recorder.change() is not None
            self._settle(watch)
            if self._stopping.is_set() or self._is_over(ending):
                return
            self._lost(ending.cause)
            self._encode_if_needed(ending)
            self._count(ending, has_frames=watch.frames > 0)
            self._log.debug("ffmpeg_said", lines=ending.lines)
            wait = ladder.delay_after(
                self._clock.monotonic() - watch.begun, at_least=least_wait(ending.failure.kind)
            )
            # A new picture is no trouble of the camera's, unless it comes again and again.
            self._pause(0.0 if changed and ladder.failures == 1 else wait, ladder)

    def _is_over(self, ending: Ending) -> bool:
        try:
            is_over_now = is_over(ending, self.plan.source, segments=self._recorder.segments)
        except RelayError as error:
            self._error = error
            return True
        if is_over_now and ending.code != 0:
            self._log.warning("source_ended_early", reason=ending.failure.cause)
        return is_over_now

    def _count(self, ending: Ending, *, has_frames: bool) -> None:
        """Learn from runs that ended in the same way: what did not help is not done for ever."""
        if ending.complaint == NO_FIRST_FRAME:
            self._tries += 1
        elif has_frames:
            self._tries = 0
        if ending.complaint in {TIMES_AHEAD, TIMES_BEHIND}:
            self._runaways += 1
            if self._runaways == MOST_RUNAWAYS:
                self._log.warning(
                    "times_not_trusted", reason=ending.complaint, then="segments are placed by their arrival"
                )

    def _encode_if_needed(self, ending: Ending) -> None:
        """Have pictures encoded that no copy can carry: MJPEG would be in the file, and no player find it."""
        if ending.complaint == NOT_CARRIED and not self._options.encode:
            self._options = replace(self._options, encode=True)
            self._log.warning(
                "video_not_carried", reason=NOT_CARRIED, then="it is encoded as H.264 from now on"
            )

    def _on_frame(self) -> None:
        self._last_frame_at = self._clock.monotonic()
        self._trouble = None
        if self._state is State.STARTING:
            self._become(State.RUNNING)
            self._log.info("capture_running")

    def _run_ffmpeg(self, watch: Watch, session: Session, first_sequence: int) -> Ending:
        self._become(State.STARTING)
        self._watch = watch
        run = Run(
            capture_command(
                self._ffmpeg,
                self.plan.source,
                self._options,
                open_dir=session.open_directory,
                first_sequence=first_sequence,
                now=self._clock.monotonic(),
            ),
            clock=self._clock,
            watch=watch,
            hidden=self.plan.hidden,
        )
        code = None
        try:
            session.spool.check_mounted()
            with self._guard:
                self._run = run
            if self._stopping.is_set():  # asked before there was a run to be told
                run.stop()
            code = run.go(keep_open=(session.lock,), on_ending=lambda: self._become(State.STOPPING))
        except (OSError, ConfigError) as error:
            watch.complaint = in_words(error)
        finally:
            with self._guard:
                self._run = None
        return Ending(code, watch.tail.lines(), watch.complaint)

    def _settle(self, watch: Watch) -> None:
        """Close what an ffmpeg left open when it died."""
        try:
            self._recorder.settle(watch.place_salvaged)
        except (OSError, RelayError) as error:
            self._log.warning("salvage_postponed", reason=in_words(error), then="recover does it")

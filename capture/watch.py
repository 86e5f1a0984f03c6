"""What is known of the ffmpeg that runs for a camera: heard from what it says, seen in what it writes."""

from collections.abc import Callable
from datetime import datetime

import structlog

from capture.clock import Clock
from capture.errors import RelayError
from capture.ffmpeg import CaptureOptions, Progress, SegmentClosed
from capture.process import LineTail
from capture.recorder import Recorder
from capture.source import Source, SourceKind, redact
from capture.supervision import (
    NO_KEY_FRAME,
    Arrivals,
    Expectations,
    Timeline,
    Watchdog,
    first_frame_patience,
)

_TIMED_OUT = b"Failed reading RTSP data: Connection timed out"
_SAID_BYTES = 4096
LOOK_SECONDS = 4.0  # between two looks into the file, while it grows and nothing is wrong
_NETWORK = {SourceKind.RTSP, SourceKind.HTTP}


class Watch:
    """Follows one run of ffmpeg: gives its segments to the recorder, and says what is wrong with it.

    `tries` runs in a row before it had no frame; `tolerated_drift` is how many seconds per second the times
    in the stream may be off. `on_frame` is called when there is more video than before.
    """

    def __init__(
        self,
        source: Source,
        options: CaptureOptions,
        *,
        recorder: Recorder,
        tries: int,
        tolerated_drift: float,
        clock: Clock,
        log: structlog.typing.FilteringBoundLogger,
        on_frame: Callable[[], None],
    ) -> None:
        self._is_live = not source.is_finite
        self._segment_seconds = options.segment_seconds
        self._recorder = recorder
        self._clock = clock
        self._log = log
        self._on_frame = on_frame
        self.begun = clock.monotonic()
        self._arrivals = Arrivals()
        self._timeline = Timeline(clock.now(), paced=options.realtime or self._is_live)
        self._watchdog = Watchdog(
            self.begun,
            Expectations(
                segment_seconds=options.segment_seconds,
                first_frame=first_frame_patience(tries, recorder.key_interval or 0.0),
                is_live=self._is_live,
                has_clock=source.kind in _NETWORK,
                may_lag=options.transcodes,
                tolerated_drift=tolerated_drift,
            ),
        )
        self.tail = LineTail(redact=lambda line: redact(line, source.secrets()))
        self.frames = 0
        self.complaint: str | None = None
        self._keys_seen = 0  # of the segment that is open
        self._key_at: float | None = None
        self._looked_at = self.begun
        self._said = b""

    def hear(self) -> None:
        """Note that ffmpeg said something."""
        self._watchdog.hear(self._clock.monotonic())

    def hear_error(self, data: bytes) -> None:
        """Take what ffmpeg wrote on standard error.

        After a time-out its RTSP client reads on for as long again, and only then ends.
        """
        self.tail.feed(data)
        self._said = (self._said + data)[-_SAID_BYTES:]
        if self._is_live and not self.complaint and _TIMED_OUT in self._said:
            self.complaint = "the camera stopped answering"

    def place_salvaged(self, start: float, guess: datetime) -> datetime:
        """Return when what was left open began, by its stream time and by what its file tells."""
        return self._timeline.place_salvaged(start, guess)

    def take(self, event: SegmentClosed | Progress) -> None:
        """Take what ffmpeg reported."""
        if isinstance(event, SegmentClosed):
            self._take_segment(event)
        else:
            now = self._clock.monotonic()
            self._watchdog.see(event.frames, now, event.out_time)
            self._arrivals.see(event.frames, now, event.out_time)
            if event.frames > self.frames:
                self.frames = event.frames
                self._on_frame()

    def tick(self) -> str | None:
        """Look at what was written since the last tick; return what is wrong, or None."""
        now = self._clock.monotonic()
        if self._timeline.paced and (not self.frames or now - self._looked_at >= LOOK_SECONDS):
            self._look(now)
        change = self._recorder.change() if self._is_live else None
        self.complaint = self.complaint or change or self._complaint(now)
        if self.complaint == NO_KEY_FRAME:  # should it have come later, it is waited for longer next time
            self._recorder.key_frame_came(self._watchdog.seconds_without_key(now))
        return self.complaint

    def _complaint(self, now: float) -> str | None:
        found = self._watchdog.complaint(now)
        if found is None or not self._timeline.paced or self._looked_at == now:
            return found
        self._look(now)  # what it complains of may have come since the last look
        return self._watchdog.complaint(now)

    def _take_segment(self, event: SegmentClosed) -> None:
        now = self._clock.monotonic()
        ago = self._arrivals.ago(event.end, now)
        self._watchdog.see_segment(now)
        self._keys_seen = 0
        start = self._timeline.place(event.start, event.end, self._clock.now(), ended_ago=ago)
        try:
            scan = self._recorder.take(event.sequence, start, event.end - event.start)
        except (OSError, RelayError) as error:
            reason = in_words(error)
            self._log.error(
                "segment_not_closed",
                session=self._recorder.session_name,
                sequence=event.sequence,
                reason=reason,
                then="salvaged later",
            )
            return
        self._key_came(now)  # with it the segment ended
        fault = scan.unplayable()
        if fault and self._is_live and not self.complaint:
            self._log.warning(
                "segment_not_playable",
                session=self._recorder.session_name,
                sequence=event.sequence,
                reason=fault,
            )
            self.complaint = fault

    def _key_came(self, now: float) -> None:
        if self._key_at is not None:
            self._recorder.key_frame_came(now - self._key_at)
        self._key_at = now
        self._watchdog.see_key(now, self._recorder.key_interval)

    def _look(self, now: float) -> None:
        before, self._looked_at = self._looked_at, now
        scan = self._recorder.look()
        if scan is None:
            return
        if scan.frames and not self.frames:  # sooner than ffmpeg's report of it
            self._watchdog.see(1, now)
            self._arrivals.see(1, now, None)
            self.frames = 1
            self._on_frame()
        if scan.key_frames > self._keys_seen:
            # It came after the last look and the key frame before, as long ago as the stream went on since.
            self._key_came(max(before, self._key_at or before, now - scan.seconds_since_key))
        self._keys_seen = scan.key_frames
        apart = max(self._watchdog.seconds_without_key(now), self._recorder.key_interval or 0.0)
        if self._is_live and apart > 2 * self._segment_seconds:
            self._recorder.warn_of_key_frames(apart, self._segment_seconds)


def in_words(error: OSError | RelayError) -> str:
    """Return what went wrong, without a path where the system has words for it."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)

"""What one camera records: closed segments made owed, in a session for each picture, and the gaps between.

ffmpeg writes into the `open/` of the session that it was started for, the writer's. A segment goes to the
session of its picture, which is another one where codec or size changed meanwhile.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import structlog

from capture.cut import MOST_PIECES, seconds_before, split
from capture.gaps import Gaps
from capture.journal import Event
from capture.picture import Picture
from capture.scan import Digest, GrowingScan, Scan, scan_file
from capture.segment import SessionName, open_name, parse_open_name, rfc3339
from capture.session import Owed, Session
from capture.spool import Spool
from capture.upkeep import note_gap

OnOwed = Callable[[SessionName, Owed], None]
OnSession = Callable[[SessionName, Literal["started", "ended"]], None]
Place = Callable[[float, datetime], datetime]

log = structlog.get_logger()


@dataclass
class _Desk:
    """A session with the number of its next segment and the picture of all of its segments."""

    session: Session
    next_sequence: int = 1
    picture: Picture | None = None

    def path(self, sequence: int) -> Path:
        return self.session.open_path(sequence)


class Recorder:
    """Closes the segments of one camera. For its thread alone; what it counts may be read by others.

    `start` makes a new session and may raise what `Session.start` raises.
    """

    def __init__(
        self,
        camera: str,
        *,
        spool: Spool,
        start: Callable[[], Session],
        on_owed: OnOwed,
        on_session: OnSession,
    ) -> None:
        self._camera = camera
        self._spool = spool
        self._start = start
        self._on_owed = on_owed
        self._on_session = on_session
        self._log = log.bind(camera=camera)
        self._target: _Desk | None = None
        self._writer: _Desk | None = None
        self._growing: GrowingScan | None = None
        self._run_picture: Picture | None = None
        self.gaps = Gaps(self._note_gap, spool.clock)
        self.segments = 0
        self.bytes = 0
        self.picture: Picture | None = None
        self.last_segment_at: float | None = None  # monotonic seconds
        self._is_warned = False  # of key frames that are far apart
        self._key_interval: float | None = None  # the longest by the times of the stream
        self._key_wait: float | None = None  # the longest by our clock

    # --- sessions ---

    @property
    def session(self) -> Session | None:
        """The session that the next segment goes to, unless its picture is another."""
        return self._target.session if self._target else None

    def begin(self) -> tuple[Session, int]:
        """Return the session that the next ffmpeg writes to, and its first number. Raises as `start` does."""
        if self._target is None:
            self._target = self._open()
        self._retire_writer()
        self._writer = self._target
        self._run_picture = None
        self._watch(self._writer.next_sequence)
        return self._writer.session, self._writer.next_sequence

    def forget(self) -> None:
        """Let go of sessions whose directory was taken away, or that a bug left in an unknown state."""
        for desk in self._desks():
            desk.session.close()
        self._target = self._writer = self._growing = None

    def end(self, now: datetime) -> None:
        """End all sessions, and tell of the gap that is open."""
        self.gaps.finish(now)
        self._retire_writer()
        if self._target is not None:
            self._finish(self._target)
        self._target = self._writer = self._growing = None

    def _desks(self) -> list[_Desk]:
        found = [self._writer, self._target]
        return [desk for number, desk in enumerate(found) if desk and desk not in found[:number]]

    def _open(self) -> _Desk:
        desk = _Desk(self._start())
        self._on_session(desk.session.name, "started")
        return desk

    @property
    def session_name(self) -> str | None:
        """The session that closed segments go to; for the log."""
        return str(self._target.session.name) if self._target else None

    def _retire_writer(self) -> None:
        if self._writer is not None and self._writer is not self._target:
            self._finish(self._writer)
        self._writer = None

    def _finish(self, desk: _Desk) -> None:
        session = desk.session
        try:
            session.end()
        except OSError as error:
            self._log.warning(
                "session_end_not_noted",
                session=str(session.name),
                reason=error.strerror,
                then="recover does it",
            )
        session.close()
        self._on_session(session.name, "ended")
        self._log.info("session_ended", session=str(session.name), segments=self.segments)

    # --- what ffmpeg is writing ---

    def look(self) -> Scan | None:
        """Look at what came into the open segment since the last look; None if that cannot be done."""
        if self._growing is None:
            return None
        try:
            scan = self._growing.look()
        except OSError:
            return None
        self._learn(scan)
        return scan

    def change(self) -> str | None:
        """Say how the picture changed since this ffmpeg began; None if it did not.

        ffmpeg knows the parameter sets of the first picture, and would go on putting them before the others.
        """
        before, now = self._run_picture, self.picture
        if before is None or now is None or not before.differs(now):
            return None
        return f"the picture changed from {before} to {now}"

    def warn_of_key_frames(self, seconds: float, segment_seconds: float) -> None:
        """Say once that key frames are farther apart than segments should be long."""
        if not self._is_warned:
            self._is_warned = True
            self._log.warning(
                "key_frames_far_apart",
                seconds=round(seconds, 1),
                segment_seconds=segment_seconds,
                then="a segment lasts from key frame to key frame; set a shorter interval in the camera",
            )

    def _watch(self, number: int) -> None:
        self._growing = GrowingScan(self._writer.path(number)) if self._writer else None

    def _learn(self, scan: Scan) -> None:
        if self._run_picture is None or self._run_picture.width is None:
            self._run_picture = scan.first_picture or self._run_picture
        self.picture = scan.picture or self.picture
        if scan.key_frames > 1:
            self._learn_interval(scan.key_interval)

    def _learn_interval(self, seconds: float) -> None:
        self._key_interval = max(self._key_interval or 0.0, seconds)

    def key_frame_came(self, after: float) -> None:
        """Note that a key frame came, or should have come, `after` so many seconds."""
        self._key_wait = max(self._key_wait or 0.0, after)

    @property
    def key_interval(self) -> float | None:
        """The longest seconds between two key frames so far, None before there were two.

        The shorter of what the stream says and what our clock says: times may jump, and a line may stall.
        """
        if self._key_interval is None or self._key_wait is None:
            return None
        return min(self._key_interval, self._key_wait)

    # --- closed segments ---

    def take(self, number: int, start: datetime, duration: float) -> Scan:
        """Make what ffmpeg closed under this number owed; seconds. Raises OSError, RelayError."""
        if self._writer is None:
            raise ValueError("a segment without an ffmpeg that wrote it")
        path = self._writer.path(number)
        self._writer.next_sequence = max(self._writer.next_sequence, number + 1)
        growing = self._growing if self._growing and self._growing.path == path else GrowingScan(path)
        self._watch(number + 1)
        scan = growing.conclude()
        self._learn(scan)
        if scan.key_frames:  # where it ended, the next key frame came, or should have come by now
            self._learn_interval(duration - scan.seconds_to_last_key)
        self._put(path, start, duration, scan, Event.CLOSED, digest=growing.digest)
        return scan

    def settle(self, place: Place = lambda _, guess: guess) -> None:
        """Close what an ffmpeg that is gone left open. Raises OSError, RelayError.

        `place` says when one began, given its stream time in seconds and what its file tells. One that cannot
        be closed does not keep the others: what it raises is raised at the end.
        """
        self._growing = None
        trouble: OSError | None = None
        left = [(desk, desk.session.spool.open_segments(desk.session.name)) for desk in self._desks()]
        # Of all, before the first that is moved or cannot be closed: nothing may be written over any.
        for desk, _ in left:
            taken = desk.session.spool.open_numbers(desk.session.name)
            desk.next_sequence = max([desk.next_sequence, *(number + 1 for number in taken)])
        for desk, numbers in left:
            for number in numbers:
                if desk not in self._desks():  # ended on the way: recover looks after what it left
                    break
                try:
                    self._salvage(desk, number, place)
                except OSError as error:
                    trouble = trouble or error
        if trouble is not None:
            raise trouble
        self._retire_writer()

    def _salvage(self, desk: _Desk, number: int, place: Place) -> None:
        measured = desk.session.measure(number)
        if measured is not None:
            path = desk.path(number)
            scan = scan_file(path)
            self._learn(scan)
            start = place(measured.first, measured.start)
            self._put(path, start, measured.duration, scan, Event.RECOVERED)

    def _put(
        self,
        path: Path,
        start: datetime,
        duration: float,
        scan: Scan,
        event: Event,
        *,
        digest: Digest | None = None,
    ) -> None:
        """Close a segment in the session of its picture, cut in pieces where that changes."""
        for _ in range(MOST_PIECES):
            self._turn_to(scan.first_picture)
            if not scan.changes:
                break
            change, digest = scan.changes[0], None  # of the whole that it no longer is
            following = self._open()
            rest = following.path(following.next_sequence)
            try:
                split(path, change, tables=scan.tables, rest=rest)
            except BaseException:
                self._finish(following)
                raise
            # From here on the number is taken, whatever fails next: nothing may be written over the rest.
            following.next_sequence += 1
            before = seconds_before(scan, change, duration)
            try:
                self._close(path, start, before, event)
            finally:
                self._replace_target(following, change.picture)
            path, start, duration = rest, start + timedelta(seconds=before), duration - before
            scan = scan_file(path)
        if scan.changes:
            self._log.warning(
                "segment_mixed",
                session=self.session_name,
                reason="its picture changes more often than it is cut",
            )
        self._close(path, start, duration, event, digest=digest)

    def _turn_to(self, picture: Picture | None) -> None:
        """Start a session for this picture if the present one holds others."""
        target = self._target
        if target is None:
            raise ValueError("a segment without a session")
        if picture is None:
            return
        if target.picture is not None and target.picture.differs(picture):
            self._replace_target(self._open(), picture)
        elif target.picture is None or target.picture.width is None:
            target.picture = picture

    def _replace_target(self, desk: _Desk, picture: Picture) -> None:
        old, self._target = self._target, desk
        desk.picture = picture
        self._log.info(
            "stream_changed",
            session=str(desk.session.name),
            before=str(old.picture) if old else None,
            now=str(picture),
        )
        if old is not None and old is not self._writer:
            self._finish(old)

    def _close(
        self, path: Path, start: datetime, duration: float, event: Event, *, digest: Digest | None = None
    ) -> None:
        target = self._target
        if target is None:
            raise ValueError("a segment without a session")
        session, number = target.session, parse_open_name(path.name) or 0
        if path.parent != session.open_directory:
            taken = session.spool.open_numbers(session.name)
            number = max([target.next_sequence, *(each + 1 for each in taken)])
            path.rename(session.open_directory / open_name(number))
        target.next_sequence = max(target.next_sequence, number + 1)
        # The gap's line stands before the segment's: it explains what is missing before that, not after it.
        self.gaps.video_from(start)
        owed = session.close_segment(number, start, duration, event=event, digest=digest)
        if owed is None:
            self._log.error(
                "segment_empty",
                session=str(session.name),
                sequence=number,
                reason="ffmpeg could not write it",
            )
            self.gaps.lost("ffmpeg could not write a segment", since=start)
            return
        if event is Event.CLOSED:
            self._log.debug(
                "segment_closed", session=str(session.name), segment=str(owed.segment), bytes=owed.size
            )
        else:
            self._log.info(
                "segment_salvaged", session=str(session.name), segment=str(owed.segment), bytes=owed.size
            )
        self.segments += 1
        self.bytes += owed.size
        self.last_segment_at = self._spool.clock.monotonic()
        self.gaps.video_until(owed.segment.end)
        self._on_owed(session.name, owed)

    def _note_gap(self, start: datetime, end: datetime, cause: str) -> None:
        seconds = round((end - start).total_seconds(), 3)
        self._log.info("gap_noted", start=rfc3339(start), seconds=seconds, cause=cause)
        note_gap(self._spool, self._camera, start=start, end=end, cause=cause)

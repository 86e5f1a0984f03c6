"""Cameras without ffmpeg: segments that are closed as the agent closes them, and what `up` runs beside it."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from capture.broker import RuntimeDir
from capture.handoff import RECOVER, Message, Publisher, publisher_app, upload_message
from capture.session import Owed, Session
from capture.settings import Settings
from capture.source import parse_source
from capture.spool import Spool
from capture.stack import Stack

JITTER = 0.1  # of the time between two segments: cameras drift against each other
CHECK_SECONDS = 0.2


def begin(spool: Spool, camera: str, seconds: float) -> Session:
    """Begin a session of a camera whose segments last so long."""
    return Session.start(
        spool, camera, display_name=camera, source=parse_source("test:"), segment_seconds=seconds
    )


def close_one(session: Session, sequence: int, content: bytes, seconds: float, *, ago: float = 0.0) -> Owed:
    """Write a segment and close it; it began so many seconds ago."""
    session.open_path(sequence).write_bytes(content)
    start = session.spool.clock.now() - timedelta(seconds=ago)
    owed = session.close_segment(sequence, start, seconds)
    assert owed is not None  # noqa: S101 - the content is never empty
    return owed


class LiveCamera:
    """Closes a segment every so often, as the agent does."""

    def __init__(self, spool: Spool, camera: str, *, every: float, dice: random.Random) -> None:
        self._session = begin(spool, camera, every)
        self._every = every
        self._dice = dice
        self._sequence = 0
        self.due = time.monotonic() + every * dice.random()

    @property
    def name(self) -> str:
        return str(self._session.name)

    def close_one(self, content: bytes, publisher: Publisher, settings: Settings) -> tuple[str, str]:
        """Close the next segment and send its message; return session and segment."""
        self._sequence += 1
        self.due += self._every * (1 + self._dice.uniform(-JITTER, JITTER))
        owed = close_one(self._session, self._sequence, content, self._every, ago=self._every)
        publisher.send(upload_message(settings.ingest, self._session.name, owed.segment, owed.size))
        return self.name, str(owed.segment)

    def end(self) -> None:
        self._session.end()
        self._session.close()


def let_go_on(
    cameras: Sequence[LiveCamera],
    close: Callable[[LiveCamera], None],
    *,
    is_over: Callable[[], bool],
    look: Callable[[], bool],
) -> None:
    """Have each camera close its segments when they are due, until `is_over`, or `look` says so.

    `look` is asked now and then, when no segment is due.
    """
    check_at = 0.0
    while not is_over():
        camera = min(cameras, key=lambda each: each.due)
        now = time.monotonic()
        if now >= camera.due:
            close(camera)
        elif now < check_at:
            time.sleep(max(0.0, min(camera.due, check_at) - now))
        else:
            check_at = now + CHECK_SECONDS
            if look():
                return


@contextmanager
def beside_the_cameras(
    settings: Settings, folder: Path, *, concurrency: int
) -> Iterator[tuple[Stack, Publisher]]:
    """Run what `up` runs beside the cameras, with its log in a folder, and the agent's publisher."""
    with RuntimeDir() as runtime, (folder / "relay.log").open("ab") as log:
        stack = Stack(
            settings, runtime.path, concurrency=concurrency, embedded_broker=True, stderr=log.fileno()
        )
        stack.start()
        try:
            publisher = Publisher(publisher_app(stack.settings_for_agent(settings)))
            publisher.start()
            publisher.send(Message(RECOVER, ()))
            try:
                yield stack, publisher
            finally:
                publisher.close(5)
        finally:
            stack.stop()

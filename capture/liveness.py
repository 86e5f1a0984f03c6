"""Whether a long-lived process's main loop still turns: shown to others, and acted upon by itself.

Each turn of the loop of agent, worker or beat is told to three: to `health` by the pulse file, to systemd by
its watchdog, and to a watch in the process itself. Where nobody supervises - Docker starts again what ended,
and leaves alone what hangs - that watch ends the process. That costs the open segments, which are salvaged,
and an upload in flight, which is sent again: everything else is in the spool.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from capture.errors import EXIT_STUCK
from capture.pulse import PULSE_SECONDS, STUCK_SECONDS, PulseFile
from capture.sd_notify import Notifier

LOOK_SECONDS = 2.0
# Two minutes: `up` replaces a child that hangs after 30 s, and a name server can hold one up for nearly that.
LOOKS = int(4 * STUCK_SECONDS / LOOK_SECONDS)
LAST_WORDS_SECONDS = 5
_RARELY_SECONDS = PULSE_SECONDS - 1.0

log = structlog.get_logger()


class Liveness:
    """The pulse of this process for everybody who wants it.

    With `disk`, a file there, the pulse file is written by a thread of its own that first reads that file
    from the disk: neither a disk that hangs nor the pulse ever holds up the main loop, and a disk that hangs
    shows as a pulse that grows old.
    """

    def __init__(self, directory: Path, what: str, *, disk: Path | None = None) -> None:
        self._file = PulseFile(directory, what)
        self._notifier = Notifier()
        self._standstill = Standstill(what)
        self._show: Callable[[], None] = self._file.beat
        self._disk_watch: DiskWatch | None = None
        if disk is not None:
            self._disk_watch = DiskWatch(lambda: read_past_cache(disk), self._file.beat)
            self._show = self._disk_watch.turn
        self._is_ready = False
        self._again_at = float("-inf")

    def watch(self) -> None:
        """Begin to watch the loop, from a thread; before its first turn."""
        self._standstill.start()
        if self._disk_watch is not None:
            self._disk_watch.start()

    def beat(self) -> None:
        """Show that the loop turns, as often as you like. The first time says that we are ready."""
        self._standstill.turn()
        now = time.monotonic()
        if now < self._again_at:
            return
        self._again_at = now + _RARELY_SECONDS
        if not self._is_ready:
            self._is_ready = True
            self._notifier.ready()
        self._notifier.alive()
        self._show()

    def beating(self, then: Callable[[], None]) -> Callable[[], None]:
        """Return a function that beats, and then does what `then` does."""

        def both() -> None:
            self.beat()
            then()

        return both

    def stopping(self) -> None:
        """Show that we are about to end; the loop still turns."""
        self._notifier.stopping()

    def end(self) -> None:
        """Watch no longer, and leave no pulse behind."""
        self._standstill.stop()
        if self._disk_watch is not None:
            self._disk_watch.stop()
        self._file.end()


class Standstill:
    """Ends the process when its loop has not turned for `looks` looks of ours.

    Looks are counted, not seconds: while a machine or container is paused we do not look either, and after it
    the loop has as long as ever. `end` does not return.
    """

    def __init__(
        self,
        what: str,
        *,
        looks: int = LOOKS,
        every: float = LOOK_SECONDS,
        end: Callable[[str, float], None] | None = None,
    ) -> None:
        self._what = what
        self._looks = looks
        self._every = every
        self._end = end or _end
        self._turns = 0
        self._over = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._watch, name="standstill", daemon=True).start()

    def turn(self) -> None:
        self._turns += 1

    def stop(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        seen, still = self._turns, 0
        while not self._over.wait(self._every):
            still = still + 1 if self._turns == seen else 0
            seen = self._turns
            if still >= self._looks:
                self._end(self._what, still * self._every)
                return


class DiskWatch:
    """Shows the pulse of a loop that turns, once its disk has answered. `touch` may block for ever."""

    def __init__(
        self, touch: Callable[[], None], show: Callable[[], None], *, every: float = PULSE_SECONDS
    ) -> None:
        self._touch = touch
        self._show = show
        self._every = every
        self._turned = threading.Event()
        self._over = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="disk-watch", daemon=True).start()

    def turn(self) -> None:
        self._turned.set()

    def stop(self) -> None:
        self._over.set()

    def _run(self) -> None:
        while not self._over.is_set():
            if not self._turned.wait(self._every):
                continue
            self._turned.clear()
            self._touch()
            if not self._over.is_set():
                self._show()
            self._over.wait(self._every)


def read_past_cache(path: Path) -> None:
    """Read a byte from the disk itself, without wear to it. One that fails answers, too."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if sys.platform == "linux":
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.read(descriptor, 1)
        finally:
            os.close(descriptor)


def _end(what: str, seconds: float) -> None:
    """End the process, and say where each thread stood; not even a log that takes no words is waited for."""
    signal.alarm(LAST_WORDS_SECONDS)  # nobody handles it, so the kernel ends us
    log.error("main_loop_stuck", what=what, seconds=seconds, then="this process ends")
    faulthandler.dump_traceback(all_threads=True)
    os._exit(EXIT_STUCK)

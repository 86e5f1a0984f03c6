"""One run of ffmpeg for a camera: started, read until it is gone, ended when asked to or in trouble."""

import math
import threading
from collections.abc import Callable, Collection, Sequence

import structlog

from capture.clock import Clock
from capture.ffmpeg import REPORT_SECONDS, Command, StdoutParser
from capture.process import Child, Output, Stream
from capture.settings import child_environment
from capture.watch import Watch

TICK_SECONDS = 0.5
# While reports come and tell of new frames, the watch is asked with every second one, and not woken for more.
GOOD_TICK_SECONDS = 1.5 * REPORT_SECONDS
LATEST_TICK_SECONDS = 3.0 * REPORT_SECONDS
SHORT_TICK_SECONDS = 0.05
STOP_GRACE_SECONDS = 3.0
_STUCK_SECONDS = 10.0

log = structlog.get_logger()


class Run:
    """One ffmpeg. `go` returns when it is gone; `stop` may be called from any thread.

    `watch` gets what ffmpeg says and reports, and is asked what is wrong: every two seconds while there are
    new frames, else twice a second. ffmpeg does not inherit the `hidden` variables.
    """

    def __init__(self, command: Command, *, clock: Clock, watch: Watch, hidden: Collection[str] = ()) -> None:
        self._command = command
        self._hidden = hidden
        self._clock = clock
        self._watch = watch
        self._stopping = threading.Event()
        self._guard = threading.Lock()
        self._output: Output | None = None

    def stop(self) -> None:
        """Have ffmpeg finish its segment and end; returns at once."""
        self._stopping.set()
        with self._guard:
            if self._output is not None:
                self._output.wake()

    def go(self, *, keep_open: Sequence[int], on_ending: Callable[[], None]) -> int | None:
        """Run ffmpeg, which inherits the descriptors `keep_open`; return what `Child.poll` does.

        `on_ending` is called when it is asked to end. Raises OSError or ConfigError when it cannot start.
        """
        child = Child(
            self._command.argv,
            script=self._command.script,
            env=child_environment(self._hidden),
            stdout=Stream.PIPE,
            stderr=Stream.PIPE,
            pass_fds=keep_open,
        )
        with child, Output(child) as output:
            with self._guard:
                self._output = output
            try:
                return self._follow(child, output, on_ending)
            finally:
                with self._guard:
                    self._output = None

    def _follow(self, child: Child, output: Output, on_ending: Callable[[], None]) -> int | None:
        """Read until ffmpeg is gone, also while it ends: on a full pipe it never gets to its signal."""
        parser = StdoutParser()
        kill_at: float | None = None
        tick_at = self._clock.monotonic()
        wake_at, frames = tick_at + TICK_SECONDS, 0
        while not output.eof or child.poll() is None:
            now = self._clock.monotonic()
            if kill_at is not None:
                wake_at = min(now + TICK_SECONDS, max(now + SHORT_TICK_SECONDS, kill_at))
            self._read(output, parser, max(0.0, wake_at - now))
            now = self._clock.monotonic()
            if kill_at is not None:
                kill_at = self._kill(child, kill_at, now)
                continue
            complaint = None
            if now >= tick_at or self._watch.complaint:
                complaint = self._watch.tick()
                has_news, frames = self._watch.frames > frames, self._watch.frames
                tick_at = now + (GOOD_TICK_SECONDS if has_news else TICK_SECONDS)
                wake_at = now + (LATEST_TICK_SECONDS if has_news else TICK_SECONDS)
            if self._stopping.is_set() or complaint:
                on_ending()
                child.terminate()
                kill_at = now + STOP_GRACE_SECONDS
        return child.poll()

    def _read(self, output: Output, parser: StdoutParser, timeout: float) -> None:
        for stream, data in output.read(timeout):
            if stream == "stderr":
                self._watch.hear_error(data)
                continue
            self._watch.hear()
            for event in parser.feed(data):
                self._watch.take(event)

    def _kill(self, child: Child, kill_at: float, now: float) -> float:
        """Kill it once its grace is over; return when to do so, or to do so again."""
        if now < kill_at:
            return kill_at
        child.kill_group()
        if now - kill_at < _STUCK_SECONDS:
            return kill_at
        log.error("ffmpeg_not_killed", pid=child.pid, reason="it hangs in the kernel: does the disk answer?")
        return math.inf

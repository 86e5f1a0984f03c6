"""`demo`: the whole relay against a cloud of its own, an outage in the middle, and every frame counted.

What runs is what `up` runs, and it ends as `up` ends: stack, agent, workers, beat. Only the source (a test
pattern), the cloud (a local ingest) and the outage are staged (`demo_stage`). Afterwards `demo_evidence`
looks at what is on the disk, and `demo_result` judges it.
"""

import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import FrameType

from capture.agent import Agent
from capture.broker import RuntimeDir
from capture.demo_evidence import (
    Story,
    decode,
    join,
    read_story,
    still_running,
    tail,
    waits,
    wrong_digests,
)
from capture.demo_result import EXIT_FAILED, Result, exit_code, figures, findings
from capture.demo_stage import CAMERA, Outage, Place, demo_settings, open_place
from capture.demo_view import (
    COUNTING,
    STOPPING,
    DemoConsole,
    Picture,
    View,
    choose_glyphs,
    open_view,
    show_cursor,
    table,
    verdict,
)
from capture.errors import RelayError
from capture.ffmpeg import find_ffmpeg
from capture.log import configure_logging
from capture.runner import StopSignals, live
from capture.settings import Settings, read_token
from capture.sink import Sink, SinkEvent
from capture.spool import Spool
from capture.stack import Stack
from capture.supervision import State

OVERTIME_SECONDS = 45.0
SIGNAL_EXIT = {"SIGINT": 130, "SIGTERM": 143}
_TAIL_LINES = 8


class DemoSignals(StopSignals):
    """Gives the terminal its cursor back before a second signal ends the process at once."""

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked():
            show_cursor()
        super()._handle(number, frame)


def run_demo(*, seconds: int, outage: str | None, keep: Path | None, plain: bool) -> int:
    """Run the demo; return 0 only if every check is good."""
    staged = Outage.parse(outage, length=seconds) if outage else Outage.of(seconds)
    ffmpeg = find_ffmpeg(None)
    console = DemoConsole()
    signals = DemoSignals()
    signals.install()
    with open_place(keep) as place:
        demo = Demo(place, staged, seconds=seconds, ffmpeg=ffmpeg.path, signals=signals)
        view = open_view(console, plain=plain)
        try:
            result = demo.run(view)
        except Exception:
            console.print(f"the demo broke off; what is there is kept in {place.save()}")
            raise
        finally:
            view.close()
        if console.is_broken:
            return EXIT_FAILED
        if signals.name:
            return _interrupted(console, signals, result)
        return _conclude(console, place, result)


def _interrupted(console: DemoConsole, signals: StopSignals, result: Result) -> int:
    console.print(
        f"\n  stopped by {signals.name}: {len(result.delivered)} of {len(result.captured)} segments were "
        "delivered, nothing was checked"
    )
    for name in result.left_running:
        console.print(f"  still there: {name}")
    return SIGNAL_EXIT.get(signals.name, EXIT_FAILED)


def _conclude(console: DemoConsole, place: Place, result: Result) -> int:
    found = findings(result)
    code = exit_code(found)
    console.print()
    console.print(table(found, figures(result), choose_glyphs(console)))
    console.print()
    if code == 0:
        kept = f"spool, ingest and log are in {place.path}" if place.kept else ""
        console.print(verdict(result, kept))
        return code
    console.print(
        f"  FAILED: {sum(not finding.is_good for finding in found)} of {len(found)} checks", style="bold red"
    )
    for line in tail(place.log_path, _TAIL_LINES):
        console.out(f"    log: {line}", highlight=False)
    console.print(f"  the log and all that is left are in {place.save()}")
    return code


class Demo:
    """One run: conducts it, tells the view, and brings the evidence together."""

    def __init__(
        self, place: Place, outage: Outage, *, seconds: int, ffmpeg: str, signals: StopSignals
    ) -> None:
        self._place = place
        self._outage = outage
        self._seconds = seconds
        self._ffmpeg = ffmpeg
        self._signals = signals
        self._begun = time.monotonic()
        self._capture_begun: float | None = None
        self._window: tuple[float, float] | None = None
        self._works = False  # something was uploaded
        self._guard = threading.Lock()
        self._hits: Counter[int] = Counter()
        self._groups: dict[int, str] = {}
        self._picture = Picture(seconds=seconds, expected=Result(seconds).segments_expected)

    def run(self, view: View) -> Result:
        """Capture, deliver, stop and look at it all; return the result."""
        self._view = view
        settings = demo_settings(self._place.path, "http://127.0.0.1:1", self._seconds)
        token = read_token(settings.ingest)
        configure_logging(secrets=[token], as_json=False, stream=self._place.log)
        sink = Sink(self._place.path / "ingest", token=token, on_event=self._note)
        with sink:
            url = settings.ingest.model_copy(update={"url": sink.url})
            settings = settings.model_copy(update={"ingest": url})
            spool = Spool.open(settings.spool.path, create=True)
            with RuntimeDir() as runtime:
                stack = self._stack(settings, runtime.path)
                agent = Agent(stack.settings_for_agent(settings), spool, self._ffmpeg)
                trouble = self._live(agent, stack, settings, spool, sink)
            return self._gather(agent, spool, sink, trouble)

    def _stack(self, settings: Settings, runtime: Path) -> Stack:
        # The children write to the log themselves: on the terminal they would tear the display.
        return Stack(settings, runtime, concurrency=2, embedded_broker=True, stderr=self._place.log.fileno())

    def _live(self, agent: Agent, stack: Stack, settings: Settings, spool: Spool, sink: Sink) -> str:
        """Do what `up` does; return what ended it, if that was not the end of the source."""

        def tick() -> None:
            self._groups |= {pid: name for name, pid in stack.pids.items()}
            self._direct(agent, sink)
            self._look(agent, spool, sink)

        self._show(cloud=sink.url)
        try:
            live(agent, stack, settings, spool, self._signals, on_tick=tick)
        except RelayError as error:
            return str(error)
        finally:
            tick()
        return "" if self._capture_begun is not None else "capture never began"

    # --- while it runs ---

    def _direct(self, agent: Agent, sink: Sink) -> None:
        """Begin the outage when its time has come, and end the run when nobody else does."""
        now = time.monotonic()
        if self._signals.is_asked():
            sink.faults.clear()
        if self._view.is_broken or now > self._begun + self._seconds + OVERTIME_SECONDS:
            self._signals.ask()
        if self._capture_begun is None and agent.statuses()[0].state is State.RUNNING:
            self._capture_begun = now
        if self._capture_begun is None or self._window is not None:
            return
        elapsed = now - self._capture_begun
        if self._outage.is_due(elapsed, works=self._works, length=self._seconds):
            self._window = (time.time(), time.time() + self._outage.seconds)
            for fault in self._outage.faults():
                sink.faults.add(fault)

    def _note(self, event: SinkEvent) -> None:
        """Count the uploads that a fault turned away; called from the ingest's threads."""
        if event.sequence is None:
            return
        if event.fault is None:
            self._works = True
            return
        with self._guard:
            self._hits[event.sequence] += 1

    def _look(self, agent: Agent, spool: Spool, sink: Sink) -> None:
        status = agent.statuses()[0]
        is_recording = self._capture_begun is not None and agent.is_running()
        self._show(
            stage=self._stage(agent),
            frames=status.frames,
            is_recording=is_recording,
            pieces=read_story(spool, CAMERA).pieces,
            faults=tuple(sink.faults.active()),
            outage=self._window,
            turned_away=self._hits.total(),
            ended=sink.ended == [CAMERA],
        )

    def _stage(self, agent: Agent) -> str:
        if self._signals.is_asked():
            return STOPPING
        if self._capture_begun is None:
            return "starting"
        return "capturing" if agent.is_running() else "delivering the rest"

    def _show(self, **fields: object) -> None:
        elapsed = time.monotonic() - self._begun
        self._picture = replace(self._picture, elapsed=elapsed, **fields)  # type: ignore[arg-type]
        self._view.show(self._picture)

    # --- afterwards ---

    def _gather(self, agent: Agent, spool: Spool, sink: Sink, trouble: str) -> Result:
        story = read_story(spool, CAMERA)
        result = Result(
            self._seconds,
            captured=story.captured,
            delivered=story.delivered,
            left_running=still_running(spool, self._groups),
            services=tuple(sorted(set(self._groups.values()))),
            trouble=trouble or (f"{story.torn} lines of the journal cannot be read" if story.torn else ""),
        )
        if self._signals.name:
            return result
        self._show(stage=COUNTING)
        result = self._with_counts(self._with_deliveries(result, story, sink), story, agent, spool)
        self._show(stage="done")
        return result

    def _with_deliveries(self, result: Result, story: Story, sink: Sink) -> Result:
        receipts = sink.receipts()
        joined = join(receipts, self._place.path / "joined.ts") if receipts else None
        return replace(
            result,
            stored=tuple(receipt.sequence for receipt in receipts),
            sessions=len({(receipt.camera, receipt.session) for receipt in receipts}),
            digests_wrong=wrong_digests(sink.directory, receipts, story.pieces),
            bytes_stored=sum(receipt.bytes for receipt in receipts),
            joined=decode(self._ffmpeg, joined) if joined else None,
            alone=tuple(
                (receipt.sequence, decode(self._ffmpeg, receipt.path))
                for receipt in sorted(receipts, key=lambda receipt: receipt.sequence)
                if not self._signals.is_asked()
            ),
            retried=sum(receipt.attempts - 1 for receipt in receipts),
            duplicates=sum(receipt.duplicates for receipt in receipts),
            registered=CAMERA in sink.cameras,
            ended=sink.ended == [CAMERA],
        )

    def _with_counts(self, result: Result, story: Story, agent: Agent, spool: Spool) -> Result:
        status = agent.statuses()[0]
        return replace(
            result,
            frames_written=status.frames,
            restarts=status.restarts,
            owed=spool.owed_count(),
            rejected=story.rejected,
            dropped=story.dropped,
            gaps=story.gaps,
            bytes_captured=sum(piece.bytes for piece in story.pieces),
            outage_seconds=self._outage.seconds if self._window else 0.0,
            outage_hits=self._hits.total(),
            waits=waits(story.pieces, self._window),
        )

"""A chaos run: several cameras, faults drawn from a seed, then calm, then the judge.

scripts/chaos --minutes 2 --seed 1
"""

import argparse
import faulthandler
import json
import shutil
import subprocess
import sys
import tempfile
import time
from calendar import timegm
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imageio_ffmpeg

from capture.sink import Sink
from tests.chaos import oracle, plan
from tests.chaos.calm import Calm, wait_for_calm
from tests.chaos.clock import NoClockError, SteppedClock
from tests.chaos.layouts import BIN, LAYOUTS, TOKEN, Layout
from tests.chaos.report import Outcome, report
from tests.chaos.storm import Storm
from tests.chaos.witness import seen

BEGIN_SECONDS = 30.0  # for the first segment to arrive, before anything is broken
LOG_TAIL = 6000
LATE_SECONDS = 150.0  # after the end of the storm: calm, stop and judge take half a minute
KNOWN = {"clock", "ingest", "kept", "kept.jsonl", "relay.log", "relay.toml", "spool", "tmp"}
LASTING_SECONDS = 5.0  # a step of this length must show in the journal


def main() -> None:
    options = _options()
    layout = options.layout or plan.layout_of(options.seed)
    if options.plan:
        strikes = plan.draw(options.seed, options.minutes * 60, clock=options.clock != "off")
        print("\n".join(map(str, strikes)))
        return
    # One that hangs says where.
    faulthandler.dump_traceback_later(options.minutes * 60 + LATE_SECONDS)
    if options.keep:
        options.keep.mkdir()
        sys.exit(run(options.keep.absolute(), layout, options))
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        code = run(folder, layout, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(code)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="how long the storm lasts (2)")
    parser.add_argument("--seed", type=int, default=1, help="the list of faults follows from it alone (1)")
    parser.add_argument("--cameras", type=int, default=4, help="test patterns of 320x180 (4)")
    parser.add_argument("--layout", choices=plan.LAYOUTS, help="all as one, or its parts (by the seed)")
    parser.add_argument(
        "--clock", choices=("auto", "required", "off"), default="auto", help="step the wall clock (auto)"
    )
    parser.add_argument("--plan", action="store_true", help="print the list of faults and end")
    parser.add_argument("--keep", type=Path, help="keep spool, ingest and log in this new directory")
    return parser.parse_args()


def run(folder: Path, layout_name: str, options: argparse.Namespace) -> int:
    """Run it all in a folder; print what happened; return the exit code."""
    began = time.monotonic()
    clock = _clock(folder, options.clock)
    strikes = plan.draw(options.seed, options.minutes * 60, clock=clock is not None)
    what = f"seed {options.seed}, layout {layout_name}, {options.minutes:g} min, {options.cameras} cameras"
    print(f"{what}, {len(strikes)} strikes", flush=True)
    with Sink(folder / "ingest", token=TOKEN) as sink, witnessed(folder) as kept:
        layout = LAYOUTS[layout_name](folder, sink.url, options.cameras, clock.environment if clock else {})
        storm = Storm(layout, sink, clock)
        problems, calm = _weather(layout, sink, storm, strikes, kept)
    outcome = _judge(layout, storm, calm, elapsed=time.monotonic() - began)
    outcome.problems[:0] = problems
    outcome.duplicates = sum(receipt.duplicates for receipt in sink.receipts())
    outcome.seconds = time.monotonic() - began
    report(outcome)
    if outcome.problems:
        print(f"--- the end of {layout.log} ---\n" + layout.log.read_text(errors="replace")[-LOG_TAIL:])
    print(f"chaos: {'FAILED' if outcome.problems else 'passed'}, {len(outcome.problems)} problems")
    return 1 if outcome.problems else 0


def _weather(
    layout: Layout, sink: Sink, storm: Storm, strikes: list[plan.Strike], kept: Path
) -> tuple[list[str], Calm]:
    """Start, storm, calm, stop."""
    problems: list[str] = []
    calm = Calm()
    try:
        _begin(layout, sink)
        storm.rage(strikes, lambda strike, hit: print(f"{strike}  [{hit or 'nobody there'}]", flush=True))
        calm = wait_for_calm(layout, sink, kept)
        problems += layout.stop()
        problems += layout.left()
        problems += [f"a lock is still held: {path}" for path in oracle.held_locks(layout.spool)]
        problems += [f"a socket is left: {path}" for path in oracle.listening_sockets(layout.folder)]
        problems += [f"left behind: {path}" for path in sorted(layout.temporary.rglob("*"))]
        strangers = {path.name for path in layout.folder.iterdir()} - KNOWN
        problems += [f"left behind: {name} where it was started" for name in sorted(strangers)]
    finally:
        storm.end()
        layout.kill()
    return problems, calm


def _begin(layout: Layout, sink: Sink) -> None:
    """Start it and wait for the first segment: what never worked cannot be broken."""
    deadline = time.monotonic() + BEGIN_SECONDS
    while not sink.receipts():
        if time.monotonic() > deadline:
            said = layout.log.read_text(errors="replace")[-LOG_TAIL:]
            raise SystemExit(f"nothing arrived within {BEGIN_SECONDS:.0f} s\n{said}")
        layout.ensure()
        time.sleep(0.05)


def _clock(folder: Path, wanted: str) -> SteppedClock | None:
    """Return a clock that was proven to move Python's and ffmpeg's time; None where there is none."""
    if wanted == "off":
        print("the clock is left alone: --clock off")
        return None
    try:
        clock = SteppedClock(folder / "clock")
        clock.prove(imageio_ffmpeg.get_ffmpeg_exe(), {"PATH": "/usr/bin:/bin"})
    except NoClockError as error:
        if wanted == "required":
            raise SystemExit(f"the clock cannot be stepped: {error}") from None
        print(f"the clock is NOT stepped in this run: {error}")
        return None
    print(f"the clock of every process can be stepped: {clock.library} moves Python's and ffmpeg's")
    return clock


@contextmanager
def witnessed(folder: Path) -> Iterator[Path]:
    """Watch the spool from a process of its own."""
    kept = folder / "kept"
    argv = [sys.executable, "-m", "tests.chaos.witness", str(folder / "spool"), str(kept)]
    with subprocess.Popen(argv, cwd=Path(__file__).parents[2]) as process:
        while not kept.exists() and process.poll() is None:
            time.sleep(0.02)
        try:
            yield kept
        finally:
            process.terminate()
    if process.returncode:
        raise SystemExit(f"the witness ended with {process.returncode}: nothing can be judged")


def _judge(layout: Layout, storm: Storm, calm: Calm, *, elapsed: float) -> Outcome:
    ingest = layout.folder / "ingest"
    verdict = oracle.judge(list(seen(layout.folder / "kept")), layout.spool, ingest)
    played = oracle.sample(layout.spool, ingest)
    problems = [*calm.problems, *verdict.problems]
    problems += oracle.decoding_problems(played, imageio_ffmpeg.get_ffmpeg_exe())
    if not played:
        problems.append("there was no segment to decode")
    # What was written during the run cannot lie farther off than it is long, unless the clock was stepped.
    stepped = stepped_lines(layout.spool, beyond=elapsed)
    steps = [offset for begun, ended, offset in storm.steps if ended - begun > LASTING_SECONDS]
    if any(abs(offset) > 2 * elapsed for offset in steps) and not stepped:
        problems.append("the clock was stepped, and no line of the journal shows it")
    problems += storm.problems()
    audit = subprocess.run(
        [BIN / "relay-capture", "audit", "--spool", layout.spool], capture_output=True, text=True, check=False
    )
    if audit.returncode:
        problems.append(f"audit does not agree: {audit.stdout}{audit.stderr}")
    return Outcome(layout.name, storm, calm, verdict, len(played), 0, stepped, 0.0, layout.starts, problems)


def stepped_lines(spool: Path, *, beyond: float) -> int:
    """Count the journal lines whose time lies more than `beyond` seconds off the true time, either way."""
    count = 0
    for path in spool.glob("journal/*/*.jsonl"):
        for line in path.read_bytes().splitlines():
            try:
                stamp = str(json.loads(line)["t"])
            except (ValueError, KeyError, TypeError):
                continue
            at = timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"))
            count += abs(at - time.time()) > beyond
    return count


if __name__ == "__main__":
    main()

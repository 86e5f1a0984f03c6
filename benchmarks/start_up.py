"""How long a start takes: commands that open nothing, and `up` until its first segment is confirmed.

    python -m benchmarks.start_up [--commands 15] [--repeat 5] [--segments 1,2]

Commands take turns with a bare `python -c pass`, so that whatever else the machine does hits all of them. For
`up` a test pattern is the camera and a sink on loopback the ingest; its time counts from exec to the line
"delivered" of the first segment, less the length of that segment, which no program can shorten. ffmpeg makes
the first half second of a pattern at once; by what a segment took less than its length for that, the time is
lengthened, as with a camera. The steps on the way are what the processes write down: files, journal and log.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import environment, environment_lines, spread, table, verdict, write_figures
from benchmarks.ingest import ingest_process
from benchmarks.relay import COMMAND, STOP_SECONDS, TOKEN, wait_until
from capture.broker import SOCKET_NAME
from capture.journal import Event
from capture.segment import SegmentName
from capture.spool import MARKER, Spool

HELP_SECONDS = 0.25
CONFIRMED_SECONDS = 3.0  # beyond the length of the segment
BARE = "python -c pass"
CAMERA = "cam"
VIDEO_WITHIN = 60.0
LOOK_SECONDS = 0.005
TABLE = '[ingest]\nurl = "https://cloud.example.com"\n[cameras.cam]\nsource = "test:"\n'
STEPS = (
    ("spool", "its settings are read and its spool is made"),
    ("broker", "Valkey listens"),
    ("session", "the agent begins a session"),
    ("frame", "ffmpeg's first key frame"),
    ("worker", "the worker takes messages"),
    ("closed", "the first segment is closed"),
    ("confirmed", "the first segment is confirmed"),
)


def commands(folder: Path) -> dict[str, list[str]]:
    """Return what is started: first Python alone, then commands that open nothing."""
    config = folder / "relay.toml"
    config.write_text(TABLE, encoding="utf-8")
    relay = str(COMMAND)
    return {
        BARE: [sys.executable, "-c", "pass"],
        "--help": [relay, "--help"],
        "--version": [relay, "--version"],
        "up --help": [relay, "up", "--help"],
        "status --help": [relay, "status", "--help"],
        "config check": [relay, "config", "check", "--config", str(config)],
    }


def time_commands(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each command, from start to end; a first round that fills caches is left out."""
    found: dict[str, list[float]] = {name: [] for name in commands(folder)}
    environment = clean_environment(folder)
    for number in range(rounds + 1):
        for name, command in commands(folder).items():
            began = time.perf_counter()
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
            if number:
                found[name].append(time.perf_counter() - began)
    return found


def clean_environment(folder: Path, **settings: str) -> dict[str, str]:
    """Return an environment with nothing of this machine's settings."""
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), **settings}


@contextmanager
def up(folder: Path, url: str, options: argparse.Namespace, seconds: float) -> Iterator[Path]:
    """Run `up` in a directory of its own until the end of the block; gives where it logs."""
    log = folder / "up.log"
    flags = [
        "--source",
        options.source,
        "--camera-id",
        CAMERA,
        "--segment-duration",
        f"{seconds:g}",
        "--json",
    ]
    settings = {"RELAY_CLOUD": url, "RELAY_TOKEN": TOKEN, "RELAY_SPOOL": str(folder / "spool")}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [COMMAND, "up", *flags], env=clean_environment(folder, **settings), stderr=file
        )
    try:
        yield log
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def time_up(url: str, options: argparse.Namespace, seconds: float) -> dict[str, float]:
    """Start `up` once; return the seconds from exec to each step, and `beyond` the segment's length."""
    with tempfile.TemporaryDirectory(prefix="start-") as name:
        folder, began = Path(name), time.time()
        with up(folder, url, options, seconds) as log:
            framed = wait_for_video(folder / "spool")
            wait_until(
                lambda: "delivered" in told(folder / "spool"), seconds=60, what="a segment was confirmed"
            )
            found = {**moments(folder, log), "frame": framed}
            length = first_segment(folder / "spool").duration
    steps = {step: found[step] - began for step, _ in STEPS}
    ahead = max(0.0, length - (steps["closed"] - steps["frame"]))
    return {**steps, "segment": length, "ahead": ahead, "beyond": steps["confirmed"] + ahead - length}


def wait_for_video(root: Path) -> float:
    """Return when ffmpeg had written something, in seconds since 1970."""
    end = time.monotonic() + VIDEO_WITHIN
    while not any(path.stat().st_size for path in root.glob("relay-segments-*/open/*.ts")):
        if time.monotonic() > end:
            sys.exit(f"waited {VIDEO_WITHIN:.0f} s in vain until ffmpeg wrote something")
        time.sleep(LOOK_SECONDS)
    return time.time()


def told(root: Path) -> dict[str, Mapping[str, Any]]:
    """Return the journal's lines of the first segment, by event."""
    if not (root / MARKER).exists():
        return {}
    found: dict[str, Mapping[str, Any]] = {}
    for entry in Spool.open(root).journal.read(CAMERA):
        if entry.event in {Event.CLOSED, Event.DELIVERED}:
            parsed = SegmentName.parse(str(entry.fields.get("segment")))
            if parsed is not None and parsed.sequence == 1:
                found[entry.event] = entry.fields
    return found


def first_segment(root: Path) -> SegmentName:
    segment = SegmentName.parse(str(told(root)["delivered"]["segment"]))
    assert segment is not None  # noqa: S101 - told() has parsed it
    return segment


def moments(folder: Path, log: Path) -> dict[str, float]:
    """Return when each step was done, in seconds since 1970, as the processes wrote it down."""
    root, lines = folder / "spool", told(folder / "spool")
    socket = next(folder.glob(f"relay-capture-*/{SOCKET_NAME}"))
    events = {each["event"]: seconds(each["timestamp"]) for each in log_lines(log)}
    ready = next(at for event, at in events.items() if event.endswith(" ready."))
    return {
        "spool": (root / MARKER).stat().st_mtime,
        "broker": socket.stat().st_mtime,
        "session": events["session_started"],
        "worker": ready,
        "closed": seconds(lines["closed"]["t"]),
        "confirmed": seconds(lines["delivered"]["t"]),
    }


def log_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def show_commands(found: Mapping[str, list[float]]) -> None:
    bare = found[BARE]
    rows = [
        [
            name,
            len(times),
            spread([1000 * each for each in times], ".0f"),
            spread([each / other for each, other in zip(times, bare, strict=True)], ".1f"),
        ]
        for name, times in found.items()
    ]
    print(table(["command", "n", "ms", "times bare python"], rows))
    slowest = max(median(times) for name, times in found.items() if name.endswith("--help"))
    words = f"median {slowest:.3f} s, at most {HELP_SECONDS:g} s"
    print(verdict("--help", slowest <= HELP_SECONDS, words), flush=True)


def show_up(found: Mapping[str, list[dict[str, float]]]) -> None:
    """Print when each step was done, and how much of it is beyond the segment itself."""
    header = ["step, seconds after exec", *(f"{length} s segments" for length in found)]
    rows = [
        [words, *(spread([run[step] for run in runs]) for runs in found.values())] for step, words in STEPS
    ]
    for key, words in (("ahead", "video that came at once"), ("beyond", "beyond the segment's length")):
        rows.append([words, *(spread([run[key] for run in runs]) for runs in found.values())])
    print(f"\n{table(header, rows)}")
    for length, runs in found.items():
        beyond = median([run["beyond"] for run in runs])
        words = f"median {beyond:.2f} s beyond it, at most {CONFIRMED_SECONDS:g} s"
        print(verdict(f"up, segments of {length} s", beyond <= CONFIRMED_SECONDS, words))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commands", type=int, default=15, help="rounds of the commands  [15]")
    parser.add_argument("--repeat", type=int, default=5, help="starts of `up` for each length  [5]")
    parser.add_argument("--segments", default="1,2", help="seconds of a segment, in turn  [1,2]")
    parser.add_argument("--source", default="test:640x360@25", help="of `up`  [test:640x360@25]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    print(f"{environment_lines()}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="start-") as name:
        timed = time_commands(Path(name), options.commands)
        show_commands(timed)
        starts: dict[str, list[dict[str, float]]] = {each: [] for each in options.segments.split(",")}
        with ingest_process(Path(name)) as ingest:
            for _ in range(options.repeat):
                for length, runs in starts.items():
                    runs.append(time_up(ingest.url, options, float(length)))
    show_up(starts)
    write_figures(options.json, {"environment": environment(), "commands": timed, "up": starts})


if __name__ == "__main__":
    main()

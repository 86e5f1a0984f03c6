"""What 1, 10, 50 cameras cost: CPU and memory of agent, ffmpegs and uploads, against as many bare ffmpegs.

    python -m benchmarks.many_cameras [--from file|rtsp] [--cameras 1,10,50] [--segment 10] [--repeat 3]

Every camera is 720p H.264 of 2 Mbit/s and is copied: one long file played in real time, or a real RTSP server
(GStreamer's, of the tests) over TCP. A bare one is `ffmpeg -i SOURCE -c copy -f segment` with those of our
options that change what is written. Bare ones and `up` run in turn, each alone, the order changing with each
repetition; uploads go to a sink that is a process of its own and counts as neither, like the RTSP server. CPU
is counted after the start and before the stop. With several lengths (`--segment 2,10`) the agent's CPU is
split into what a camera costs each second and what each segment costs.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from benchmarks.figures import environment_lines
from benchmarks.footprint import make_clip
from benchmarks.ingest import Ingest, ingest_process
from benchmarks.many_cameras_floor import floor
from benchmarks.many_cameras_report import BARE, OURS, Report, Sample
from benchmarks.processes import AGENT, Usage, cpu_between, total_memory, usage_of_tree
from benchmarks.relay import Relay, running, wait_until
from capture.ffmpeg import find_ffmpeg
from capture.fleet import STARTS_PER_TURN, TURN_SECONDS
from tests.cameras.rtsp import RtspCamera, missing

LOOP_SECONDS = 10
KBPS = 2000  # of an RTSP camera; the clip has as much
SPARE_SECONDS = 90  # for the start of the last camera, the first segment, the settling, and a slow machine


def make_long_clip(path: Path, seconds: float) -> None:
    """Make a clip of at least so many seconds: a short one, encoded once and copied end to end."""
    short = path.with_name(f"short-{path.name}")
    make_clip(short, LOOP_SECONDS)
    command = [find_ffmpeg(None).path, "-v", "error", "-stream_loop", str(int(seconds // LOOP_SECONDS))]
    subprocess.run([*command, "-i", str(short), "-c", "copy", str(path)], check=True)
    short.unlink()


def bare_command(ffmpeg: str, source: str, folder: Path, segment: float) -> list[str]:
    """Return what somebody would write who has no agent; it writes the same bytes in the same pieces."""
    given = ["-rtsp_transport", "tcp"] if source.startswith("rtsp:") else ["-re"]
    return [
        *(ffmpeg, "-hide_banner", "-nostdin", "-loglevel", "warning", *given, "-i", source),
        *("-map", "0:v:0", "-c:v", "copy", "-muxdelay", "0", "-muxpreload", "0"),
        *("-f", "segment", "-segment_format", "mpegts", "-segment_time", f"{segment:g}"),
        *("-segment_format_options", "flush_packets=1", f"{folder}/%08d.ts"),
    ]


@contextmanager
def bare_ffmpegs(source: str, folder: Path, cameras: int, segment: float) -> Iterator[list[psutil.Process]]:
    """Run them, started at the pace of the agent."""
    ffmpeg, running_ones = find_ffmpeg(None).path, []
    try:
        for number in range(cameras):
            own = folder / str(number)
            own.mkdir()
            command = bare_command(ffmpeg, source, own, segment)
            running_ones.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
            time.sleep(TURN_SECONDS / STARTS_PER_TURN)
        wait_until(
            lambda: all((folder / str(number) / "00000001.ts").exists() for number in range(cameras)),
            seconds=120,
            what="every bare ffmpeg closed a segment",
        )
        yield [psutil.Process(each.pid) for each in running_ones]
    finally:
        for each in running_ones:
            each.terminate()
        for each in running_ones:
            each.wait(15)


class Bench:
    """The source and the sink, and the runs with them."""

    def __init__(self, options: argparse.Namespace, folder: Path, ingest: Ingest, source: str) -> None:
        self._options = options
        self._folder = folder
        self._ingest = ingest
        self._source = source

    def sample(self, kind: str, cameras: int, segment: float) -> Sample:
        with tempfile.TemporaryDirectory(prefix=f"{kind}-", dir=self._folder) as folder:
            return {BARE: self._bare, OURS: self._ours}[kind](cameras, segment, Path(folder))

    def _bare(self, cameras: int, segment: float, folder: Path) -> Sample:
        def usage() -> dict[int, Usage]:
            return {pid: each for process in family for pid, each in usage_of_tree(process).items()}

        with bare_ffmpegs(self._source, folder, cameras, segment) as family:
            before, after, lasted = self._between(usage)
        _require(after, cameras)
        cpu, pss = cpu_between(before, after), total_memory(after.values())
        return Sample(BARE, cameras, segment, lasted, {"ffmpeg": cpu}, {"ffmpeg": pss})

    def _ours(self, cameras: int, segment: float, folder: Path) -> Sample:
        settings = {"RELAY_DEFAULTS__SEGMENT_SECONDS": str(segment)}
        relay = Relay(folder, self._ingest.url, cameras=cameras, source=self._source, settings=settings)
        with running(relay):
            before, after, lasted = self._between(relay.usage)
            relay.check()
            began = time.monotonic()
            code = relay.stop()
            stopped_in = time.monotonic() - began
        audited, words = relay.audit()
        self._ingest.forget_bodies()
        groups = {name: _group(after, name) for name in ("agent", "ffmpeg", "uploads")}
        _require(groups["ffmpeg"], cameras)
        (agent,) = groups["agent"].values()
        return Sample(
            OURS,
            cameras,
            segment,
            lasted,
            {name: cpu_between(before, group) for name, group in groups.items()},
            {name: total_memory(group.values()) for name, group in groups.items()},
            agent_fds=agent.fds,
            agent_threads=agent.threads,
            stopped_in=stopped_in,
            exit_code=code,
            problems=words if audited else "",
        )

    def _between(self, usage) -> tuple[dict[int, Usage], dict[int, Usage], float]:  # noqa: ANN001
        time.sleep(self._options.settle)
        before, began = usage(), time.monotonic()
        time.sleep(self._options.seconds)
        return before, usage(), time.monotonic() - began


def _group(usages: Mapping[int, Usage], group: str) -> dict[int, Usage]:
    return {pid: each for pid, each in usages.items() if _group_of(each) == group}


def _group_of(usage: Usage) -> str:
    if usage.name == AGENT:
        return "agent"
    return "ffmpeg" if usage.name.startswith("ffmpeg") else "uploads"


def _require(usages: Mapping[int, Usage], cameras: int) -> None:
    if len(usages) != cameras:
        sys.exit(f"{len(usages)} ffmpegs at the end of the measurement; expected {cameras}")


def main() -> int:
    options = _options()
    sys.stdout.reconfigure(line_buffering=True)  # each line as it comes, also into a file
    print(f"{environment_lines()}\n{options.seconds:g} s each, from {options.source}\n")
    samples: list[Sample] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="many-", dir=options.folder)))
        ingest = stack.enter_context(ingest_process(folder))
        bench = Bench(options, folder, ingest, stack.enter_context(source_of(options, folder)))
        for cameras, segment, kind in _plan(options.cameras, options.segment, options.repeat):
            samples.append(bench.sample(kind, cameras, segment))
            print(samples[-1].line())
        floors = {segment: floor(folder, segment, kbps=KBPS) for segment in options.segment}
    report = Report(samples, floors=floors)
    report.write(options.json)
    return report.show()


@contextmanager
def source_of(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Give what every camera plays, as `ffmpeg -i` and we take it."""
    if options.source == "file":
        clip = folder / "clip.mp4"
        make_long_clip(clip, options.seconds + max(options.segment) + SPARE_SECONDS)
        yield str(clip)
        return
    if lack := missing():
        sys.exit(f"no RTSP camera can run here: {lack}")
    camera = RtspCamera(size="1280x720", fps=25, kbps=KBPS, key_seconds=2.0, loop_seconds=20.0)
    try:
        yield camera.url
    finally:
        camera.close()


def _plan(cameras: Sequence[int], segments: Sequence[float], repeat: int) -> Iterator[tuple[int, float, str]]:
    for number in range(repeat):
        for segment in segments:
            for each in cameras:
                for kind in (BARE, OURS) if number % 2 == 0 else (OURS, BARE):
                    yield each, segment, kind


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _lengths(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cameras", type=_numbers, default=[1, 10, 50], help="how many, one after the other  [1,10,50]")
    add("--from", dest="source", choices=("file", "rtsp"), default="file", help="the cameras  [file]")
    add("--seconds", type=float, default=30.0, help="to measure each  [30]")
    add("--segment", type=_lengths, default=[10.0], help="seconds of a segment, or several lengths  [10]")
    add("--settle", type=float, default=3.0, help="seconds before that, when all run already  [3]")
    add("--repeat", type=int, default=3, help="how often all of it  [3]")
    add("--folder", type=Path, help="where spool and ingest are made for the time  [the temporary one]")
    add("--json", type=Path, metavar="FILE", help="write all that was measured")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

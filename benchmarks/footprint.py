"""What one camera costs: CPU and memory of each process of `up`, and close-to-confirmed times.

    python -m benchmarks.footprint [--seconds 60] [--segment 2]

A 720p H.264 file of about 2 Mbit/s is played in real time, as a camera sends it, and copied. The ingest runs
as a process of its own. Prints one line per process: CPU seconds, share of one core, resident and
proportional memory (MiB; the proportional set counts shared pages once).
"""

import argparse
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.figures import MIB, environment, environment_lines, summary, table, write_figures
from benchmarks.ingest import ingest_process
from benchmarks.processes import Usage, total_memory
from benchmarks.relay import Relay, confirmations, running
from capture.ffmpeg import find_ffmpeg

START_SECONDS = 5.0  # the start is not what is measured


def make_clip(path: Path, seconds: int) -> None:
    ffmpeg = find_ffmpeg(None).path
    source = f"testsrc2=size=1280x720:rate=25:duration={seconds}"
    rate = ["-b:v", "2M", "-maxrate", "2M", "-bufsize", "4M", "-g", "50"]
    command = [ffmpeg, "-v", "error", "-f", "lavfi", "-i", source, "-c:v", "libx264", "-preset", "veryfast"]
    subprocess.run([*command, "-pix_fmt", "yuv420p", *rate, str(path)], check=True)


def measure(folder: Path, options: argparse.Namespace) -> None:
    clip = folder / "clip.mp4"
    make_clip(clip, options.seconds + 30)
    with ingest_process(folder) as ingest:
        settings = {"RELAY_DEFAULTS__SEGMENT_SECONDS": str(options.segment)}
        relay = Relay(folder, ingest.url, cameras=1, source=str(clip), settings=settings)
        with running(relay):
            time.sleep(START_SECONDS)
            before, began = relay.usage(), time.monotonic()
            time.sleep(options.seconds)
            relay.check()
            after, lasted = relay.usage(), time.monotonic() - began
            relay.stop()
    print(_costs(before, after, lasted))
    times = confirmations(relay.spool).values()
    found = summary([(confirmed - closed) * 1000 for closed, confirmed in times if confirmed is not None])
    print(f"\nclose to confirmed, {found['n']} segments of {options.segment:g} s: ", end="")
    print(f"p50 {found['p50']:.0f} ms, p95 {found['p95']:.0f} ms, max {found['max']:.0f} ms")
    usage = {str(pid): vars(each) for pid, each in after.items()}
    data = {"environment": environment(), "seconds": lasted, "usage": usage, "close_to_confirmed_ms": found}
    write_figures(options.json, data)


def _costs(before: Mapping[int, Usage], after: Mapping[int, Usage], lasted: float) -> str:
    everyone = sorted(after.values(), key=lambda each: each.name)
    cpu = [each.cpu - (before[each.pid].cpu if each.pid in before else 0.0) for each in everyone]
    rows = [
        [each.name, str(each.pid), *_cells(used, lasted, each.rss, total_memory([each]))]
        for each, used in zip(everyone, cpu, strict=True)
    ]
    rss = sum(each.rss for each in everyone)
    rows.append(["all", "", *_cells(sum(cpu), lasted, rss, total_memory(everyone))])
    return table(["process", "pid", "CPU s", "% core", "RSS MiB", "PSS MiB"], rows)


def _cells(used: float, lasted: float, rss: int, pss: int) -> list[str]:
    return [f"{used:.2f}", f"{100 * used / lasted:.1f}", f"{rss / MIB:.1f}", f"{pss / MIB:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="to measure  [60]")
    parser.add_argument("--segment", type=float, default=2.0, help="seconds of a segment  [2]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    print(f"{environment_lines()}\n{options.seconds} s\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="footprint-") as folder:
        measure(Path(folder), options)


if __name__ == "__main__":
    main()

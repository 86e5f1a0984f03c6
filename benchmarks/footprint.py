"""What one camera costs: CPU and memory of each process of `up`, and close-to-confirmed times.

    .venv/bin/python benchmarks/footprint.py [--seconds 60] [--segment 2]

A 720p H.264 file of about 2 Mbit/s is played in real time, as a camera sends it, and copied. The ingest runs
as a process of its own. Prints one line per process: CPU seconds, share of one core, resident and
proportional memory (MiB; the proportional set counts shared pages once).
"""

import argparse
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median, quantiles

import psutil

from capture.ffmpeg import find_ffmpeg
from capture.journal import Event
from capture.segment import SegmentName
from capture.spool import Spool

COMMAND = Path(sys.executable).with_name("relay-capture")
MIB = 1024 * 1024


def make_clip(path: Path, seconds: int) -> None:
    ffmpeg = find_ffmpeg(None).path
    source = f"testsrc2=size=1280x720:rate=25:duration={seconds}"
    rate = ["-b:v", "2M", "-maxrate", "2M", "-bufsize", "4M", "-g", "50"]
    command = [ffmpeg, "-v", "error", "-f", "lavfi", "-i", source, "-c:v", "libx264", "-preset", "veryfast"]
    subprocess.run([*command, "-pix_fmt", "yuv420p", *rate, str(path)], check=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def name_of(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    for part, name in (("ffmpeg", "ffmpeg"), ("valkey", "valkey"), (" beat", "beat"), ("worker", "worker")):
        if part in words:
            return name
    return "agent (up)"


def sample(root: psutil.Process) -> dict[int, tuple[str, float, int, int]]:
    found = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            times, memory = process.cpu_times(), process.memory_full_info()
            found[process.pid] = (name_of(process), times.user + times.system, memory.rss, memory.pss)
        except psutil.NoSuchProcess:
            continue
    return found


def latencies(spool: Spool) -> list[float]:
    closed, waits = {}, []
    for camera in spool.journal.cameras():
        for entry in spool.journal.read(camera):
            segment, at = str(entry.fields.get("segment")), entry.fields.get("t")
            if SegmentName.parse(segment) is None:
                continue
            moment = datetime.fromisoformat(str(at))
            if entry.event is Event.CLOSED:
                closed[segment] = moment
            elif entry.event is Event.DELIVERED and segment in closed:
                waits.append((moment - closed[segment]).total_seconds() * 1000)
    return waits


def main() -> None:
    parser = argparse.ArgumentParser(description="What one camera costs.")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--segment", type=float, default=2.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.seconds, options.segment)


def measure(folder: Path, seconds: int, segment: float) -> None:
    make_clip(folder / "clip.mp4", seconds + 10)
    port = free_port()
    sink = subprocess.Popen(
        [COMMAND, "sink", "--port", str(port), "--dir", folder / "sink"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    environment = {**os.environ, "RELAY_TOKEN": "benchmark"}
    arguments = ["--source", folder / "clip.mp4", "--cloud", f"http://127.0.0.1:{port}"]
    up = subprocess.Popen(
        [COMMAND, "up", *arguments, "--spool", folder / "spool", "--segment-duration", str(segment)],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        root = psutil.Process(up.pid)
        time.sleep(5)  # the start is not what is measured
        before, began = sample(root), time.monotonic()
        time.sleep(seconds)
        after, lasted = sample(root), time.monotonic() - began
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(30)
        sink.terminate()
        sink.wait(10)
    report(before, after, lasted)
    waits = latencies(Spool.open(folder / "spool"))
    p95 = quantiles(waits, n=20)[-1]
    print(
        f"\nclose to confirmed, {len(waits)} segments of {segment:g} s:"
        f" p50 {median(waits):.0f} ms, p95 {p95:.0f} ms, max {max(waits):.0f} ms"
    )


def report(before: dict, after: dict, lasted: float) -> None:
    print(
        f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} CPUs, {lasted:.0f} s\n"
    )
    print(f"{'process':<12}{'pid':>8}{'CPU s':>8}{'% core':>8}{'RSS MiB':>9}{'PSS MiB':>9}")
    total = [0.0, 0, 0]
    for pid, (name, cpu, rss, pss) in sorted(after.items(), key=lambda item: item[1][0]):
        used = cpu - before.get(pid, (name, cpu, 0, 0))[1]
        total = [total[0] + used, total[1] + rss, total[2] + pss]
        print(f"{name:<12}{pid:>8}{used:>8.2f}{100 * used / lasted:>8.1f}{rss / MIB:>9.1f}{pss / MIB:>9.1f}")
    used, rss, pss = total
    print(f"{'all':<20}{used:>8.2f}{100 * used / lasted:>8.1f}{rss / MIB:>9.1f}{pss / MIB:>9.1f}")


if __name__ == "__main__":
    main()

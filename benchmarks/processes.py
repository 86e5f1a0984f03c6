"""What each process of `up` uses: CPU, memory, descriptors, threads."""

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil

AGENT = "agent (up)"
_CAMERA = re.compile(r"relay-segments-(.+)-[0-9]{8}T[0-9]{6}Z-[a-z2-7]{8}")
_NODE = re.compile(r" -n ?(\S+?)@")


@dataclass(frozen=True)
class Usage:
    """One process at one moment. CPU in seconds since it began; memory in bytes.

    `pss` counts shared pages once among all who share them; None where it cannot be read.
    """

    pid: int
    name: str
    cpu: float
    rss: int
    pss: int | None
    fds: int
    threads: int


def usage_of_tree(root: psutil.Process) -> dict[int, Usage]:
    """Return what a process and all below it use, by process id; who ends meanwhile is left out."""
    try:
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return {}
    found = {}
    for process in family:
        try:
            found[process.pid] = _usage(process, AGENT if process == root else name_of(process))
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def name_of(process: psutil.Process) -> str:
    """Return what a process below `up` is: by its command line, which is the same for a worker's children."""
    words = " ".join(process.cmdline())
    if " worker " in words:
        node = _NODE.search(words)
        name = f"worker {node[1]}" if node else "worker"
        parent = process.parent()
        return f"{name} child" if parent and " worker " in " ".join(parent.cmdline()) else name
    for part, name in ((" beat", "beat"), (" flower", "flower"), ("valkey", "valkey")):
        if part in words:
            return name
    if "ffmpeg" in words:
        camera = _CAMERA.search(words)
        return f"ffmpeg {camera[1]}" if camera else "ffmpeg"
    return process.name()


def _usage(process: psutil.Process, name: str) -> Usage:
    with process.oneshot():
        times, memory = process.cpu_times(), process.memory_info()
        return Usage(
            process.pid,
            name,
            times.user + times.system,
            memory.rss,
            _pss(process),
            process.num_fds(),
            process.num_threads(),
        )


def _pss(process: psutil.Process) -> int | None:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.AccessDenied, AttributeError):
        return None


def cpu_between(before: Mapping[int, Usage], after: Mapping[int, Usage]) -> float:
    """Return the CPU seconds that were used in between, by those who lived to the end of it."""
    return sum(each.cpu - (before[pid].cpu if pid in before else 0.0) for pid, each in after.items())


@dataclass(frozen=True)
class Cpu:
    """CPU seconds: of a worker with all its processes, of the broker, and of this process."""

    worker: float
    broker: float
    own: float


class CpuMeter:
    """Tells what these used since it was made."""

    def __init__(self, worker: psutil.Process, broker_pid: int) -> None:
        self._worker = worker
        self._broker = psutil.Process(broker_pid)
        self._before = self._now()

    def _now(self) -> tuple[Mapping[int, Usage], float, float]:
        return usage_of_tree(self._worker), sum(self._broker.cpu_times()[:2]), time.process_time()

    def used(self) -> Cpu:
        worker, broker, own = self._now()
        tree, broker_before, own_before = self._before
        return Cpu(cpu_between(tree, worker), broker - broker_before, own - own_before)


def total_memory(usages: Iterable[Usage]) -> int:
    """Return the bytes of all together: proportional where that can be read, else resident."""
    return sum(each.rss if each.pss is None else each.pss for each in usages)

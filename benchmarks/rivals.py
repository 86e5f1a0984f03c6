"""What else could send segments: loops of plain httpx, http.client and curl, each in as many processes.

All but one do no more than send a body again and again. "httpx, files" does what anybody must who sends
segments from a directory: it reads each file, sends it, and deletes it when it was confirmed. None of them
hashes, journals, locks, syncs or retries.
"""

import http.client
import multiprocessing
import os
import resource
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

PIECE = 256 * 1024
PATH = "/api/stream/ingest/bare"
HEADERS = {"X-API-Key": "benchmark", "Content-Type": "video/mp2t"}


@dataclass(frozen=True)
class Cost:
    """Segments confirmed, seconds from the first to the last, and CPU seconds of all that sent them."""

    segments: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        return self.segments / self.seconds

    @property
    def cpu_each(self) -> float:
        return self.cpu / self.segments


Sender = Callable[[str, int, int, Path], None]


def send_httpx(url: str, count: int, size: int, _folder: Path) -> None:
    """Send from memory, over one connection."""
    body = os.urandom(size)
    with httpx.Client(trust_env=False, timeout=60.0) as client:
        for _ in range(count):
            _check(client.post(url + PATH, headers=_headers(size), content=_pieces(body)).status_code)


def send_files(url: str, count: int, size: int, folder: Path) -> None:
    """Send and delete files, over one connection."""
    paths = sorted(folder.glob("*.ts"))[:count]
    with httpx.Client(trust_env=False, timeout=60.0) as client:
        for path in paths:
            with path.open("rb", buffering=0) as file:
                pieces = iter(lambda file=file: file.read(PIECE), b"")  # type: ignore[misc]
                _check(client.post(url + PATH, headers=_headers(size), content=pieces).status_code)
            path.unlink()


def send_http_client(url: str, count: int, size: int, _folder: Path) -> None:
    """Send from memory with the standard library, over one connection."""
    body = os.urandom(size)
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60.0)
    for _ in range(count):
        connection.request("POST", PATH, body=body, headers=HEADERS)
        answer = connection.getresponse()
        answer.read()
        _check(answer.status)
    connection.close()


def send_curl(url: str, count: int, size: int, folder: Path) -> None:
    """Send a file again and again with one curl, which keeps its connection, as a shell script would."""
    path = folder / "curl-body"
    path.write_bytes(os.urandom(size))
    headers = [word for name, value in HEADERS.items() for word in ("-H", f"{name}: {value}")]
    one = ["-sS", "-f", *headers, "-H", "Expect:", "--data-binary", f"@{path}", url + PATH]
    command = ["curl"]
    for number in range(count):
        command += (["--next"] if number else []) + one
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


SENDERS: dict[str, Sender] = {
    "httpx": send_httpx,
    "httpx, files": send_files,
    "http.client": send_http_client,
    "curl": send_curl,
}


def race(name: str, url: str, *, count: int, size: int, processes: int, folder: Path) -> Cost:
    """Send `count` segments in all by so many processes at once; making the files does not count."""
    share = count // processes
    folders = [folder / f"bare-{number}" for number in range(processes)]
    for each in folders:
        each.mkdir(exist_ok=True)
        if name == "httpx, files":
            _fill(each, share, size)
    # Spawned: a child that is forked beside threads can inherit a lock that nobody will ever free.
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with context.Pool(processes, initializer=_remember, initargs=(barrier,)) as pool:
        jobs = [pool.apply_async(_run, (name, url, share, size, each)) for each in folders]
        results = [job.get(600) for job in jobs]
    seconds = max(end for _, end, _ in results) - min(begin for begin, _, _ in results)
    return Cost(share * processes, seconds, sum(cpu for _, _, cpu in results))


_barriers = []


def _remember(barrier: object) -> None:
    _barriers.append(barrier)


def _run(name: str, url: str, count: int, size: int, folder: Path) -> tuple[float, float, float]:
    """Return when it began and ended, and the CPU seconds; the first segment only warms up."""
    SENDERS["httpx"](url, 1, 188, folder)
    _barriers[0].wait(60)
    before, began = _cpu(), time.time()
    SENDERS[name](url, count, size, folder)
    return began, time.time(), _cpu() - before


def _cpu() -> float:
    """Return the CPU seconds of this process and of the children that ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))


def _fill(folder: Path, count: int, size: int) -> None:
    content = os.urandom(size)
    for number in range(count):
        (folder / f"{number:08d}.ts").write_bytes(content)


def _headers(size: int) -> dict[str, str]:
    return {**HEADERS, "Content-Length": str(size)}


def _pieces(body: bytes) -> "list[bytes] | object":
    return (body[offset : offset + PIECE] for offset in range(0, len(body), PIECE))


def _check(status: int) -> None:
    if status != httpx.codes.NO_CONTENT:
        raise RuntimeError(f"the ingest answered {status}")

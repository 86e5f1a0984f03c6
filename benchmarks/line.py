"""A line between relay and ingest: a TCP proxy with a limited upstream rate and a round-trip time.

    python -m benchmarks.line --to 127.0.0.1:8080 --rate 20Mbit --rtt 0.02

prints the port it listens on, and ends when its standard input does. A line `shut` there cuts it, and with it
every connection; `open` mends it.

All connections share one upstream. It takes one small piece at a time, connections in turn, so that two
uploads get half each; a piece of n bytes holds it for n / rate seconds. Then the piece travels for half a
round trip. Answers travel back for the other half; their rate is not limited. The first byte of a new
connection waits one round trip more, as it would for the handshake, which the kernel answers here at once.
Bytes count as the application sends them: headers of TCP and IP are free, nothing is lost on the way, and
no connection has to start slowly.
"""

import argparse
import asyncio
import contextlib
import re
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import IO, TypeAlias

from benchmarks.figures import ROOT

PIECE_SECONDS = 0.002  # how long one piece may hold the line
SMALLEST_PIECE, LARGEST_PIECE = 1024, 64 * 1024
PIECES_AHEAD = 4  # read before the line is free for them, so that it is never idle for want of a reader
UNDERWAY_BYTES = 1024 * 1024  # of one connection, beyond what the line holds: a receive window
# What the kernel holds before the line. Left to itself it grows to megabytes: a queue that no router has.
RECEIVE_BYTES = 64 * 1024
_UNITS = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}


def parse_rate(text: str) -> float:
    """Read ``20Mbit``, ``512kbit``, ``0``; return bytes per second, 0 for no limit."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kMG]?)(?:bit)?", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a rate like 20Mbit, or 0 for no limit")
    return float(match[1]) * _UNITS[match[2]] / 8


_Travelling: TypeAlias = "asyncio.Queue[tuple[bytes, float]]"  # with the time of arrival


@dataclass(eq=False)
class _Lane:
    """One connection: its pieces that wait for the line, and what travels forth and back."""

    window: asyncio.Semaphore
    pieces: deque[tuple[bytes, float]] = field(default_factory=deque)  # with the time it was read
    room: asyncio.Event = field(default_factory=asyncio.Event)
    forth: _Travelling = field(default_factory=asyncio.Queue)
    back: _Travelling = field(default_factory=asyncio.Queue)


class Line:
    """The proxy. `rate` in bytes per second, 0 for no limit; `rtt` in seconds."""

    def __init__(self, host: str, port: int, *, rate: float, rtt: float) -> None:
        self._target = host, port
        self._rate = rate
        self._rtt = rtt
        self._piece = LARGEST_PIECE
        if rate:
            self._piece = int(min(LARGEST_PIECE, max(SMALLEST_PIECE, rate * PIECE_SECONDS)))
        self._underway = max(2, int((UNDERWAY_BYTES + rate * rtt) // self._piece))
        self._turns: deque[_Lane] = deque()
        self._connections: set[asyncio.Task[None]] = set()
        self._work = asyncio.Event()
        self._is_shut = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        """Listen on a free port and give it."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)  # accepted ones inherit it
        server = await asyncio.start_server(self._accept, sock=listener, limit=self._piece)
        upstream = asyncio.create_task(self._send())
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in (upstream, *self._connections):
                task.cancel()
            await asyncio.gather(upstream, *self._connections, return_exceptions=True)

    def shut(self) -> None:
        """Cut every connection, and each new one at once."""
        self._is_shut = True
        for task in self._connections:
            task.cancel()
        self._turns.clear()

    def mend(self) -> None:
        """Let connections through again."""
        self._is_shut = False

    async def _send(self) -> None:
        """Be the upstream: one piece at a time, for as long as it takes.

        Time is reckoned, not measured: a piece begins when the one before ended if it was waiting by then.
        A loop that wakes up late makes up for it at once, and the rate stays exact.
        """
        free_at = 0.0
        while True:
            while not self._turns:
                self._work.clear()
                await self._work.wait()
            lane = self._turns.popleft()
            data, read_at = lane.pieces.popleft()
            lane.room.set()
            if lane.pieces:
                self._turns.append(lane)
            free_at = max(free_at, read_at) + (len(data) / self._rate if self._rate else 0.0)
            await _until(free_at)
            lane.forth.put_nowait((data, free_at + self._rtt / 2))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_shut:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted_at = _now()
        try:
            back, forth = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        lane = _Lane(asyncio.Semaphore(self._underway))
        tasks = [
            asyncio.create_task(each)
            for each in (
                self._read(reader, lane, accepted_at + self._rtt),
                self._deliver(lane.forth, forth, lane),
                self._hear(back, lane),
                self._deliver(lane.back, writer, lane),
            )
        ]
        try:
            await asyncio.gather(*tasks)
        except OSError:  # one end is gone: so is the other
            writer.transport.abort()
            forth.transport.abort()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            writer.close()
            forth.close()

    async def _read(self, reader: asyncio.StreamReader, lane: _Lane, open_at: float) -> None:
        await _until(open_at)
        while True:
            await lane.window.acquire()
            data = await reader.read(self._piece)
            while len(lane.pieces) >= PIECES_AHEAD:
                lane.room.clear()
                await lane.room.wait()
            lane.pieces.append((data, _now()))
            if len(lane.pieces) == 1:
                self._turns.append(lane)
                self._work.set()
            if not data:
                return

    async def _deliver(self, travelling: _Travelling, writer: asyncio.StreamWriter, lane: _Lane) -> None:
        """Hand over what has arrived, until the end of it has."""
        while True:
            data, at = await travelling.get()
            await _until(at)
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
            if travelling is lane.forth:
                lane.window.release()

    async def _hear(self, reader: asyncio.StreamReader, lane: _Lane) -> None:
        data = b"-"
        while data:
            data = await reader.read(LARGEST_PIECE)
            lane.back.put_nowait((data, _now() + self._rtt / 2))


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _until(moment: float) -> None:
    """Sleep until a time of the loop's clock; no time at all if it has passed, and others get no turn."""
    if (wait := moment - _now()) > 0:
        await asyncio.sleep(wait)


class RunningLine:
    """A line that is a process of its own, as its parent sees it."""

    def __init__(self, port: int, orders: IO[str]) -> None:
        self.port = port
        self._orders = orders

    def shut(self) -> None:
        self._order("shut")

    def mend(self) -> None:
        self._order("open")

    def _order(self, word: str) -> None:
        self._orders.write(f"{word}\n")
        self._orders.flush()


@contextmanager
def running_line(port: int, *, rate: float, rtt: float) -> Iterator[RunningLine]:
    """Run a line to a port of this machine as a process of its own."""
    command = [sys.executable, "-m", "benchmarks.line", "--to", f"127.0.0.1:{port}"]
    command += ["--rate", f"{rate * 8:.0f}", "--rtt", str(rtt)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None  # noqa: S101 - for the type checker
        assert process.stdout is not None  # noqa: S101
        try:
            yield RunningLine(int(process.stdout.readline()), process.stdin)
        finally:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()


@contextmanager
def line_process(port: int, *, rate: float, rtt: float) -> Iterator[int]:
    """Run a line, and give the port it listens on."""
    with running_line(port, rate=rate, rtt=rtt) as line:
        yield line.port


async def _run(options: argparse.Namespace) -> None:
    host, _, port = options.to.rpartition(":")
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    line = Line(host, int(port), rate=options.rate, rtt=options.rtt)

    def obey() -> None:
        orders = {"shut": line.shut, "open": line.mend}
        for word in sys.stdin:
            loop.call_soon_threadsafe(orders[word.strip()])
        loop.call_soon_threadsafe(over.set)

    async with line.open() as listening:
        print(listening, flush=True)
        threading.Thread(target=obey, daemon=True).start()
        await over.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--to", required=True, metavar="HOST:PORT", help="where the ingest listens")
    parser.add_argument("--rate", type=parse_rate, default=0.0, help="upstream, like 20Mbit; 0 = no limit")
    parser.add_argument("--rtt", type=float, default=0.0, help="round-trip time in seconds")
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()

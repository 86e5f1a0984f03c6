"""What a line and an ingest can do without the relay: uploads by plain httpx, one process per connection."""

import multiprocessing
import os
import secrets
import time
from collections.abc import Iterator

import httpx

PIECE = 256 * 1024


def bare_rate(url: str, token: str, *, size: int, connections: int, seconds: float) -> float:
    """Return the bytes per second of uploads of `size` bytes one after the other on each connection.

    Each connection has a process of its own, like the children of a worker, so that nothing but the line
    and the ingest holds them up. What was sent before all of them had begun does not count.
    """
    # Spawned: a child that is forked beside threads can inherit a lock that nobody will ever free.
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(connections)
    with context.Pool(connections, initializer=_remember, initargs=(barrier,)) as pool:
        jobs = [pool.apply_async(_upload, (url, token, size, seconds)) for _ in range(connections)]
        results = [job.get(seconds + 60) for job in jobs]
    began, ended = min(result[0] for result in results), max(result[1] for result in results)
    return sum(result[2] for result in results) / (ended - began)


_barriers = []


def _remember(barrier: object) -> None:
    _barriers.append(barrier)


def _upload(url: str, token: str, size: int, seconds: float) -> tuple[float, float, int]:
    """Return when it began and ended, and the bytes that were confirmed."""
    session = f"bare-{secrets.token_hex(6)}"
    body, sent, sequence = os.urandom(size), 0, 0
    with httpx.Client(trust_env=False, timeout=60.0) as client:
        client.post(
            f"{url}/api/stream/ingest/bare", headers=_headers(token, session, 1, 188), content=bytes(188)
        )
        _barriers[0].wait(60)
        began = time.time()
        while time.time() - began < seconds:
            sequence += 1
            answer = client.post(
                f"{url}/api/stream/ingest/bare",
                headers=_headers(token, session, sequence + 1, size),
                content=_pieces(body),
            )
            if answer.status_code != httpx.codes.NO_CONTENT:
                raise RuntimeError(f"the ingest answered {answer.status_code}: {answer.text[:200]}")
            sent += size
        return began, time.time(), sent


def _headers(token: str, session: str, sequence: int, size: int) -> dict[str, str]:
    return {
        "X-API-Key": token,
        "Content-Type": "video/mp2t",
        "Content-Length": str(size),
        "Idempotency-Key": f"{session}/{sequence}",
    }


def _pieces(body: bytes) -> Iterator[bytes]:
    for offset in range(0, len(body), PIECE):
        yield body[offset : offset + PIECE]

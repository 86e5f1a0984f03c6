"""Looks at the disk on behalf of the page: in threads of their own, and no more often than is fair."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

import structlog

BUSY_SHARE: Final = 10  # a look that took one second is not repeated for ten
PATIENCE_SECONDS: Final = 8.0  # how long an answer waits for a first look, or for a picture
STALE_SECONDS: Final = 30.0

_T = TypeVar("_T")

log = structlog.get_logger()


class Worker:
    """A daemon thread that runs one call after the other: never waited for when the process ends."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._started = False

    def run(self, call: Callable[[], _T]) -> "asyncio.Future[_T]":
        """Have it called in the thread; for the server's event loop, which gets the result."""
        if not self._started:
            self._started = True
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        self._calls.put(lambda: _run_into(future, loop, call))
        return future

    def close(self) -> None:
        self._calls.put(None)

    def _main(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def _run_into(future: "asyncio.Future[_T]", loop: asyncio.AbstractEventLoop, call: Callable[[], _T]) -> None:
    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # there is one where there is no error

    try:
        outcome: tuple[_T | None, BaseException | None] = (call(), None)
    except Exception as error:  # noqa: BLE001 - raised where it is awaited
        outcome = (None, error)
    with suppress(RuntimeError):  # the server has ended meanwhile
        loop.call_soon_threadsafe(settle, *outcome)


class Glance(Generic[_T]):
    """A look at something, repeated only when somebody asks, and not more often than is fair."""

    def __init__(self, worker: Worker, look: Callable[[], _T], *, fresh: float) -> None:
        self._worker = worker
        self._look = look
        self._fresh = fresh
        self._found: _T | None = None
        self._again_at = 0.0  # monotonic seconds
        self._stale_at = 0.0
        self._running: asyncio.Future[_T] | None = None
        self._is_failing = False

    async def get(self) -> _T | None:
        """Return what there is, and have a newer look begun if it is time; wait only for the first.

        None when the first takes too long.
        """
        if self._running is None and time.monotonic() >= self._again_at:
            self._running = self._worker.run(self._timed)
            self._running.add_done_callback(self._keep)
        if self._running is not None and (self._found is None or time.monotonic() >= self._stale_at):
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await asyncio.shield(self._running)
        return self._found

    def _timed(self) -> _T:
        begun = time.monotonic()
        try:
            return self._look()
        finally:
            ended = time.monotonic()
            self._again_at = ended + max(self._fresh, BUSY_SHARE * (ended - begun))
            self._stale_at = self._again_at + STALE_SECONDS

    def _keep(self, done: "asyncio.Future[_T]") -> None:
        self._running = None
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            self._found = done.result()
        elif not self._is_failing:  # whoever waited for it gets it too; nobody may have
            log.error("web_look_failed", exc_info=error)
        self._is_failing = error is not None

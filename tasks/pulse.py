"""Proof that a worker's main process lives and takes messages.

While its loop turns, a file is rewritten every few seconds, so that `up` or a health check sees a process
that hangs. Whether it still takes messages it has to see for itself: after a reconnection a worker can be
alive, connected and deaf. Then it ends, and whoever supervises it starts another; what it had in hand is in
the spool.
"""

import os
from functools import partial
from typing import Any

import structlog
from celery import Celery, bootsteps
from celery.worker import state as worker_state

from capture.broker import fresh_client
from capture.liveness import Liveness
from capture.pulse import PULSE_SECONDS, STUCK_SECONDS, pulse_directory
from capture.settings import Settings
from capture.spool import STATE
from tasks.memory import Memory

DEAF_SECONDS = STUCK_SECONDS
EXIT_DEAF = 70
ASK_SECONDS = 1.0

log = structlog.get_logger()


class Hearing:
    """Tells when a worker is deaf: messages wait, it has room for one, and it takes none."""

    def __init__(self) -> None:
        self._silent = 0.0
        self._taken = -1

    def look(self, *, waiting: int, room: int, taken: int, seconds: float) -> bool:
        """Note how things stand `seconds` after the last look; tell whether it is deaf."""
        if waiting and room > 0 and taken == self._taken:
            self._silent += seconds
        else:
            self._silent = 0.0
        self._taken = taken
        return self._silent >= DEAF_SECONDS


class WorkerPulse(bootsteps.StartStopStep):
    """A step of the worker's main process: a timer in its own loop, so that it stops when that stops."""

    requires = ("celery.worker.components:Pool",)
    settings: Settings  # given by `install`

    def __init__(self, worker: Any, **_: Any) -> None:  # noqa: ANN401 - Celery's signature
        super().__init__(worker)
        self._alive = Liveness(pulse_directory(self.settings.spool.path / STATE), "worker")
        self._hearing = Hearing()
        # Connections of its own: children that are forked later must not share them.
        url = self.settings.broker.url.get_secret_value()
        self._memory = Memory(worker.app, "", partial(fresh_client, url, timeout=ASK_SECONDS))
        worker.pulse = self._alive.beat
        worker.taken = 0  # messages so far; the consumer counts, also what it refuses

    def start(self, worker: Any) -> None:  # noqa: ANN401
        self._alive.watch()
        self._turn(worker)
        worker.timer.call_repeatedly(PULSE_SECONDS, self._turn, (worker,))

    def stop(self, worker: Any) -> None:  # noqa: ANN401
        del worker
        self._alive.end()

    def _turn(self, worker: Any) -> None:  # noqa: ANN401
        self._alive.beat()
        queues = [str(name) for name in worker.app.amqp.queues.consume_from]
        slots = worker.pool.num_processes
        waiting = self._memory.announce(f"{worker.hostname}/{os.getpid()}", slots, queues)
        self._alive.beat()  # looking up the broker's name may have taken its time
        if _is_ending():
            return  # it takes nothing on purpose
        room = slots - len(worker_state.reserved_requests)
        if self._hearing.look(waiting=waiting, room=room, taken=worker.taken, seconds=PULSE_SECONDS):
            log.error("worker_deaf", waiting=waiting, seconds=DEAF_SECONDS, then="it ends")
            os._exit(EXIT_DEAF)


def _is_ending() -> bool:
    """Tell whether the worker was asked to end; Celery notes the exit code, which may be 0."""
    asked: list[Any] = [worker_state.should_stop, worker_state.should_terminate]
    return any(code is not None and code is not False for code in asked)


def install(app: Celery, settings: Settings) -> None:
    """Give every worker of an app a pulse."""
    WorkerPulse.settings = settings
    app.steps["worker"].add(WorkerPulse)

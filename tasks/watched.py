"""Task events and heartbeats are sent only while somebody watches.

Flower asks all workers for events every five seconds, and never says that it has gone; Celery would send them
from the first such request to the worker's end, at close to half of its throughput. With the flags that spare
an unwatched worker its messages Celery has no events to give at all, and Flower stays empty. Here they begin
with the first request, and end a minute after the last.
"""

import time
from typing import Any

import structlog
from celery import Celery, bootsteps
from celery.worker.consumer.events import Events
from celery.worker.consumer.heart import Heart
from celery.worker.control import Panel

UNWATCHED_SECONDS = 60.0
LOOK_SECONDS = 10.0
TASKS = "task"

log = structlog.get_logger()


class Watched(bootsteps.StartStopStep):
    """A step of the consumer: switches its events on when asked for, and off when that has been long ago."""

    requires = (Events, Heart)

    def __init__(self, consumer: Any, **options: Any) -> None:  # noqa: ANN401 - Celery's signature
        super().__init__(consumer, **options)
        consumer.watched = self
        self._asked_at = float("-inf")
        self._is_told = False
        self._timer: Any = None

    def start(self, consumer: Any) -> None:  # noqa: ANN401
        """Begin quietly, unless somebody watched just now, or the worker was started with ``-E``."""
        if not consumer.event_dispatcher.groups:
            return
        if not self._is_told:
            self._quiet(consumer)
        self._timer = consumer.timer.call_repeatedly(LOOK_SECONDS, self._look, (consumer,))

    def stop(self, consumer: Any) -> None:  # noqa: ANN401
        del consumer
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def info(self, consumer: Any) -> Any:  # noqa: ANN401
        """Tell what `inspect stats` shows of the broker; Celery's own shows a socket with its password."""
        if consumer.connection is None:
            return {}
        found = {**consumer.connection.info(), "hostname": consumer.connection.as_uri()}
        found.pop("password", None)
        return {"broker": found}

    def asked(self, consumer: Any) -> None:  # noqa: ANN401
        """Send events: somebody watches, and has to ask again within a minute."""
        self._asked_at = time.monotonic()
        if self._is_told or not consumer.event_dispatcher.groups:
            return
        self._is_told = True
        consumer.event_dispatcher.groups.add(TASKS)
        consumer.heart.start()
        log.info("events_sent", reason="somebody watches the workers")

    def _look(self, consumer: Any) -> None:  # noqa: ANN401
        if self._is_told and time.monotonic() - self._asked_at >= UNWATCHED_SECONDS:
            self._is_told = False
            self._quiet(consumer)
            log.info("events_ended", reason="nobody watches the workers any more")

    def _quiet(self, consumer: Any) -> None:  # noqa: ANN401
        # Not the dispatcher itself: Celery looks once, at the start, whether it is on.
        consumer.event_dispatcher.groups.discard(TASKS)
        consumer.heart.stop()


def enable_events(state: Any) -> Any:  # noqa: ANN401 - Celery's signature
    """Answer Flower's request for events in the place of Celery's own command."""
    consumer = state.consumer
    if consumer.event_dispatcher is None or consumer.heart is None:
        return {"error": "not ready"}
    consumer.watched.asked(consumer)
    return {"ok": "task events enabled"}


def install(app: Celery) -> None:
    """Give the workers of this app the step and the command."""
    app.steps["consumer"].add(Watched)
    Panel.data["enable_events"] = enable_events

"""The worker's consumer, which lives through any message and takes none but ours.

Celery's own ends the worker's main process on a body with two parts, a task name that is a list, or a
message without an id; the message goes back to the queue, and ends the next one. It also logs a dozen lines
with body and traceback for each message that it cannot use. Here such a message is thrown away: whatever it
was about is in the spool, and recover finds it.

tests/acceptance/test_hostile.py sends them all.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from celery import Celery
from celery.worker.consumer import Consumer

from capture.handoff import END_SESSION, RECOVER, REGISTER_CAMERA, SWEEP, UPLOAD_BATCH, UPLOAD_SEGMENT
from tasks.metrics import metering
from tasks.seldom import ADVICE, seldom

OURS = frozenset({UPLOAD_SEGMENT, UPLOAD_BATCH, REGISTER_CAMERA, END_SESSION, RECOVER, SWEEP})
LONGEST_LIMIT = 7 * 24 * 3600.0  # seconds
LATEST_ETA = timedelta(minutes=10)  # our own retries wait a minute at most
EARLIEST_ETA = timedelta(days=365)  # and may lie in the broker for as long as no worker runs
MOST_RETRIES = 1000
RECONNECT_SECONDS = 5  # Celery's own wait grows to half a minute
_MOST_HEADERS = 16 * 1024  # characters


def fault_of(message: Any, app: Celery) -> str | None:  # noqa: ANN401 - kombu's
    """Return what is wrong with a message for one of our tasks; None if Celery may have it.

    Celery believes headers: limits that are texts end the worker, negative ones its child, a far ETA keeps a
    place for ever, and callbacks are published as they stand.
    """
    headers = message.headers
    if not isinstance(headers, dict) or not isinstance(headers.get("task"), str):
        return "it is no task message"
    if headers["task"] not in OURS:
        return "this version knows no such task"
    strange = any(headers.get(key) for key in ("shadow", "stamped_headers", "stamps", "group"))
    if strange or not isinstance(headers.get("id"), str) or len(repr(headers)) > _MOST_HEADERS:
        return "its headers are not ours"
    if not (_are_limits(headers.get("timelimit")) and _is_count(headers.get("retries"))):
        return "its limits or retries are not ours"
    if not (_is_near(headers.get("eta")) and _is_time(headers.get("expires"))):
        return "its times are not ours"
    return _fault_of_body(message.payload, app.tasks[headers["task"]])


def _fault_of_body(body: object, task: Any) -> str | None:  # noqa: ANN401 - Celery's
    match body:
        case [list() as args, dict() as kwargs, embed] if all(isinstance(key, str) for key in kwargs):
            if embed and (not isinstance(embed, dict) or any(embed.values())):
                return "it brings other messages along"
        case _:
            return "its body is not ours"
    try:
        task.__header__(*args, **kwargs)
    except TypeError:
        return "its arguments do not fit the task"
    return None


def _are_limits(limits: object) -> bool:
    if limits is None:
        return True
    return (
        isinstance(limits, list | tuple)
        and len(limits) == 2  # noqa: PLR2004 - hard and soft
        and all(each is None or (_is_number(each) and 0 < each <= LONGEST_LIMIT) for each in limits)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and 0 <= value <= MOST_RETRIES)


def _moment(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC) if moment else None


def _is_time(value: object) -> bool:
    return value is None or _moment(value) is not None


def _is_near(value: object) -> bool:
    moment = _moment(value)
    if value is None or moment is None:
        return value is None
    return -EARLIEST_ETA < moment - datetime.now(UTC) < LATEST_ETA


class RelayConsumer(Consumer):
    """Celery's consumer; it refuses what is not ours with one line, and waits for the broker with a pulse."""

    controller: Any  # the worker

    def __init__(self, *args: Any, worker_options: Any = None, **options: Any) -> None:  # noqa: ANN401 - Celery's
        """Have events to give whatever the worker's flags say: `tasks.watched` sends them when asked."""
        options["worker_options"] = {**(worker_options or {}), "without_heartbeat": False}
        super().__init__(*args, **options)

    def ensure_connected(self, conn: Any) -> Any:  # noqa: ANN401 - Celery's signature
        """Wait for the broker as long as it takes, and show the worker's pulse meanwhile."""
        conn.ensure_connection = partial(self._ensure, conn.ensure_connection)
        return super().ensure_connected(conn)

    def _ensure(
        self,
        ensure: Callable[..., Any],
        *args: Any,  # noqa: ANN401
        callback: Callable[[], None],
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        def alive() -> None:
            self.controller.pulse()
            callback()

        return ensure(*args, callback=alive, interval_max=RECONNECT_SECONDS, **options)

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], object]:  # noqa: ANN401 - Celery's
        """Return what is called with each message."""
        handle = super().create_task_handler(*args, **options)

        def guarded(message: Any) -> object:  # noqa: ANN401 - kombu's
            self.controller.taken += 1
            try:
                fault = fault_of(message, self.app)
            except Exception:  # noqa: BLE001 - a stranger's message: its traceback tells nothing of ours
                fault = "it cannot be decoded"
            if fault is None:
                return handle(message)
            self._refuse(message, fault)
            return None

        return guarded

    def on_decode_error(self, message: Any, _exc: Exception) -> None:  # noqa: ANN401 - Celery's
        self._refuse(message, "it cannot be decoded")

    def _refuse(self, message: Any, reason: str) -> None:  # noqa: ANN401 - kombu's
        seldom("message_refused", reason=reason, advice=ADVICE)
        metering.meter().message_refused()
        if not message.acknowledged:
            message.ack()

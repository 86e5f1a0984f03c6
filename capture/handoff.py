"""The handoff to Celery: task names, queues, limits, and a publisher that never holds up a camera.

The only import of Celery in `capture`. A message is a hint: when the broker is slow, full or gone, hints
are dropped, and `recover` finds the segment in the spool.
"""

import contextlib
import errno
import importlib
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from capture.broker import plain_client
from capture.outcome import attempt_seconds
from capture.segment import SegmentName, SessionName
from capture.settings import IngestSettings, Settings

UPLOAD_SEGMENT = "tasks.upload.upload_segment"
UPLOAD_BATCH = "tasks.upload.upload_batch"
REGISTER_CAMERA = "tasks.register.register_camera"
END_SESSION = "tasks.register.end_session"
RECOVER = "tasks.recover.recover"
SWEEP = "tasks.sweep.sweep"

LIVE = "live"
BACKLOG = "backlog"

# The attempt watches its own deadline; Celery's soft limit stands behind it, the hard one behind that.
SOFT_SLACK = 2.0
HARD_SLACK = 10.0
_MOST_WAITING = 10_000

log = structlog.get_logger()


@dataclass(frozen=True)
class Message:
    """One message to publish."""

    task: str
    args: Sequence[Any]
    queue: str = LIVE
    options: dict[str, Any] = field(default_factory=dict)


def time_limits(seconds: float) -> dict[str, Any]:
    """Return Celery's limits for a message whose attempts may take `seconds` in all."""
    return {
        "soft_time_limit": seconds + SOFT_SLACK,
        "time_limit": seconds + SOFT_SLACK + HARD_SLACK,
    }


def upload_message(
    ingest: IngestSettings, session: SessionName, segment: SegmentName, size: int, queue: str = LIVE
) -> Message:
    """Return the message for one segment of `size` bytes."""
    options = time_limits(attempt_seconds(ingest, size))
    # What Flower shows: its column is narrow, and the names themselves begin alike.
    options["argsrepr"] = f"{session.camera} {segment} in {session}"
    return Message(UPLOAD_SEGMENT, (str(session), str(segment)), queue, options)


def publisher_app(settings: Settings) -> Celery:
    """Return a Celery app that fails within half a second instead of waiting for a broker."""
    app = Celery("relay-capture-agent", set_as_current=False)
    configure(app, settings, socket_timeout=0.5, socket_connect_timeout=0.3, max_retries=0)
    app.conf.update(broker_connection_timeout=0.5, task_publish_retry=False)
    return app


def configure(app: Celery, settings: Settings, **transport: float) -> None:
    """Give an app celeryconfig.py and the broker of the settings: every participant, the same way."""
    _keep_clients()
    # The module, not its name: Celery would look for that where the operator stands, and find another's.
    app.config_from_object(importlib.import_module("celeryconfig"))
    prefix = settings.broker.key_prefix
    app.conf.update(
        broker_url=settings.broker.url.get_secret_value(),
        broker_transport_options={
            **app.conf.broker_transport_options,
            **({"global_keyprefix": prefix} if prefix else {}),
            **transport,
        },
    )


def _keep_clients() -> None:
    """Have a channel of kombu keep its Redis client; it makes two for each message that it hands out.

    Such a client has no connection of its own, only the way to the channel's pool. Making one takes a quarter
    of the time of publishing.
    """
    from kombu.transport.redis import Channel  # noqa: PLC0415  heavy, and not every command publishes

    make = getattr(Channel, "_create_client", None)  # kombu offers no other place
    if make is None or hasattr(make, "_relay_keeps"):
        return

    def kept(self: Any, asynchronous: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002 - kombu's signature
        if asynchronous:
            return make(self, asynchronous=True)
        found = vars(self).get("_relay_client")
        # After a lost connection it has another pool.
        if found is None or found.connection_pool is not self.pool:
            found = self._relay_client = make(self)
        return found

    kept._relay_keeps = True  # type: ignore[attr-defined] # noqa: SLF001 - our own mark
    Channel._create_client = kept  # type: ignore[attr-defined] # noqa: SLF001


class Publisher:
    """Publishes from a thread of its own. `send` never blocks and never raises."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._waiting: queue.Queue[Message | None] = queue.Queue(maxsize=_MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._reachable = True
        self.published = 0
        self.dropped = 0

    def start(self) -> None:
        self._thread.start()

    def send(self, message: Message) -> None:
        """Queue a message; drop it when thousands wait already, for the spool knows it anyway."""
        try:
            self._waiting.put_nowait(message)
        except queue.Full:
            self.dropped += 1

    def close(self, timeout: float) -> None:
        """Publish what waits, for at most `timeout` seconds."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (message := self._waiting.get()) is not None:
            try:
                self._publish(message)
            except Exception:
                self.dropped += 1
                log.exception("publish_failed", task=message.task)

    def _publish(self, message: Message) -> None:
        try:
            publish(self._app, message)
        except (OperationalError, OSError) as error:
            self.dropped += 1
            if self._reachable:
                self._reachable = False
                log.warning("broker_unreachable", reason=type(error).__name__, then="recover sends it later")
        else:
            self.published += 1
            if not self._reachable:
                self._reachable = True
                log.info("broker_reachable")


def publish(app: Celery, message: Message) -> None:
    """Publish one message. Raises kombu's OperationalError when the broker cannot take it."""
    # It goes to the queue by its name, so nothing needs to be declared, which takes an eighth of this.
    app.send_task(message.task, args=list(message.args), queue=message.queue, declare=[], **message.options)


def hint(app: Celery, message: Message) -> None:
    """Publish a message that only makes something happen sooner; a broker that is away loses just that."""
    try:
        publish(app, message)
    except (OperationalError, OSError) as error:
        log.debug("hint_lost", task=message.task, reason=type(error).__name__)


@contextlib.contextmanager
def broker_client(app: Celery) -> Iterator[Any]:
    """Give a Redis client that shares the app's connections. Raises OSError when the broker is away."""
    try:
        with app.pool.acquire(block=True) as connection:
            channel: Any = connection.default_channel  # type: ignore[attr-defined] # a connection, not a producer
            pool = channel.client.connection_pool
            with plain_client(pool) as client:
                yield client
    except OperationalError as error:
        raise OSError(errno.EHOSTDOWN, f"the broker does not serve us: {type(error).__name__}") from error


def key_prefix(app: Celery) -> str:
    """Return what stands before all of the app's keys on a shared server."""
    return str(app.conf.broker_transport_options.get("global_keyprefix", ""))


def publish_once(settings: Settings, message: Message) -> str | None:
    """Publish one message from a command; return what kept it from the broker, if anything did."""
    try:
        with publisher_app(settings) as app:
            publish(app, message)
    except (OperationalError, OSError) as error:
        return type(error).__name__
    return None

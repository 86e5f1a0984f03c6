"""Guards around kombu 5.7's Redis transport, which takes its worker down with it.

When the broker dies while a worker holds an unacknowledged message and has room for more, the consumer
closes its channel twice; the second close tries to give messages back through a transport whose client
is gone, and the ``AttributeError`` ends the worker's main process. Nothing is given back here: the broker
does that by itself when the visibility timeout has passed, and `recover` does not need it.

The same happens to a task that ends just then, and acknowledges its message through a closed channel. Where
the channel is not closed yet, but its connection is dead, kombu counts the message as in hand for ever. With
as many of them as there are children it waits for one to be free, does not look at its dead connection
meanwhile, and is deaf. Here such a message is in hand no more. The broker gives it to somebody again when its
visibility timeout has passed, who finds that there is nothing left to do, or does it.

tests/acceptance/test_broker_loss.py kills the broker under a long task; drop this when it passes without.

An entry of a queue that is no envelope ends the worker as well: it is taken for one before anybody can look
at it. Here it is thrown away. tests/acceptance/test_hostile.py sends such.
"""

import base64
from typing import Any

import structlog
from kombu.transport import redis, virtual
from kombu.transport.redis import Channel, QoS, Transport

from tasks.seldom import ADVICE, seldom

log = structlog.get_logger()


def install() -> None:
    """Wrap what needs it, once."""
    if getattr(Channel.close, "_relay_guard", False):
        return
    _guard_close()
    _guard_delivery()
    _guard_confirmation("ack")
    _guard_confirmation("reject")


def _guard_delivery() -> None:
    loads = vars(redis)["loads"]
    deliver = Transport._deliver  # noqa: SLF001 - kombu offers no other place

    def tolerant(text: str) -> object:
        try:
            return loads(text)
        except (ValueError, RecursionError):
            return None

    def guarded(self: Any, message: Any, queue: str | None) -> None:  # noqa: ANN401 - kombu has no types
        if _is_envelope(message):
            deliver(self, message, queue)
        else:
            seldom("message_refused", reason="it is no message", advice=ADVICE)

    vars(redis)["loads"] = tolerant
    Transport._deliver = guarded  # type: ignore[method-assign] # noqa: SLF001


def _is_envelope(message: Any) -> bool:  # noqa: ANN401 - whatever stood in the queue
    """Tell whether kombu can make a message of it."""
    try:
        properties = message["properties"]
        info = properties["delivery_info"]
        texts = [properties["delivery_tag"], info["exchange"], info["routing_key"]]
        texts += [message["content-type"], message["content-encoding"]]
        base64.b64decode(message["body"])
    except (KeyError, TypeError, ValueError):
        return False
    return (
        all(isinstance(text, str) for text in texts)
        and isinstance(message.get("headers"), dict)
        and properties.get("body_encoding") == "base64"
    )


def _guard_close() -> None:
    close = Channel.close

    def guarded(self: Any) -> None:  # noqa: ANN401 - kombu has no types
        try:
            close(self)
        except AttributeError:
            if not _is_gone(self):
                raise
            self.closed = True

    guarded._relay_guard = True  # type: ignore[attr-defined] # noqa: SLF001 - our own mark
    Channel.close = guarded  # type: ignore[method-assign]


def _guard_confirmation(name: str) -> None:
    confirm = getattr(QoS, name)

    def guarded(self: Any, delivery_tag: str, *args: Any, **options: Any) -> None:  # noqa: ANN401 - kombu has no types
        try:
            confirm(self, delivery_tag, *args, **options)
        except AttributeError:
            if not _is_gone(self.channel):
                raise
        except self.channel.connection_errors as error:
            virtual.QoS.ack(self, delivery_tag)
            log.warning("message_not_acknowledged", reason=type(error).__name__, then="it comes again")

    setattr(QoS, name, guarded)


def _is_gone(channel: Any) -> bool:  # noqa: ANN401 - kombu has no types
    """Tell whether the connection below a channel was given up."""
    return getattr(channel.connection, "client", None) is None

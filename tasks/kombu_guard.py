"""A guard around kombu 5.7's Redis channel, which takes its worker down when the broker goes away.

When the broker dies while a worker holds an unacknowledged message and has room for more, the consumer
closes its channel twice; the second close tries to give messages back through a transport whose client
is gone, and the ``AttributeError`` ends the worker's main process. Nothing is given back here: the broker
does that by itself when the visibility timeout has passed, and `recover` does not need it.

tests/acceptance/test_broker_loss.py kills the broker under a long task; drop this when it passes without.
"""

from typing import Any

from kombu.transport.redis import Channel


def install() -> None:
    """Wrap ``Channel.close``, once."""
    if getattr(Channel.close, "_relay_guard", False):
        return
    close = Channel.close

    def guarded(self: Any) -> None:  # noqa: ANN401 - kombu has no types
        try:
            close(self)
        except AttributeError:
            if getattr(self.connection, "client", None) is not None:
                raise
            self.closed = True

    guarded._relay_guard = True  # type: ignore[attr-defined] # noqa: SLF001 - our own mark
    Channel.close = guarded  # type: ignore[method-assign]

"""What ends just when the broker goes must not end the worker."""

from types import SimpleNamespace

import pytest
from kombu.transport.redis import Channel, QoS

import tasks  # noqa: F401 - it installs the guards


def qos(*, client) -> QoS:
    """Return the bookkeeping of a channel whose connection has this client."""
    channel = Channel.__new__(Channel)
    channel.connection = SimpleNamespace(client=client)
    found = QoS.__new__(QoS)
    found.channel = channel
    return found


def test_a_message_is_acknowledged_in_vain_when_its_connection_is_gone():
    assert qos(client=None).ack("tag") is None


def test_another_fault_in_it_is_not_hidden():
    with pytest.raises(AttributeError):
        qos(client=SimpleNamespace()).ack("tag")

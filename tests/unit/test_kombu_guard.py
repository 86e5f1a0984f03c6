"""What ends just when the broker goes must not end the worker."""

from types import SimpleNamespace

import pytest
import redis
from kombu.transport import virtual
from kombu.transport.redis import Channel, QoS

import tasks  # noqa: F401 - it installs the guards
from capture.broker import plain_client


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


@pytest.mark.parametrize("confirm", [QoS.ack, QoS.reject, lambda qos, tag: qos.reject(tag, requeue=True)])
def test_a_message_that_cannot_be_confirmed_is_not_in_hand_any_more(monkeypatch, confirm):
    def refused(*_, **__):
        raise redis.AuthenticationError("invalid username-password pair")

    monkeypatch.setattr(QoS, "_remove_from_indices", refused)
    monkeypatch.setattr(QoS, "restore_by_tag", refused)
    found = qos(client=SimpleNamespace())
    found.channel.connection_errors = (redis.ConnectionError,)
    virtual.QoS.__init__(found, found.channel, prefetch_count=1)
    virtual.QoS.append(found, "a message", "tag")
    assert not found.can_consume()
    confirm(found, "tag")
    assert found.can_consume()


def test_a_channel_keeps_its_client_as_long_as_its_connections():
    channel = Channel.__new__(Channel)
    channel.Client = redis.Redis
    channel._pool = redis.ConnectionPool()
    first = channel._create_client()
    assert channel._create_client() is first
    channel._pool = redis.ConnectionPool()
    again = channel._create_client()
    assert again is not first
    assert again.connection_pool is channel._pool


def test_other_channels_have_clients_of_their_own():
    pool, found = redis.ConnectionPool(), []
    for _ in range(2):
        channel = Channel.__new__(Channel)
        channel.Client, channel._pool = redis.Redis, pool
        found.append(channel._create_client())
    assert found[0] is not found[1]


def test_a_pool_keeps_the_client_that_asks_without_a_prefix():
    pool = redis.ConnectionPool()
    with plain_client(pool) as first, plain_client(pool) as again:
        assert first is again
    with plain_client(redis.ConnectionPool()) as other:
        assert other is not first

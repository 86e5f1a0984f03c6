"""What a clock that is set back does to the order of sessions."""

from capture.upkeep import superseded
from tests.conftest import start_session


def test_a_session_of_a_clock_that_was_ahead_does_not_end_the_stream_of_the_running_one(spool, clock):
    spool.clock = clock
    clock.step(3600)
    with start_session(spool) as ahead:
        ahead.end()
    clock.step(-3600)
    with start_session(spool) as running:
        assert superseded(spool, ahead.name)
    assert not superseded(spool, ahead.name)  # that one's agent is gone: nobody would be cut off
    running.end()


def test_a_session_without_another_one_is_not_superseded(spool):
    with start_session(spool) as only:
        only.end()
    assert not superseded(spool, only.name)

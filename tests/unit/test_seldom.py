"""What strangers can cause is told once in a while."""

from structlog.testing import capture_logs

from tasks.seldom import Seldom


def test_the_same_is_said_once_a_minute_and_then_with_its_count(clock):
    seldom = Seldom(60.0, clock.monotonic)
    with capture_logs() as said:
        for _ in range(1000):
            seldom("message_refused", reason="it cannot be decoded")
        seldom("message_refused", reason="it is no message")
        clock.step(61)
        seldom("message_refused", reason="it cannot be decoded")
    assert [(line["reason"], line.get("more_since_last")) for line in said] == [
        ("it cannot be decoded", None),
        ("it is no message", None),
        ("it cannot be decoded", 999),
    ]

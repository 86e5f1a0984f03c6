"""`--on-refused hold`: a token is revoked for a while; nothing is lost, and the new one is used at once."""

import signal
import time
from contextlib import contextmanager

import pytest

from capture.sink import Sink, verify
from tests.acceptance.conftest import TOKEN
from tests.acceptance.test_audit import audit

NEW_TOKEN = "made-up-token-of-tomorrow"
IN_FLIGHT = 3  # uploads and the like that may be under way when the token is revoked
SECONDS_TO_RESUME = 15.0  # from the token file to nothing held back; recover looks every 5 s


@contextmanager
def revoked(sink, events):
    """The same ingest at the same address, which knows another token from now on."""
    sink.stop()
    with Sink(sink.directory, token=NEW_TOKEN, port=sink.port, on_event=events.append) as after:
        yield after


def refusals(events):
    return [event for event in events if event.status == 401]


@pytest.mark.parametrize("revoked_for", [4.0, 18.0])
def test_a_new_token_sends_all_within_seconds_and_the_old_one_knocks_once_per_interval(
    up, sink, spool, tmp_path, *, events, revoked_for
):
    """With an interval far longer than what may pass, after a short revocation and after a long one."""
    token_file = tmp_path / "token"
    token_file.write_text(f"{TOKEN}\n")
    interval = 10.0 if revoked_for > 10.0 else 30.0
    relay = up(
        "test:320x180@25",
        *("--token-file", token_file, "--on-refused", "hold"),
        env={"RELAY_INGEST__HOLD_PROBE_EVERY": str(interval), "RELAY_TOKEN": ""},
    )
    relay.wait_for(lambda: len(sink.receipts()) >= 2, "uploads work")
    with revoked(sink, events) as strict:
        relay.wait_for(lambda: refusals(events), "the token is refused")
        began = time.monotonic()
        closed_then = len(spool.journal("closed"))
        relay.wait_for(lambda: time.monotonic() - began > revoked_for, "the time without a token")
        assert len(spool.journal("closed")) - closed_then >= revoked_for - 2, "capture goes on"
        assert relay.poll() is None
        knocks = len(refusals(events))
        assert knocks <= IN_FLIGHT + revoked_for / interval
        assert knocks >= 1 + revoked_for // (interval + 6.0), "one probe per interval goes out"

        held = {path.name for path in spool.owed()}
        replacement = tmp_path / "token.new"
        replacement.write_text(f"{NEW_TOKEN}\n")
        replacement.replace(token_file)
        began = time.monotonic()
        relay.wait_for(lambda: len(strict.receipts()) > 2, "the first upload with the new token")
        first = time.monotonic() - began
        relay.wait_for(lambda: not held & {path.name for path in spool.owed()}, "what was held back is sent")
        all_sent = time.monotonic() - began
        relay.signal(signal.SIGTERM)

        assert relay.exit_code() == 0, relay.tail()
        assert spool.owed() == []
        assert verify(strict.directory) == []
        assert len(spool.journal("delivered")) == len(spool.journal("closed"))
    code, out = audit(spool.path)
    assert code == 0, out
    found = f"{knocks} knocks; the first of {len(held)} after {first:.1f} s, all after {all_sent:.1f} s"
    assert first < interval / 2, f"another token is not held back by the first one's refusal: {found}"
    assert all_sent < SECONDS_TO_RESUME, found

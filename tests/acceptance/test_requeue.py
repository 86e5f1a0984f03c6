"""`relay-capture requeue` beside a running relay and after one that ended: what was held back is sent."""

import os
import signal
import subprocess

import pytest

from capture.sink import Fault, verify
from tests.acceptance.conftest import COMMAND, TOKEN
from tests.acceptance.test_audit import audit

SENT_WITHIN = 15.0  # seconds


@pytest.fixture
def requeue(spool):
    """Runs the command as the operator does, who has not set up a broker; returns exit code and output."""

    def run(*words):
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
        done = subprocess.run(
            [str(COMMAND), "requeue", "--spool", str(spool.path), *words],
            env={**clean, "RELAY_TOKEN": TOKEN},
            cwd=spool.path.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_rejected_segments_are_sent_by_the_running_workers_at_once(up, sink, spool, requeue):
    sink.faults.add(refusal := Fault("status", status=422))
    relay = up("test:320x180@25")
    relay.wait_for(lambda: len(spool.rejected()) >= 3, "some are rejected")
    sink.faults.remove(refusal)
    relay.wait_for(sink.receipts, "the cloud takes them again")
    rejected = {path.name for path in spool.rejected()}

    assert requeue("--rejected", "--camera", "nobody")[0] == 2
    assert {path.name for path in spool.rejected()} == rejected
    code, said = requeue("--rejected", "--camera", "gate")
    assert code == 0, said
    assert f"made {len(rejected)} rejected segments owed again" in said
    assert "asked the workers to send at once" in said
    relay.wait_for(
        lambda: rejected <= {line["segment"] for line in spool.journal("delivered")},
        "they are sent",
        deadline=SENT_WITHIN,
    )
    relay.signal(signal.SIGTERM)

    assert relay.exit_code() == 0, relay.tail()
    assert spool.rejected() == spool.owed() == []
    assert verify(sink.directory) == []
    assert audit(spool.path)[0] == 0


def test_after_a_refusal_requeue_lets_the_same_token_send_all_that_is_owed(up, sink, spool, requeue):
    sink.faults.add(refusal := Fault("status", status=403))
    relay = up("test:320x180@25")
    assert relay.exit_code() == 77, relay.tail()
    owed = len(spool.owed())
    assert owed >= 1
    sink.faults.remove(refusal)

    code, said = requeue()
    assert code == 0, said
    assert "let 1 refused token try again" in said
    assert f"owed: {owed} segment" in said
    assert spool.refused() == []
    relay = up("test:320x180@25,1s")
    assert relay.exit_code() == 0, relay.tail()
    assert spool.owed() == []
    assert audit(spool.path)[0] == 0

"""A worker or beat that lives but does nothing is noticed, told by `health`, and replaced by `up`."""

import contextlib
import os
import signal
import time

import psutil
import pytest

from capture.pulse import PULSE_SECONDS, STUCK_SECONDS, pulse_path

ENDLESS = "test:320x180@25"
# A living process with so much on its pulse shows another one before it is called stuck.
HEAD_START = STUCK_SECONDS - PULSE_SECONDS - 1.0


def mains(relay, what):
    """Return the main process of worker or beat: the one whose parent is `up` itself."""
    found = []
    for process in relay.processes():
        with contextlib.suppress(psutil.Error):  # one that was killed a moment ago
            if f" {what} " in " ".join(process.cmdline()) and process.ppid() == relay.pid:
                found.append(process)
    return found


def pulse_of(process, relay):
    """Return the pulse file of a process that has shown one."""
    return next(relay.runtime.rglob(f"*-{process.pid}@*.pulse"), None)


@pytest.mark.timeout(180)
def test_frozen_processes_are_told_by_health_and_replaced(up, start, sink, spool):
    relay = up(ENDLESS)
    relay.wait_for(lambda: sink.receipts(), "uploads work")
    asked = start("health", "--spool", spool.path)
    assert asked.exit_code() == 0, asked.tail()

    frozen = [*mains(relay, "worker"), *mains(relay, "beat")]
    assert len(frozen) == 2
    relay.wait_for(lambda: all(pulse_of(process, relay) for process in frozen), "both have a pulse")
    for process in frozen:
        process.send_signal(signal.SIGSTOP)
        pulse = pulse_of(process, relay)
        pulse.write_text(f"{float(pulse.read_text()) - HEAD_START:020.3f}\n")
    assert "service_stuck" not in relay.log
    relay.wait_for(lambda: relay.log.count("service_stuck") == 2, "both are noticed", deadline=STUCK_SECONDS)

    def replaced():
        found = {*mains(relay, "worker"), *mains(relay, "beat")}
        return len(found) == 2 and not found & set(frozen)

    relay.wait_for(replaced, "both are replaced")
    relay.wait_for(lambda: start("health", "--spool", spool.path).exit_code() == 0, "health agrees")
    before = len(sink.receipts())
    relay.wait_for(lambda: len(sink.receipts()) > before + 2, "uploads go on")
    relay.signal(signal.SIGTERM)
    assert relay.exit_code() == 0, relay.tail()


def test_health_names_who_is_stuck(start, tmp_path):
    stale = f"{time.monotonic() - STUCK_SECONDS - 60:020.3f}\n"
    pulse_path(tmp_path, "worker", os.getpid()).write_text(stale)
    asked = start("health", env={"RELAY_PULSE_DIR": str(tmp_path)})
    assert asked.exit_code() == 1
    assert f"STUCK: worker {os.getpid()}" in asked.log


def test_health_without_a_worker_says_what_to_do(start, up, sink, spool):
    done = up("test:320x180@25,1s", "--no-realtime")
    assert done.exit_code() == 0, done.tail()
    asked = start("health", "--spool", spool.path)
    assert asked.exit_code() == 1
    asked = start("health", "--spool", spool.path / "absent")
    assert asked.exit_code() == 78

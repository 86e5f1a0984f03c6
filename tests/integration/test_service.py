"""A child that has to learn something new: it ends after what it has in hand, and is not waited for."""

import select
import sys
import time

import pytest
from structlog.testing import capture_logs

from capture import stack
from capture.process import Child, Stream
from capture.stack import Service

DEADLINE = 30.0
READY = "print(flush=True); "
POLITE = "import signal, time; signal.signal(15, lambda *_: exit(0)); " + READY + "time.sleep(60)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); " + READY + "time.sleep(60)"


@pytest.fixture
def serve():
    """Starts a service that runs Python code; returns it when the code handles its signals."""
    services = []

    def run(code):
        def start():
            child = Child([sys.executable, "-c", code], env={}, stdout=Stream.PIPE)
            assert select.select([child.stdout_fd], [], [], DEADLINE)[0]
            return child

        services.append(Service("worker", start))
        services[-1].start()
        return services[-1]

    yield run
    for each in services:
        each.stop(0.0)


def renewed(service, before):
    end = time.monotonic() + DEADLINE
    while service.pid == before:
        service.check()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_renewal_is_no_failure_and_waits_for_nobody(serve):
    service = serve(POLITE)
    before = service.pid
    with capture_logs() as said:
        began = time.monotonic()
        service.renew()
        service.renew()
        assert time.monotonic() - began < 1
        renewed(service, before)
    assert [entry["event"] for entry in said] == ["service_renewed"]


def test_one_that_does_not_end_is_killed(serve, monkeypatch):
    monkeypatch.setattr(stack, "RENEW_SECONDS", 0.5)
    service = serve(DEAF)
    before, began = service.pid, time.monotonic()
    service.renew()
    service.check()
    assert service.pid == before
    renewed(service, before)
    assert time.monotonic() - began >= 0.5

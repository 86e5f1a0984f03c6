"""A child that has to learn something new: it ends after what it has in hand, and is not waited for."""

import os
import select
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from structlog.testing import capture_logs

from capture import stack
from capture.broker import SOCKET_NAME, RuntimeDir, ping, sweep_runtime_dirs
from capture.process import Child, Stream
from capture.settings import load_settings
from capture.stack import Service, Stack

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


# --- the broker of `up` ---


@pytest.fixture
def broker_alone(tmp_path, monkeypatch):
    """The broker of `up`, looked after with little patience, in a directory that may go."""
    monkeypatch.setattr(stack, "PULSE_SECONDS", 0.2)
    monkeypatch.setattr(stack, "STUCK_SECONDS", 1.0)
    settings = load_settings(
        environ={"RELAY_CLOUD": "http://127.0.0.1:9", "RELAY_SPOOL": str(tmp_path / "s")}
    )
    with tempfile.TemporaryDirectory(prefix="up-") as base, RuntimeDir(Path(base)) as runtime:
        parts = Stack(settings, runtime.path, concurrency=1, embedded_broker=True, remake=runtime.remake)
        parts._services.clear()
        parts.start()
        yield parts
        parts.stop()
        assert parts.pids == {}


def attend(parts, condition, what):
    end = time.monotonic() + DEADLINE
    while not condition():
        parts.check()
        assert time.monotonic() < end, f"not within {DEADLINE:g} s: {what}"
        time.sleep(0.02)


@pytest.mark.parametrize("trouble", ["it is frozen", "its socket is gone", "its directory is gone"])
def test_a_broker_that_lives_and_serves_nobody_is_started_anew(broker_alone, trouble):
    before = broker_alone.pids["broker"]
    directory = Path(psutil.Process(before).cwd())
    looked = time.monotonic()
    attend(broker_alone, lambda: time.monotonic() - looked > 2.0, "it is left alone as long as it answers")
    assert broker_alone.pids["broker"] == before

    if trouble == "it is frozen":
        os.kill(before, signal.SIGSTOP)
    elif trouble == "its socket is gone":
        (directory / SOCKET_NAME).unlink()
    else:
        shutil.rmtree(directory)
    attend(broker_alone, lambda: broker_alone.pids.get("broker") not in {None, before}, "another one")
    ping(f"redis+socket://{quote(str(directory / SOCKET_NAME))}")
    assert directory.stat().st_mode & 0o777 == 0o700
    assert sweep_runtime_dirs(directory.parent) == 0  # it is locked, also where it was made again


def test_a_runtime_directory_that_cannot_be_made_again_is_told_of_once(tmp_path, monkeypatch):
    monkeypatch.setattr(stack, "PULSE_SECONDS", 0.0)
    settings = load_settings(environ={"RELAY_SPOOL": str(tmp_path / "s")})
    base = tmp_path / "base"
    base.mkdir()
    with RuntimeDir(base) as runtime:
        parts = Stack(settings, runtime.path, concurrency=1, embedded_broker=False, remake=runtime.remake)
        parts._services.clear()
        shutil.rmtree(base)
        with capture_logs() as said:
            for _ in range(3):
                parts.check()
            base.mkdir()
            parts.check()
    assert [line["event"] for line in said] == ["runtime_directory_gone", "runtime_directory_remade"]

"""Signals end a wait at once."""

import os
import signal
import threading
import time

import pytest

from capture.runner import StopSignals

LONG = 20.0


@pytest.fixture
def handlers():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def waited(signals, act):
    """Return what a wait says that `act`, done from another thread, ends; and how long it was."""
    began = time.monotonic()
    thread = threading.Timer(0.2, act)
    thread.start()
    asked = signals.wait(LONG)
    thread.join()
    return asked, time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_wait_at_once(handlers, number):
    signals = StopSignals()
    signals.install()
    asked, seconds = waited(signals, lambda: os.kill(os.getpid(), number))
    assert asked
    assert seconds < LONG / 2
    assert signals.wait(LONG)  # it stays asked


def test_a_stop_that_another_thread_asks_for_ends_a_wait_at_once(handlers):
    signals = StopSignals()
    asked, seconds = waited(signals, signals.ask)
    assert asked
    assert seconds < LONG / 2


def test_a_reload_ends_one_wait_and_is_no_stop(handlers):
    signals = StopSignals()
    signals.listen_for_reload()
    signals._terminal = None
    asked, seconds = waited(signals, lambda: os.kill(os.getpid(), signal.SIGHUP))
    assert not asked
    assert seconds < LONG / 2
    assert signals.take_reload()
    assert not signals.wait(0.01)

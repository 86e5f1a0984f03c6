"""Files of removed segments: closed soon, never piled up, and by whoever brings them if need be."""

import threading
import time

from tasks.closer import MOST, Closer


class File:
    """One whose closing takes until it is let."""

    def __init__(self, gate=None):
        self.gate = gate
        self.closed_by = None

    def close(self):
        if self.gate is not None and threading.current_thread().name == "closer":
            self.gate.wait(10)
        self.closed_by = threading.current_thread().name


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_file_is_closed_by_another_thread():
    closer, file = Closer(), File()
    closer.close(file)
    wait_for(lambda: file.closed_by)
    assert file.closed_by == "closer"


def test_where_many_wait_whoever_brings_one_closes_it():
    closer, gate = Closer(), threading.Event()
    files = [File(gate) for _ in range(MOST + 5)]
    for file in files:
        closer.close(file)
    mine = threading.current_thread().name
    assert 3 <= [file.closed_by for file in files].count(mine) <= 5
    gate.set()
    wait_for(lambda: all(file.closed_by for file in files))


def test_where_there_is_no_thread_whoever_brings_one_closes_it(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    closer, file = Closer(), File()
    closer.close(file)
    assert file.closed_by == threading.current_thread().name


def test_one_that_cannot_be_closed_does_not_keep_the_next_from_it():
    class Bad:
        def close(self):
            raise OSError(5, "Input/output error")

    closer, file = Closer(), File()
    closer.close(Bad())
    closer.close(file)
    wait_for(lambda: file.closed_by)

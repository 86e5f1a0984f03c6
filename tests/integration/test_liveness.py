"""Who is told that a loop turns, and what happens when it does not."""

import os
import signal
import subprocess
import sys
import threading

from celery import Celery, signals
from celery.beat import Service

from capture.errors import EXIT_STUCK
from capture.liveness import LOOK_SECONDS, LOOKS, DiskWatch, Liveness, Standstill, read_past_cache
from capture.pulse import STUCK_SECONDS, pulses
from tasks.beat import Scheduler

FAST = 0.001
DEADLINE = 20.0


class Ended:
    """Stands for the end of the process."""

    def __init__(self):
        self.words = []
        self.event = threading.Event()

    def __call__(self, what, seconds):
        self.words.append((what, seconds))
        self.event.set()


def test_a_loop_that_stands_still_ends_the_process():
    ended = Ended()
    watch = Standstill("agent", looks=3, every=FAST, end=ended)
    watch.turn()
    watch.start()
    assert ended.event.wait(DEADLINE)
    assert ended.words == [("agent", 3 * FAST)]


def test_a_loop_that_turns_or_is_over_ends_nothing():
    ended = Ended()
    watch = Standstill("agent", looks=3, every=FAST, end=ended)
    looks = []

    class Clock:
        """Turns the loop at each second look; after a while the watch is stopped."""

        def wait(self, seconds):
            looks.append(seconds)
            if len(looks) % 2:
                watch.turn()
            return len(looks) > 100

    watch._over = Clock()
    watch._watch()
    assert len(looks) == 101
    assert not ended.words


def test_the_process_ends_itself_later_than_up_would_replace_it():
    assert LOOKS * LOOK_SECONDS > 2 * STUCK_SECONDS


def test_the_pulse_of_an_agent_waits_for_its_disk_and_the_loop_does_not():
    asked, answer, shown = threading.Event(), threading.Event(), threading.Event()

    def touch():
        asked.set()
        answer.wait(DEADLINE)

    watch = DiskWatch(touch, shown.set, every=FAST)
    watch.start()
    watch.turn()
    assert asked.wait(DEADLINE)
    watch.turn()  # returns at once
    assert not shown.is_set()
    answer.set()
    assert shown.wait(DEADLINE)
    watch.stop()


def test_without_a_turn_of_the_loop_there_is_no_pulse_however_well_the_disk_is():
    looked, shown = [], threading.Event()
    watch = DiskWatch(lambda: None, shown.set, every=FAST)

    class NeverTurned:
        def wait(self, seconds):
            looked.append(seconds)
            if len(looked) > 3:
                watch.stop()
            return False

    watch._turned = NeverTurned()
    watch._run()
    assert len(looked) == 4
    assert not shown.is_set()


def test_the_first_beat_makes_a_pulse_and_the_end_takes_it_away(tmp_path):
    alive = Liveness(tmp_path, "worker")
    alive.beat()
    [pulse] = pulses(tmp_path)
    assert (pulse.what, pulse.pid, pulse.is_stuck) == ("worker", os.getpid(), False)
    alive.end()
    assert list(pulses(tmp_path)) == []


def test_a_disk_that_answers_with_an_error_answers(tmp_path):
    read_past_cache(tmp_path / "absent")
    read_past_cache(tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read_past_cache(fifo)


def test_beat_is_watched_from_its_start(tmp_path, monkeypatch):
    watched = []
    monkeypatch.setenv("RELAY_PULSE_DIR", str(tmp_path))
    monkeypatch.setattr(Liveness, "watch", lambda self: watched.append(self))
    app = Celery("beat", set_as_current=False)
    service = Service(app, scheduler_cls=Scheduler)
    signals.beat_init.send(sender=service)
    assert watched == [service.scheduler._alive]


STUCK = """
import sys, threading
from capture import liveness
liveness.LAST_WORDS_SECONDS = 1
watch = liveness.Standstill("agent", looks=2, every=0.05)
watch.start()
if sys.argv[1] == "lock":
    stuck = threading.Lock()
    stuck.acquire()
    stuck.acquire()
while True:  # its standard error is a pipe that nobody reads
    sys.stderr.write("x" * 4096)
    sys.stderr.flush()
    watch.turn()
"""


def test_a_process_whose_loop_hangs_ends_with_70_and_tells_where_it_stood():
    done = subprocess.run(
        [sys.executable, "-c", STUCK, "lock"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == EXIT_STUCK
    assert "main_loop_stuck" in done.stdout + done.stderr
    assert "line 10 in <module>" in done.stderr


def test_a_process_that_hangs_because_nobody_takes_its_log_ends_all_the_same():
    with subprocess.Popen([sys.executable, "-c", STUCK, "log"], stderr=subprocess.PIPE) as process:
        assert process.wait(60) in (EXIT_STUCK, -signal.SIGALRM)

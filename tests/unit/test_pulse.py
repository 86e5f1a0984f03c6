"""The pulse of a process, and how a worker finds out that it is deaf."""

import os
import socket
import time

import pytest
from celery import Celery

from capture.pulse import PULSE_SECONDS, STUCK_SECONDS, PulseFile, age_of, pulse_directory, pulse_path, pulses
from capture.stack import Service
from tasks.beat import Scheduler
from tasks.pulse import DEAF_SECONDS, Hearing


def test_a_beat_is_young_and_read_back_by_others(tmp_path):
    PulseFile(tmp_path, "worker").beat()
    [pulse] = pulses(tmp_path)
    assert (pulse.what, pulse.pid, pulse.is_stuck) == ("worker", os.getpid(), False)
    assert 0 <= pulse.age < 5


def test_one_that_did_not_beat_for_long_is_stuck(tmp_path):
    pulse_path(tmp_path, "worker", os.getpid()).write_text(f"{time.monotonic() - STUCK_SECONDS - 1:020.3f}\n")
    [pulse] = pulses(tmp_path)
    assert pulse.is_stuck


def test_the_wall_clock_has_no_say(tmp_path, monkeypatch):
    PulseFile(tmp_path, "worker").beat()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    os.utime(pulse_path(tmp_path, "worker", os.getpid()), (0, 0))
    [pulse] = pulses(tmp_path)
    assert not pulse.is_stuck


def test_what_a_killed_process_left_is_cleared_and_other_machines_are_left_alone(tmp_path):
    dead = pulse_path(tmp_path, "worker", 2**22 + 1)
    other = tmp_path / f"worker-1@{socket.gethostname()}-elsewhere.pulse"
    for path in (dead, other):
        path.write_text("1.0")
    assert list(pulses(tmp_path)) == []
    assert [path.exists() for path in (dead, other)] == [False, True]


@pytest.mark.parametrize("text", ["", "x", "nan", "1e999", "9000000000.0"])
def test_a_damaged_file_judges_nobody(tmp_path, text):
    path = pulse_path(tmp_path, "worker", os.getpid())
    path.write_text(text)
    assert age_of(path) is None
    assert list(pulses(tmp_path)) == []


def test_where_no_file_can_be_made_there_is_no_pulse_and_no_trouble(tmp_path):
    pulse = PulseFile(tmp_path / "absent", "worker")
    pulse.beat()
    pulse.end()
    assert not (tmp_path / "absent").exists()


def test_the_directory_is_the_one_that_is_named_or_the_spools(tmp_path):
    assert pulse_directory(tmp_path, {}) == tmp_path
    assert str(pulse_directory(tmp_path, {"RELAY_PULSE_DIR": "/run/x"})) == "/run/x"


DEAF = {"waiting": 3, "room": 1, "taken": 7}


@pytest.mark.parametrize(
    ("change", "deaf"),
    [
        ({}, True),
        ({"waiting": 0}, False),  # nothing to take
        ({"room": 0}, False),  # busy
        ({"taken": 8}, False),  # at work
    ],
)
def test_a_worker_is_deaf_when_it_takes_nothing_though_it_could(change, deaf):
    hearing = Hearing()
    looks = [hearing.look(**DEAF, seconds=DEAF_SECONDS / 3) for _ in range(3)]
    assert looks == [False, False, False]
    assert hearing.look(**(DEAF | change), seconds=DEAF_SECONDS / 3) is deaf


def test_one_message_taken_makes_it_a_hearing_one_again():
    hearing = Hearing()
    for taken in range(20):
        assert not hearing.look(waiting=3, room=1, taken=taken, seconds=DEAF_SECONDS)


class Child:
    """A child that runs until it is killed."""

    pid = os.getpid()
    killed = False

    def poll(self):
        return None

    def kill_group(self):
        self.killed = True


def test_a_machine_that_stood_still_is_given_time_for_a_beat(tmp_path, monkeypatch):
    child = Child()
    service = Service("worker", lambda: child, pulses=tmp_path)
    service.start()
    PulseFile(tmp_path, "worker").beat()
    service.check()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3600)  # a pause: nobody beat, and nobody looked
    service.check()
    assert not child.killed
    monkeypatch.setattr(time, "monotonic", lambda: now + 3600 + PULSE_SECONDS)
    service.check()
    assert child.killed


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_beat_ticks_at_once_when_the_clock_was_stepped(tmp_path, monkeypatch, step):
    monkeypatch.setenv("RELAY_PULSE_DIR", str(tmp_path))
    app = Celery("beat", set_as_current=False)
    app.conf.update(beat_schedule={"tick": {"task": "tick", "schedule": 5.0}})
    scheduler = Scheduler(app, lazy=True)
    scheduler.setup_schedule()
    scheduler.producer = None
    sent = []
    monkeypatch.setattr(scheduler, "apply_entry", lambda entry, **_: sent.append(entry.name))
    scheduler.tick()
    assert sent == []  # the first is due in five seconds
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + step)
    scheduler.tick()
    assert sent == ["tick"]

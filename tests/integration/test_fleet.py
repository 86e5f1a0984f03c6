"""Real cameras come, change and go while others start, run and stop."""

import errno
import gc
import os
import re
import threading
import time
from datetime import datetime, timedelta

import psutil
import pytest
from structlog.testing import capture_logs

import capture.camera
from capture.agent import Agent
from capture.camera import NOT_RUNNING, SETTINGS_CHANGED
from capture.errors import SourceError
from capture.ffmpeg import find_ffmpeg
from capture.fleet import STARTS_PER_TURN
from capture.gaps import SHORTEST_SECONDS
from capture.journal import Event
from capture.runner import StopSignals, live
from capture.settings import load_settings
from capture.supervision import State
from capture.upkeep import note_gap

DEADLINE = 40.0
STOP_SECONDS = 10.0  # the grace of ffmpeg and some more, on a machine that has other things to do
NOBODY = "redis://127.0.0.1:1/0"  # messages are hints: nobody takes these
AHEAD_SECONDS = 1.0  # so much of the pattern ffmpeg may send before its time
DELTA = "-segment_time_delta"
TINY = 'source = "test:64x64@5"\n'


def tables(*names, **keys):
    lines = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return "".join(f"[cameras.{name}]\n{TINY}{lines}" for name in names)


class Site:
    """An agent whose settings stand in a file, attended like `run` does it."""

    def __init__(self, tmp_path, spool):
        self._file = tmp_path / "relay.toml"
        self.spool = spool
        self.agent = None

    def settings(self, text):
        self._file.write_text("[defaults]\nsegment_seconds = 1\n" + text)
        environ = {
            "RELAY_CLOUD": "http://127.0.0.1:1",
            "RELAY_TOKEN": "made-up",
            "RELAY_BROKER": NOBODY,
            "RELAY_DRAIN_TIMEOUT": "0",
        }
        return load_settings(config=self._file, environ=environ, tolerate_bad_cameras=True)

    def make(self, text):
        self.agent = Agent(self.settings(text), self.spool, find_ffmpeg(None).path)
        return self.agent

    def start(self, text):
        self.make(text).start()
        return self.agent

    def reload(self, text):
        return self.agent.reload(self.settings(text))

    def until(self, condition, what, *, watch=lambda: None):
        end = time.monotonic() + DEADLINE
        while not condition():
            self.agent.attend()
            watch()
            if time.monotonic() > end:
                pytest.fail(f"not within {DEADLINE:g} s: {what}")
            time.sleep(0.02)

    def sessions(self):
        """Return what each session.json says, oldest first."""
        found = [self.spool.session_info(name) for name in self.spool.sessions()]
        return sorted(found, key=lambda info: (info["started_at"], info["camera"]))

    def of(self, camera):
        return [info for info in self.sessions() if info["camera"] == camera]

    def runs(self, *cameras):
        states = {each.id: each for each in self.agent.statuses()}
        return all(states[camera].segments for camera in cameras)


@pytest.fixture
def site(tmp_path, spool):
    site = Site(tmp_path, spool)
    yield site
    if site.agent is not None:
        site.agent.stop()
        site.agent.close()
        assert not site.agent.is_running()
        assert camera_threads() == []
        assert ffmpegs() == []


def camera_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("camera ")]


def ffmpegs():
    """Return the camera of each ffmpeg below us, by the session that it writes into."""
    return [camera for camera, _, _ in ffmpeg_processes()]


def ffmpeg_processes():
    """Return the camera, the process and the words of each ffmpeg below us."""
    found = []
    for child in psutil.Process().children():
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        found += [
            (camera, child, words)
            for camera in re.findall(r"/relay-segments-(.+)-[0-9]{8}T", " ".join(words))
        ]
    return found


def test_a_stop_while_most_wait_for_their_turn_starts_nobody_else(site):
    names = [f"cam{number}" for number in range(3 * STARTS_PER_TURN)]
    agent = site.start(tables(*names))
    assert len(camera_threads()) == STARTS_PER_TURN
    began = time.monotonic()
    agent.stop()
    assert time.monotonic() - began < STOP_SECONDS
    assert not agent.is_running()
    agent.attend()
    assert camera_threads() == []
    assert {info["camera"] for info in site.sessions()} <= set(names[:STARTS_PER_TURN])
    assert agent.errors() == []


def test_a_reload_during_the_start_changes_also_those_that_wait(site):
    names = [f"cam{number}" for number in range(10)]
    site.start(tables(*names))
    assert len(camera_threads()) == STARTS_PER_TURN
    kept = [*names[:3], *names[6:9]]  # one that runs and some that wait are gone
    found = site.reload(tables(*kept) + tables("cam9", segment_seconds=2) + tables("late"))
    assert found.removed == ("cam3", "cam4", "cam5")
    assert found.changed == ("cam9",)
    site.until(lambda: site.runs(*kept, "cam9", "late"), "all that are left capture")
    cameras = [info["camera"] for info in site.sessions()]
    assert "cam4" not in cameras
    assert "cam5" not in cameras
    assert all(cameras.count(each) == 1 for each in [*kept, "cam9", "late"])
    assert [info["segment_seconds"] for info in site.of("cam9")] == [2.0]


def test_a_camera_changed_again_before_its_predecessor_ended_starts_once_as_the_last_says(site):
    site.start(tables("gate") + tables("door"))
    site.until(lambda: site.runs("gate", "door"), "both capture")
    site.reload(tables("gate", name='"South"') + tables("door"))
    site.reload(tables("gate", name='"North"') + tables("door"))
    assert [each.id for each in site.agent.statuses()] == ["gate", "door"]
    site.until(lambda: site.runs("gate"), "the last one captures")
    assert [info["name"] for info in site.of("gate")] == ["gate", "North"]
    gaps = [entry.fields for entry in site.spool.journal.read("gate") if entry.event is Event.GAP]
    assert {gap["cause"] for gap in gaps} <= {SETTINGS_CHANGED}
    assert len(site.of("door")) == 1


def test_a_camera_removed_and_added_again_starts_when_its_predecessor_has_ended(site):
    text = tables("gate") + tables("door")
    site.start(text)
    site.until(lambda: site.runs("gate", "door"), "both capture")
    site.reload(tables("door"))
    site.reload(text)
    together = []
    site.until(
        lambda: site.runs("gate"), "it is back", watch=lambda: together.append(ffmpegs().count("gate"))
    )
    assert max(together) == 1
    before, after = site.of("gate")
    assert moment(before["ended_at"]) <= moment(after["started_at"])
    assert len(site.of("door")) == 1


def moment(text):
    return datetime.fromisoformat(text)


def test_many_reloads_end_as_the_last_one_says_and_never_run_a_camera_twice(site):
    site.start(tables("steady", "busy"))
    site.until(lambda: site.runs("steady", "busy"), "both capture")
    together = []

    def watch():
        together.append(max(ffmpegs().count(each) for each in ("steady", "busy")))

    for number in range(20):
        site.reload(tables("steady") + tables("busy", segment_seconds=1 + number % 2))
        site.agent.attend()
        watch()
    site.until(lambda: site.runs("busy"), "the last one captures", watch=watch)
    assert max(together) == 1
    assert site.of("busy")[-1]["segment_seconds"] == 2.0
    assert all(info["ended_at"] is not None for info in site.of("busy")[:-1])
    assert len(site.of("steady")) == 1


def test_cameras_that_were_removed_leave_neither_descriptor_nor_thread(site):
    one, names = "door", [f"cam{number}" for number in range(6)]
    site.start(tables(one))
    site.until(lambda: site.runs(one), "it captures")

    def descriptors():
        gc.collect()  # each message that finds no broker leaves a poller of kombu's in a cycle
        return len(os.listdir("/proc/self/fd"))

    # The camera that stays, the budget and the publisher have something open now and then.
    seen = []
    site.until(lambda: len(seen) >= 12, "some looks", watch=lambda: seen.append(descriptors()))
    site.reload(tables(one, *names))
    site.until(lambda: site.runs(*names), "all capture")
    assert descriptors() >= max(seen) + 4 * len(names)
    site.reload(tables(one))
    site.until(lambda: descriptors() <= max(seen), "what they had open is closed")
    site.until(lambda: camera_threads() == [f"camera {one}"], "their threads are gone")
    assert ffmpegs() == [one]


def test_one_that_fails_for_good_leaves_the_others_and_decides_the_exit_code_at_the_end(site, tmp_path):
    missing = f'[cameras.wrong]\nsource = "{tmp_path}/missing.mp4"\n'
    short = '[cameras.short]\nsource = "test:64x64@5,3s"\n'
    agent = site.make(missing + short)
    signals, seen = StopSignals(), []

    def on_tick():
        seen.append({each.id: each.state for each in agent.statuses()})
        if not agent.is_running():
            signals.ask()  # nobody takes what is owed

    settings = site.settings(missing + short)
    with capture_logs() as logs, pytest.raises(SourceError) as caught:
        live(agent, None, settings, site.spool, signals, on_tick=on_tick)
    assert caught.value.exit_code == 66
    assert "missing.mp4" in str(caught.value)
    assert {"wrong": State.FATAL, "short": State.RUNNING} in seen
    assert seen[-1]["short"] is State.STOPPED
    told = [line for line in logs if line["event"] == "camera_given_up"]
    assert [(line["camera"], "missing.mp4" in line["reason"]) for line in told] == [("wrong", True)]
    owed = [line["count"] for line in logs if line["event"] == "segments_owed"]
    assert owed == [agent.owed()]
    assert owed[0] >= 3


def test_the_time_without_a_camera_that_was_off_for_a_while_is_explained_by_its_settings(site):
    site.start(tables("gate", "door"))
    site.until(lambda: site.runs("gate", "door"), "both capture")
    site.reload(tables("door"))
    site.until(lambda: ffmpegs() == ["door"], "it is gone")
    gone = time.monotonic()
    site.until(lambda: time.monotonic() - gone > SHORTEST_SECONDS + AHEAD_SECONDS, "a gap")
    site.reload(tables("gate", "door"))
    site.until(lambda: site.runs("gate"), "it is back")
    (gap,) = [entry.fields for entry in site.spool.journal.read("gate") if entry.event is Event.GAP]
    assert gap["cause"] == SETTINGS_CHANGED


def test_the_time_without_an_agent_is_told_also_where_the_salvage_fails(site, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    now = site.spool.clock.now()
    note_gap(
        site.spool, "gate", start=now - timedelta(seconds=700), end=now - timedelta(seconds=600), cause="x"
    )
    monkeypatch.setattr(capture.camera, "close_dead_sessions", fails)
    site.start(tables("gate"))
    site.until(lambda: site.runs("gate"), "it captures")
    _, gap = [entry.fields for entry in site.spool.journal.read("gate") if entry.event is Event.GAP]
    assert gap["cause"] == NOT_RUNNING
    assert 600 <= gap["seconds"] < 600 + DEADLINE


def test_a_camera_that_is_gone_keeps_its_token_for_what_it_owes(site, tmp_path):
    (tmp_path / "own").write_text("of-its-own\n")
    site.start(tables("gate", token_file='"own"') + tables("door"))
    site.reload(tables("door"))
    assert site.agent.settings.ingest.token_files == {"gate": tmp_path / "own"}
    site.reload(tables("gate", "door"))
    assert site.agent.settings.ingest.token_files == {}


def test_a_spool_that_cannot_be_looked_at_refuses_nobody(site):
    agent = Agent(site.settings(tables("gate", "door")), site.spool, find_ffmpeg(None).path)
    notes, aside = site.spool.state, site.spool.state.with_name("aside")
    notes.rename(aside)
    notes.symlink_to("x" * 300)  # whoever looks into it gets an OSError
    try:
        assert agent.refusal() is None
    finally:
        notes.unlink()
        aside.rename(notes)


def test_borders_keep_their_place_on_the_clock_when_ffmpeg_is_started_anew(site):
    site.start(tables("gate", "door", segment_seconds=600))

    def of_gate(but=None):
        """Return the start (seconds), by how much borders come sooner, and the process of its ffmpeg."""
        for camera, process, words in ffmpeg_processes():
            if camera == "gate" and process != but and DELTA in words:
                return process.create_time(), float(words[words.index(DELTA) + 1]), process
        return None

    site.until(of_gate, "it captures")
    begun, ahead, process = of_gate()
    process.kill()
    site.until(lambda: of_gate(but=process), "it captures again")
    begun_again, ahead_again, _ = of_gate(but=process)
    assert begun_again - begun > 0.85
    assert (ahead_again - ahead) % 600 == pytest.approx(begun_again - begun, abs=0.8)

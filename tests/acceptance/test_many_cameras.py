"""Many cameras in one `up`: all deliver, none disturbs another, and their segments do not end all at once."""

import json
import re
import resource
import signal
import time
from datetime import datetime, timedelta
from itertools import pairwise

import psutil
import pytest

from capture.limits import MOST_DESCRIPTORS
from tests.acceptance.conftest import DEADLINE, TOKEN

CAMERAS = 20
STOP_SECONDS = 15.0  # what a stop may take: drain_timeout and five
OF_A_CAMERA = 8  # descriptors
SPREAD_SECONDS, SPREAD_FPS = 2.0, 10
FRAME = 1 / SPREAD_FPS + 0.002  # seconds, and the rounding of names
SEGMENT = re.compile(r"([0-9]{8})_([0-9]{8}T[0-9]{6}\.[0-9]{3}Z)_([0-9]+)\.ts")


@pytest.fixture
def few_open_files():
    """Starts everything with the low limit that a login gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def run(start, sink, spool):
    """Writes relay.toml and starts a command with it."""
    settings = {"RELAY_CLOUD": sink.url, "RELAY_TOKEN": TOKEN, "RELAY_SPOOL": str(spool.path)}
    config = spool.path.with_name("relay.toml")

    def run(command, text, **env):
        config.write_text(text)
        return start(command, "--json", "-c", config, env={**settings, **env})

    return run


def reload(relay, spool, text):
    spool.path.with_name("relay.toml").write_text(text)
    relay.signal(signal.SIGHUP)


def tables(names, source, **keys):
    lines = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return "".join(f'[cameras.{name}]\nsource = "{source}"\n{lines}' for name in names)


def ffmpegs(relay):
    """Return the ffmpeg of each camera that has one."""
    found = {}
    for process in psutil.Process(relay.pid).children():
        try:
            match = re.search(r"/relay-segments-(.+)-[0-9]{8}T", " ".join(process.cmdline()))
        except psutil.Error:
            continue
        if match:
            found[match[1]] = process
    return found


def stopped_in(relay):
    began = time.monotonic()
    relay.signal()
    code = relay.exit_code()
    return time.monotonic() - began, code


def moment(line):
    return datetime.fromisoformat(line["t"])


@pytest.mark.usefixtures("few_open_files")
def test_many_cameras_all_deliver_go_without_a_trace_and_stop_together(run, sink, spool):
    names = [f"cam{number}" for number in range(CAMERAS)]
    defaults = "[defaults]\nsegment_seconds = 2\n"
    relay = run("up", defaults + tables(names, "test:64x64@2"))
    agent = psutil.Process(relay.pid)
    granted = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], MOST_DESCRIPTORS)

    def camera_count():
        return len({receipt.camera for receipt in sink.receipts()})

    relay.wait_for(lambda: camera_count() == CAMERAS, "every camera delivers", deadline=2 * DEADLINE)
    assert agent.rlimit(psutil.RLIMIT_NOFILE)[0] == granted
    descriptors, threads = agent.num_fds(), agent.num_threads()
    assert threads >= CAMERAS
    assert descriptors <= OF_A_CAMERA * CAMERAS + 64

    reload(relay, spool, defaults + tables(names[:1], "test:64x64@2"))
    relay.wait_for(lambda: relay.log.count('"event": "session_ended"') == CAMERAS - 1, "all others ended")
    assert list(ffmpegs(relay)) == names[:1]
    relay.wait_for(lambda: agent.num_threads() <= threads - (CAMERAS - 1), "their threads are gone")
    relay.wait_for(lambda: agent.num_fds() <= descriptors - 5 * (CAMERAS - 1), "their descriptors, too")
    assert agent.num_fds() < OF_A_CAMERA + 32

    reload(relay, spool, defaults + tables(names, "test:64x64@2"))
    running = '"event": "capture_running"'
    relay.wait_for(lambda: relay.log.count(running) == 2 * CAMERAS - 1, "all run", deadline=2 * DEADLINE)
    seconds, code = stopped_in(relay)
    assert seconds < STOP_SECONDS
    assert code in {0, 75}, relay.tail()
    assert '"event": "camera_stuck"' not in relay.log
    assert spool.open() == []
    assert relay.log.count('"event": "session_ended"') == 2 * CAMERAS - 1
    delivered = {(receipt.session, receipt.sequence) for receipt in sink.receipts()}
    closed = {(line["session"], line["segment"]) for line in spool.journal("closed")}
    assert len(closed) == len(delivered) + len(spool.owed())


def test_cameras_that_fail_freeze_or_are_wrong_do_not_disturb_a_healthy_one(run, sink, spool, clip, decode):
    relay = run(
        "up",
        "[defaults]\nsegment_seconds = 1\n"
        + tables(["refusing"], "http://127.0.0.1:1/stream")
        + tables(["frozen"], "test:160x90@5")
        + tables(["wrong"], spool.path.with_name("missing.mp4"))
        + tables(["healthy"], clip.path),
    )
    frozen = relay.wait_for(lambda: spool.journal("delivered") and ffmpegs(relay).get("frozen"), "it runs")
    frozen.send_signal(signal.SIGSTOP)

    def has_ended():
        return re.search(r'"session": "relay-segments-healthy-.*"event": "session_ended"', relay.log)

    relay.wait_for(has_ended, "the healthy one came to its end")
    assert relay.poll() is None  # for the others it goes on
    relay.wait_for(lambda: not [p for p in spool.owed() if "-healthy-" in str(p)], "all of it is delivered")
    if (now := ffmpegs(relay).get("frozen")) is not None:
        now.send_signal(signal.SIGSTOP)
    seconds, code = stopped_in(relay)
    assert seconds < STOP_SECONDS
    assert code == 66, relay.tail()  # what is wrong for good
    assert relay.log.count('"event": "camera_given_up"') == 1
    assert "missing.mp4" in relay.tail()
    assert relay.log.count('"camera": "refusing"') >= 3  # it was tried again and again

    own = sorted(
        (each for each in sink.receipts() if each.camera == "healthy"), key=lambda each: each.sequence
    )
    assert [each.sequence for each in own] == list(range(1, len(own) + 1))
    assert decode(*(each.path for each in own)).frames == clip.frames
    closed, delivered = (
        {line["segment"]: moment(line) for line in spool.journal(event) if "-healthy-" in line["session"]}
        for event in ("closed", "delivered")
    )
    # A camera or a worker that waited for another would wait for a time-out of ten seconds or more.
    assert max(delivered[segment] - at for segment, at in closed.items()) < timedelta(seconds=5)
    assert max(after - before for before, after in pairwise(sorted(closed.values()))) < timedelta(seconds=5)


def largest_share_within_a_tenth(moments):
    """Return the largest share of moments (seconds) that any tenth of the period holds; it is a ring."""
    phases = sorted(moment % SPREAD_SECONDS for moment in moments)
    ring = [*phases, *(phase + SPREAD_SECONDS for phase in phases)]
    tenth = SPREAD_SECONDS / 10
    return max(sum(phase <= each < phase + tenth for each in ring) for phase in phases) / len(phases)


def test_borders_are_spread_over_the_period_and_each_camera_is_whole(run, spool, decode):
    names = [f"c{number}" for number in range(8)]
    defaults = f"[defaults]\nsegment_seconds = {SPREAD_SECONDS}\n"
    nobody = {"RELAY_BROKER": "redis://127.0.0.1:1/0", "RELAY_DRAIN_TIMEOUT": "0"}
    relay = run("run", defaults + tables(names, f"test:64x64@{SPREAD_FPS}"), **nobody)

    def closed_by(name):
        return [line for line in spool.journal("closed") if f"-{name}-2" in line["session"]]

    relay.wait_for(lambda: all(len(closed_by(name)) >= 2 for name in names), "two segments of each")
    at = {name: [moment(line).timestamp() for line in closed_by(name)] for name in names}
    seconds, code = stopped_in(relay)
    assert (code, seconds < STOP_SECONDS) == (75, True), relay.tail()

    assert largest_share_within_a_tenth([each for times in at.values() for each in times]) <= 0.45
    for name in names:
        segments = [SEGMENT.fullmatch(line["segment"]).groups() for line in closed_by(name)]
        assert [int(number) for number, _, _ in segments] == list(range(1, len(segments) + 1))
        starts = [datetime.fromisoformat(begin).timestamp() for _, begin, _ in segments]
        lengths = [int(milliseconds) / 1000 for _, _, milliseconds in segments]
        assert lengths[0] <= SPREAD_SECONDS + FRAME
        assert all(length == pytest.approx(SPREAD_SECONDS, abs=FRAME) for length in lengths[1:-1])
        for (begin, length), (following, _) in pairwise(zip(starts, lengths, strict=True)):
            assert begin + length == pytest.approx(following, abs=FRAME)
        assert sum(lengths) == pytest.approx(starts[-1] + lengths[-1] - starts[0], abs=FRAME)
        paths = sorted(path for path in spool.owed() if f"-{name}-2" in path.parent.name)
        for path, length in zip(paths, lengths, strict=True):
            assert abs(len(decode(path).frames) - length * SPREAD_FPS) <= 1


def test_twenty_reloads_within_a_second_end_as_the_last_one_says(run, spool):
    defaults = "[defaults]\nsegment_seconds = 1\n" + tables(["steady"], "test:64x64@5")
    nobody = {"RELAY_BROKER": "redis://127.0.0.1:1/0", "RELAY_DRAIN_TIMEOUT": "0"}
    relay = run("run", defaults + tables(["busy"], "test:64x64@5"), **nobody)

    def count(event, camera=""):
        return len(re.findall(rf'.*"camera": "{camera}.*"event": "{event}"', relay.log))

    relay.wait_for(lambda: count("capture_running") == 2, "both run")
    for number in range(20):
        reload(relay, spool, defaults + tables(["busy"], "test:64x64@5", name=f'"{number}"'))
        time.sleep(0.04)  # what is tested: signals that come faster than they are served

    def names():
        """Return by name when each session of it began."""
        infos = [
            json.loads(path.read_text()) for path in spool.path.glob("relay-segments-busy-*/session.json")
        ]
        return {info["name"]: info["started_at"] for info in infos}

    relay.wait_for(lambda: "19" in names(), "the last one is in force")
    relay.wait_for(lambda: count("capture_running", "busy") >= 2, "it captures")
    seconds, code = stopped_in(relay)
    assert (code, seconds < STOP_SECONDS) == (75, True), relay.tail()
    begun = names()
    assert max(begun, key=begun.get) == "19"
    assert len([path for path in spool.sessions() if "-steady-" in path.name]) == 1
    assert relay.log.count('"event": "reload_failed"') == 0

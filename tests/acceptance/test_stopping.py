"""Stops are clean and bounded, and what is killed instead costs time, never video."""

import re
import signal
import time
from pathlib import Path

import psutil
import pytest
import redis

from capture.sink import Fault
from tests.acceptance.conftest import DEADLINE

DRAIN = 2.0  # seconds
PACKET_BYTES = 188
SLACK = 8.0  # seconds that a stop may take beyond its drain: five, and some for a machine with other work
CAMERA = ("test:", "--resolution", "640x360", "--drain-timeout", str(DRAIN))
QUICK = {"RELAY_SPOOL__RECOVER_AFTER": "1"}
DEAF_FFMPEG = """#!/bin/sh
# Holds ffmpeg's signals back: they reach this shell, which ignores them.
trap '' TERM INT
"{ffmpeg}" "$@"
"""


@pytest.fixture
def camera(up):
    """Starts `up` for a moving test pattern."""
    return lambda *arguments, env=None: up(*CAMERA, *arguments, env={**QUICK, **(env or {})})


@pytest.fixture
def assert_delivered(spool, sink):
    """Asserts that the cloud has every segment that was ever closed, and the spool none."""

    def names(*events: str) -> set[tuple[str, int]]:
        return {
            (line["session"].removeprefix("relay-segments-gate-"), int(line["segment"].partition("_")[0]))
            for line in spool.journal()
            if line["event"] in events
        }

    def check() -> None:
        stored = {(receipt.session, receipt.sequence) for receipt in sink.receipts()}
        # A kill between its renaming and its line in the journal leaves a segment that is owed all the same.
        assert names("closed", "recovered") <= stored
        assert stored == names("delivered") != set()
        assert spool.owed() == spool.open() == []

    return check


def stop(relay, number=signal.SIGTERM, *, deadline=DEADLINE):
    """Ask for a stop; return the exit code and the seconds it took."""
    began = time.monotonic()
    relay.signal(number)
    code = relay.exit_code(deadline=deadline)
    return code, time.monotonic() - began


def children(relay):
    """Return all that it started and that started from there.

    Not by its environment: Valkey writes its title over that.
    """
    return psutil.Process(relay.pid).children(recursive=True)


def running(relay, words):
    """Return the processes of a relay whose command line holds some words, oldest first."""
    found = []
    for process in children(relay):
        try:
            if words in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda process: (process.create_time(), process.pid))


def is_gone(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_gone(processes, deadline=10.0):
    """Wait until processes are gone, whoever reaps them."""
    end = time.monotonic() + deadline
    while left := [process for process in processes if not is_gone(process)]:
        assert time.monotonic() < end, f"still there after {deadline} s: {left}"
        time.sleep(0.01)


def is_written(spool):
    """Tell whether ffmpeg has written to the segment that is open now."""
    for path in spool.open():
        try:
            if path.stat().st_size:
                return True
        except FileNotFoundError:
            continue
    return False


def more(sink, count):
    """Return a condition: so many more segments have arrived."""
    wanted = len(sink.receipts()) + count
    return lambda: len(sink.receipts()) >= wanted


# --- a signal --------------------------------------------------------------------------------------


def test_sigterm_closes_the_open_segment_sends_it_and_exits_with_0(camera, sink, spool, assert_delivered):
    relay = camera("--segment-duration", "3")
    relay.wait_for(more(sink, 1), "a first segment in the cloud")
    relay.wait_for(lambda: is_written(spool), "a segment half written")
    family = children(relay)
    code, seconds = stop(relay)
    assert code == 0, relay.tail()
    assert seconds < DRAIN + SLACK
    wait_gone(family, 1.0)
    assert_delivered()
    assert len(sink.receipts()) >= 2
    # The last one written: of two that are sent together, either may arrive first.
    assert max(sink.receipts(), key=lambda receipt: receipt.sequence).duration < 3
    assert spool.journal("recovered") == spool.journal("gap") == []


def test_on_a_slow_line_the_cloud_is_still_told_that_the_stream_is_over(camera, sink, assert_delivered):
    """The end of the session is taken by one worker while another sends the last segment."""
    sink.faults.add(Fault("slow", rate=100_000.0))
    relay = camera("--drain-timeout", "20")
    relay.wait_for(more(sink, 1), "a first segment in the cloud")
    code, _ = stop(relay)
    assert code == 0, relay.tail()
    assert_delivered()
    assert sink.ended == ["gate"]


@pytest.fixture
def modest_ffmpeg(ffmpeg, tmp_path):
    """An ffmpeg that takes what of the machine nobody else wants: the workers and other tests go first."""
    script = tmp_path / "modest-ffmpeg"
    script.write_text(f'#!/bin/sh\nexec nice -n 19 "{ffmpeg}" "$@"\n')
    script.chmod(0o755)
    return {"RELAY_FFMPEG": str(script)}


def test_sigint_stops_a_source_that_writes_as_fast_as_it_can(
    camera, sink, spool, modest_ffmpeg, assert_delivered
):
    relay = camera("--no-realtime", "--drain-timeout", "60", "--segment-duration", "2", env=modest_ffmpeg)
    relay.wait_for(more(sink, 3), "some segments in the cloud")
    code, _ = stop(relay, signal.SIGINT, deadline=60 + SLACK)
    assert code == 0, relay.tail()
    assert_delivered()
    assert spool.journal("gap") == []


def test_a_stop_while_the_cloud_is_down_says_how_many_wait_and_where(camera, sink, spool):
    sink.faults.add(Fault("refuse"))
    relay = camera()
    relay.wait_for(lambda: len(spool.owed()) >= 2, "segments that wait")
    code, seconds = stop(relay)
    assert code == 75, relay.tail()
    assert DRAIN <= seconds < DRAIN + SLACK
    assert relay.descendants() == []
    said = re.search(r"stopped with (\d+) segments still owed, in (\S+);", relay.log)
    assert said is not None, relay.tail()
    assert (int(said[1]), Path(said[2])) == (len(spool.owed()), spool.path)
    assert spool.open() == []


def test_a_second_signal_ends_it_at_once_with_all_its_children(camera, sink, spool):
    sink.faults.add(Fault("hang"))
    relay = camera("--drain-timeout", "60")
    relay.wait_for(spool.owed, "a segment that waits")
    family = children(relay)
    relay.signal(signal.SIGTERM)
    relay.wait_for(lambda: "stopping" in relay.log, "the start of the stop")
    code, seconds = stop(relay)
    assert code == 75
    assert seconds < 2.0
    wait_gone(family)


# --- an ffmpeg that does not stop ------------------------------------------------------------------


@pytest.fixture
def deaf_ffmpeg(ffmpeg, tmp_path):
    """An ffmpeg that never hears a signal but SIGKILL."""
    script = tmp_path / "deaf-ffmpeg"
    script.write_text(DEAF_FFMPEG.format(ffmpeg=ffmpeg))
    script.chmod(0o755)
    return {"RELAY_FFMPEG": str(script)}


def test_an_ffmpeg_deaf_to_signals_is_killed_and_its_segment_sent(
    camera, sink, spool, deaf_ffmpeg, assert_delivered
):
    relay = camera(env=deaf_ffmpeg)
    relay.wait_for(more(sink, 1), "a first segment in the cloud")
    relay.wait_for(lambda: is_written(spool), "a segment half written")
    code, seconds = stop(relay)
    assert code == 0, relay.tail()
    assert seconds < DRAIN + SLACK
    assert relay.descendants() == []
    assert len(spool.journal("recovered")) == 1
    assert_delivered()


def test_a_stop_is_bounded_when_ffmpeg_the_broker_and_the_cloud_all_hang(camera, sink, spool, deaf_ffmpeg):
    sink.faults.add(Fault("hang"))
    relay = camera(env=deaf_ffmpeg)
    relay.wait_for(lambda: len(spool.owed()) >= 2, "segments that wait")
    [broker] = running(relay, "valkey-server")
    broker.suspend()
    code, seconds = stop(relay)
    assert code == 75, relay.tail()
    assert seconds < DRAIN + SLACK
    assert relay.descendants() == []


def test_an_ffmpeg_that_is_frozen_whenever_it_wakes_is_killed_and_its_segment_sent(
    camera, sink, spool, assert_delivered
):
    relay = camera()
    relay.wait_for(more(sink, 1), "a first segment in the cloud")
    relay.wait_for(lambda: is_written(spool), "a segment half written")
    [ffmpeg] = running(relay, "ffmpeg-")
    ffmpeg.suspend()
    began = time.monotonic()
    relay.signal(signal.SIGTERM)
    while relay.poll() is None and time.monotonic() - began < DRAIN + SLACK:
        if ffmpeg.is_running():
            ffmpeg.suspend()
        time.sleep(0.01)
    assert relay.poll() == 0, relay.tail()
    assert relay.descendants() == []
    assert_delivered()


# --- SIGKILL of the command ------------------------------------------------------------------------


def test_after_a_sigkill_nothing_stays_behind_and_a_new_start_sends_the_rest(
    camera, sink, spool, assert_delivered
):
    sink.faults.add(hang := Fault("hang"))
    broken = set()
    for everything in (False, True):
        before = spool.owed()
        relay = camera()
        relay.wait_for(lambda before=before: of_a_new_session(spool, before), "a segment that waits")
        relay.wait_for(lambda: is_written(spool), "a segment half written")
        command, family = psutil.Process(relay.pid), children(relay)
        for process in [command, *family] if everything else [command]:
            process.kill()
        assert relay.exit_code() == -signal.SIGKILL
        wait_gone(family)
        assert relay.descendants() == []
        broken |= {path for path in spool.open() if path.stat().st_size >= PACKET_BYTES}
    left = spool.owed()
    time.sleep(1.0)  # long enough to count as a gap
    sink.faults.remove(hang)

    relay = camera()
    relay.wait_for(lambda: not any(path.exists() for path in [*left, *broken]), "the rest delivered")
    code, seconds = stop(relay)
    assert code == 0, relay.tail()
    assert seconds < DRAIN + SLACK
    assert_delivered()
    assert len(spool.journal("recovered")) == len(broken) > 0
    assert len({receipt.session for receipt in sink.receipts()}) == 3
    assert spool.journal("gap")[-1]["cause"] == "the agent was not running"


def of_a_new_session(spool, before):
    """Tell whether a session owes that owed nothing before."""
    return {path.parent for path in spool.owed()} > {path.parent for path in before}


def test_sigkill_of_the_agent_alone_takes_its_ffmpeg_along(start, sink, spool):
    words = ["run", "--source", "test:", "--resolution", "640x360", "--spool", spool.path]
    relay = start(
        *words, "--cloud", sink.url, env={"RELAY_TOKEN": "x", "RELAY_BROKER": "redis://127.0.0.1:9"}
    )
    relay.wait_for(lambda: is_written(spool), "a segment half written")
    [ffmpeg] = running(relay, "ffmpeg-")
    relay.signal(signal.SIGKILL)
    relay.exit_code()
    wait_gone([ffmpeg])
    assert relay.descendants() == []


# --- SIGKILL of a part -----------------------------------------------------------------------------


def test_a_broker_that_is_wiped_or_killed_costs_no_segment(camera, sink, assert_delivered):
    relay = camera()
    relay.wait_for(more(sink, 1), "a first segment in the cloud")

    sink.faults.add(down := Fault("refuse"))
    relay.wait_for(lambda: "broker.sock" in str(broker_socket(relay)), "the broker")
    with redis.Redis(unix_socket_path=str(broker_socket(relay))) as client:
        relay.wait_for(lambda: "down" in relay.log or client.dbsize(), "messages in the broker")
        client.flushall()
    sink.faults.remove(down)
    relay.wait_for(more(sink, 2), "segments after the broker was wiped")

    [broker] = running(relay, "valkey-server")
    broker.kill()
    relay.wait_for(lambda: running(relay, "valkey-server") not in ([], [broker]), "another broker")
    relay.wait_for(more(sink, 2), "segments after the broker was killed")
    assert stop(relay)[0] == 0, relay.tail()
    assert_delivered()


def broker_socket(relay):
    [broker] = running(relay, "valkey-server")
    return Path(broker.cwd()) / "broker.sock"


def test_worker_child_and_beat_are_replaced_when_killed_and_cost_no_segment(camera, sink, assert_delivered):
    relay = camera()
    relay.wait_for(more(sink, 1), "a first segment in the cloud")
    workers, [beat] = running(relay, " worker "), running(relay, " beat ")
    assert len(workers) == 4
    workers[-1].kill()
    relay.wait_for(lambda: changed(relay, " worker ", workers[-1], 4), "another child")
    relay.wait_for(more(sink, 1), "a segment after the kill of a child")
    workers[0].kill()
    beat.kill()
    relay.wait_for(lambda: changed(relay, " worker ", workers[0], 4), "another worker")
    relay.wait_for(lambda: changed(relay, " beat ", beat, 1), "another beat")
    relay.wait_for(more(sink, 2), "segments after the kill of the worker")
    assert stop(relay)[0] == 0, relay.tail()
    assert_delivered()


def changed(relay, words, killed, count):
    now = running(relay, words)
    return killed not in now and len(now) == count


def test_an_ffmpeg_that_is_killed_leaves_a_gap_line_and_capture_goes_on_in_its_session(
    camera, sink, spool, assert_delivered
):
    relay = camera()
    relay.wait_for(more(sink, 2), "segments in the cloud")
    relay.wait_for(lambda: is_written(spool), "a segment half written")
    [ffmpeg] = running(relay, "ffmpeg-")
    ffmpeg.kill()
    relay.wait_for(lambda: spool.journal("gap"), "a gap line")
    relay.wait_for(more(sink, 1), "a segment after the kill")
    assert stop(relay)[0] == 0, relay.tail()
    assert_delivered()
    [gap] = spool.journal("gap")
    assert gap["cause"] == "ffmpeg killed by SIGKILL"
    assert 0.5 <= gap["seconds"] < 10.0
    [recovered] = spool.journal("recovered")
    closed = [line for line in spool.journal() if line["event"] in {"closed", "recovered"}]
    assert closed.index(recovered) not in {0, len(closed) - 1}
    assert len(spool.sessions()) == len({line["session"] for line in closed}) == 1
    sequences = [int(line["segment"].partition("_")[0]) for line in closed]
    assert sequences == sorted(set(sequences))

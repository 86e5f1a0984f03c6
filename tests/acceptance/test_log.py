"""What `up --json` says while all goes well: at the start a line for each change, and then nothing."""

import json
import re

import pytest

from tests.acceptance.conftest import TOKEN

SEGMENTS = 16  # of one second, of two cameras: eight seconds and more
CAMERAS = ("gate", "yard")
CELERYS = re.compile(r"Connected to .+|\S+ ready\.")  # its own sentences, at the start only
STARTED_WITHIN = 60.0


def parsed(log):
    return [json.loads(line) for line in log.splitlines()]


def is_about(line, event):
    return line["event"] == event


@pytest.fixture
def relay(start, sink, spool, tmp_path):
    tables = "".join(f'[cameras.{each}]\nsource = "test:320x180@10"\n' for each in CAMERAS)
    config = tmp_path / "relay.toml"
    config.write_text(f"[defaults]\nsegment_seconds = 1\n{tables}")
    config.chmod(0o600)
    settings = {"RELAY_CLOUD": sink.url, "RELAY_TOKEN": TOKEN, "RELAY_SPOOL": str(spool.path)}
    return start("up", "--config", config, "--json", env=settings)


def test_nothing_is_said_while_all_goes_well(relay, sink, spool):
    def by_camera(event):
        return {line["session"].split("-")[2] for line in spool.journal(event)}

    relay.wait_for(lambda: "ready." in relay.log, "the worker", deadline=STARTED_WITHIN)
    relay.wait_for(lambda: by_camera("delivered") == set(CAMERAS), "both cameras", deadline=STARTED_WITHIN)
    relay.wait_for(lambda: relay.log.count("capture_running") == 2, "both lines", deadline=STARTED_WITHIN)
    at_start = relay.log
    had = len(sink.receipts())
    relay.wait_for(lambda: len(sink.receipts()) >= had + SEGMENTS, "a while", deadline=STARTED_WITHIN)
    assert relay.log[len(at_start) :] == ""

    relay.signal()
    assert relay.exit_code() == 0, relay.tail()
    lines = parsed(relay.log)
    for line in lines:
        assert {"timestamp", "level", "event"} <= line.keys(), line
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", line["event"]) or CELERYS.fullmatch(line["event"]), line
        if line["event"].startswith(("session_", "capture_")):
            assert line["camera"] in CAMERAS, line
        if line["event"].startswith("session_"):
            assert line["session"].startswith(f"relay-segments-{line['camera']}-"), line
    assert {line["level"] for line in lines} == {"info"}
    assert sorted(line["camera"] for line in lines if is_about(line, "session_started")) == list(CAMERAS)
    assert sorted(line["camera"] for line in lines if is_about(line, "session_ended")) == list(CAMERAS)

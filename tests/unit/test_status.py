"""The status of real directories under a stepped clock, and its words."""

import json
import os

import pytest
from rich.console import Console

from capture.audit_spool import cameras
from capture.broker_note import note_broker, with_broker_of
from capture.claim import claim
from capture.gate import Gate
from capture.journal import Entry, Event
from capture.outcome import Kind, Outcome
from capture.settings import load_settings
from capture.spool import Spool
from capture.status import TAIL_BYTES, read_recent, read_status, summarise
from capture.status_view import view
from capture.words import bytes_text, many, seconds_text
from tests.conftest import PACKET, add_segment, start_session

NOWHERE = "redis://127.0.0.1:1/0"
TOKEN = "status-token"


@pytest.fixture
def spool(tmp_path, clock):
    return Spool.open(tmp_path / "spool", create=True, clock=clock)


def settings_of(**environ):
    return load_settings(environ={"RELAY_BROKER": NOWHERE, **environ})


def test_an_empty_spool_has_a_status(spool):
    found = read_status(spool, settings_of())

    assert (found.cameras, found.owed, found.drain_seconds) == ((), 0, 0.0)
    assert found.ingest.state == "unknown"
    assert not found.broker.reachable


def test_a_configured_camera_that_never_ran_is_listed(spool):
    found = read_status(spool, settings_of(RELAY_SOURCE="test:", RELAY_CAMERA_ID="yard"))

    assert [(camera.id, camera.state, camera.configured) for camera in found.cameras] == [
        ("yard", "never ran", True)
    ]


def test_debts_ages_and_rates_come_from_files_and_journal(spool, clock):
    with start_session(spool) as session:
        owed = [add_segment(session, number).segment for number in range(1, 6)]
        clock.step(60)
        with claim(spool, session.name, owed[0]) as taken:
            taken.delivered(sha256="0" * 64, status=204, attempts=1)
        with claim(spool, session.name, owed[1]) as taken:
            taken.rejected(status=422, reason="HTTP 422")
        clock.step(40)
        found = read_status(spool, settings_of())

    camera = found.cameras[0]
    size = len(PACKET) * 4
    assert (camera.owed, camera.owed_bytes, camera.rejected) == (3, 3 * size, 1)
    assert camera.newest_segment_age == 88.0  # the fifth ended 12 s after the clock's beginning
    assert camera.oldest_owed_age == 92.0
    assert camera.last_delivered_age == 40.0
    assert camera.closed_bytes_per_second == pytest.approx(5 * size / 100, abs=0.1)
    assert camera.delivered_bytes_per_second == pytest.approx(size / 100, abs=0.1)
    assert camera.state == "recording"
    assert found.drain_seconds is None
    assert found.full_in_seconds == pytest.approx(found.free_bytes / (4 * size / 100), rel=0.02)


def test_there_is_no_room_left_when_a_limit_is_reached_not_when_the_disk_is_full(spool, clock):
    with start_session(spool) as session:
        size = sum(add_segment(session, number, PACKET * 1000).size for number in range(1, 6))
        clock.step(100)
        budget = read_status(spool, settings_of(RELAY_SPOOL__MAX_BYTES="2000000"))
        free = budget.free_bytes
        floor = read_status(spool, settings_of(RELAY_SPOOL__MIN_FREE=str(free - 500_000_000)))
        none = read_status(spool, settings_of(RELAY_SPOOL__MIN_FREE=str(free * 2)))

    assert budget.full_in_seconds == pytest.approx((2_000_000 - size) / (size / 100), rel=0.01)
    assert floor.full_in_seconds == pytest.approx(500_000_000 / (size / 100), rel=0.2)  # others write, too
    assert none.full_in_seconds == 0.0


def test_what_was_delivered_on_a_full_disk_is_not_owed(spool):
    with start_session(spool) as session:
        segment = add_segment(session, 1).segment
        (session.path / str(segment)).write_bytes(b"")

        assert read_status(spool, settings_of()).owed == 0


def test_a_session_is_ended_or_interrupted_once_nobody_holds_its_lock(spool):
    session = start_session(spool)
    session.close()
    assert read_status(spool, settings_of()).cameras[0].state == "interrupted"
    session.end()
    assert read_status(spool, settings_of()).cameras[0].state == "ended"


def test_the_shown_drain_time_is_what_the_rates_give(clock):
    def line(event, seconds_ago, size):
        clock.step(-seconds_ago)
        fields = {"t": clock.now().isoformat(), "bytes": size}
        clock.step(seconds_ago)
        return Entry(event, fields, None, 1)

    entries = [
        line(Event.CLOSED, 1000, 10**9),
        line(Event.CLOSED, 100, 10_000),
        line(Event.DELIVERED, 50, 90_000),
        Entry(None, {}, None, 4),
        Entry(Event.CLOSED, {"t": "yesterday", "bytes": 1}, None, 5),
    ]

    recent = summarise(iter(entries), clock.now())

    assert recent.closed_bytes_per_second == pytest.approx(10_000 / 300, abs=0.1)
    assert recent.delivered_bytes_per_second == pytest.approx(90_000 / 300, abs=0.1)


def test_only_the_end_of_a_long_journal_is_read(spool, clock):
    with start_session(spool) as session:
        last = [add_segment(session, number).segment for number in range(1, 4)][-1]
    path = next((spool.journal.directory / "door").glob("*.jsonl"))
    lines = path.read_bytes()
    path.write_bytes(b'{"event": "gap"}\n' * (3 * TAIL_BYTES // 17) + lines)

    assert read_recent(path.parent, clock.now()).last_closed == last


def test_the_gate_tells_how_the_ingest_is(spool, clock):
    settings = settings_of(RELAY_TOKEN=TOKEN)
    gate = Gate(spool, settings.ingest)
    states = []
    for _ in range(3):
        gate.report(Outcome(Kind.TRANSIENT, 503, "HTTP 503"), TOKEN)
        states.append(read_status(spool, settings).ingest)

    assert [found.state for found in states] == ["failing", "failing", "down"]
    assert states[-1].reason == "HTTP 503"
    assert states[-1].since == "2026-06-01T12:00:00.000Z"


@pytest.mark.parametrize("known", [True, False])
def test_a_refused_token_is_shown_with_advice_and_without_itself(spool, known):
    token = {"RELAY_TOKEN": TOKEN} if known else {}
    Gate(spool, settings_of().ingest).report(Outcome(Kind.FATAL, 403, "HTTP 403"), TOKEN)

    found = read_status(spool, settings_of(**token))

    assert found.ingest.state == "refused"
    assert "403" in found.ingest.advice
    assert TOKEN not in json.dumps(found.as_json())


def test_the_refusal_of_a_token_that_was_replaced_is_not_shown(spool):
    Gate(spool, settings_of().ingest).report(Outcome(Kind.FATAL, 401, "HTTP 401"), "old")

    assert read_status(spool, settings_of(RELAY_TOKEN="new")).ingest.state == "unknown"


def test_a_broker_password_is_never_shown(spool):
    settings = load_settings(environ={"RELAY_BROKER": "redis://:hunter22@127.0.0.1:1/0"})

    assert "hunter22" not in json.dumps(read_status(spool, settings).as_json())


def test_the_json_is_stable(spool):
    with start_session(spool):
        found = json.loads(json.dumps(read_status(spool, settings_of()).as_json()))

    assert list(found) == [
        *("format", "time", "spool", "free_bytes", "total_bytes", "owed", "owed_bytes", "rejected"),
        *("drain_seconds", "full_in_seconds", "full_in_seconds_without_uploads"),
        *("broker", "ingest", "cameras"),
    ]
    assert list(found["cameras"][0]) == [
        *("id", "configured", "state", "sessions", "newest_segment_end", "newest_segment_age", "owed"),
        *("owed_bytes", "oldest_owed_age", "rejected", "closed_bytes_per_second"),
        *("delivered_bytes_per_second", "last_delivered_age", "name", "words", "writing_age", "gaps"),
    ]
    assert list(found["cameras"][0]["gaps"]) == ["since", "count", "seconds", "last", "slots"]


def test_a_note_about_a_broker_that_is_gone_is_ignored(spool, tmp_path):
    note_broker(spool, f"redis+socket://{tmp_path}/gone.sock")
    settings = load_settings(environ={})

    assert with_broker_of(spool, settings) is settings


def test_cameras_are_those_with_a_journal_or_a_session(spool):
    with start_session(spool, "door"), start_session(spool, "gate") as gate:
        add_segment(gate, 1)
    spool.journal.append("yard", Event.GAP)

    assert cameras(spool) == ["door", "gate", "yard"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (250, "4 min 10 s"),
        (3599.9, "60 min"),
        (7500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations_read_well(seconds, text):
    assert seconds_text(seconds) == text


def test_amounts_read_well():
    assert [bytes_text(size) for size in (0, 999, 1000, 1_234_567, 35e9, 2e12)] == [
        *("0 B", "999 B", "1 kB", "1.23 MB", "35 GB", "2 TB"),
    ]
    assert (many(1, "gap"), many(0, "gap")) == ("1 gap", "0 gaps")


def shown(spool, *, width, terminal=False):
    console = Console(width=width, force_terminal=terminal, color_system="standard" if terminal else None)
    with console.capture() as captured:
        console.print(view(read_status(spool, settings_of())))
    return captured.get()


@pytest.mark.parametrize(("owes", "words"), [(0, "starting"), (3, "recording")])
def test_a_narrow_terminal_still_tells_all_cameras_and_their_states(spool, owes, words):
    with start_session(spool, "north-gate") as session:
        for number in range(1, owes + 1):
            add_segment(session, number)
        lines = shown(spool, width=80).splitlines()

    assert all(len(line) <= 80 for line in lines)
    assert any(line.startswith("north") and words in line for line in lines)
    assert ("oldest" in lines[0], "gaps" in lines[0]) == (bool(owes), True)


def test_states_have_words_and_colour_only_on_a_terminal(spool, clock):
    with start_session(spool):
        clock.step(60)
        assert "no video" in shown(spool, width=100)
        assert "\x1b[" not in shown(spool, width=100)
        assert "\x1b[1;31mno video" in shown(spool, width=100, terminal=True)


def test_a_session_without_video_is_not_called_recording(spool, clock):
    def words():
        return read_status(spool, settings_of()).cameras[0].words

    with start_session(spool) as session:
        path = session.open_directory / "00000001.ts"
        assert words() == "starting"
        clock.step(60)
        assert words() == "no video"
        path.write_bytes(PACKET)
        os.utime(path, (clock.time() - 1, clock.time() - 1))
        assert words() == "recording"
        clock.step(60)
        assert words() == "no video"
    assert words() == "interrupted"


def test_a_camera_that_is_switched_off_says_so(tmp_path, spool):
    (tmp_path / "relay.toml").write_text(
        '[cameras.attic]\nsource = "test:"\nenabled = false\nname = "Attic"\n'
    )
    settings = load_settings(environ={"RELAY_BROKER": NOWHERE}, config=tmp_path / "relay.toml")

    (camera,) = read_status(spool, settings).cameras

    assert (camera.words, camera.state, camera.name) == ("switched off", "never ran", "Attic")

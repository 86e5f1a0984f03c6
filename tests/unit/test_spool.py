"""The spool on real files: marker, sessions, claims, journal."""

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capture import claim as claim_module
from capture.claim import HostileNameError, claim, parse_names, parse_session
from capture.errors import ConfigError
from capture.journal import Event, Journal
from capture.segment import SegmentName, SessionName
from capture.session import adopt, lock_session
from capture.spool import MARKER, SESSION_FILE, Spool, read_json, write_json
from capture.upkeep import close_dead_sessions, requeue_rejected
from tests.conftest import PACKET, add_segment, start_session

MOMENT = datetime(2026, 6, 1, 12, tzinfo=UTC)


def events(spool, camera="door"):
    return [(entry.event, entry.fields.get("segment")) for entry in spool.journal.read(camera)]


# --- marker ---


def test_an_empty_directory_becomes_a_spool_and_stays_the_same_one(tmp_path):
    spool_id = Spool.open(tmp_path, create=True).id
    assert Spool.open(tmp_path).id == spool_id
    assert Spool.open(tmp_path, create=True).id == spool_id


def test_a_worker_does_not_make_a_spool_where_none_is(tmp_path):
    with pytest.raises(ConfigError, match="no spool"):
        Spool.open(tmp_path / "unmounted")
    assert not (tmp_path / "unmounted").exists()


def test_a_directory_with_other_things_does_not_become_a_spool(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        Spool.open(tmp_path, create=True)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_spool_that_lost_its_marker_is_not_made_anew(spool):
    start_session(spool).close()
    (spool.root / MARKER).unlink()
    with pytest.raises(ConfigError, match="marker"):
        Spool.open(spool.root, create=True)


def test_a_spool_whose_marker_vanished_is_not_written_to(spool):
    (spool.root / MARKER).unlink()
    with pytest.raises(ConfigError, match="not mounted"):
        start_session(spool)
    assert spool.sessions() == []


def test_a_spool_of_a_newer_format_is_left_alone(spool):
    (spool.root / MARKER).write_text(json.dumps({"format": 2, "id": "x"}))
    with pytest.raises(ConfigError, match=r"format 2.*upgrade"):
        Spool.open(spool.root, create=True)


def test_a_damaged_marker_is_one_message(spool):
    (spool.root / MARKER).write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        Spool.open(spool.root)


def test_a_start_removes_the_temporary_files_of_writers_that_were_killed_long_ago(spool):
    old, young = spool.state / ".recover.json.0a0a0a0a.tmp", spool.state / ".breaker.json.0b0b0b0b.tmp"
    old.write_text("{")
    young.write_text("{")
    os.utime(old, (1, 1))
    Spool.open(spool.root)
    assert old.exists()
    Spool.open(spool.root, create=True)
    assert not old.exists()
    assert young.exists()


# --- sessions ---


def test_a_closed_segment_is_owed_and_journalled_under_its_final_name(spool):
    with start_session(spool) as session:
        owed = add_segment(session, 1)
        assert spool.segments(session.name) == [owed.segment]
        assert spool.open_segments(session.name) == []
        assert owed.size == 4 * 188
        assert events(spool) == [(Event.CLOSED, str(owed.segment))]


def test_the_file_is_durable_before_it_is_renamed_and_renamed_before_it_is_journalled(spool, monkeypatch):
    steps = []
    real_fsync, real_append = os.fsync, Journal.append
    monkeypatch.setattr(
        os, "fsync", lambda fd: (steps.append(os.readlink(f"/proc/self/fd/{fd}")), real_fsync(fd))
    )
    monkeypatch.setattr(
        Journal, "append", lambda self, *a, **k: (steps.append("journal"), real_append(self, *a, **k))
    )
    with start_session(spool) as session:
        steps.clear()
        add_segment(session, 1)
    assert steps[:3] == [str(session.open_directory / "00000001.ts"), str(session.path), "journal"]


def test_the_name_of_a_new_day_of_the_journal_is_on_the_disk_with_its_first_line(spool, clock, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (synced.append(Path(f"/proc/self/fd/{fd}").readlink().name), real(fd)),
    )
    journal = Journal(spool.journal.directory, clock)
    for seconds, expected in ((0, ["journal", "door"]), (5, []), (86400, ["door"])):
        clock.step(seconds)
        journal.append("door", Event.GAP, cause="x")
        assert synced == expected
        synced.clear()


def leave_alone(session):
    """Make it an hour older: without its file nobody knows which host's it is."""
    moment = session.spool.clock.time() - 3600
    for entry in [*session.path.rglob("*"), session.path]:
        os.utime(entry, (moment, moment))


def test_a_dead_session_whose_file_cannot_be_read_just_now_is_left_as_it_is(spool, monkeypatch):
    with start_session(spool) as session:
        session.open_path(1).write_bytes(PACKET)
    leave_alone(session)
    before = spool.session_info(session.name)
    real = os.open

    def too_many(path, *rest, **options):
        if str(path).endswith(SESSION_FILE):
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", too_many)
        assert close_dead_sessions(spool) == []
    assert spool.session_info(session.name) == before
    assert [name for name, _ in close_dead_sessions(spool)] == [session.name]
    assert spool.session_info(session.name).keys() >= before.keys()


@pytest.mark.parametrize("content", [None, b"{torn", b"[]"])
def test_a_dead_session_whose_file_is_missing_or_damaged_is_closed(spool, content):
    with start_session(spool) as session:
        session.open_path(1).write_bytes(PACKET)
    (session.path / SESSION_FILE).unlink()
    if content is not None:
        (session.path / SESSION_FILE).write_bytes(content)
    leave_alone(session)
    assert [name for name, _ in close_dead_sessions(spool)] == [session.name]
    assert spool.session_info(session.name)["ended_at"]


def test_what_ffmpeg_could_not_write_on_a_full_disk_is_not_owed(spool):
    with start_session(spool) as session:
        assert add_segment(session, 1, b"") is None
        assert add_segment(session, 2, PACKET[:90]) is None
        cut = add_segment(session, 3, PACKET * 5 + PACKET[:90])
    assert cut.size == 5 * 188
    assert spool.segments(session.name) == [cut.segment]
    assert spool.open_segments(session.name) == []
    assert events(spool) == [(Event.CLOSED, str(cut.segment))]


def test_a_segment_never_takes_the_place_of_another(spool):
    with start_session(spool) as session:
        owed = add_segment(session, 1)
        (session.open_directory / "00000001.ts").write_bytes(PACKET)
        with pytest.raises(FileExistsError):
            session.close_segment(1, owed.segment.start, owed.segment.duration)
        assert (session.path / str(owed.segment)).stat().st_size == 4 * 188
        assert spool.open_segments(session.name) == [1]


def test_session_json_names_the_kind_of_source_and_never_its_address(spool):
    with start_session(spool) as session:
        session.end()
    info = spool.session_info(session.name)
    assert info["format"] == 1
    assert info["source_kind"] == "test"
    assert info["ended_at"]
    assert "source" not in info
    assert "source_url" not in info


def test_a_session_is_adopted_only_when_nobody_holds_its_lock(spool):
    session = start_session(spool)
    assert adopt(spool, session.name) is None
    session.close()
    adopted = adopt(spool, session.name)
    assert adopted is not None
    adopted.close()


def test_what_was_left_open_is_cut_to_whole_packets_and_becomes_owed(spool):
    with start_session(spool) as session:
        (session.open_directory / "00000007.ts").write_bytes(PACKET * 3 + PACKET[:100])
        (session.open_directory / "00000008.ts").write_bytes(b"")
        (session.open_directory / "00000009.ts").write_bytes(PACKET[:50])
        salvaged = session.salvage()
    assert [owed.segment.sequence for owed in salvaged] == [7]
    assert salvaged[0].size == 3 * 188
    assert spool.open_segments(session.name) == []
    assert [event for event, _ in events(spool)] == [Event.RECOVERED]


def test_one_open_segment_that_cannot_be_salvaged_does_not_keep_the_others(spool, unreadable_where):
    unreadable_where(lambda _, number: number == 2)
    with start_session(spool) as session:
        for number in (1, 2, 3):
            session.open_path(number).write_bytes(PACKET)
        with pytest.raises(OSError, match="Input/output"):
            session.salvage()
    assert [segment.sequence for segment in spool.segments(session.name)] == [1, 3]
    assert spool.open_segments(session.name) == [2]


def test_what_is_no_file_is_no_open_segment_and_its_number_is_taken(spool, tmp_path):
    with start_session(spool) as session:
        session.open_path(1).write_bytes(PACKET)
        session.open_path(2).mkdir()
        session.open_path(3).symlink_to(tmp_path / "elsewhere")
        os.mkfifo(session.open_path(4))
        assert spool.open_segments(session.name) == [1]
        assert spool.open_numbers(session.name) == [1, 2, 3, 4]
        assert [owed.segment.sequence for owed in session.salvage()] == [1]


def test_a_session_that_cannot_be_made_leaves_nothing_behind(spool, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("capture.session.write_json", full)
    with pytest.raises(OSError, match="No space"):
        start_session(spool)
    assert spool.sessions() == []


# --- claims ---


def owed_one(spool):
    session = start_session(spool)
    return session, add_segment(session, 1).segment


def test_two_claims_of_one_segment_never_overlap(spool):
    session, segment = owed_one(spool)
    with claim(spool, session.name, segment) as first:
        assert first is not None
        assert claim(spool, session.name, segment) is None
    with claim(spool, session.name, segment) as again:
        assert again is not None


def test_a_delivery_is_journalled_before_the_file_goes(spool, monkeypatch):
    session, segment = owed_one(spool)
    path = session.path / str(segment)
    real = Journal.append
    seen = []
    monkeypatch.setattr(
        Journal,
        "append",
        lambda self, *a, **k: (seen.append((path.exists(), k["durable"])), real(self, *a, **k)),
    )
    with claim(spool, session.name, segment) as claimed:
        claimed.delivered(sha256="ab", status=204, attempts=1)
    assert seen == [(True, True)]
    assert not path.exists()
    assert claim(spool, session.name, segment) is None


def test_a_segment_delivered_by_another_between_open_and_lock_is_gone(spool, monkeypatch):
    session, segment = owed_one(spool)
    real = claim_module.fcntl.flock

    def flock(fd, how):
        (session.path / str(segment)).unlink()
        return real(fd, how)

    monkeypatch.setattr(claim_module.fcntl, "flock", flock)
    assert claim(spool, session.name, segment) is None


def test_a_full_disk_does_not_hold_up_a_delivery(spool, monkeypatch):
    session, segment = owed_one(spool)
    path = session.path / str(segment)
    real = Journal.append_all
    sizes = []

    def append_all(self, *args, **kwargs):
        sizes.append(path.stat().st_size)
        if len(sizes) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Journal, "append_all", append_all)
    with claim(spool, session.name, segment) as claimed:
        claimed.delivered(sha256="ab", status=204, attempts=1)
    assert sizes == [4 * 188, 0]
    assert events(spool)[-1] == (Event.DELIVERED, str(segment))
    assert not path.exists()


def test_a_delivery_that_a_full_disk_interrupted_is_finished_and_not_sent_again(spool):
    session, segment = owed_one(spool)
    os.truncate(session.path / str(segment), 0)
    with claim(spool, session.name, segment) as claimed:
        assert claimed.finish_delivered()
    assert events(spool)[-1] == (Event.DELIVERED, str(segment))
    assert spool.segments(session.name) == []


def test_a_rejected_segment_is_kept_with_the_answer_and_can_be_owed_again(spool):
    session, segment = owed_one(spool)
    with claim(spool, session.name, segment) as claimed:
        claimed.rejected(status=413, reason="HTTP 413: too large")
    folder = session.path / "rejected"
    note = json.loads((folder / f"{segment}.json").read_text())
    assert (note["status"], note["reason"]) == (413, "HTTP 413: too large")
    assert spool.segments(session.name) == []
    assert requeue_rejected(spool) == 1
    assert spool.segments(session.name) == [segment]
    assert list(folder.iterdir()) == []
    assert [event for event, _ in events(spool)] == [Event.CLOSED, Event.REJECTED, Event.REQUEUED]


def test_a_dropped_segment_says_why_in_the_journal(spool):
    session, segment = owed_one(spool)
    with claim(spool, session.name, segment) as claimed:
        claimed.dropped(reason="disk budget")
    assert events(spool)[-1] == (Event.DROPPED, str(segment))
    assert spool.segments(session.name) == []


# --- hostile names ---

GOOD_SEGMENT = "00000001_20260601T120000.000Z_2000.ts"


@pytest.mark.parametrize(
    ("session", "segment"),
    [
        (None, None),
        (1, 2),
        ([], {}),
        ("", ""),
        ("..", GOOD_SEGMENT),
        ("/etc", "passwd"),
        ("relay-segments-door-20260601T120000Z-abcdefgh/..", GOOD_SEGMENT),
        ("relay-segments-door-20260601T120000Z-abcdefgh", "../" + GOOD_SEGMENT),
        ("relay-segments-door-20260601T120000Z-abcdefgh", "session.json"),
        ("relay-segments-door-20260601T120000Z-abcdefgh\0", GOOD_SEGMENT),
        ("relay-segments-do\u202eor-20260601T120000Z-abcdefgh", GOOD_SEGMENT),
        ("a" * 10_000_000, GOOD_SEGMENT),
        ("relay-segments-door-20260601T120000Z-abcdefgh", "0" * 10_000_000),
    ],
)
def test_anything_but_two_valid_names_is_refused_and_quoted_short(session, segment):
    with pytest.raises(HostileNameError) as caught:
        parse_names(session, segment)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isascii()


@given(st.one_of(st.none(), st.text(), st.integers(), st.lists(st.text())), st.one_of(st.text(), st.binary()))
def test_no_argument_does_more_than_be_refused(session, segment):
    with pytest.raises(HostileNameError):
        parse_names(session, segment)
    with pytest.raises(HostileNameError):
        parse_session(session)


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo", "socketless", "hardlink-free"])
def test_a_planted_thing_that_is_no_regular_file_is_not_opened(spool, tmp_path, kind):
    session = start_session(spool)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path = session.path / GOOD_SEGMENT
    segment = SegmentName.parse(GOOD_SEGMENT)
    if kind == "symlink":
        path.symlink_to(secret)
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socketless":
        path.symlink_to(tmp_path / "nowhere")
    else:
        assert claim(spool, session.name, segment) is None
        return
    with pytest.raises(HostileNameError):
        claim(spool, session.name, segment)


def test_a_session_that_is_a_link_out_of_the_spool_is_not_followed(spool, tmp_path):
    session, segment = owed_one(spool)
    outside = tmp_path / "outside"
    session.path.rename(outside)
    session.path.symlink_to(outside)
    assert claim(spool, session.name, segment) is None
    assert spool.sessions() == []


# --- journal and small files ---


def test_a_torn_line_does_not_swallow_the_next_one(spool):
    spool.journal.append("door", Event.GAP, cause="a")
    path = next(spool.journal.directory.glob("door/*.jsonl"))
    with path.open("ab") as file:
        file.write(b'{"t": "2026-')
    spool.journal.append("door", Event.GAP, cause="b")
    read = list(spool.journal.read("door"))
    assert [entry.event for entry in read] == [Event.GAP, None, Event.GAP]
    assert read[1].line == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_no_garbage_in_a_journal_makes_reading_it_raise(tmp_path, garbage):
    journal = Journal(tmp_path / "journal")
    folder = tmp_path / "journal" / "door"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "2026-06-01.jsonl").write_bytes(garbage)
    for entry in journal.read("door"):
        assert entry.event is None or isinstance(entry.event, Event)
    journal.last_segment("door")


def test_the_last_segment_is_found_behind_later_lines(spool):
    with start_session(spool) as session:
        add_segment(session, 1)
        second = add_segment(session, 2)
    spool.journal.append("door", Event.GAP, cause="x")
    assert spool.journal.last_segment("door") == second.segment
    assert spool.journal.last_segment("yard") is None


def test_the_highest_number_of_a_session_is_found_without_reading_a_year_of_journal(tmp_path):
    journal = Journal(tmp_path)
    folder = tmp_path / "door"
    folder.mkdir()
    name = SessionName.parse("relay-segments-door-20260601T120000Z-aaaaaaaa")

    def line(number, session=name):
        segment = f"{number:08d}_20260601T120000.000Z_2000.ts"
        return json.dumps({"event": "closed", "session": str(session), "segment": segment}) + "\n"

    other = SessionName("door", "20260701T120000Z-bbbbbbbb")
    (folder / "2026-06-01.jsonl").mkdir()  # nothing that can be read
    (folder / "2026-06-02.jsonl").write_text(line(900) + "{torn\n")
    (folder / "2026-06-03.jsonl").write_text(line(7) + line(12) + line(9))
    (folder / "2026-06-04.jsonl").write_text(line(11) + json.dumps({"event": "gap", "cause": f"{name}/99"}))
    (folder / "2026-07-01.jsonl").write_text(line(5000, other) * 3)

    assert journal.highest_number(name) == 900
    assert journal.highest_number(other) == 5000
    assert journal.highest_number(SessionName("yard", name.id)) == 0
    (folder / "2026-06-01.jsonl").rmdir()
    assert journal.highest_number(SessionName("door", "00010101T000000Z-aaaaaaaa")) == 0


def test_a_small_file_is_read_whole_or_as_empty(tmp_path):
    path = tmp_path / "state.json"
    assert read_json(path) == {}
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}
    path.write_text("[1]")
    assert read_json(path) == {}
    path.unlink()
    os.mkfifo(path)
    assert read_json(path) == {}
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_the_lock_of_a_session_is_let_go_with_its_last_holder(spool):
    session = start_session(spool)
    inherited = os.dup(session.lock)
    session.close()
    assert lock_session(session.path) is None
    os.close(inherited)
    lock = lock_session(session.path)
    assert lock is not None
    os.close(lock)

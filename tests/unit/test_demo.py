import hashlib
import io
from dataclasses import replace

import pytest
from rich.console import Console

from capture import demo_result
from capture.demo_evidence import Piece, Window, read_story, tail, waits, wrong_digests
from capture.demo_result import (
    CHECKS,
    EXIT_FAILED,
    Decoded,
    Result,
    Wait,
    count,
    duration,
    exit_code,
    figures,
    findings,
    percentile,
)
from capture.demo_stage import Outage, demo_settings, open_place
from capture.demo_view import ASCII, UNICODE, Picture, changes, draw, table
from capture.errors import UsageError
from capture.journal import Event
from capture.settings import read_token
from capture.sink import Receipt

ALL = tuple(range(1, 16))
FULL = Decoded(50, starts_with_key=True)
GOOD = Result(
    30,
    captured=ALL,
    delivered=ALL,
    stored=(*ALL[:5], 7, 8, 6, *ALL[8:]),  # late ones overtake each other; that is no fault
    sessions=1,
    frames_written=750,
    joined=Decoded(750, starts_with_key=True),
    alone=tuple((number, FULL) for number in ALL),
    retried=4,
    bytes_captured=1000,
    bytes_stored=1000,
    outage_seconds=6.0,
    outage_hits=4,
    waits=(Wait(1, 0.01, in_outage=False), Wait(6, 4.0, in_outage=True)),
    registered=True,
    ended=True,
    services=("beat", "broker", "worker"),
)


def alone(number: int, decoded: Decoded) -> tuple[tuple[int, Decoded], ...]:
    return tuple((n, decoded if n == number else FULL) for n in ALL)


# --- the exit code ---------------------------------------------------------------------------------


def test_a_run_in_which_everything_arrived_is_good():
    assert [finding for finding in findings(GOOD) if finding.problem] == []
    assert exit_code(findings(GOOD)) == 0


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        ({"joined": Decoded(749, starts_with_key=True)}, "frames in / out"),
        ({"joined": Decoded(751, starts_with_key=True)}, "frames in / out"),
        ({"frames_written": 749}, "frames in / out"),
        # Fewer frames on both sides agree with each other, and are still too few.
        ({"frames_written": 749, "joined": Decoded(749, starts_with_key=True)}, "frames in / out"),
        ({"joined": Decoded(750, starts_with_key=True, errors=("corrupt",))}, "frames in / out"),
        ({"joined": None}, "frames in / out"),
        ({"alone": alone(3, Decoded(49, starts_with_key=True))}, "play by themselves"),
        ({"alone": alone(3, Decoded(50, starts_with_key=False))}, "play by themselves"),
        ({"alone": alone(3, Decoded(50, starts_with_key=True, errors=("bad",)))}, "play by themselves"),
        ({"alone": GOOD.alone[:-1]}, "play by themselves"),
        ({"alone": ()}, "play by themselves"),
        ({"digests_wrong": ("segment 4: found …",)}, "digests matched"),
        ({"captured": ALL[:-1]}, "segments captured"),
        ({"captured": (*ALL, 15)}, "segments captured"),
        ({"captured": (*ALL, 16)}, "segments captured"),
        ({"sessions": 2}, "segments captured"),
        ({"delivered": (*ALL[:4], *ALL[5:])}, "segments delivered"),
        ({"delivered": (*ALL, 3)}, "segments delivered"),
        ({"stored": ALL[1:]}, "segments delivered"),
        ({"stored": ()}, "digests matched"),
        ({"bytes_stored": 999}, "segments delivered"),
        ({"duplicates": 1}, "duplicates"),
        ({"owed": 1}, "owed / rejected / dropped"),
        ({"rejected": 1}, "owed / rejected / dropped"),
        ({"dropped": 1}, "owed / rejected / dropped"),
        ({"gaps": ("1.2 s without video: the source ended",)}, "gaps"),
        ({"restarts": 1}, "gaps"),
        ({"outage_hits": 0, "retried": 0}, "outage"),
        ({"waits": GOOD.waits[:1]}, "outage"),
        ({"retried": 3}, "retried"),
        ({"registered": False}, "camera registered / ended"),
        ({"ended": False}, "camera registered / ended"),
        ({"left_running": ("worker (process 12)",)}, "processes left"),
        ({"services": ("beat", "broker")}, "processes left"),
        ({"trouble": "stopped with 2 segments still owed"}, "run to its end"),
    ],
)
def test_each_planted_fault_is_named_and_turns_the_exit_code(fault, names):
    found = findings(replace(GOOD, **fault))
    assert names in [finding.name for finding in found if not finding.is_good]
    assert exit_code(found) == EXIT_FAILED


def test_a_run_without_evidence_fails_nearly_every_check():
    good = {finding.name for finding in findings(Result(30)) if finding.is_good}
    assert good == {"run to its end", "retried", "duplicates", "owed / rejected / dropped", "gaps"}


def test_a_check_that_was_left_out_does_not_pass():
    assert exit_code(findings(GOOD)[1:]) == EXIT_FAILED
    assert exit_code([]) == EXIT_FAILED


def test_every_check_of_the_module_is_among_those_that_are_made():
    written = {value for name, value in vars(demo_result).items() if name.startswith("check_")}
    assert written == set(CHECKS)


def test_a_last_segment_that_is_shorter_has_fewer_frames():
    assert Result(31).segments_expected == 16
    assert [Result(31).frames_expected_of(number) for number in (1, 15, 16)] == [50, 50, 25]


# --- figures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, None), ([3.0], 0.95, 3.0), ([4, 1, 3, 2], 0.5, 2), (range(1, 21), 0.95, 19)],
)
def test_a_percentile_is_the_nearest_rank(values, share, expected):
    assert percentile(list(values), share) == expected


def test_figures_keep_the_outage_apart():
    texts = [figure.found for figure in figures(GOOD)]
    assert texts == ["p50 10 ms, p95 10 ms  (1 segment)", "p50 4.0 s, p95 4.0 s  (1 segment)"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0481, "48 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (18.44, "18.4 s")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_one_is_singular():
    assert (count(1, "upload"), count(0, "upload")) == ("1 upload", "0 uploads")


# --- what is staged --------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "outage"), [(30, Outage(10.0, 6.0)), (10, Outage(3.3, 3.0))])
def test_the_outage_comes_a_third_into_the_run(length, outage):
    assert Outage.of(length) == outage


def test_an_outage_is_read():
    assert Outage.parse("4.5+3", length=30) == Outage(4.5, 3.0)


@pytest.mark.parametrize(
    ("elapsed", "works", "due"),
    [(9.9, True, False), (10.0, True, True), (10.0, False, False), (21.9, False, False), (22.0, False, True)],
)
def test_the_outage_waits_for_a_first_upload_but_not_for_ever(elapsed, works, due):
    assert Outage(10.0, 6.0).is_due(elapsed, works=works, length=30) is due


def test_an_outage_that_was_asked_for_late_begins_then():
    assert not Outage(25.0, 6.0).is_due(24.0, works=False, length=30)
    assert Outage(25.0, 6.0).is_due(25.0, works=False, length=30)


@pytest.mark.parametrize("text", ["", "10", "10+", "10+2", "29+6", "-1+6", "10+6s", "10 + 6"])
def test_an_outage_that_could_hit_nothing_is_a_usage_error(text):
    with pytest.raises(UsageError, match="expected START\\+SECONDS"):
        Outage.parse(text, length=30)


def test_the_cloud_is_out_for_the_whole_outage_and_shut_for_its_end():
    answers, shut = Outage(10.0, 6.0).faults()
    assert (answers.status, answers.duration) == (503, 6.0)
    assert (shut.closes_the_door, shut.start, shut.duration) == (True, 4.0, 2.0)


def test_the_settings_of_this_machine_do_not_reach_the_demo(tmp_path, monkeypatch):
    monkeypatch.setenv("RELAY_CLOUD", "https://cloud.example")
    monkeypatch.setenv("RELAY_TOKEN", "the-real-one")
    monkeypatch.setenv("RELAY_BROKER", "redis://elsewhere:6379/0")
    settings = demo_settings(tmp_path, "http://127.0.0.1:1", 30)
    assert settings.ingest.url == "http://127.0.0.1:1"
    assert read_token(settings.ingest) != "the-real-one"
    assert "url" not in settings.broker.model_fields_set


def test_each_demo_has_a_token_of_its_own(tmp_path):
    tokens = {read_token(demo_settings(tmp_path, "http://127.0.0.1:1", 30).ingest) for _ in range(3)}
    assert len(tokens) == 3


def test_a_place_vanishes_unless_it_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_place(None) as place:
        gone = place.path
    with open_place(None) as place:
        place.log.write("words\n")
        kept = place.save()
    assert not gone.exists()
    assert [path for path in tmp_path.iterdir() if path != kept] == []
    assert (kept / "demo.log").read_text() == "words\n"


def test_a_directory_to_keep_must_be_empty(tmp_path):
    (tmp_path / "video.ts").touch()
    with pytest.raises(UsageError, match="expected an empty directory"), open_place(tmp_path):
        pass


# --- evidence --------------------------------------------------------------------------------------

SESSION = "relay-segments-demo-20261123T211131Z-abcdefgh"


def segment(number: int) -> str:
    return f"{number:08d}_20261123T211131.120Z_2000.ts"


def test_the_journal_tells_the_story_of_each_segment(spool):
    names = {"session": SESSION, "segment": segment(1)}
    spool.journal.append("demo", Event.CLOSED, **names, bytes=188)
    spool.journal.append("demo", Event.DELIVERED, **names, bytes=188, sha256="ab")
    spool.journal.append("demo", Event.CLOSED, session=SESSION, segment=segment(2), bytes=376)
    spool.journal.append("demo", Event.GAP, seconds=2.5, cause="the camera was silent")
    spool.journal.append("demo", Event.REJECTED, session=SESSION, segment=segment(2))
    story = read_story(spool, "demo")
    assert (story.captured, story.delivered, story.rejected) == ((1, 2), (1,), 1)
    assert [(piece.sequence, piece.bytes, piece.sha256) for piece in story.pieces] == [
        (1, 188, "ab"),
        (2, 376, ""),
    ]
    assert story.gaps == ("2.5 s without video: the camera was silent",)


def test_a_segment_closed_twice_stands_twice(spool):
    for _ in range(2):
        spool.journal.append("demo", Event.CLOSED, session=SESSION, segment=segment(1), bytes=188)
    assert read_story(spool, "demo").captured == (1, 1)


def test_a_torn_line_is_counted(spool):
    spool.journal.append("demo", Event.CLOSED, session=SESSION, segment=segment(1), bytes=188)
    path = next((spool.root / "journal" / "demo").iterdir())
    path.write_bytes(path.read_bytes() + b'{"t": "2026')
    assert read_story(spool, "demo").torn == 1


@pytest.mark.parametrize(
    ("closed", "delivered", "is_delayed"),
    [
        (90.0, 90.1, False),
        (99.9, 107.0, True),
        (103.0, None, True),
        (106.5, 108.5, True),  # closed when the cloud was back and nobody knew
        (107.9, 108.0, False),  # the one that found out
        (110.0, 110.1, False),
    ],
)
def test_an_outage_delays_what_is_owed_until_its_end_is_noticed(closed, delivered, is_delayed):
    finder = Piece(9, 107.9, 1, 108.0)
    piece = Piece(1, closed, 1, delivered)
    window = Window(100.0, 106.0, 108.0)
    assert window.delayed(piece) is is_delayed
    assert Window.of((100.0, 106.0), [finder, Piece(1, 90.0, 1, 90.1)]) == window


def test_waits_are_measured_from_closed_to_confirmed():
    pieces = [Piece(1, 10.0, 1, 10.5), Piece(2, 12.0, 1, None)]
    assert waits(pieces, None) == (Wait(1, 0.5, in_outage=False),)


def stored(directory, body: bytes, *, digest_of: bytes) -> Receipt:
    path = directory / "demo" / "s" / "00000001.ts"
    path.parent.mkdir(parents=True)
    path.write_bytes(body)
    sha256 = hashlib.sha256(digest_of).hexdigest()
    (directory / "receipts.jsonl").write_text(
        f'{{"camera":"demo","session":"s","sequence":1,"path":"demo/s/00000001.ts","bytes":{len(body)},'
        f'"sha256":"{sha256}","start":"","duration":2.0,"received_at":0.0}}\n'
    )
    return Receipt(
        "demo",
        session="s",
        sequence=1,
        path=path,
        bytes=len(body),
        sha256=sha256,
        start="",
        duration=2.0,
        received_at=0.0,
    )


@pytest.mark.parametrize(
    ("receipted", "journalled", "problems"), [(b"abc", b"abc", 0), (b"abd", b"abc", 1), (b"abc", b"abd", 1)]
)
def test_a_stored_file_must_have_the_digest_of_its_receipt_and_of_the_journal(
    tmp_path, receipted, journalled, problems
):
    receipt = stored(tmp_path, b"abc", digest_of=receipted)
    piece = Piece(1, 0.0, 3, 1.0, hashlib.sha256(journalled).hexdigest())
    assert len(wrong_digests(tmp_path, [receipt], [piece])) == problems


def test_a_stored_file_that_the_journal_does_not_know_is_wrong(tmp_path):
    receipt = stored(tmp_path, b"abc", digest_of=b"abc")
    assert "journal has it" in wrong_digests(tmp_path, [receipt], [])[0]


def test_the_tail_of_a_log_prefers_what_is_wrong(tmp_path):
    log = tmp_path / "demo.log"
    log.write_text("[info] a\n[warning] b\n[info] c\n")
    assert tail(log, 5) == ["[warning] b"]
    log.write_text("[info] a\n[info] c\n")
    assert tail(log, 1) == ["[info] c"]
    assert tail(tmp_path / "none", 1) == []


# --- what is seen ----------------------------------------------------------------------------------

CLOSED = Piece(1, 100.0, 290_400)
DELIVERED = Piece(1, 100.0, 290_400, 100.013)


@pytest.mark.parametrize(
    ("before", "now", "line"),
    [
        (Picture(), Picture(cloud="http://h:1"), "a local ingest listens on http://h:1"),
        (Picture(), Picture(is_recording=True), "capture started: test pattern 640x360"),
        (Picture(), Picture(pieces=(CLOSED,)), "segment  1 closed (290 kB)"),
        (Picture(), Picture(pieces=(DELIVERED,)), "segment  1 closed (290 kB), delivered in 13 ms"),
        (Picture(pieces=(CLOSED,)), Picture(pieces=(DELIVERED,)), "segment  1 delivered in 13 ms"),
        (Picture(), Picture(faults=("503",)), "OUTAGE begins: the cloud answers 503"),
        (
            Picture(faults=("503",)),
            Picture(faults=("503", "refuse")),
            "OUTAGE goes on: the cloud refuses connections",
        ),
        (Picture(faults=("503",)), Picture(pieces=(CLOSED,)), "OUTAGE over: 1 segment owed"),
        (
            Picture(pieces=(CLOSED,), outage=(90.0, 101.0)),
            Picture(pieces=(DELIVERED,), outage=(90.0, 101.0)),
            "backlog caught up",
        ),
        (Picture(is_recording=True), Picture(frames=750), "capture ended: 750 frames"),
        (Picture(), Picture(ended=True), "the cloud was told that the stream is over"),
        (Picture(), Picture(stage="counting every frame"), "counting every frame"),
    ],
)
def test_each_change_of_state_has_its_line(before, now, line):
    assert any(found.startswith(line) for found in changes(before, now))


def test_nothing_is_said_when_nothing_changed():
    picture = Picture(pieces=(DELIVERED,), is_recording=True)
    assert changes(picture, replace(picture, elapsed=9.0, frames=12)) == []


def drawn(renderable, *, width: int = 80, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=width).print(renderable)
    file.seek(0)
    return file.read()


BUSY = Picture(
    stage="capturing",
    elapsed=14.0,
    cloud="http://127.0.0.1:65535",
    frames=320,
    is_recording=True,
    pieces=(DELIVERED, Piece(2, 102.0, 290_000)),
    faults=("503", "refuse"),
    outage=(101.0, 107.0),
    turned_away=4,
)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_display_fits_its_terminal(width):
    lines = drawn(draw(BUSY, width=width), width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 22


def test_the_display_shows_delivered_owed_recording_and_the_outage():
    text = drawn(draw(BUSY, width=80))
    assert "███ ▒▒▒ ░░░  · " in text
    assert "OUTAGE: refuses connections" in text
    assert "1 owed" in text


def test_a_long_run_shows_its_newest_rows():
    pieces = tuple(Piece(n, 2.0 * n, 1, 2.0 * n) for n in range(1, 300))
    text = drawn(draw(Picture(seconds=3600, expected=1800, pieces=pieces, is_recording=True), width=80))
    assert "░░░" in text
    assert len(text.splitlines()) <= 24


def test_all_that_is_shown_can_be_said_in_ascii():
    text = drawn(draw(BUSY, width=80, glyphs=ASCII), encoding="ascii")
    text += drawn(table(findings(GOOD), figures(GOOD), ASCII), encoding="ascii")
    assert "### ooo ..." in text
    assert "ok run to its end" in text


def test_a_failed_check_shows_what_was_expected():
    text = drawn(table(findings(replace(GOOD, duplicates=2)), figures(GOOD), UNICODE))
    assert "✗ duplicates" in text
    assert "expected 0, found 2" in text

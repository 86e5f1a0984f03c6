"""What is found in a segment, as it grows or whole, good or hostile."""

import hashlib
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.mpegts import PACKET
from capture.picture import Picture
from capture.scan import CHUNK, MOST_CHANGES, NOT_CARRIED, Digest, GrowingScan, Scan, scan_file
from tests.transport import START, frame, key_frame, packets, stream, tables

SMALL, LARGE = (320, 180), (1920, 1080)


def scanned(content, cuts=()):
    scan = Scan()
    edges = [0, *sorted(cuts), len(content)]
    for start, end in itertools.pairwise(edges):
        scan.feed(content[start:end])
    scan.finish()
    return scan


def found(scan):
    return {key: value for key, value in vars(scan).items() if not key.startswith("_")}


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_a_good_segment_is_playable_and_counted(codec):
    scan = scanned(stream(SMALL, SMALL, SMALL, codec=codec))
    assert (scan.codec, scan.frames, scan.key_frames) == (codec, 30, 3)
    assert scan.picture == scan.first_picture == Picture(codec, *SMALL)
    assert scan.unplayable() is None
    assert scan.changes == []
    assert scan.key_interval == pytest.approx(1.0)
    assert scan.tables == tables(codec)


def test_a_change_is_found_where_its_key_frame_begins():
    before = stream(SMALL, SMALL)
    content = stream(SMALL, SMALL, LARGE, LARGE, SMALL)
    first, second = scanned(content).changes
    assert (first.offset, first.picture) == (len(before), Picture("h264", *LARGE))
    assert first.pts == 90_000 * 3
    assert second.picture == Picture("h264", *SMALL)


def test_sets_that_repeat_on_every_key_frame_are_no_change():
    assert scanned(stream(*[LARGE] * 20)).changes == []


@given(st.lists(st.integers(0, 12_000), max_size=12))
def test_it_does_not_matter_in_what_pieces_a_segment_grows(cuts):
    content = stream(SMALL, LARGE, SMALL)
    assert found(scanned(content, [cut for cut in cuts if cut < len(content)])) == found(scanned(content))


def test_a_key_frame_longer_than_what_is_read_of_it_is_one_all_the_same():
    long = packets(key_frame(SMALL, filler=200_000), 90_000, is_key=True)
    scan = scanned(tables() + long + packets(key_frame(LARGE), 99_000, is_key=True))
    assert (scan.key_frames, [change.offset for change in scan.changes]) == (2, [2 * PACKET + len(long)])


def test_a_key_frame_is_not_one_only_because_it_is_marked_so():
    scan = scanned(tables() + packets(frame(), 90_000, is_key=True))
    assert (scan.frames, scan.key_frames) == (1, 0)
    assert scan.unplayable() == "a segment without decodable video"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", NOT_CARRIED),
        (tables(), NOT_CARRIED),
        (stream(SMALL)[2 * PACKET :], NOT_CARRIED),
        (tables("private") + stream(SMALL)[2 * PACKET :], NOT_CARRIED),
        (tables() + packets(frame(), 0, is_key=False), "a segment without decodable video"),
        (
            tables() + packets(frame(), 0, is_key=False) + packets(key_frame(), 9000, is_key=True),
            "a segment without a key frame at its start",
        ),
        (tables("mpeg2") + packets(b"\0\0\1\0", 0, is_key=True), None),
        (
            tables("mpeg2") + packets(b"\0\0\1\0", 0, is_key=False),
            "a segment without a key frame at its start",
        ),
    ],
)
def test_a_segment_that_cannot_be_played_is_called_so(content, reason):
    assert scanned(content).unplayable() == reason


def test_a_wrap_of_the_timestamps_is_no_long_interval():
    assert scanned(stream(*[SMALL] * 4, first_pts=(1 << 33) - 100_000)).key_interval == pytest.approx(1.0)


def test_timestamps_that_run_backwards_are_no_interval():
    content = tables() + b"".join(packets(key_frame(), pts, is_key=True) for pts in (900_000, 450_000, 0))
    assert scanned(content).key_interval == 0.0


def test_what_is_kept_of_a_hostile_stream_is_bounded():
    content = stream(*[SMALL, LARGE] * 200, fps=1)
    scan = scanned(content)
    assert len(scan.changes) == MOST_CHANGES
    endless = Scan()
    endless.feed(tables() + packets(key_frame(filler=1000), 0, is_key=True))
    more = packets(b"\0" * 150_000, 0, is_key=False)[PACKET:]
    for _ in range(20):
        endless.feed(more)
    assert sum(len(value) for value in vars(endless).values() if isinstance(value, bytes | list)) < 10_000


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_damage_anywhere_does_no_harm(codec):
    good, chance = stream(SMALL, LARGE, codec=codec), random.Random(1)
    for _ in range(400):
        bad = bytearray(good)
        for _ in range(chance.randrange(1, 30)):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        scan = scanned(bytes(bad))
        assert not scan.has_failed
        assert len(scan.changes) <= MOST_CHANGES


@given(
    st.lists(
        st.one_of(st.binary(max_size=400), st.binary(min_size=187, max_size=187).map(lambda b: b"G" + b))
    )
)
def test_no_bytes_make_it_fail(pieces):
    assert not scanned(b"".join(pieces)).has_failed
    assert not scanned(tables() + b"".join(pieces)).has_failed


def test_a_bug_in_it_costs_what_it_would_have_found_and_nothing_else(monkeypatch):
    monkeypatch.setattr(Scan, "_begin", lambda *_: 1 / 0)
    scan = scanned(stream(SMALL))
    assert (scan.has_failed, scan.unplayable(), scan.changes) == (True, None, [])


def test_a_file_is_read_as_it_grows_and_whole_at_the_end(tmp_path):
    path, content = tmp_path / "00000001.ts", stream(SMALL, LARGE)
    growing = GrowingScan(path)
    assert growing.look().frames == 0
    path.write_bytes(content[:3000])
    assert 0 < growing.look().frames < 20
    path.write_bytes(content)
    assert found(growing.conclude()) == found(scanned(content))


def test_the_digest_is_that_of_all_whole_packets_however_they_came(tmp_path):
    path, content = tmp_path / "00000001.ts", stream(SMALL, LARGE)
    growing = GrowingScan(path)
    for end in (100, 188, 3000, 3001, len(content)):
        path.write_bytes(content[:end])
        growing.look()
        whole = content[: end - end % PACKET]
        assert growing.digest == Digest(len(whole), hashlib.sha256(whole).hexdigest())
    path.write_bytes(content + b"G half a packet")
    growing.conclude()
    assert growing.digest == Digest(len(content), hashlib.sha256(content).hexdigest())


def test_how_long_ago_the_last_key_frame_was_is_told_by_the_stream():
    scan = scanned(stream(SMALL, SMALL, fps=10))
    assert scan.seconds_since_key == pytest.approx(0.9)
    assert scanned(b"").seconds_since_key == 0.0


def test_a_key_frame_whose_sets_come_late_is_read_further():
    late = START + b"\x09\x10" + START + b"\x06\x05" + b"\x5a" * 3000 + key_frame(LARGE)
    scan = scanned(tables() + packets(late, 90_000, is_key=True) + packets(frame(), 99_000, is_key=False))
    assert (scan.key_frames, scan.picture) == (1, Picture("h264", *LARGE))


def test_a_large_file_is_read_in_pieces(tmp_path):
    path = tmp_path / "00000001.ts"
    content = stream(*[SMALL] * 3)
    path.write_bytes(content + content[2 * PACKET :] * (CHUNK // len(content) + 20))
    assert scan_file(path).size == path.stat().st_size > CHUNK

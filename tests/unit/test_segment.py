"""Names of sessions and segments, both ways."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.segment import (
    SegmentName,
    SessionName,
    is_camera_id,
    looks_closed,
    open_name,
    parse_open_name,
    rfc3339,
)

MOMENT = datetime(2026, 11, 23, 21, 11, 31, 120_000, tzinfo=UTC)


def test_a_segment_name_reads_as_it_was_written():
    name = SegmentName(11, MOMENT, 10_040)
    assert str(name) == "00000011_20261123T211131.120Z_10040.ts"
    assert SegmentName.parse(str(name)) == name
    assert name.duration == 10.04
    assert name.end == MOMENT + timedelta(milliseconds=10_040)
    assert name.start_rfc3339 == "2026-11-23T21:11:31.120Z"


@given(
    st.integers(1, 10**12 - 1),
    st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1)),  # noqa: DTZ001 - made aware below
    st.integers(0, 10**9 - 1),
)
def test_every_segment_name_survives_the_round_trip(sequence, moment, duration):
    moment = moment.replace(tzinfo=UTC, microsecond=moment.microsecond // 1000 * 1000)
    name = SegmentName(sequence, moment, duration)
    assert SegmentName.parse(str(name)) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00000011.ts",
        "11_20261123T211131.120Z_10040.ts",
        "00000011_20261123T211131.120Z_10040.ts.json",
        "../00000011_20261123T211131.120Z_10040.ts",
        "00000011_20261123T211131.120Z_10040.ts\n",
        "00000011_20261323T211131.120Z_10040.ts",
        "00000011_20261123T251131.120Z_10040.ts",
        "00000011_20261123T211131.120Z_-1.ts",
        "٠٠٠٠٠٠١١_20261123T211131.120Z_10040.ts",  # noqa: RUF001 - Arabic digits are the point
        "00000011_20261123T211131.120Z_10040.ts\0",
    ],
)
def test_what_is_no_segment_name_is_not_read_as_one(text):
    assert SegmentName.parse(text) is None


def test_a_session_name_reads_as_it_was_written():
    name = SessionName.new("door-1.left_a", MOMENT)
    assert SessionName.parse(str(name)) == name
    assert str(name).startswith("relay-segments-door-1.left_a-20261123T211131Z-")


def test_two_sessions_of_the_same_second_have_two_names():
    assert len({SessionName.new("a", MOMENT).id for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    "text",
    [
        "relay-segments--20261123T211131Z-abcdefgh",
        "relay-segments-../x-20261123T211131Z-abcdefgh",
        "relay-segments-.hidden-20261123T211131Z-abcdefgh",
        "relay-segments-a-20261123T211131Z-ABCDEFGH",
        "relay-segments-a-20261123T211131Z-abcdefgh/open",
        "segments-a-20261123T211131Z-abcdefgh",
        "relay-segments-" + "a" * 65 + "-20261123T211131Z-abcdefgh",
    ],
)
def test_what_is_no_session_name_is_not_read_as_one(text):
    assert SessionName.parse(text) is None


@given(st.text(max_size=80))
def test_no_text_makes_the_grammar_raise(text):
    for parse in (SegmentName.parse, SessionName.parse, parse_open_name, is_camera_id):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "000000012_20261123T211131.120Z_10040.ts",
        "00000012_20261123T211131.120Z_010040.ts",
        "00000012_20261123T211131.120Z_00.ts",
        "00000012_09991123T211131.120Z_10040.ts",
    ],
)
def test_a_second_way_to_write_a_name_is_no_name(text):
    """It would be counted as owed, and be looked for under the first."""
    assert SegmentName.parse(text) is None
    assert not looks_closed(text)


@given(st.from_regex(r"[0-9]{8,12}_[0-9]{8}T[0-9]{6}\.[0-9]{3}Z_[0-9]{1,9}\.ts", fullmatch=True))
def test_what_reads_as_a_name_is_written_the_same(text):
    name = SegmentName.parse(text)
    assert name is None or str(name) == text


def test_open_names_have_eight_digits_or_more():
    assert open_name(12) == "00000012.ts"
    assert parse_open_name("00000012.ts") == 12
    assert parse_open_name("0012.ts") is None
    assert parse_open_name("000000012.ts") is None


def test_times_are_written_in_utc_to_the_millisecond():
    assert rfc3339(MOMENT) == "2026-11-23T21:11:31.120Z"

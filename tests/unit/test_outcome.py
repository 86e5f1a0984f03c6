"""The table of outcomes."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.outcome import Kind, attempt_seconds, classify, retry_after
from capture.settings import IngestSettings

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (204, Kind.OK),
        (409, Kind.OK),
        (200, Kind.REJECTED),
        (201, Kind.REJECTED),
        (202, Kind.REJECTED),
        (206, Kind.REJECTED),
        (301, Kind.REJECTED),
        (302, Kind.REJECTED),
        (304, Kind.REJECTED),
        (307, Kind.REJECTED),
        (400, Kind.REJECTED),
        (401, Kind.FATAL),
        (403, Kind.FATAL),
        (404, Kind.REJECTED),
        (407, Kind.REJECTED),
        (408, Kind.TRANSIENT),
        (411, Kind.REJECTED),
        (413, Kind.REJECTED),
        (422, Kind.REJECTED),
        (425, Kind.TRANSIENT),
        (429, Kind.TRANSIENT),
        (451, Kind.REJECTED),
        (500, Kind.TRANSIENT),
        (502, Kind.TRANSIENT),
        (503, Kind.TRANSIENT),
        (504, Kind.TRANSIENT),
        (599, Kind.TRANSIENT),
    ],
)
def test_every_answer_has_its_outcome(status, kind):
    assert classify(status, {}, b"", success=[204]).kind is kind


def test_which_codes_are_deliveries_is_a_setting():
    assert classify(200, {}, b"", success=[200, 204]).kind is Kind.OK
    assert classify(204, {}, b"", success=[200]).kind is Kind.REJECTED


def test_the_servers_words_are_quoted_short_printable_and_on_one_line():
    body = b"no\r\n\x1b[31mway " + b"x" * 5000
    reason = classify(413, {}, body, success=[204]).reason
    assert reason.startswith("HTTP 413: no [31mway xxx")
    assert len(reason) < 250
    assert reason.isprintable()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", None),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("-1", None),
        ("soon", None),
        ("999999999", 3600.0),
        ("9" * 400, None),
        ("Mon, 01 Jun 2026 12:00:30 GMT", 30.0),
        ("Mon, 01 Jun 2026 11:00:00 GMT", 0.0),
        ("Mon, 01 Jun 2099 11:00:00 GMT", 3600.0),
        ("Mon, 01 Jun 99999999999999999999 11:00:00 GMT", None),
        ("Mon, 01 Jun 2026 11:00:00 +99999999999999", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date_and_bounded(text, seconds):
    assert retry_after(text, now=NOW) == seconds


@given(st.text(max_size=200))
def test_no_header_makes_reading_it_raise(text):
    found = retry_after(text, now=NOW)
    assert found is None or 0 <= found <= 3600


def test_the_deadline_grows_with_what_a_slow_uplink_needs():
    ingest = IngestSettings(attempt_seconds=30.0, slowest_uplink=64_000)
    assert attempt_seconds(ingest, 0) == 30.0
    assert attempt_seconds(ingest, 6_400_000) == 130.0

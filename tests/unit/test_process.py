"""The parts of `capture.process` that need no process."""

import signal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.process import LineTail, describe_exit


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited with 0"),
        (1, "exited with 1"),
        (255, "exited with 255"),
        (-signal.SIGKILL, "killed by SIGKILL"),
        (-signal.SIGSEGV, "killed by SIGSEGV"),
        (-99, "killed by signal 99"),
    ],
)
def test_an_exit_is_described_in_words(code, words):
    assert describe_exit(code) == words


def test_a_tail_keeps_the_last_lines_and_the_unfinished_one():
    tail = LineTail(maxlen=3)
    tail.feed(b"one\ntwo\nthree\nfo")
    assert tail.lines() == ["two", "three", "fo"]
    tail.feed(b"ur\n")
    assert tail.lines() == ["two", "three", "four"]


def test_a_progress_line_ends_with_a_carriage_return_and_empty_lines_do_not_count():
    tail = LineTail()
    tail.feed(b"frame=1\rframe=2\r\n\n\rend")
    assert tail.lines() == ["frame=1", "frame=2", "end"]


def test_bytes_that_are_no_text_and_escape_sequences_do_no_harm():
    tail = LineTail()
    tail.feed(b"\xff\x1b[2Jcaf\xc3\xa9\x07\n")
    assert tail.lines() == ["\ufffd [2Jcafé "]


@pytest.mark.parametrize("length", [11, 500, 2000, 100_000])
def test_a_long_line_is_cut_and_says_so(length):
    tail = LineTail(max_line=10)
    tail.feed(b"x" * length + b"\nshort\n")
    assert tail.lines()[0] == "x" * 10 + "…"
    assert tail.lines()[1] == "short"


def test_an_endless_line_takes_no_memory():
    tail = LineTail(max_line=100)
    for _ in range(200):
        tail.feed(b"x" * 65536)
    assert len(tail._rest) <= 100 + LineTail.MARGIN + 1


@given(offset=st.integers(0, 1300), split=st.integers(1, 700))
def test_a_secret_is_redacted_wherever_the_line_is_cut(offset, split):
    secret = "hunter2-" * 8
    tail = LineTail(max_line=100, redact=lambda line: line.replace(secret, "***"))
    data = b"x" * offset + secret.encode() + b"y" * 2000 + b"\n"
    for start in range(0, len(data), split):
        tail.feed(data[start : start + split])
    assert "hunter2" not in tail.lines()[0]


@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=10))
def test_it_does_not_matter_how_the_bytes_arrive(data, cuts):
    whole, pieces = LineTail(5, max_line=20), LineTail(5, max_line=20)
    whole.feed(data)
    edges = [0, *sorted(cuts), len(data)]
    for start, end in pairwise(edges):
        pieces.feed(data[start:end])
    assert pieces.lines() == whole.lines()

"""Reading the head of a request that nobody vouches for."""

import time

from capture.sink_http import parse_head

LONG = 15_000  # characters: as long a head as is taken
MOST_CPU_SECONDS = 0.5  # thirty times what it takes; time that grows with the square would take seconds


def test_a_long_line_of_blanks_is_read_in_time_that_grows_with_its_length():
    began = time.process_time()
    for _ in range(20):
        head = parse_head(b"GET / HTTP/1.1\r\nHost: a\r\nX-Blank:a" + b" \t" * (LONG // 2) + b"x\r\n")
    assert head.headers["x-blank"] == "a" + " \t" * (LONG // 2) + "x"
    assert time.process_time() - began < MOST_CPU_SECONDS

"""How many uploads are under way at once, on a made-up line: it is filled, and little waits on it."""

import heapq
from dataclasses import dataclass, field

import pytest

from tasks.width import ALONE_ROUND, FIRST_ROUND, MOST, ROUND, Width

RATE = 2_500_000.0  # bytes per second: 20 Mbit/s
SECONDS = 60.0


@dataclass
class Line:
    """A line that takes one body after the other, and uploads that begin as `Width` says."""

    rtt: float
    size: int
    now: float = 0.0
    free_at: float = 0.0
    sent: int = 0
    queued: list[float] = field(default_factory=list)  # how long a body waited for the line, in bodies
    answers: list[tuple[float, float, float, int]] = field(default_factory=list)

    def run(self, width: Width, seconds: float = SECONDS) -> "Line":
        next_at, end = 0.0, self.now + seconds
        while self.now < end:
            may_at = max(self.now, next_at)
            if self.answers and (len(self.answers) >= width.most or self.answers[0][0] <= may_at):
                self.now, began, left, beside = heapq.heappop(self.answers)
                width.note(self.now - left, self.now - began, size=self.size, beside=beside)
                self.sent += self.size
                continue
            self.now = may_at
            begun = max(self.free_at, self.now)
            self.queued.append((begun - self.now) * RATE / self.size)
            self.free_at = begun + self.size / RATE
            # The first router takes all of a body at once: that it has left says nothing.
            heapq.heappush(self.answers, (self.free_at + self.rtt, self.now, self.now, len(self.answers)))
            next_at = self.now + width.spacing
        return self

    @property
    def share(self) -> float:
        return self.sent / (RATE * SECONDS)

    @property
    def mean_queue(self) -> float:
        return sum(self.queued) / len(self.queued)


@pytest.mark.parametrize("rtt", [0.02, 0.08, 0.2, 0.6])
@pytest.mark.parametrize("size", [200_000, 1_000_000, 2_500_000])
def test_the_line_is_full_and_little_waits_for_it(rtt, size):
    line = Line(rtt, size).run(Width())
    one_by_one = size / RATE / (rtt + size / RATE)
    assert line.share > max(0.75, one_by_one) - 0.02
    assert line.mean_queue < 1.6


def test_one_after_the_other_leaves_it_empty_for_each_round_trip():
    """What it is compared with: 200 kB at a time get less than a third of a line of 200 ms."""
    assert pytest.approx(0.29, abs=0.01) == 200_000 / (200_000 / RATE + 0.2) / RATE


def test_where_answers_come_at_once_one_goes_after_the_other():
    width = Width()
    Line(0.001, 1_000).run(width, 1.0)
    assert (width.most, width.spacing, width.rate) == (1, 0.0, 0.0)


def test_a_line_that_became_short_is_used_by_one_again():
    width = Width()
    Line(0.2, 200_000).run(width)
    assert width.most > 2
    Line(0.0005, 500).run(width, 5.0)
    assert width.most == 1


def test_new_video_now_and_then_does_not_make_it_less():
    """It holds up some answers of a round, never all of them."""
    width = Width()
    for number in range(FIRST_ROUND + 4 * ROUND):
        width.note(0.1 if number % 3 else 0.3, 0.2, size=1, beside=width.most - 1)
    assert width.most == 1 + 1 + 4


def test_where_every_answer_takes_longer_it_is_one_less():
    width = Width()
    for _ in range(FIRST_ROUND + ROUND):
        width.note(0.1, 0.2, size=1, beside=width.most - 1)
    assert width.most == 3
    for _ in range(2 * ROUND):
        width.note(0.2, 0.3, size=1, beside=width.most - 1)
    assert width.most == 1


def test_the_first_of_a_batch_say_nothing_of_a_queue():
    width = Width()
    for _ in range(FIRST_ROUND + ROUND):
        width.note(0.1, 0.2, size=1, beside=width.most - 1)
    for number in range(ROUND + 4):
        first = number % 4 == 0
        width.note(0.1 if first else 0.3, 0.3, size=1, beside=0 if first else width.most - 1)
    assert width.most == 2


def test_uploads_are_spread_over_the_time_of_one():
    width = Width()
    for _ in range(FIRST_ROUND):
        width.note(0.1, 0.26, size=1_000, beside=0)
    assert width.most == 2
    assert width.spacing == pytest.approx(0.1)
    assert width.rate == pytest.approx(10_000)


@pytest.mark.parametrize(("waited", "most"), [(0.001, 1), (0.1, 2)])
def test_where_so_many_are_never_under_way_any_more_it_is_fewer(waited, most):
    """The line became faster than one process: one answer is here before the next upload begins."""
    width = Width()
    Line(0.6, 200_000).run(width)
    assert width.most == MOST
    for _ in range(MOST * ALONE_ROUND):
        width.note(waited, waited, size=1, beside=0)
    assert width.most == most

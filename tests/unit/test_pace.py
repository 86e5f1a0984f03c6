"""When uploads begin, on a made-up line: it is full, and new video hardly notices."""

import math
import random
from dataclasses import dataclass, field
from operator import itemgetter
from statistics import median

import pytest

from tasks.pace import MOST, MOST_SECONDS, PAYS_SECONDS, ROUND, Learnt, Pace, Upload

RATE = 2_500_000.0  # bytes per second: 20 Mbit/s


@dataclass(eq=False)
class Body:
    """What is left of one on the line, and how the pace knows it; None for new video."""

    left: float
    began: float
    upload: Upload | None


@dataclass
class Line:
    """A line that its bodies share evenly; a camera closes a segment now and then. From event to event."""

    rtt: float
    size: int
    rate: float = RATE
    live_rate: float = 0.0
    now: float = 0.0
    delivered: int = 0
    waits: list[float] = field(default_factory=list)  # seconds, of new video
    _bodies: list[Body] = field(default_factory=list)
    _answers: list[tuple[float, Body]] = field(default_factory=list)
    _dice: random.Random = field(default_factory=lambda: random.Random(1))

    def run(self, pace: Pace | None, seconds: float, *, warm_up: float = 10.0) -> "Line":
        """Send whenever the pace says so, without an end; `None` sends nothing but new video."""
        end, counts_from = self.now + seconds, self.now + warm_up
        next_live = self.now + self._dice.random() if self.live_rate else math.inf
        under_way = 0
        while self.now < end:
            if self.now >= next_live:
                self._bodies.append(Body(self.size, self.now, None))
                next_live += self.size / self.live_rate * self._dice.uniform(0.5, 1.5)
                if pace:
                    pace.give_way(self.now, self.size)
            for body in self._answered():
                if body.upload is None:
                    self.waits += [self.now - body.began] if self.now > counts_from else []
                elif pace:
                    under_way -= 1
                    self.delivered += self.size if self.now > counts_from else 0
                    pace.answered(body.upload, took=self.now - body.began, waited=self.rtt)
            if pace and under_way < MOST and self.now >= pace.next_at:
                self._bodies.append(Body(self.size, self.now, pace.begin(self.now, self.size)))
                under_way += 1
            due = pace.next_at if pace and under_way < MOST else math.inf
            self._go_on(min(next_live, due, end, *(at for at, _ in self._answers)))
        self.delivered = round(self.delivered / (seconds - warm_up))
        return self

    def _answered(self) -> list[Body]:
        done = [(at, body) for at, body in self._answers if at <= self.now]
        self._answers = [each for each in self._answers if each not in done]
        return [body for _, body in sorted(done, key=itemgetter(0))]

    def _go_on(self, until: float) -> None:
        """Let time pass: until then, or until a body has passed."""
        count, least = len(self._bodies), min((body.left for body in self._bodies), default=0.0)
        step = max(until - self.now, 1e-6)
        if count:
            step = min(step, max(least * count / self.rate, 1e-6))
        self.now += step
        for body in self._bodies.copy():
            body.left -= self.rate * step / count
            if body.left <= 1:  # byte
                self._bodies.remove(body)
                self._answers.append((self.now + self.rtt + self._dice.uniform(0, 0.003), body))

    @property
    def share(self) -> float:
        """Of what new video leaves."""
        return self.delivered / (self.rate - self.live_rate)


@pytest.mark.parametrize("rtt", [0.02, 0.08, 0.2])
@pytest.mark.parametrize("size", [100_000, 200_000, 1_000_000, 2_500_000])
def test_the_line_is_full(rtt, size):
    assert Line(rtt, size).run(Pace(), 60.0).share > 0.9


@pytest.mark.parametrize("rtt", [0.02, 0.08, 0.2])
@pytest.mark.parametrize("size", [200_000, 1_000_000])
def test_beside_new_video_the_backlog_gets_the_rest_and_new_video_is_hardly_later(rtt, size):
    alone = Line(rtt, size, live_rate=400_000).run(None, 200.0)
    line = Line(rtt, size, live_rate=400_000).run(Pace(), 200.0)
    assert line.share > 0.88
    assert median(line.waits) < 2 * median(alone.waits)


def test_who_adopts_what_another_learnt_has_the_line_full_from_its_first_seconds():
    teacher, fresh, pupil = Pace(), Pace(), Pace()
    line = Line(0.2, 200_000).run(teacher, 30.0)
    pupil.adopt(teacher.learnt)
    shares = [Line(0.2, 200_000, now=line.now).run(pace, 4.0, warm_up=0.0).share for pace in (fresh, pupil)]
    assert shares[1] > 0.85
    assert shares[1] > shares[0] + 0.05


def test_what_is_adopted_is_found_wrong():
    for wrong in (RATE * 4, RATE / 4):
        pace = Pace()
        pace.adopt(Learnt(wrong, is_new=False, size=200_000, took=200_000 / RATE + 0.08))
        Line(0.08, 200_000).run(pace, 60.0)
        assert pace.rate == pytest.approx(RATE, rel=0.35), wrong


def test_one_that_fails_leaves_the_line_to_the_next_at_once():
    pace = Pace()
    pace.adopt(Learnt(20_000, is_new=False, size=200_000, took=10.0))
    pace.gone(pace.begin(5.0, 2_000_000))
    assert pace.next_at <= 5.0


def test_a_line_that_is_faster_than_any_is_not_told_of():
    pace = Pace()
    for number in range(20 * ROUND):
        pace.answered(pace.begin(number * 10.0, 10**9), took=0.1, waited=0.1)
    assert pace.rate <= 1e10
    assert pace.learnt is None or pace.learnt.rate <= 1e10


def test_nothing_is_adopted_in_the_middle_or_where_uploads_do_not_overlap():
    learnt = _that_knows(took=1.0, size=1000).learnt
    for pace in (Pace(), _that_knows(took=0.002, size=1000, waited=0.001)):
        if pace.overlaps:
            pace.begin(0.0, 1000)
        pace.adopt(learnt)
        assert pace.rate == 0


def test_who_knows_nothing_has_nothing_to_tell():
    pace = Pace()
    assert pace.learnt is None
    pace.begin(0.0, 1000)
    assert pace.learnt is None


def test_one_after_the_other_leaves_it_empty_for_each_round_trip():
    """What it is compared with: 200 kB at a time get less than a third of a line of 200 ms."""
    assert pytest.approx(0.29, abs=0.01) == 200_000 / (200_000 / RATE + 0.2) / RATE


def test_a_line_that_became_slower_is_found_out():
    pace = Pace()
    line = Line(0.08, 200_000).run(pace, 30.0)
    assert pace.rate == pytest.approx(RATE, rel=0.35)
    slow = Line(0.08, 200_000, rate=RATE / 5, now=line.now).run(pace, 90.0, warm_up=30.0)
    assert pace.rate < RATE / 4
    # As long as it remembers how quick answers were, one goes after the other.
    assert slow.share > 0.8


def test_a_line_that_became_faster_is_found_out():
    pace = Pace()
    line = Line(0.08, 200_000, rate=RATE / 5).run(pace, 30.0)
    fast = Line(0.08, 200_000, now=line.now).run(pace, 60.0, warm_up=40.0)
    assert fast.share > 0.9


def test_segments_of_many_sizes_are_paced_by_their_bytes():
    """What a small one takes says little of a large one: neither counts as late for it."""
    pace, now = Pace(), 0.0
    for number in range(400):
        size = (20_000, 400_000)[number % 2]
        upload = pace.begin(now, size)
        now += 0.08 + size / RATE
        pace.answered(upload, took=now - upload.began, waited=0.08)
    assert pace.overlaps
    assert pace.rate >= 400_000 / (0.08 + 400_000 / RATE)


def test_before_the_first_answer_there_is_one():
    pace = Pace()
    assert pace.next_at < 0
    upload = pace.begin(5.0, 1000)
    assert pace.next_at == float("inf")
    pace.gone(upload)
    assert pace.next_at < 0
    assert pace.rate == 0


def test_new_video_delays_the_next_one_by_the_time_it_takes_but_not_for_ever():
    pace = _that_knows(took=1.0, size=1000)
    pace.begin(10.0, 1000)
    due = pace.next_at
    pace.give_way(10.0, 500)
    assert pace.next_at == pytest.approx(due + 500 / pace.rate)
    pace.give_way(10.0, 1_000_000)
    assert pace.next_at == pytest.approx(10.0 + 1.0 + MOST_SECONDS)


def test_a_count_that_is_wrong_does_not_last():
    pace, now = _that_knows(took=0.1, size=1000), 10.0
    pace.give_way(now, 10**12)
    for _ in range(20):
        now = max(now, pace.next_at)
        upload = pace.begin(now, 1000)
        now += 0.1
        pace.answered(upload, took=0.1, waited=0.1)
    assert now < 25


def test_what_an_error_left_behind_stops_nobody():
    pace = Pace()
    pace.begin(0.0, 1000)
    pace.nothing_under_way()
    assert pace.next_at < 0


def test_an_empty_one_does_no_harm():
    pace = Pace()
    for number in range(2 * ROUND):
        pace.answered(pace.begin(number, 0), took=0.1, waited=0.1)
    assert math.isfinite(pace.next_at)


def test_what_passes_later_than_reckoned_delays_what_follows():
    pace = _that_knows(took=1.0, size=1000)
    first = pace.begin(10.0, 1000)
    pace.begin(10.1, 1000)
    due = pace.next_at
    pace.answered(first, took=1.3, waited=0.5)
    assert pace.next_at == pytest.approx(due + 0.3, abs=0.05)


def test_where_answers_come_at_once_one_goes_after_the_other():
    pace = Pace()
    for number in range(ROUND):
        pace.answered(pace.begin(number, 1000), took=0.002, waited=0.001)
    assert not pace.overlaps


def test_where_they_do_not_any_more_uploads_overlap_again():
    pace = _that_knows(took=0.002, size=1000, waited=0.001)
    assert not pace.overlaps
    for number in range(ROUND):
        pace.answered(pace.begin(100 + number, 1000), took=0.2, waited=2 * PAYS_SECONDS)
    assert pace.overlaps
    assert pace.rate == 0  # what was known was of another line
    pace.answered(pace.begin(200.0, 1000), took=0.2, waited=0.02)
    assert pace.rate == pytest.approx(10_000, rel=0.1)


def test_one_that_failed_teaches_nothing():
    pace = _that_knows(took=1.0, size=1000)
    rate = pace.rate
    for number in range(20):
        pace.gone(pace.begin(10.0 + number, 1000))
    assert pace.rate == rate


def _that_knows(*, took: float, size: int, waited: float = 0.1) -> Pace:
    pace = Pace()
    for number in range(ROUND):
        begun = -10.0 + number * 2 * took
        pace.answered(pace.begin(begun, size), took=took, waited=waited)
    return pace

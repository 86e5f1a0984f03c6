"""When the next upload of a batch may begin, so that the line is full and hardly anything waits. Pure.

One upload alone leaves the line empty until its answer is here. Side by side, bodies share the line, end
together, and leave it empty then. So the next body is to arrive just as the one before has passed. When that
is, is reckoned: as long after its beginning, or after the ones before have passed, as its bytes take at the
line's rate. Each answer corrects the reckoning, and new video delays it.

The rate is learnt from how long uploads take. Where all of some answers in a row took longer than one alone,
they waited in a queue, and a new segment would have to: the rate is less. Where none waited, the line had
room: it is more. What one takes alone is known from the quickest ones.
"""

import math
from collections import deque
from dataclasses import dataclass

MOST = 8  # under way: enough for segments that take a seventh of a round trip each
PAYS_SECONDS = 0.01  # of waiting for an answer; below, handing over to a thread costs more than it gains
ROUND = 5  # answers; one of them at least met no new segment on its way
ALONE, QUEUED = 1.1, 1.3  # times what one takes alone
SLACK = 0.4  # of the time of a body: a line that is empty for a moment is lost for good
FIRST = 2.0  # so many within the time of the first one
GROWTH, FASTER, SLOWER = 1.2, 1.06, 0.97  # per answer at the beginning, per round later
LEAST = 0.85  # of the rate, from one round to the next
MOST_ALONE = 3.0  # times what one takes alone: so long may new video delay the next one ...
MOST_SECONDS = 2.0  # ... and no longer than this: a batch that waits holds its process
LARGEST_RATE = 1e10
# What can have been learnt: bytes per second, bytes, seconds.
RATES, SIZES, TIMES = (100.0, LARGEST_RATE), (1.0, 1e9), (0.001, 600.0)
KEPT = 64  # rounds whose quickest answers are known: a line can change


@dataclass(eq=False)
class Upload:
    """One under way: its bytes, when it began, and when its body will have passed, in monotonic seconds."""

    size: int
    began: float
    passed: float
    was_paced: bool  # it began when it was due: what came of that says something of the rate


@dataclass(frozen=True)
class Learnt:
    """What one process has learnt of a line, for the others of its host.

    Bytes per second; whether that may still be far from right; how many bytes took how many seconds alone.
    """

    rate: float
    is_new: bool
    size: float
    took: float

    def __post_init__(self) -> None:
        """Raise ValueError for what no process can have learnt: it comes from the broker."""
        for found, (least, most) in ((self.rate, RATES), (self.size, SIZES), (self.took, TIMES)):
            if isinstance(found, bool) or not least <= found <= most:
                raise ValueError("not of a line")


@dataclass(frozen=True)
class _Answer:
    """To what, after how many seconds, and so many after the body had left."""

    upload: Upload
    took: float
    waited: float


class Pace:
    """Learns from each answer. Moments are monotonic seconds."""

    def __init__(self) -> None:
        self.overlaps = True
        self._rate = 0.0  # bytes per second; 0 before the first answer
        self._is_new = True  # the rate may still be far from right
        self._free = 0.0  # when all that is under way will have passed
        self._under_way: list[Upload] = []
        self._last: Upload | None = None
        self._round: list[_Answer] = []
        self._quickest: deque[_Answer] = deque(maxlen=KEPT)  # of each round

    @property
    def rate(self) -> float:
        """Bytes per second of the line, as far as is known; 0 if not."""
        return self._rate

    @property
    def sure_rate(self) -> float:
        """The rate once it cannot be far from right any more; 0 before."""
        return 0.0 if self._is_new else self._rate

    @property
    def learnt(self) -> Learnt | None:
        """What is known of the line, if anything is."""
        if not self._rate or self._last is None:
            return None
        size = self._last.size
        try:
            return Learnt(self._rate, self._is_new, size, self._alone(size))
        except ValueError:  # a line that nobody has
            return None

    def adopt(self, learnt: Learnt) -> None:
        """Begin from what another process has learnt: later than what is known here, if anything is."""
        if not self.overlaps or self._under_way:
            return
        self._rate, self._is_new = learnt.rate, learnt.is_new
        if not (self._quickest or self._round):
            upload = Upload(round(learnt.size), 0.0, 0.0, was_paced=False)
            self._quickest.append(_Answer(upload, learnt.took, 0.0))

    @property
    def next_at(self) -> float:
        """When the next one may begin; after the first answer where nothing is known."""
        if not self._rate or self._last is None:
            return math.inf if self._under_way else -math.inf
        last, alone = self._last, self._alone(self._last.size)
        due = self._free - SLACK * last.size / self._rate
        return min(due, last.began + alone + min(MOST_ALONE * alone, MOST_SECONDS))

    def begin(self, now: float, size: int) -> Upload:
        """Note that one of so many bytes begins."""
        size = max(1, size)
        was_paced = not self._rate or now - self.next_at < SLACK * size / self._rate
        self.give_way(now, size)
        upload = Upload(size, now, self._free, was_paced)
        self._under_way.append(upload)
        self._last = upload
        return upload

    def give_way(self, now: float, size: int) -> None:
        """Note that so many bytes have the line before the next one."""
        if self._rate:
            most = now + MOST_ALONE * max(MOST_SECONDS, size / self._rate)  # a wrong count must not last
            self._free = min(max(self._free, now) + size / self._rate, most)

    def nothing_under_way(self) -> None:
        """Note that a batch is over: also what an error in the middle left behind."""
        self._under_way.clear()

    def gone(self, upload: Upload) -> None:
        """Note that one ended without an answer: the others need not wait for it to pass."""
        self._under_way.remove(upload)
        if not self._under_way:
            self._free = 0.0
        elif self._rate:
            self._free -= upload.size / self._rate

    def answered(self, upload: Upload, *, took: float, waited: float) -> None:
        """Note an answer, so many seconds after the body began to leave, and after it had left."""
        self._under_way.remove(upload)
        answer = _Answer(upload, took, waited)
        self._round.append(answer)
        if self.overlaps:
            self._learn(answer)
        if len(self._round) >= ROUND:
            self._decide(self._round)
            self._round = []

    def _learn(self, answer: _Answer) -> None:
        upload, alone = answer.upload, self._alone(answer.upload.size)
        if not self._rate:
            self._rate = FIRST * upload.size / answer.took
            return
        self._correct(upload.began + answer.took - max(0.0, alone - upload.size / self._rate) - upload.passed)
        if self._is_new and upload.was_paced and answer.took < QUEUED * alone:
            self._rate *= GROWTH
        # One after the other they are never slower.
        self._rate = min(max(self._rate, upload.size / answer.took), LARGEST_RATE)

    def _correct(self, late: float) -> None:
        """What passed later than reckoned delays all that follows it."""
        if self._under_way:
            self._free += late
        for each in self._under_way:
            each.passed += late

    def _alone(self, size: int) -> float:
        """Return the seconds that one of that size takes alone, at most: a larger one takes no less."""
        known = (*self._quickest, *self._round)
        return min(each.took * max(1.0, size / each.upload.size) for each in known)

    def _times_alone(self, answer: _Answer) -> float:
        return answer.took / self._alone(answer.upload.size)

    def _decide(self, answers: list[_Answer]) -> None:
        pays = min(each.waited for each in answers) >= PAYS_SECONDS
        if not (pays and self.overlaps):
            self._forget()
            self.overlaps = pays
            return
        quickest = min(answers, key=self._times_alone)
        ratio = self._times_alone(quickest)
        self._quickest.append(quickest)
        if ratio > QUEUED:
            self._is_new = False
            self._rate *= max(LEAST, SLOWER * math.sqrt(QUEUED / ratio))
        elif ratio <= ALONE and not self._is_new and all(each.upload.was_paced for each in answers):
            self._rate = min(self._rate * FASTER, LARGEST_RATE)

    def _forget(self) -> None:
        """What was known was of another line."""
        self._rate, self._is_new = 0.0, True
        self._last = None
        self._quickest.clear()

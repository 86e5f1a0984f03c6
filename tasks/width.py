"""How many uploads of a batch are under way at once, and how soon after each other they begin. Pure.

They have to fill the line, and no more. Side by side, bodies would share the line, end together, and leave it
empty until the answers are here. So they begin evenly: what is under way within the time of one upload is
spread over that time.

Where answers come at once, one. Elsewhere one more is tried as long as answers come as soon as they ever did:
then the line had room. Where each of some answers in a row took longer, bodies wait in a queue somewhere on
the way, where a new segment would have to wait behind them: so one less, and the next try a while later.
"""

import math
from collections import deque

MOST = 8  # enough for segments that take a seventh of a round trip each; the cloud sees as many connections
PAYS_SECONDS = 0.01  # of waiting for an answer; below, handing over to a thread costs more than it gains
FIRST_ROUND, ROUND, ALONE_ROUND = 4, 10, 30  # answers; of ten, one at least met no new segment on its way
QUEUED = 1.25  # times the shortest wait
GAIN = 1.3  # a little sooner than evenly: a line that is empty for a moment is lost for good
LONGEST_PAUSE = 32  # rounds between two tries that did not help
KEPT_ROUNDS = 16  # in which the shortest wait is looked for: a line can change


class Width:
    """Learns from each answer. `most` uploads may be under way at once."""

    def __init__(self) -> None:
        self.most = 1
        self._waits: list[float] = []
        self._alone: list[float] = []  # of answers that came beside fewer others, in a row
        self._base = math.inf  # the shortest wait of this round, whoever was beside it
        self._shortest: deque[float] = deque(maxlen=KEPT_ROUNDS)
        self._pause = self._left = 0  # rounds
        self._took: deque[float] = deque(maxlen=MOST)
        self._sizes: deque[int] = deque(maxlen=MOST)

    @property
    def took(self) -> float:
        """Seconds that an upload took of late, on average."""
        return sum(self._took) / len(self._took) if self._took else 0.0

    @property
    def spacing(self) -> float:
        """Seconds from the beginning of one upload to that of the next."""
        return 0.0 if self.most == 1 else self.took / (self.most * GAIN)

    @property
    def rate(self) -> float:
        """Bytes per second of the uploads that begin so; 0 where they do not overlap."""
        return sum(self._sizes) / len(self._sizes) / self.spacing if self.spacing else 0.0

    def note(self, waited: float, took: float, *, size: int, beside: int) -> None:
        """Note an answer, so many seconds after the body had left, and after the upload began.

        `beside` so many others: the first ones of a batch find the line empty, and tell of that alone.
        """
        self._took.append(took)
        self._sizes.append(size)
        self._base = min(self._base, waited)
        if beside < self.most - 1:
            self._note_alone(waited)
            return
        self._alone = []
        self._waits.append(waited)
        if len(self._waits) >= (FIRST_ROUND if self.most == 1 else ROUND):
            shortest, self._waits = min(self._waits), []
            self._shortest.append(min(self._base, shortest))
            self._base = math.inf
            self._decide(shortest)

    def _note_alone(self, waited: float) -> None:
        """Where so many are never under way any more, the line has become too good for them."""
        self._alone.append(waited)
        if len(self._alone) >= ALONE_ROUND:
            self.most = 1 if min(self._alone) < PAYS_SECONDS else max(2, self.most - 1)
            self._alone, self._waits = [], []

    def _decide(self, shortest: float) -> None:
        if shortest < PAYS_SECONDS:
            self.most = 1
        elif self.most > 1 and shortest > QUEUED * min(self._shortest):
            self.most -= 1
            self._pause = self._left = min(LONGEST_PAUSE, max(1, self._pause * 2))
        elif self._left:
            self._left -= 1
        else:
            self.most = min(MOST, self.most + 1)

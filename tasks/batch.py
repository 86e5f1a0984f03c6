"""How a batch of backlog segments is worked through: in a lane, not for long, and new video goes first."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Self

from capture.outcome import Kind, Outcome
from capture.segment import SessionName
from capture.spool import Debt
from tasks.memory import LARGEST_BATCH, SMALLEST_BATCH, Remembered

if TYPE_CHECKING:
    from tasks.worker import Worker

# Long enough for a message to be worth its cost, short enough for everybody to have a turn.
BATCH_SECONDS = 4.0
# Longer where uploads overlap and fill the line, because it is empty for a moment between two batches.
LONGEST_BATCH_SECONDS = 10.0
# How often a batch asks the broker whether new video waits: on a fast line it sends hundreds a second.
ASK_SECONDS = 0.05
# A batch whose uploads overlap has answers to wait for before it makes way: that helps no new segment which
# another process takes within so long. A next body that takes longer is not begun meanwhile.
PATIENCE_SECONDS = 0.05
SHORT_BODY_SECONDS = 0.1


def next_window(window: int, *, lanes: int, delivered: int, failed: int) -> int:
    """Return how many uploads of the backlog may run at once: more after a success, half after a failure."""
    if failed:
        return max(1, window // 2)
    return min(lanes, window + 1) if delivered else max(1, min(lanes, window))


def next_size(size: int, *, held: int, delivered: int) -> int:
    """Return how many segments the next batch is to hold: twice as many if all of a full one was sent."""
    if delivered == held:
        return min(LARGEST_BATCH, 2 * size) if held >= size else size
    return max(SMALLEST_BATCH, min(size, 2 * delivered))


class Batch:
    """One batch, as a context: at its end recover learns what is left, and is asked for the next."""

    def __init__(self, worker: "Worker", debts: Sequence[Debt]) -> None:
        self._worker = worker
        self._debts = debts
        self._remembered = Remembered()
        self._lane = ExitStack()
        self._keys = {debt.key for debt in debts}
        self._begun: set[str] = set()
        self._under_way: set[str] = set()
        self._failed: set[str] = set()
        self._has_left = False
        self._is_whole = True  # no new segment ended it
        self._began = math.inf
        self._waits_since = math.inf
        self._turn: str | None = None
        self._ask_at = -math.inf  # before the second one in any case
        self.has_lane = False
        self.delivered = 0
        self.tried: dict[SessionName, None] = {}  # sessions, in this order
        self.refusal: tuple[Outcome, str] | None = None  # and the camera: others may have another token

    def due(self) -> Iterator[Debt]:
        """Yield what to send next: one at least, then until time is up or a new segment waits."""
        self._began = time.monotonic()
        for debt in self._debts:
            if self._begun and (self._is_time_up() or self._must_make_way(debt)):
                self._is_whole = self._is_time_up()
                return
            self._turn = debt.camera
            self._begun.add(debt.key)
            self._under_way.add(debt.key)
            yield debt

    def is_over(self) -> bool:
        """Tell whether nothing more is due: all of it has begun, or time is up."""
        return len(self._begun) == len(self._keys) or self._is_time_up()

    def _is_time_up(self) -> bool:
        fills_line = self._worker.sender.seconds_of(0) < math.inf
        seconds = LONGEST_BATCH_SECONDS if fills_line else BATCH_SECONDS
        return time.monotonic() - self._began >= seconds

    def _must_make_way(self, debt: Debt) -> bool:
        """Tell whether a new segment waits, and not only for a moment; the broker is asked now and then."""
        now = time.monotonic()
        if now < self._ask_at:
            return False
        self._ask_at = now + ASK_SECONDS
        if not self._worker.memory.live_waits():
            self._waits_since = math.inf
            return False
        self._waits_since = min(self._waits_since, now)
        return now - self._waits_since >= self._patience(debt)

    def _patience(self, debt: Debt) -> float:
        """Return for how many seconds a new segment may wait for another process, while this one is sent."""
        if self._remembered.lanes == 1:  # two processes at most: hardly any is free soon
            return 0.0
        try:
            size = self._worker.spool.segment_path(debt.session, debt.segment).lstat().st_size
        except OSError:  # it is gone, or in trouble: no body to be long
            size = 0
        return PATIENCE_SECONDS if self._worker.sender.seconds_of(size) <= SHORT_BODY_SECONDS else 0.0

    def _lanes(self) -> int:
        """Return how many lanes there are to be: where uploads overlap, one for each host fills its line."""
        most = self._remembered.hosts if self._worker.sender.overlaps else self._remembered.lanes
        return min(most, self._remembered.lanes)

    def note(self, debt: Debt, outcome: Outcome | str) -> None:
        """Note what became of one; words where there was nothing to try, or the gate was shut."""
        self._under_way.discard(debt.key)
        if isinstance(outcome, str):
            return
        self.tried[debt.session] = None
        if outcome.kind is Kind.TRANSIENT:
            self._failed.add(debt.key)
        elif outcome.kind is Kind.FATAL:
            self.refusal = self.refusal or (outcome, debt.camera)
        self.delivered += outcome.kind is Kind.OK

    def leave_lane(self) -> None:
        """Let others have the lane when the last body has all but left; answers are still on their way.

        Not where something failed, or no answer came yet: a cloud that hangs shall not have two batches hang.
        """
        if self._under_way and self.delivered and not self._failed:
            self._worker.memory.conclude(
                done=self._keys - self._under_way,
                failed=[],
                window=None,
                turn=self._turn,
                line=self._worker.sender.learnt,
            )
            self._lane.close()
            self._has_left = True
            self._worker.recover_soon()

    def _next_size(self) -> int | None:
        if not (self.delivered and self._is_whole):
            return None
        return next_size(self._remembered.size, held=len(self._debts), delivered=self.delivered)

    def __enter__(self) -> Self:
        with suppress(OSError):  # one lane then, as without any knowledge
            self._remembered = self._worker.memory.load()
        if self._remembered.line is not None:
            self._worker.sender.adopt(self._remembered.line)
        self.has_lane = self._lane.enter_context(self._worker.lanes.take(self._remembered.lanes))
        return self

    def __exit__(self, *_exception: object) -> None:
        window = None
        if self.delivered or self._failed:
            window = next_window(
                self._remembered.window,
                lanes=self._lanes(),
                delivered=self.delivered,
                failed=len(self._failed),
            )
        done, turn = self._keys - self._failed, self._turn
        if self._has_left:  # others have had turns since, and may be at what this one did not get to
            done, turn = done & self._begun, None
        try:
            self._worker.memory.conclude(
                done=done,
                failed=self._failed,
                window=window,
                turn=turn,
                size=self._next_size(),
                line=self._worker.sender.learnt if self.delivered and not self._has_left else None,
            )
        finally:
            self._lane.close()
        if self.delivered and not self._has_left:
            self._worker.recover_soon()

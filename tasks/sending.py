"""Requests on their way to the cloud: one after the other, or of a batch beside each other.

On a line with a long round trip, one upload at a time leaves it empty while each answer is waited for. So
while the answer to one travels, the body of the next one does. Bodies still leave one after the other: a new
segment meets one of them beside it, and a slow line is not shared by several. Where answers come at once,
all is sent by the thread of the task.

Threads do nothing but the exchange with the cloud. Claims, gate, journal and metrics stay with the thread of
the task, and no exchange outlives its batch: the time limit of that cuts what is still under way.
"""

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from celery.exceptions import SoftTimeLimitExceeded

from capture.claim import Claim
from capture.errors import ConfigError
from capture.ingest import Ingest
from capture.live_bytes import LiveBytes, NewVideo
from capture.outcome import Outcome
from capture.spool import Debt
from tasks.pace import MOST, MOST_ALONE, Learnt, Pace, Upload

# So little of a body waits in the kernel that "it has left" is true, also on a slow line.
UNSENT_BYTES = 16 * 1024
MOST_BYTES = 16 * 1024 * 1024  # of them together: each may keep its segment in memory
MOST_HELD_SECONDS = 4.0  # servers give up on a body that stands still
# That still connect: they fill most of a long line, and no more go in vain to a cloud that does not answer.
MOST_COMING = 3
TURN_SECONDS = 0.1  # between two looks at whether the batch is over
# Before a batch is over the next one is asked for: two messages and a round of recover take about so long.
HANDOVER_SECONDS = 0.1
LOOK_SECONDS = 1.0  # a wake-up that got lost costs no more

Sent: TypeAlias = tuple[Outcome, str]  # with the SHA-256 (hex) of what was sent
Note: TypeAlias = Callable[[Debt, Outcome | str], None]


@dataclass(frozen=True)
class Request:
    """What an attempt wants to have sent."""

    claim: Claim
    token: str
    answer_seconds: float | None
    is_live: bool


# An attempt: it yields what it wants to have sent, and goes on when that is done.
Steps: TypeAlias = Generator[Request, Sent, Outcome | str]


@dataclass(eq=False)
class _Exchange:
    """One request under way, maybe in a thread of its own, which writes here and says `is_done` last."""

    debt: Debt | None
    steps: Steps
    request: Request
    ingest: Ingest
    wake: "queue.SimpleQueue[None] | None" = None  # of the thread of the task, where that is another
    hold: "Hold | None" = None
    handover_bytes: float = 0.0  # with so few left the next batch can be asked for
    is_nearly_gone: bool = False
    turnstile: "threading.Lock | None" = None  # bodies of one batch leave one after the other
    has_turn: bool = False
    begun_at: float | None = None  # when its body began to leave
    result: Sent | Exception | None = None
    left_at: float | None = None  # when its body had left, in monotonic seconds
    answered_at: float | None = None  # where an answer came after that
    upload: Upload | None = None  # how the pace knows it
    is_done: bool = False
    # Its thread takes it to begin, and whoever gives it up before: the other one finds it taken.
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """Send, and keep what becomes of it. Raises SoftTimeLimitExceeded in the thread of the task."""
        request = self.request
        try:
            self.result = self.ingest.send_segment(
                request.claim,
                request.token,
                answer_seconds=request.answer_seconds,
                is_live=request.is_live,
                hold=self._hold if self.hold else None,
                on_connected=self._await_turn,
                on_begin=self._note_begin,
                on_sent=self._note_sent,
            )
            if self.left_at is not None and self.result[0].status:
                self.answered_at = time.monotonic()
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:  # noqa: BLE001 - the attempt gets it, in the thread of the task
            self.result = error
        finally:
            self._end_turn()
            self.is_done = True
            self._tell()

    def run_in_thread(self) -> None:
        """Send, unless it was given up before this thread began."""
        if self._turn.acquire(blocking=False):
            self.run()

    def give_up(self) -> None:
        """End it with an error: the exchange, or the thread that would begin it."""
        self.ingest.cut()
        if self._turn.acquire(blocking=False):
            self.is_done = True

    def _hold(self, left: int) -> float:
        assert self.hold is not None  # noqa: S101 - asked for no other
        seconds = 0.0 if self.ingest.is_cut else self.hold.seconds()
        if seconds <= 0 and left <= self.handover_bytes and not self.is_nearly_gone:
            self.is_nearly_gone = True
            self._tell()
        return seconds

    def _await_turn(self) -> None:
        """Wait until no other body leaves: several may have connected meanwhile."""
        while self.turnstile is not None and not self.has_turn and not self.ingest.is_cut:
            self.has_turn = self.turnstile.acquire(timeout=TURN_SECONDS)

    def _end_turn(self) -> None:
        if self.turnstile is not None and self.has_turn:
            self.has_turn = False
            self.turnstile.release()

    def _note_begin(self) -> None:
        self.begun_at, self.left_at, self.is_nearly_gone = time.monotonic(), None, False

    def _note_sent(self) -> None:
        self.left_at = time.monotonic()
        self._end_turn()
        self._tell()

    def _tell(self) -> None:
        if self.wake is not None:
            self.wake.put(None)

    @property
    def is_coming(self) -> bool:
        """Whether it still connects, or waits for its turn."""
        return self.begun_at is None and not self.is_done

    @property
    def is_leaving(self) -> bool:
        return self.begun_at is not None and self.left_at is None and not self.is_done

    @property
    def has_much_to_send(self) -> bool:
        return self.is_coming or (self.is_leaving and not self.is_nearly_gone)

    def conclude(self) -> Outcome | str:
        """Let the attempt go on with the result, and return what became of it."""
        return _resumed(self.steps, self.result or (self.ingest.deadline_passed(), ""))


class Hold:
    """How long a body of the backlog leaves the line to new video that begins beside it."""

    def __init__(self, live: LiveBytes, rate: float, size: int) -> None:
        """`rate` is that of the line in bytes per second, or 0; `size` is the body's, in bytes."""
        self._new_video = NewVideo(live)
        self._rate = rate
        self._until = 0.0
        # Then it goes on, whatever else comes: the backlog keeps a share, and the attempt has a deadline.
        self._latest = time.monotonic() + min(MOST_ALONE * size / rate, MOST_HELD_SECONDS) if rate else 0.0

    def seconds(self) -> float:
        """Return how much longer new video needs the line; 0 or less if it does not."""
        now = time.monotonic()
        if now >= self._latest:
            return 0.0
        if new := self._new_video.take():
            self._until = max(self._until, now) + new / self._rate
        return min(self._until, self._latest) - now


class Sender:
    """Sends for one process: its warm clients, and what it knows of the line."""

    def __init__(
        self,
        make: Callable[[int | None], Ingest],
        live: LiveBytes,
        is_slow: Callable[[], bool] = lambda: False,
    ) -> None:
        """`make` makes a client; it is told how much of a body may wait in the kernel, in bytes, if not all.

        `live` counts what this host sends of new video. `is_slow` tells whether the line is too slow for more
        than one at once.
        """
        self._make = make
        self._live = live
        self._new_video = NewVideo(live)
        self._is_slow = is_slow
        self._own: Ingest | None = None
        self._others: list[Ingest] = []
        self._pace = Pace()
        self._running: list[_Exchange] = []
        self._turnstile = threading.Lock()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    @property
    def ingest(self) -> Ingest:
        """The client of the task's own thread."""
        if self._own is None:
            self._own = self._make(None)
        return self._own

    @property
    def overlaps(self) -> bool:
        """Whether uploads of one batch overlap, so that others beside it would only crowd the line."""
        return self._pace.overlaps and not self._is_slow()

    @property
    def learnt(self) -> Learnt | None:
        """What is known of the line, for the other processes of this host."""
        return self._pace.learnt

    def seconds_of(self, size: int) -> float:
        """How long so many bytes take on a line that overlapping uploads fill; infinite on any other."""
        rate = self._pace.sure_rate if self.overlaps else 0.0
        return size / rate if rate else math.inf

    def adopt(self, learnt: Learnt) -> None:
        """Begin from what another process of this host has learnt of the line."""
        self._pace.adopt(learnt)

    def one(self, steps: Steps) -> Outcome | str:
        """Take an attempt to its end. Celery's soft time limit ends the wait for the cloud."""
        try:
            request = next(steps)
        except StopIteration as end:
            return _value(end)
        if request.is_live:
            self._live.add(request.claim.size)
        return self._here(None, steps, request)

    def many(
        self,
        debts: Iterable[Debt],
        begin: Callable[[Debt], Steps],
        *,
        note: Note,
        is_over: Callable[[], bool],
        on_last: Callable[[], None],
    ) -> None:
        """Upload all of them, and `note` what became of each, as they are done.

        The next one is asked for when its body may leave, or none will come as `is_over` tells. `on_last` is
        called when the last body has left, or will have by the time that somebody else can begin: some
        answers may still be waited for. The soft time limit ends that.
        """
        self._new_video = NewVideo(self._live)  # no batch gives way to what began before
        try:
            for debt in debts:
                self._begin(debt, begin(debt), note)
                self._land(note, while_=lambda: not (self._has_room() or is_over()))
            self._land(note, while_=lambda: any(each.has_much_to_send for each in self._running))
            on_last()
            self._land(note, while_=lambda: bool(self._running))
        except Exception as error:  # what others have delivered is to be written down all the same
            self._cut()
            self._land(note, while_=lambda: bool(self._running))
            if not isinstance(error, SoftTimeLimitExceeded):
                raise
        finally:
            self._abandon()

    def _begin(self, debt: Debt, steps: Steps, note: Note) -> None:
        try:
            request = next(steps)
        except StopIteration as end:
            note(debt, _value(end))
            return
        if not (self.overlaps and self._started(debt, steps, request)):
            note(debt, self._here(debt, steps, request))

    def _here(self, debt: Debt | None, steps: Steps, request: Request) -> Outcome | str:
        try:
            exchange = _Exchange(debt, steps, request, self.ingest)
        except ConfigError as error:
            return _resumed(steps, error)
        if debt is not None:
            exchange.upload = self._pace.begin(time.monotonic(), request.claim.size)
        try:
            exchange.run()
        except SoftTimeLimitExceeded:
            self._cut()
        self._learn(exchange)
        return exchange.conclude()

    def _started(self, debt: Debt, steps: Steps, request: Request) -> bool:
        """Send it in a thread; False where the system has none left, or no client can be made."""
        try:
            ingest = self._others.pop() if self._others else self._make(UNSENT_BYTES)
        except ConfigError:
            return False
        hold = Hold(self._live, self._pace.rate, request.claim.size)
        few = self._pace.sure_rate * HANDOVER_SECONDS
        exchange = _Exchange(debt, steps, request, ingest, self._wake, hold, few, turnstile=self._turnstile)
        self._running.append(exchange)  # first: the time limit can pass at any moment
        try:
            threading.Thread(target=exchange.run_in_thread, name="upload", daemon=True).start()
        except RuntimeError:
            self._running.remove(exchange)
            self._others.append(ingest)
            return False
        exchange.upload = self._pace.begin(time.monotonic(), request.claim.size)
        return True

    def _has_room(self) -> bool:
        running = self._running
        if not self.overlaps:
            return not running
        if new := self._new_video.take():
            self._pace.give_way(time.monotonic(), new)
        return (
            time.monotonic() >= self._pace.next_at
            and not any(exchange.is_leaving for exchange in running)
            and sum(exchange.is_coming for exchange in running) < MOST_COMING
            and len(running) < MOST
            and sum(exchange.request.claim.size for exchange in running) < MOST_BYTES
        )

    def _land(self, note: Note, *, while_: Callable[[], bool]) -> None:
        """Conclude what is done, and wait for more of it for as long as that holds."""
        while True:
            for exchange in [each for each in self._running if each.is_done]:
                self._running.remove(exchange)
                if not exchange.ingest.is_cut:
                    self._others.append(exchange.ingest)
                self._learn(exchange)
                assert exchange.debt is not None  # noqa: S101 - only those of a batch have a thread
                note(exchange.debt, exchange.conclude())
            if not while_():
                return
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=self._look_seconds())

    def _look_seconds(self) -> float:
        left = self._pace.next_at - time.monotonic()
        return left if 0 < left < LOOK_SECONDS else LOOK_SECONDS

    def _learn(self, exchange: _Exchange) -> None:
        upload, exchange.upload = exchange.upload, None
        if upload is None:
            return
        if exchange.answered_at is None or exchange.left_at is None:
            self._pace.gone(upload)
        else:
            # A new connection takes its time, and says nothing of the line.
            took = exchange.answered_at - (exchange.begun_at or upload.began)
            self._pace.answered(upload, took=took, waited=exchange.answered_at - exchange.left_at)

    def _cut(self) -> None:
        for exchange in self._running:
            exchange.give_up()

    def _abandon(self) -> None:
        """After an error in the middle of a batch: leave nothing under way and no segment locked."""
        self._cut()
        for exchange in self._running:
            exchange.steps.close()
        self._running.clear()
        self._pace.nothing_under_way()


def _resumed(steps: Steps, result: Sent | Exception) -> Outcome | str:
    """Let an attempt go on with a result, and return what becomes of it."""
    try:
        if isinstance(result, Exception):
            steps.throw(result)
        else:
            steps.send(result)
    except StopIteration as end:
        return _value(end)
    raise RuntimeError("an attempt sends once")


def _value(end: StopIteration) -> Outcome | str:
    value: Outcome | str = end.value
    return value

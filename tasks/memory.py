"""What recover remembers between its rounds, kept in the broker beside the messages that it is about.

Who has a message, how many uploads of the backlog may run at once, which camera had the last turn, how many
uploads all workers can run, and what each host learnt of its line. A broker that is wiped or started anew
forgets this together with the messages, so that the two are never at odds. All of it is a hint: lost, it
costs time or a message too many.
"""

import json
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import astuple, dataclass, field
from functools import partial
from typing import Any

import structlog
from celery import Celery

from capture.handoff import BACKLOG, LIVE, broker_client, key_prefix
from capture.host import host
from tasks.pace import Learnt

# Segments: enough to be worth the message, and on a fast line not to be gone at once.
SMALLEST_BATCH, LARGEST_BATCH = 48, 256
MESSAGE_LIFE_SECONDS = 60.0
WORKER_LIFE_SECONDS = 30.0
_FORGOTTEN_AFTER = 600  # seconds without a round
GOING_SECONDS = 20.0
LINE_SECONDS = 60.0
_WINDOW, _SIZE, _TURN, _GOING, _LINE = ":window", ":size", ":turn", ":going", ":line:"

log = structlog.get_logger()


@dataclass(frozen=True)
class Remembered:
    """What the broker said.

    `sent` and `failed` map a segment's key to when, in seconds since 1970 by the broker's clock: those of
    several hosts need not agree.
    """

    sent: dict[str, float] = field(default_factory=dict)  # has a message
    failed: dict[str, float] = field(default_factory=dict)  # was tried in a batch, and is still owed
    window: int = 1
    size: int = SMALLEST_BATCH  # segments of the next batch
    turn: str = ""
    going: bool = False  # uploads began to succeed within the last seconds
    now: float = 0.0
    live: int = 0  # messages that wait
    backlog: int = 0
    lanes: int = 1  # the most batches of the backlog at once
    hosts: int = 1  # of workers
    line: Learnt | None = None  # what this host learnt of its line within the last minute


def count_lanes(workers: Iterable[tuple[int, Collection[str]]]) -> int:
    """Return how many uploads of the backlog may run at once. `workers`: processes and queues of each.

    Where no worker is there for `live` alone, a quarter of the processes is left free for new segments.
    """
    known = list(workers)
    both = sum(slots for slots, queues in known if BACKLOG in queues)
    if any(BACKLOG not in queues and LIVE in queues for _, queues in known):
        return max(1, both)
    return max(1, both - max(1, both // 4))


class Memory:
    """The memory of one spool. Methods that only note something lose it silently when the broker is away."""

    def __init__(
        self, app: Celery, spool_id: str, client: Callable[[], AbstractContextManager[Any]] | None = None
    ) -> None:
        """`client` opens a Redis client; without it the app's connections are shared."""
        prefix = key_prefix(app)
        self._client = client or partial(broker_client, app)
        self._prefix = prefix
        self._own = f"{prefix}relay-capture.recover.{spool_id}"
        self._workers = f"{prefix}relay-capture.workers"
        self._line = _LINE + host()
        self._live, self._backlog = prefix + LIVE, prefix + BACKLOG

    def load(self) -> Remembered:
        """Return what is known. Raises OSError when the broker is away."""
        with self._client() as client:
            pipe = client.pipeline(transaction=False)
            pipe.time()
            pipe.hgetall(self._own)
            pipe.hgetall(self._workers)
            pipe.llen(self._live)
            pipe.llen(self._backlog)
            time, own, workers, live, backlog = pipe.execute()
        now = _seconds(time)
        line = _line(own.get(self._line.encode(), b""), now=now)
        return _remembered(own, workers, now=now, live=live, backlog=backlog, line=line)

    def live_waits(self) -> bool:
        """Tell whether messages for new segments wait; False when the broker does not say."""
        try:
            with self._client() as client:
                return bool(client.llen(self._live))
        except OSError:
            return False

    def note_sent(self, keys: Collection[str], *, turn: str) -> None:
        """Remember that these have a message now, and which camera had the last turn."""
        self._write(lambda now: {_TURN: turn, **dict.fromkeys(keys, repr(now))})

    def conclude(
        self,
        *,
        done: Collection[str],
        failed: Collection[str],
        window: int | None,
        turn: str | None = None,
        size: int | None = None,
        line: Learnt | None = None,
    ) -> None:
        """Remember how a batch ended: who has no message any more, who failed, the next window if it changes.

        `size` is that of the next batch. `turn` names the camera that really had the last turn: a batch that
        made way sent less than it held.
        `line` is what its process knows of the line: the next one need not learn it.
        """
        known = {_WINDOW: window, _SIZE: size, _TURN: turn}
        changed = {key: str(value) for key, value in known.items() if value is not None}

        def fields(now: float) -> dict[str, str]:
            learnt = {} if line is None else {self._line: json.dumps([now, *astuple(line)])}
            return {**changed, **learnt, **dict.fromkeys(failed, repr(-now))}

        self._write(fields, forget=done)

    def note_going(self) -> None:
        """Uploads succeed: what was closed just before has lost its message at the gate, and is young."""
        self._write(lambda now: {_GOING: repr(now)})

    def clear(self) -> None:
        """Nobody has a message, nobody failed."""
        with suppress(OSError), self._client() as client:
            client.delete(self._own)

    def announce(self, node: str, slots: int, queues: Collection[str]) -> int:
        """Say how many tasks a worker runs at once, and from which queues; return how many messages wait.

        None wait when the broker does not say.
        """
        try:
            with self._client() as client:
                now = _seconds(client.time())
                pipe = client.pipeline(transaction=False)
                pipe.hset(self._workers, node, json.dumps([now, slots, sorted(queues)]))
                pipe.hgetall(self._workers)
                for queue in queues:
                    pipe.llen(self._prefix + queue)
                _, known, *lengths = pipe.execute()
                gone = [name for name, said in known.items() if not _alive([said], now)]
                if gone:  # hosts come and go for years
                    client.hdel(self._workers, *gone)
        except OSError as error:
            log.debug("memory_lost", reason=error.strerror)
            return 0
        return sum(lengths)

    def _write(self, fields_at: Callable[[float], dict[str, str]], forget: Collection[str] = ()) -> None:
        """Write fields that depend on the broker's time, and forget others."""
        try:
            with self._client() as client:
                fields = fields_at(_seconds(client.time()))
                pipe = client.pipeline(transaction=False)
                if fields:
                    pipe.hset(self._own, mapping=fields)
                if forget:
                    pipe.hdel(self._own, *forget)
                pipe.expire(self._own, _FORGOTTEN_AFTER)
                pipe.execute()
        except OSError as error:
            log.debug("memory_lost", reason=error.strerror)


def _seconds(time: tuple[int, int]) -> float:
    """Return the broker's time in seconds since 1970."""
    return time[0] + time[1] / 1e6


def _remembered(
    own: dict[bytes, bytes],
    workers: dict[bytes, bytes],
    *,
    now: float,
    live: int,
    backlog: int,
    line: Learnt | None,
) -> Remembered:
    texts = {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in own.items()}
    window, size = _count(texts.pop(_WINDOW, "")), _count(texts.pop(_SIZE, ""))
    turn = texts.pop(_TURN, "")
    began_going = _number(texts.pop(_GOING, ""))
    times = {key: at for key, text in texts.items() if (at := _number(text))}
    alive = _alive(workers.values(), now)
    return Remembered(
        sent={key: at for key, at in times.items() if 0 <= now - at < MESSAGE_LIFE_SECONDS},
        failed={key: -at for key, at in times.items() if at < 0 <= now + at < MESSAGE_LIFE_SECONDS},
        window=max(1, window),
        size=min(LARGEST_BATCH, max(SMALLEST_BATCH, size)),
        turn=turn,
        going=0 <= now - began_going < GOING_SECONDS,
        now=now,
        live=live,
        backlog=backlog,
        lanes=count_lanes(alive),
        hosts=len({_host(node) for node, said in workers.items() if _alive([said], now)}) or 1,
        line=line,
    )


def _line(text: bytes, *, now: float) -> Learnt | None:
    with suppress(ValueError, TypeError, OverflowError, RecursionError):
        at, rate, is_new, size, took = json.loads(text)
        if 0 <= now - at < LINE_SECONDS:
            return Learnt(rate, is_new is True, size, took)
    return None


def _host(node: bytes) -> bytes:
    """Return the host of ``name@host/pid``."""
    return node.partition(b"/")[0].rpartition(b"@")[2]


def _count(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < len("1000") else 0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _alive(said: Iterable[bytes], now: float) -> list[tuple[int, Collection[str]]]:
    found: list[tuple[int, Collection[str]]] = []
    for text in said:
        try:
            at, slots, queues = json.loads(text)
            if isinstance(slots, int) and abs(now - at) < WORKER_LIFE_SECONDS and 0 < slots < 1000:  # noqa: PLR2004 - sane
                found.append((slots, {str(name) for name in queues}))
        except (ValueError, TypeError, OverflowError, RecursionError):
            continue
    return found

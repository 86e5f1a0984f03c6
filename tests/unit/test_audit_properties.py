"""Whatever happens in a spool the audit finds no fault, and a fault wherever one is planted."""

import collections
import contextlib
import hashlib
import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from capture.audit import Kind
from capture.audit_spool import audit_spool
from capture.claim import Claim, claim
from capture.journal import Journal
from capture.segment import open_name
from capture.session import adopt
from capture.spool import REJECTED, Spool
from capture.upkeep import note_gap, requeue_rejected
from tests.conftest import PACKET, SteppedClock, start_session

EVENTS = [
    "close",
    "close",
    "close",
    "deliver",
    "deliver",
    "reject",
    "requeue",
    "drop",
    "restart",
    "restart without a packet",
    "new session",
    "close, but the journal cannot be written",
    "killed between closing and line",
    "killed between delivery line and removal",
    "killed between drop line and removal",
    "killed between rejection and line",
    "killed between requeueing and line",
    "killed while ffmpeg writes",
    "a full disk took the line of a delivery",
    "midnight",
    "clock set back",
]


class Killed(BaseException):
    """The process ends here."""


class World:
    """A spool, and one agent and one worker that use it by the real code."""

    def __init__(self, root: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        self.clock = SteppedClock()
        self.spool = Spool.open(root / "spool", create=True, clock=self.clock)
        self.session = start_session(self.spool)
        self.next = 1

    def run(self, event: str) -> None:
        self.clock.step(2.5)
        getattr(self, "_" + "".join(c if c.isalnum() else "_" for c in event))()

    def end(self) -> None:
        self.session.close()

    # --- the agent ---

    def _write(self, packets: int = 3) -> None:
        (self.session.open_directory / open_name(self.next)).write_bytes(PACKET * packets)
        self.next += 1

    def _close(self) -> None:
        self._write(self.dice.randint(1, 5))
        self.session.close_segment(self.next - 1, self.clock.now(), 2.0)

    def _restart(self) -> None:
        """Ffmpeg ends with a segment open, which is salvaged; the gap is journalled when video is back."""
        self._write()
        self.session.salvage()
        self._gap_and_close()

    def _restart_without_a_packet(self) -> None:
        for _ in range(self.dice.randint(1, 3)):
            self._write(0)
            assert self.session.salvage() == []
        self._gap_and_close()

    def _gap_and_close(self) -> None:
        until = self.clock.now()
        self.clock.step(1)
        note_gap(self.spool, "door", start=until, end=self.clock.now(), cause="no new frame")
        self._close()

    def _new_session(self) -> None:
        self.session.close()
        dead = adopt(self.spool, self.session.name)
        with dead:
            dead.salvage()
            dead.end()
        self.session, self.next = start_session(self.spool), 1
        self._gap_and_close()

    def _close__but_the_journal_cannot_be_written(self) -> None:
        with _broken_journal(OSError(5, "Input/output error")):
            self._close()

    def _killed_between_closing_and_line(self) -> None:
        with _broken_journal(Killed()), pytest.raises(Killed):
            self._close()
        self._new_session()

    def _killed_while_ffmpeg_writes(self) -> None:
        path = self.session.open_directory / open_name(self.next)
        path.write_bytes(PACKET * self.dice.randint(0, 2) + b"\x47torn")
        self._new_session()

    # --- the worker ---

    def _claim(self) -> Claim | None:
        debts = list(self.spool.debts())
        if not debts:
            return None
        debt = self.dice.choice(debts)
        return claim(self.spool, debt.session, debt.segment)

    def _deliver(self) -> None:
        if (taken := self._claim()) is not None:
            with taken:
                if not taken.finish_delivered():
                    taken.delivered(sha256=_digest(taken), status=204, attempts=1)

    def _reject(self) -> None:
        if (taken := self._claim()) is not None:
            with taken:
                if not taken.finish_delivered():
                    taken.rejected(status=422, reason="HTTP 422")

    def _drop(self) -> None:
        if (taken := self._claim()) is not None:
            with taken:
                taken.dropped(reason="no room")

    def _requeue(self) -> None:
        requeue_rejected(self.spool)

    def _killed_between_delivery_line_and_removal(self) -> None:
        with _broken(Path, "unlink", Killed()), contextlib.suppress(Killed):
            self._deliver()

    def _killed_between_drop_line_and_removal(self) -> None:
        with _broken(Path, "unlink", Killed()), contextlib.suppress(Killed):
            self._drop()

    def _killed_between_rejection_and_line(self) -> None:
        with _broken_journal(Killed()), contextlib.suppress(Killed):
            self._reject()

    def _killed_between_requeueing_and_line(self) -> None:
        with _broken_journal(Killed()), contextlib.suppress(Killed):
            self._requeue()

    def _a_full_disk_took_the_line_of_a_delivery(self) -> None:
        with _broken_journal(OSError(28, "No space left on device")), contextlib.suppress(OSError):
            self._deliver()

    # --- the clock ---

    def _midnight(self) -> None:
        self.clock.step(24 * 3600)

    def _clock_set_back(self) -> None:
        self.clock.step(-5000.0)
        self.clock.ticks += 5000.0


def _digest(taken: Claim) -> str:
    return hashlib.sha256(taken.file.read()).hexdigest()


@contextlib.contextmanager
def _broken(owner: type, name: str, error: BaseException) -> Iterator[None]:
    def fail(*_args: object, **_options: object) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield


def _broken_journal(error: BaseException) -> contextlib.AbstractContextManager[None]:
    return _broken(Journal, "append", error)


@contextlib.contextmanager
def a_history(events: list[str], seed: int) -> Iterator[World]:
    with tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory), seed)
        for event in events:
            world.run(event)
        yield world
        world.end()


@pytest.fixture(autouse=True, scope="module")
def _without_waiting() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for sync in ("fsync", "fdatasync"):
            patch.setattr(os, sync, lambda _descriptor: None)
        patch.setattr("capture.audit_spool.PAUSE_SECONDS", 0.0)
        yield


QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
histories = st.lists(st.sampled_from(EVENTS), min_size=1, max_size=25)


@QUICK
@given(histories, st.integers(0, 2**32))
def test_no_history_is_called_faulty(events, seed):
    with a_history(events, seed) as world:
        report = audit_spool(world.spool, "door", digests=True)

    assert not report.faults, report.findings
    sums = report.delivered + report.owed + report.rejected + report.dropped
    assert (report.segments, report.unaccounted) == (sums, 0)


# --- one damage ------------------------------------------------------------------------------------


def lines_of(world):
    """Every journal line with its file and place, in the order of the files."""
    found = []
    for path in sorted(world.spool.journal.directory.glob("door/*.jsonl")):
        found += [(path, at, line) for at, line in enumerate(path.read_bytes().splitlines(keepends=True))]
    return found


def with_line(world, path, at, line):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[at : at + 1] = [line] if line else []
    path.write_bytes(b"".join(lines))


def owed_files(world, folder=""):
    """Owed files that a line announced, that hold something, and whose outcome nothing told."""
    told = {}
    for _, _, line in lines_of(world):
        fields = json.loads(line)
        if "segment" in fields:
            told.setdefault((fields["session"], fields["segment"]), set()).add(fields["event"])
    return [
        path
        for (session, segment), events in sorted(told.items())
        if (path := world.spool.root / session / folder / segment).exists()
        and path.stat().st_size
        and not {"delivered", "dropped"} & events
        and {"closed", "recovered"} & events
    ]


def choose(world, of):
    assume(of)
    return world.dice.choice(of)


def delete_an_owed_file(world):
    choose(world, owed_files(world)).unlink()


def delete_a_rejected_file(world):
    choose(world, owed_files(world, REJECTED)).unlink()


def truncate_an_owed_file(world):
    path = choose(world, owed_files(world))
    os.truncate(path, world.dice.randrange(1, path.stat().st_size))


def flip_a_byte(world):
    path = choose(world, owed_files(world) + owed_files(world, REJECTED))
    content = bytearray(path.read_bytes())
    content[world.dice.randrange(len(content))] ^= 1 << world.dice.randrange(8)
    path.write_bytes(content)


def tear_a_line(world):
    path, at, line = choose(world, lines_of(world))
    with_line(world, path, at, line[: world.dice.randrange(1, len(line) - 2)] + b"\n")


def tear_the_end(world):
    path = choose(world, lines_of(world))[0]
    last = path.read_bytes().splitlines(keepends=True)[-1]
    os.truncate(path, path.stat().st_size - world.dice.randrange(2, len(last)))


def use_a_number_again(world):
    path = choose(world, owed_files(world))
    path.with_name(path.name.rpartition("_")[0] + "_77777.ts").write_bytes(path.read_bytes())


def remove_the_line_of_a_delivery(world):
    """Of one that has no other: a segment that was sent again after a crash has two."""
    found = [(path, at, json.loads(line)) for path, at, line in lines_of(world)]
    settled = collections.Counter(
        (fields["session"], fields["segment"])
        for _, _, fields in found
        if fields["event"] in {"delivered", "dropped"}
    )
    announced = {
        (fields["session"], fields["segment"]) for _, _, fields in found if fields["event"] == "closed"
    }
    once = [
        (path, at)
        for path, at, fields in found
        if fields["event"] in {"delivered", "dropped"}
        and (key := (fields["session"], fields["segment"])) in announced
        and settled[key] == 1
        and not any((world.spool.root / key[0] / folder / key[1]).exists() for folder in ("", REJECTED))
    ]
    path, at = choose(world, once)
    with_line(world, path, at, b"")


def change_a_delivered_digest(world):
    found = [each for each in lines_of(world) if b'"delivered"' in each[2]]
    path, at, line = choose(world, found)
    fields = json.loads(line)
    before = [json.loads(text) for _, _, text in lines_of(world)]
    same = [f for f in before if f.get("segment") == fields["segment"] and f["session"] == fields["session"]]
    assume(fields["sha256"] and same[0].get("event") in {"closed", "recovered"})
    assume(len([f for f in same if f["event"] in {"delivered", "dropped"}]) == 1)
    with_line(world, path, at, json.dumps({**fields, "sha256": "0" * 64}).encode() + b"\n")


def remove_a_line_and_its_file(world):
    """Of a segment with neighbours and no restart between them, or the hole would be a restart's."""
    lines = lines_of(world)
    events = [json.loads(line) for _, _, line in lines]
    closed = [
        number
        for number, three in enumerate(zip(events, events[1:], events[2:], strict=False), start=1)
        if {each["event"] for each in three} == {"closed"}
        and len({each["session"] for each in three}) == 1
        and int(three[2]["segment"][:8]) - int(three[0]["segment"][:8]) == 2
    ]
    number = choose(world, closed)
    segment, session = events[number]["segment"], events[number]["session"]
    for path, at, line in reversed(lines):
        if json.loads(line).get("segment") == segment and json.loads(line)["session"] == session:
            with_line(world, path, at, b"")
    for folder in ("", REJECTED):
        (world.spool.root / session / folder / segment).unlink(missing_ok=True)


DAMAGES = {
    delete_an_owed_file: {Kind.LOST},
    delete_a_rejected_file: {Kind.LOST},
    truncate_an_owed_file: {Kind.SIZE},
    flip_a_byte: {Kind.CONTENT},
    tear_a_line: {Kind.TORN},
    tear_the_end: {Kind.TORN},
    use_a_number_again: {Kind.DUPLICATE},
    remove_the_line_of_a_delivery: {Kind.LOST},
    change_a_delivered_digest: {Kind.CONTENT},
    remove_a_line_and_its_file: {Kind.HOLE},
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damage_is_found_in_every_history(damage):
    @settings(QUICK, max_examples=40, suppress_health_check=[*HealthCheck])
    @given(histories, st.integers(0, 2**32))
    def check(events, seed):
        # Something for each kind of damage to fall on, in the midst of anything.
        with a_history(["close", "close", *events, "reject", *["close"] * 3, "deliver"], seed) as world:
            damage(world)
            report = audit_spool(world.spool, "door", digests=True)
        assert {kind for kind in report.counts if report.counts[kind]} & DAMAGES[damage], report.findings
        assert report.faults

    check()

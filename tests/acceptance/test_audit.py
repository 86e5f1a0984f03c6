"""`relay-capture audit` on the spool of a real run: a planted fault is seen; at work none is invented."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from capture.sink import Fault, Sink
from tests.acceptance.conftest import COMMAND, TOKEN, Relay, SpoolFiles

NOWHERE = "http://127.0.0.1:9"
PICTURE = "test:320x180@25"
REJECTED_NUMBER = 2


def audit(path, *words):
    """Run the command; return its exit code and what it printed."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
    done = subprocess.run(
        [str(COMMAND), "audit", "--spool", str(path), *words],
        env=clean,
        cwd=path.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def captured(once):
    """A spool with a session that was delivered but for one rejected segment, and one that is owed."""
    return once("captured", capture) / "spool"


def capture(base):
    """Run `up` twice in a folder, for nine segments in its spool."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
    spool = SpoolFiles(base / "spool")
    with tempfile.TemporaryDirectory(prefix="acc-") as runtime, Sink(base / "sink", token=TOKEN) as sink:
        sink.faults.add(Fault("status", status=422, sequence=REJECTED_NUMBER))

        def up(cloud, seconds):
            words = ["up", "--source", f"{PICTURE},{seconds}s", "--camera-id", "gate"]
            return Relay(
                [*words, "--segment-duration", "1", "--drain-timeout", "0.1"],
                env={
                    **clean,
                    "XDG_RUNTIME_DIR": runtime,
                    "RELAY_CLOUD": cloud,
                    "RELAY_TOKEN": TOKEN,
                    "RELAY_SPOOL": str(spool.path),
                },
                log=base / f"up-{seconds}.log",
            )

        first = up(sink.url, 5)
        assert first.exit_code() == 0, first.tail()
        time.sleep(1.5)  # the absence itself: a gap
        second = up(NOWHERE, 4)
        second.wait_for(lambda: len(spool.owed()) == 4, "the second run's segments")
        second.signal(signal.SIGTERM)
        assert second.exit_code() == 75, second.tail()
        assert [first.close(), second.close()] == [None, None]


@pytest.fixture
def found(captured, tmp_path):
    """The same spool, to be damaged."""
    shutil.copytree(captured, tmp_path / "spool", symlinks=True)
    return SpoolFiles(tmp_path / "spool")


# --- what may be planted ---------------------------------------------------------------------------


def journal_file(spool):
    [path] = spool.path.glob("journal/gate/*.jsonl")
    return path


def change_lines(spool, change):
    path = journal_file(spool)
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def index(lines, event):
    return next(number for number, line in enumerate(lines) if json.loads(line)["event"] == event)


def line(event, session, segment, **fields):
    names = {"t": "2026-06-01T12:00:00.000Z", "event": event, "session": session, "segment": segment}
    return json.dumps({**names, **fields}).encode() + b"\n"


def delete_an_owed_file(spool):
    spool.owed()[1].unlink()


def delete_the_rejected_file(spool):
    spool.rejected()[0].unlink()


def delete_a_session_that_owes(spool):
    shutil.rmtree(spool.owed()[0].parent)


def delete_the_journal(spool):
    journal_file(spool).unlink()


def tear_a_line_in_the_middle(spool):
    change_lines(spool, lambda lines: [*lines[:3], lines[3][: len(lines[3]) // 2] + b"\n", *lines[4:]])


def tear_the_end(spool):
    path = journal_file(spool)
    os.truncate(path, path.stat().st_size - 20)


def zero_a_block(spool):
    path = journal_file(spool)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(64))


def give_a_number_twice(spool):
    path = spool.owed()[0]
    number, rest = path.name.split("_", 1)
    shutil.copy(path, path.with_name(f"{number}_{rest.replace('.ts', '9.ts')}"))


def journal_a_number_twice(spool):
    path = spool.owed()[0]
    twin = path.name.replace(".ts", "9.ts")
    path.with_name(twin).write_bytes(path.read_bytes())
    more = line("closed", path.parent.name, twin, bytes=path.stat().st_size)
    change_lines(spool, lambda lines: [*lines, more])


def truncate_an_owed_file(spool):
    path = spool.owed()[0]
    os.truncate(path, path.stat().st_size - 188)


def lengthen_an_owed_file(spool):
    with spool.owed()[0].open("ab") as file:
        file.write(bytes(188))


def flip_a_byte_of_an_owed_file(spool):
    path = spool.owed()[0]
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def deliver_with_other_content(spool):
    def change(lines):
        at = index(lines, "delivered")
        fields = json.loads(lines[at])
        lines[at] = json.dumps({**fields, "sha256": "0" * 64}).encode() + b"\n"
        return lines

    change_lines(spool, change)


def delete_a_delivered_line(spool):
    def change(lines):
        del lines[index(lines, "delivered")]
        return lines

    change_lines(spool, change)


def delete_line_and_file(spool):
    path = spool.owed()[1]
    change_lines(spool, lambda lines: [text for text in lines if path.name.encode() not in text])
    path.unlink()


def deliver_what_was_never_closed(spool):
    path = spool.owed()[0]
    number, rest = path.name.split("_", 1)
    stranger = f"{int(number) + 50:08d}_{rest}"
    more = line("delivered", path.parent.name, stranger, bytes=188, sha256="0" * 64, status=204, attempts=1)
    change_lines(spool, lambda lines: [*lines, more])


@dataclass(frozen=True)
class Damage:
    plant: Callable[[SpoolFiles], None]
    says: str
    words: tuple[str, ...] = ()


DAMAGES = {
    "a deleted owed file": Damage(delete_an_owed_file, "FAULT lost"),
    "a deleted rejected file": Damage(delete_the_rejected_file, "FAULT lost"),
    "a deleted session that owes": Damage(delete_a_session_that_owes, "4 UNACCOUNTED FOR"),
    "a deleted journal": Damage(delete_the_journal, "FAULT hole"),
    "a torn line in the middle": Damage(tear_a_line_in_the_middle, "FAULT torn"),
    "a torn end": Damage(tear_the_end, "FAULT torn"),
    "a block of zeros": Damage(zero_a_block, "FAULT torn"),
    "a second file with a number": Damage(give_a_number_twice, "FAULT duplicate"),
    "a second line with a number": Damage(journal_a_number_twice, "FAULT duplicate"),
    "a truncated owed file": Damage(truncate_an_owed_file, "FAULT size"),
    "an owed file that grew": Damage(lengthen_an_owed_file, "FAULT size"),
    "a delivered line removed": Damage(delete_a_delivered_line, "FAULT lost"),
    "a line and its file removed": Damage(delete_line_and_file, "FAULT hole"),
    "a delivery of what was never closed": Damage(deliver_what_was_never_closed, "FAULT hole"),
    "a delivery of other bytes": Damage(deliver_with_other_content, "FAULT content"),
    "a flipped byte in an owed file": Damage(flip_a_byte_of_an_owed_file, "FAULT content", ("--digests",)),
}


def test_a_real_run_is_accounted_for(found):
    code, out = audit(found.path)

    assert code == 0, out
    assert "gate: 9 segments in 2 sessions = 4 delivered + 4 owed + 1 rejected + 0 dropped" in out
    assert "everything is accounted for" in out
    assert "the agent was not running" in out
    assert "FAULT" not in out
    assert "note" not in out


@pytest.mark.parametrize("name", DAMAGES)
def test_a_planted_damage_is_found(found, name):
    damage = DAMAGES[name]
    damage.plant(found)
    code, out = audit(found.path, *damage.words)

    assert code == 1, out
    assert damage.says in out
    assert "NOT everything is accounted for" in out


def test_as_json_it_says_the_same(found):
    assert json.loads(audit(found.path, "--json")[1])["ok"] is True
    flip_a_byte_of_an_owed_file(found)
    assert json.loads(audit(found.path, "--json")[1])["ok"] is True  # nobody asked for digests
    code, out = audit(found.path, "--json", "--digests")
    assert (code, json.loads(out)["ok"]) == (1, False)


def test_a_clock_that_was_set_back_between_two_lines_is_no_fault(found):
    def set_back(lines):
        fields = [json.loads(text) for text in lines]
        for number, each in enumerate(fields[len(fields) // 2 :]):
            early = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
            each["t"] = early.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return [json.dumps(each).encode() + b"\n" for each in fields]

    change_lines(found, set_back)
    code, out = audit(found.path)

    assert code == 0, out


def test_the_lines_of_a_day_that_a_clock_moved_to_another_file_are_no_fault(found):
    """Set back over midnight, a clock has later lines written to an earlier file."""
    path = journal_file(found)
    lines = path.read_bytes().splitlines(keepends=True)
    for half, day in ((lines[: len(lines) // 2], "2026-06-02"), (lines[len(lines) // 2 :], "2026-06-01")):
        path.with_name(f"{day}.jsonl").write_bytes(b"".join(half))
    path.unlink()
    code, out = audit(found.path)

    assert code == 0, out


def test_a_relay_at_work_is_never_called_faulty(up, sink, spool):
    """Segments close, are rejected, retried and delivered while one audit after the other looks."""
    for sequence in range(5, 200, 6):
        sink.faults.add(Fault("status", status=422, sequence=sequence))
        sink.faults.add(Fault("status", status=503, sequence=sequence + 2, count=1))
    relay = up("test:320x180@25,9s", "--segment-duration", "0.5")
    relay.wait_for(lambda: spool.journal("closed"), "the first segment")
    answers = []
    while relay.poll() is None:
        answers.append(audit(spool.path))
    assert relay.exit_code() == 0, relay.tail()

    assert [out for code, out in answers if code != 0] == []
    assert len(answers) >= 5
    code, out = audit(spool.path)
    assert code == 0, out
    assert "0 owed" in out

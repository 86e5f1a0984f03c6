"""The judge of the chaos runs finds planted faults."""

import ast
import fcntl
import hashlib
import json
import os
import socket
from pathlib import Path

import pytest

from tests.chaos import oracle, witness
from tests.chaos.layouts import part_of
from tests.chaos.oracle import held_locks, judge, listening_sockets
from tests.chaos.witness import Witness, seen

SESSION = "relay-segments-door-20260601T120000Z-abcdefgh"
NAME = "00000001_20260601T120000.000Z_2000.ts"
CONTENT = b"G" * 188


class Scene:
    """A spool with one segment, closed and owed, that a witness saw being written."""

    def __init__(self, folder):
        self.spool, self.ingest, self.kept = folder / "spool", folder / "ingest", folder / "kept"
        self.session = self.spool / SESSION
        self.stored = self.ingest / "door" / "20260601T120000Z-abcdefgh"
        self.journal = self.spool / "journal" / "door" / "2026-06-01.jsonl"
        for directory in (self.session / "open", self.session / "rejected", self.stored):
            directory.mkdir(parents=True)
        self.journal.parent.mkdir(parents=True)
        self.witness = Witness(self.spool, self.kept)
        self.write(1)
        self.owed = self.session / NAME

    def write(self, sequence, content=CONTENT):
        path = self.session / "open" / f"{sequence:08d}.ts"
        path.write_bytes(content)
        self.witness.look()
        target = self.session / NAME.replace("00000001", f"{sequence:08d}")
        path.rename(target)
        self.witness.look()
        self.say("closed", target.name)
        return target

    def say(self, event, name=NAME):
        line = {"t": "2026-06-01T12:00:00.000Z", "event": event, "session": SESSION, "segment": name}
        with self.journal.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def deliver(self, content=CONTENT, *, journal=True):
        (self.stored / "00000001.ts").write_bytes(content)
        self.owed.unlink()
        if journal:
            self.say("delivered")

    def verdict(self):
        self.witness.close()
        return judge(list(seen(self.kept)), self.spool, self.ingest)


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def test_an_owed_segment_is_accounted_for(scene):
    verdict = scene.verdict()
    assert (verdict.owed, verdict.problems) == (1, [])


def test_a_delivered_segment_is_accounted_for(scene):
    scene.deliver()
    verdict = scene.verdict()
    assert (verdict.delivered, verdict.owed, verdict.problems) == (1, 0, [])


def test_a_segment_whose_answer_was_lost_is_stored_and_owed(scene):
    (scene.stored / "00000001.ts").write_bytes(CONTENT)
    verdict = scene.verdict()
    assert (verdict.delivered, verdict.problems) == (1, [])


def test_a_segment_that_was_deleted_before_the_answer_is_lost(scene):
    scene.owed.unlink()
    assert "lost" in scene.verdict().problems[0]


def test_a_delivery_that_the_journal_alone_knows_of_is_lost(scene):
    scene.owed.unlink()
    scene.say("delivered")
    assert "lost" in (problem := scene.verdict().problems[0])
    assert "the journal says delivered" in problem


def test_a_segment_that_left_without_a_line_is_found(scene):
    scene.deliver(journal=False)
    assert "gone without a line" in scene.verdict().problems[0]


@pytest.mark.parametrize("event", ["dropped", "rejected"])
def test_a_segment_that_a_rule_removed_is_explained_by_its_line(scene, event):
    scene.owed.unlink()
    scene.say(event)
    verdict = scene.verdict()
    assert (verdict.explained, verdict.problems) == (1, [])


def test_one_changed_byte_at_the_ingest_is_found(scene):
    scene.deliver(b"g" + CONTENT[1:])
    assert "altered" in scene.verdict().problems[0]


def test_one_byte_changed_in_the_spool_is_found_though_the_ingest_has_the_same(scene):
    with scene.owed.open("r+b") as file:
        file.write(b"g")
    scene.deliver(b"g" + CONTENT[1:])
    assert "damaged in the spool" in scene.verdict().problems[0]


def test_packets_cut_off_in_the_spool_are_found(scene):
    owed = scene.write(2, CONTENT * 3)
    os.truncate(owed, 188)
    assert "cut to 188 bytes after 564 were written" in scene.verdict().problems[0]


def test_a_piece_of_a_packet_may_be_cut_off(scene):
    owed = scene.write(2, CONTENT + b"G" * 100)
    os.truncate(owed, 188)
    assert scene.verdict().problems == []


def test_a_copy_that_was_changed_is_found(scene):
    scene.owed.unlink()
    scene.owed.write_bytes(b"g" + CONTENT[1:])
    assert "altered in the spool" in scene.verdict().problems[0]


@pytest.mark.parametrize("place", ["stored", "owed", "rejected"])
def test_a_segment_that_nobody_wrote_is_found(scene, place):
    name = NAME.replace("00000001", "00000002")
    where = {
        "stored": scene.stored / "00000002.ts",
        "owed": scene.session / name,
        "rejected": scene.session / "rejected" / name,
    }
    scene.witness.close()
    where[place].write_bytes(CONTENT)
    problems = judge(list(seen(scene.kept)), scene.spool, scene.ingest).problems
    assert "invented" in problems[0]


def test_a_torn_line_is_counted_and_says_nothing(scene):
    with scene.journal.open("a") as file:
        file.write('{"t": "2026-06-01T12:00:00.000Z", "event": "deliv\n{}\n')
    verdict = scene.verdict()
    assert (verdict.journal_lines, verdict.torn_lines, verdict.problems) == (3, 2, [])


def test_what_was_left_lying_about_is_found(scene):
    (scene.spool / ".state").mkdir()
    (scene.spool / ".x.tmp").write_text("")
    os.utime(scene.spool / ".x.tmp", (0, 0))
    scene.witness.close()
    (scene.session / "open" / "00000009.ts").write_text("")
    for name in ("asked-relay-segments-gone-x.registered.json", "novelty", "breaker.json", "probe.lock"):
        (scene.spool / ".state" / name).write_text("")
    problems = judge(list(seen(scene.kept)), scene.spool, scene.ingest).problems
    assert [problem.partition(",")[0] for problem in problems] == [
        "leaked: .x.tmp",
        f"leaked: {SESSION}/open/00000009.ts",
        "leaked: .state/asked-relay-segments-gone-x.registered.json",
        "leaked: .state/novelty",
    ]


def test_what_is_being_written_now_is_no_leak(scene):
    (scene.spool / ".x.tmp").write_text("")
    assert scene.verdict().problems == []


def test_the_witness_keeps_what_the_file_held_in_the_end(scene):
    scene.witness.close()
    (segment,) = seen(scene.kept)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert (segment.session, segment.sequence, segment.sha256, segment.damage) == (SESSION, 1, digest, "")


def test_the_witness_also_keeps_what_it_saw_closed_first(scene):
    (scene.session / NAME.replace("00000001", "00000005")).write_bytes(CONTENT)
    scene.witness.look()
    scene.owed.unlink()
    assert [problem.split()[0] for problem in scene.verdict().problems] == ["lost:"]


def test_a_lock_that_is_held_is_found(tmp_path):
    path = tmp_path / "held"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert held_locks(tmp_path) == [str(path)]
    assert held_locks(tmp_path) == []


def test_a_socket_that_is_held_is_found(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert listening_sockets(tmp_path) == [str(path)]
    assert listening_sockets(tmp_path) == []


@pytest.mark.parametrize("module", [oracle, witness], ids=lambda module: module.__name__)
def test_the_judge_imports_nothing_of_what_it_judges(module):
    own = {"tests.chaos.witness"}
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            assert name in own or name.partition(".")[0] not in {"capture", "tasks", "celeryconfig", "tests"}


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ("/x/python /x/bin/relay-capture up --config c", "agent"),
        ("/x/python /x/bin/relay-capture run", "agent"),
        ("/x/python -P -m tasks.celery_command /w worker -Q live,backlog", "worker"),
        ("/x/python -P -m celery --quiet --workdir /w -A tasks worker -Q live,backlog", "worker"),
        ("/x/python /x/bin/celery -A tasks beat", "beat"),
        ("/x/ffmpeg-linux-x86_64-v9.0.2 -nostdin", "ffmpeg"),
        ("/x/valkey-server --port 0", "broker"),
        ("/x/python -I -S /x/leash.py 9 77 -- /x/ffmpeg", "leash"),
    ],
)
def test_who_is_who_by_its_command_line(argv, part):
    assert part_of(argv.split()) == part


def test_the_broker_is_known_by_the_title_that_it_gives_itself():
    assert part_of(["/x/valkey-server unixsocket:/tmp/y/broker.sock"]) == "broker"

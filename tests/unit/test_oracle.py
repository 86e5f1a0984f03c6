"""The judge of the chaos runs finds planted faults."""

import hashlib
import json

import pytest

from tests.chaos.oracle import Witness, judge

SESSION = "relay-segments-door-20260601T120000Z-abcdefgh"
NAME = "00000001_20260601T120000.000Z_2000.ts"
CONTENT = b"G" * 188


@pytest.fixture
def scene(tmp_path):
    spool, ingest = tmp_path / "spool", tmp_path / "ingest"
    (spool / SESSION / "open").mkdir(parents=True)
    (spool / "journal" / "door").mkdir(parents=True)
    (ingest / "door" / "20260601T120000Z-abcdefgh").mkdir(parents=True)
    (spool / SESSION / "open" / "00000001.ts").write_bytes(CONTENT)
    witness = Witness(spool, tmp_path / "kept")
    witness._kept.mkdir()
    witness.look()
    (spool / SESSION / "open" / "00000001.ts").rename(spool / SESSION / NAME)
    return spool, ingest, witness


def verdict(scene):
    spool, ingest, witness = scene
    return judge(list(witness.seen()), spool, ingest)


def deliver(scene, content=CONTENT):
    spool, ingest, _ = scene
    (ingest / "door" / "20260601T120000Z-abcdefgh" / "00000001.ts").write_bytes(content)
    (spool / SESSION / NAME).unlink()


def test_an_owed_segment_is_accounted_for(scene):
    assert (verdict(scene).owed, verdict(scene).problems) == (1, [])


def test_a_delivered_segment_is_accounted_for(scene):
    deliver(scene)
    assert (verdict(scene).delivered, verdict(scene).problems) == (1, [])


def test_a_segment_that_was_deleted_before_the_answer_is_lost(scene):
    (scene[0] / SESSION / NAME).unlink()
    assert "lost" in verdict(scene).problems[0]


def test_a_dropped_segment_is_explained_by_its_line(scene):
    (scene[0] / SESSION / NAME).unlink()
    line = {"event": "dropped", "session": SESSION, "segment": NAME}
    (scene[0] / "journal" / "door" / "2026-06-01.jsonl").write_text(json.dumps(line) + "\n")
    assert (verdict(scene).explained, verdict(scene).problems) == (1, [])


def test_one_changed_byte_at_the_ingest_is_found(scene):
    deliver(scene, b"g" + CONTENT[1:])
    assert "altered" in verdict(scene).problems[0]


def test_a_segment_that_nobody_wrote_is_found(scene):
    deliver(scene)
    (scene[1] / "door" / "20260601T120000Z-abcdefgh" / "00000002.ts").write_bytes(CONTENT)
    assert "invented" in verdict(scene).problems[0]


def test_what_was_left_lying_about_is_found(scene):
    (scene[0] / ".x.tmp").write_text("")
    (scene[0] / SESSION / "open" / "00000009.ts").write_text("")
    assert len([problem for problem in verdict(scene).problems if "leaked" in problem]) == 2


def test_the_witness_keeps_what_the_file_held_in_the_end(scene):
    (seen,) = scene[2].seen()
    assert (seen.session, seen.sequence, seen.sha256) == (SESSION, 1, hashlib.sha256(CONTENT).hexdigest())

"""The judge of the chaos runs, on spools and ingests that are written by hand."""

import hashlib
import json
from pathlib import Path

import pytest

from tests.chaos.oracle import judge
from tests.chaos.witness import Seen

SESSION = "relay-segments-cam-20261124T134525Z-a2nbmoac"
CONTENT = b"G" * 188
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def store(ingest: Path, sequence: int) -> None:
    folder = ingest / "cam" / "20261124T134525Z-a2nbmoac"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{sequence:08d}.ts").write_bytes(CONTENT)


def tell(spool: Path, event: str, sequence: int, **fields: str) -> None:
    folder = spool / "journal" / "cam"
    folder.mkdir(parents=True, exist_ok=True)
    segment = f"{sequence:08d}_20261124T134528.000Z_1000.ts"
    with (folder / "2026-11-24.jsonl").open("a") as file:
        file.write(json.dumps({"event": event, "session": SESSION, "segment": segment, **fields}) + "\n")


def seen(sequence: int) -> Seen:
    return Seen(SESSION, sequence, len(CONTENT), SHA256)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([("closed", ""), ("delivered", SHA256)], None),
        ([("recovered", ""), ("delivered", SHA256)], None),
        ([("delivered", SHA256)], "invented"),  # nobody closed it
        ([("closed", "")], "invented"),  # nobody says that it was delivered
        ([("closed", ""), ("delivered", "0" * 64)], "invented"),  # it was another one
        ([], "invented"),
    ],
)
def test_what_the_witness_missed_counts_only_with_the_journal_and_its_digest(tmp_path, lines, problem):
    spool, ingest = tmp_path / "spool", tmp_path / "ingest"
    store(ingest, 3)
    for event, sha256 in lines:
        tell(spool, event, 3, **({"sha256": sha256} if sha256 else {}))
    verdict = judge([], spool, ingest)
    assert verdict.unseen == (problem is None)
    assert [found.split(":")[0] for found in verdict.problems] == ([problem] if problem else [])


def test_a_witness_that_misses_more_than_a_few_proves_nothing(tmp_path):
    spool, ingest = tmp_path / "spool", tmp_path / "ingest"
    for sequence in range(1, 7):
        store(ingest, sequence)
        tell(spool, "closed", sequence)
        tell(spool, "delivered", sequence, sha256=SHA256)
    assert judge([seen(number) for number in range(1, 5)], spool, ingest).problems == []
    assert "missed 3" in "".join(judge([seen(number) for number in range(1, 4)], spool, ingest).problems)


def test_what_was_seen_and_is_nowhere_is_lost(tmp_path):
    spool, ingest = tmp_path / "spool", tmp_path / "ingest"
    tell(spool, "closed", 1)
    assert [found.split(":")[0] for found in judge([seen(1)], spool, ingest).problems] == ["lost"]

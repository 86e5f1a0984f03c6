"""A real worker and whatever anybody can write to its broker: refused, told once, and no file touched."""

import os
import random
import re
from pathlib import Path

import pytest
import redis

from capture.handoff import LIVE, REGISTER_CAMERA, UPLOAD_BATCH, UPLOAD_SEGMENT
from capture.segment import SessionName
from capture.spool import STATE
from tests.acceptance.hostile_messages import HOSTILE, SECRET, Hostile

TIMES = 4
MOST_LINES = 40  # for hundreds of messages of about twenty kinds
MOST_BYTES = 12_000
SEGMENT = "00000001_20260601T120000.000Z_2000.ts"


def snapshot(*roots: Path) -> dict[str, tuple[object, ...]]:
    """Everything below some directories: kind, size, time of change, links and content."""
    found = {}
    for root in roots:
        for path in [root, *sorted(root.rglob("*"))]:
            if path.name == STATE or any(path.match(f"{STATE}/{own}") for own in ("*.lock", "*.pulse")):
                continue  # the worker's own
            status = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
            found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_nlink, content)
    return found


def plant(spool_path: Path, canary: Path) -> list[list[str]]:
    """Put links, pipes and directories where valid names point; return the names of each."""
    (canary / "session").mkdir(parents=True)
    for name in (SEGMENT, "session.json", "secret"):
        (canary / "session" / name).write_text('{"name": "canary"}')
    linked, real = (f"relay-segments-gate-20260601T12000{n}Z-aaaaaaaa" for n in (0, 1))
    (spool_path / linked).symlink_to(canary / "session")
    directory = spool_path / real
    directory.mkdir()
    names = [SEGMENT.replace("00000001", f"0000000{n}") for n in range(1, 6)]
    (directory / names[0]).symlink_to(canary / "session" / "secret")
    os.mkfifo(directory / names[1])
    (directory / names[2]).mkdir()
    (directory / names[3]).symlink_to(directory / "nowhere")
    (directory / names[4]).symlink_to("/dev/zero")
    return [[linked, SEGMENT], *([real, name] for name in names)]


def planted_messages(names):
    for pair in names:
        yield Hostile(UPLOAD_SEGMENT, pair)
        yield Hostile(UPLOAD_BATCH, [[pair]])
    yield Hostile(REGISTER_CAMERA, [names[0][0]])
    yield Hostile("tasks.register.end_session", [names[0][0]])


def test_no_message_harms_a_worker_or_a_file(worker, broker, sink, session, *, send, tmp_path):
    names = plant(session.spool.root, tmp_path / "canary")
    assert all(SessionName.parse(name) for name, _ in names)
    process = worker("-c", "2")
    process.wait_ready()
    processes = {process.process.pid, *(child.pid for child in process.children())}
    before = snapshot(session.spool.root, tmp_path / "canary")
    said = len(process.log)
    messages = [*HOSTILE.values(), *planted_messages(names)] * TIMES
    random.Random(7).shuffle(messages)
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        client.lpush(LIVE, *(message.envelope() for message in messages))
        process.wait_for(lambda: not client.llen(LIVE) and not client.hlen("unacked"), "all are refused")
        assert client.keys("*planted*") == []

    log = process.log[said:]
    assert snapshot(session.spool.root, tmp_path / "canary") == before
    assert not sink.counters.requests, "nobody asked the cloud for anything"
    assert "Traceback" not in log
    assert SECRET not in log
    refused = [line for line in log.splitlines() if "message_refused" in line]
    assert 5 <= len(refused) <= MOST_LINES, log
    assert len(log) < MOST_BYTES, log
    assert len(re.findall("[^\n]*\n", log)) - len(refused) <= 2, log
    assert process.process.poll() is None
    assert processes == {process.process.pid, *(child.pid for child in process.children())}

    send(1)
    process.wait_for(lambda: [r.sequence for r in sink.receipts()] == [1], "a good segment")


@pytest.mark.parametrize("count", [3000])
def test_thousands_of_a_kind_are_one_line(worker, broker, sink, send, *, count):
    process = worker("-c", "1")
    process.wait_ready()
    said = len(process.log)
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        client.lpush(LIVE, *(Hostile("tasks.upload.rm_rf").envelope() for _ in range(count)))
        process.wait_for(lambda: not client.llen(LIVE) and not client.hlen("unacked"), "all are refused")
    assert process.log[said:].count("\n") == 1, process.log[said:]
    send(1)
    process.wait_for(lambda: [r.sequence for r in sink.receipts()] == [1], "a good segment")

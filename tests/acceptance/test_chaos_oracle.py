"""The judge of the chaos runs catches faults that are planted into the running product.

Each plant is a `sitecustomize` that every Python of an installed `up` loads. It knows what the contract says,
names on disk and requests on the wire, and no module of the relay.
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path

import imageio_ffmpeg
import pytest

from capture.sink import Fault, Sink
from tests.chaos.layouts import BIN, TOKEN, Up
from tests.chaos.oracle import decoding_problems, judge, sample
from tests.chaos.run import witnessed
from tests.chaos.witness import notes, seen

DEADLINE = 30.0
SEGMENTS = 7  # of one camera: every third one meets the plant
DELIVERED = 4  # so that one that met it is among them, also where the machine has much to do

WIRE = """
import base64, dataclasses, glob, hashlib, os, sys

if "worker" in sys.orig_argv:
    from capture.http1 import Client, Reply

    send = Client.exchange

    def planted(self, request):
        key = request.headers.get("Idempotency-Key", "/1")
        session, _, number = key.partition("/")
        if request.method == "POST" and int(number) % EVERY == 0:
            return fault(self, request, session, int(number))
        return send(self, request)

    Client.exchange = planted
"""

DELETES_BEFORE_THE_ANSWER = (
    WIRE
    + """
EVERY = 1  # a cloud that is down is not asked about many

def fault(client, request, session, number):
    camera = request.place.target.rpartition("/")[2]
    for path in glob.glob(f"{os.environ['PLANT_SPOOL']}/relay-segments-{camera}-{session}/{number:08d}_*.ts"):
        os.unlink(path)
    return send(client, request)
"""
)

CHANGES_A_BYTE = (
    WIRE
    + """
EVERY = 3

def fault(client, request, session, number):
    body = bytearray(b"".join(request.body()))
    body[1000] ^= 1
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    headers = {**request.headers, "Content-Digest": f"sha-256=:{digest}:"}
    changed = dataclasses.replace(request, headers=headers, body=lambda: iter([bytes(body)]))
    return send(client, changed)
"""
)

NEVER_SENDS = (
    WIRE
    + """
EVERY = 3

def fault(client, request, session, number):
    return Reply(204, {}, b"")
"""
)

LOSES_A_RENAME = """
import os

rename = os.rename

def planted(source, target, **options):
    folder, name = os.path.split(os.fspath(source))
    if os.path.basename(folder) == "open" and int(name.partition(".")[0]) % 3 == 0:
        os.unlink(source)
    else:
        rename(source, target, **options)

os.rename = planted
"""


@pytest.fixture
def run():
    """Runs `up` with a plant until enough was written; returns the judge's problems and audit's exit code."""
    with tempfile.TemporaryDirectory(prefix="acc-") as short:  # a socket's path has to be
        folder = Path(short)

        def go(plant, *, fault=None):
            site = folder / "site"
            site.mkdir()
            (site / "sitecustomize.py").write_text(plant)
            with Sink(folder / "ingest", token=TOKEN) as sink, witnessed(folder) as kept:
                if fault is not None:
                    sink.faults.add(Fault.parse(fault))
                extra = {
                    "PYTHONPATH": str(site),
                    "PLANT_SPOOL": str(folder / "spool"),
                    "RELAY_DRAIN_TIMEOUT": "2",
                }
                layout = Up(folder, sink.url, 1, extra)
                try:
                    _until_written(layout, kept, delivered=0 if fault == "503" else DELIVERED)
                    layout.stop()
                finally:
                    layout.kill()
            verdict = judge(list(seen(kept)), layout.spool, folder / "ingest")
            assert verdict.segments >= SEGMENTS
            audit = subprocess.run([BIN / "relay-capture", "audit", "--spool", layout.spool], check=False)
            return verdict.problems, audit.returncode

        go.folder = folder
        yield go


def _until_written(layout, kept, *, delivered):
    deadline = time.monotonic() + DEADLINE
    while sum(note["event"] == "closed" for note in notes(kept)) < SEGMENTS or _delivered(layout) < delivered:
        assert time.monotonic() < deadline, layout.log.read_text("utf-8", "replace")[-4000:]
        layout.ensure()
        time.sleep(0.05)


def _delivered(layout):
    # A line that is being written may be cut.
    journals = [path.read_text("utf-8", "replace") for path in layout.spool.rglob("*.jsonl")]
    return sum(text.count('"delivered"') for text in journals)


def words(problems):
    return {problem.partition(":")[0] for problem in problems}


def test_the_same_run_without_a_plant_passes(run):
    assert run("", fault="503+2") == ([], 0)
    played = sample(run.folder / "spool", run.folder / "ingest")
    assert len(played) >= SEGMENTS - 1
    assert list(decoding_problems(played, imageio_ffmpeg.get_ffmpeg_exe())) == []


def test_a_worker_that_deletes_before_the_answer_is_caught_by_the_judge_and_by_audit(run):
    problems, audit = run(DELETES_BEFORE_THE_ANSWER, fault="503")
    assert (words(problems), audit) == ({"lost"}, 1)


def test_a_lost_rename_is_caught_by_the_judge_and_by_audit(run):
    problems, audit = run(LOSES_A_RENAME)
    assert (words(problems), audit) == ({"lost"}, 1)


def test_a_byte_changed_on_the_way_is_caught_by_the_judge_alone(run):
    problems, audit = run(CHANGES_A_BYTE)
    assert (words(problems), audit) == ({"altered"}, 0)


def test_a_delivery_that_never_was_is_caught_by_the_judge_alone(run):
    problems, audit = run(NEVER_SENDS)
    assert (words(problems), audit) == ({"lost"}, 0)
    assert all("the journal says delivered" in problem for problem in problems)


def test_a_segment_that_lost_a_packet_does_not_decode_cleanly(run):
    run("")
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    path = sample(run.folder / "spool", run.folder / "ingest")[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: 188 * 20] + whole[188 * 21 :])
    assert len(list(decoding_problems([path], ffmpeg))) == 1
    os.truncate(path, 0)
    assert len(list(decoding_problems([path], ffmpeg))) == 1

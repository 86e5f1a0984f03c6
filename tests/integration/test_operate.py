"""status, audit and requeue as typed: real spool, real Valkey, the sink as ingest."""

import json
import subprocess
import sys

import pytest
import redis

from capture.broker import EmbeddedBroker, RuntimeDir
from capture.broker_note import note_broker
from capture.claim import claim
from capture.gate import Gate
from capture.handoff import LIVE, RECOVER
from capture.outcome import Kind, Outcome
from capture.settings import load_settings
from capture.sink import Sink
from capture.spool import MARKER, REFUSED_FILE
from tests.conftest import add_segment, owed_path, start_session

TOKEN = "operate-token-77"
NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def broker():
    with RuntimeDir() as runtime:
        server = EmbeddedBroker(runtime.path)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def sink(tmp_path):
    with Sink(tmp_path / "sink", token=TOKEN) as server:
        yield server


def waiting(server):
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        return [json.loads(text)["headers"]["task"] for text in client.lrange(LIVE, 0, -1)]


def reject(session, number):
    segment = add_segment(session, number).segment
    with claim(session.spool, session.name, segment) as taken:
        taken.rejected(status=422, reason="HTTP 422: no \x1b[31mthanks")
    return segment


# --- misuse, the same for all ----------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "audit", "requeue"])
@pytest.mark.parametrize("state", ["missing", "empty", "newer", "damaged", "a file"])
def test_what_is_no_spool_is_named_and_left_alone(run, tmp_path, command, state):
    root = tmp_path / "spool"
    if state == "a file":
        root.write_text("")
    elif state != "missing":
        root.mkdir()
    if state in {"newer", "damaged"}:
        (root / MARKER).write_text('{"format": 2, "id": "x"}' if state == "newer" else "{")
    before = sorted(tmp_path.rglob("*"))

    code, out, err = run(command, "--spool", root)

    assert (code, out) == (78, "")
    assert str(root) in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["audit", "requeue"])
def test_a_camera_that_is_not_there_is_a_usage_error_that_names_those_that_are(run, spool, command):
    with start_session(spool, "gate"):
        code, _, err = run(command, "--spool", spool.root, "--camera", "door")

    assert code == 2
    assert "gate" in err


# --- audit -----------------------------------------------------------------------------------------


def test_audit_of_a_sound_spool_ends_with_0(run, spool):
    with start_session(spool) as session:
        add_segment(session, 1)
        reject(session, 2)
        code, out, _ = run("audit", "--spool", spool.root)

    assert code == 0
    assert "door: 2 segments in 1 session = 0 delivered + 1 owed + 1 rejected + 0 dropped" in out
    assert "everything is accounted for" in out


def test_audit_of_a_spool_with_a_deleted_debt_ends_with_1(run, spool):
    with start_session(spool) as session:
        owed_path(session, add_segment(session, 1).segment).unlink()
        code, out, _ = run("audit", "--spool", spool.root)
        json_code, as_json, _ = run("audit", "--json", "--camera", "door", RELAY_SPOOL=str(spool.root))

    assert (code, json_code) == (1, 1)
    assert "FAULT lost" in out
    found = json.loads(as_json)
    assert (found["ok"], found["cameras"][0]["faults"]) == (False, {"lost": 1})


def test_audit_of_an_unused_spool_says_so(run, spool):
    assert run("audit", "--spool", spool.root)[:2] == (
        0,
        f"{spool.root}: nothing was ever captured into this spool\n",
    )


# --- requeue ---------------------------------------------------------------------------------------


def test_requeue_rejected_makes_owed_and_asks_for_recovery(run, spool, broker):
    with start_session(spool) as session, start_session(spool, "gate") as other:
        segment, elsewhere = reject(session, 1), reject(other, 1)
        code, out, _ = run(
            *("requeue", "--rejected", "--camera", "door", "--spool", spool.root), RELAY_BROKER=broker.url
        )

    assert code == 0
    assert "made 1 rejected segment owed again" in out
    assert "asked the workers to send at once" in out
    assert waiting(broker) == [RECOVER]
    assert spool.segments(session.name) == [segment]
    assert spool.segments(other.name, "rejected") == [elsewhere]


@pytest.mark.parametrize("known", [True, False])
def test_requeue_lets_a_refused_token_try_again(run, spool, broker, known):
    gate = Gate(spool, load_settings(environ={}).ingest)
    gate.report(Outcome(Kind.FATAL, 401, "HTTP 401"), TOKEN)
    note_broker(spool, broker.url)
    with start_session(spool) as session:
        add_segment(session, 1)
        (session.path / REFUSED_FILE).write_text("{}")
        token = {"RELAY_TOKEN": TOKEN} if known else {}
        code, out, _ = run("requeue", "--spool", spool.root, **token)

    assert code == 0
    assert "let 1 refused token try again; cleared 1 note in sessions" in out
    assert "owed: 1 segment" in out
    assert gate.refusal(TOKEN) is None
    assert not (session.path / REFUSED_FILE).exists()
    assert waiting(broker) == [RECOVER]


def test_requeue_rejected_says_when_the_token_still_stands_in_the_way(run, spool):
    Gate(spool, load_settings(environ={}).ingest).report(Outcome(Kind.FATAL, 401, "HTTP 401"), TOKEN)

    _, out, _ = run("requeue", "--rejected", "--spool", spool.root, RELAY_TOKEN=TOKEN)

    assert "the token is refused" in out


def test_requeue_without_a_broker_says_that_recover_does_it(run, spool):
    code, out, _ = run("requeue", "--spool", spool.root, "--broker", NOWHERE)

    assert code == 0
    assert "the broker cannot be reached" in out
    assert "recover sends them within seconds" in out


# --- status ----------------------------------------------------------------------------------------


def test_status_finds_the_broker_of_up_and_counts_what_waits(run, spool, broker):
    note_broker(spool, broker.url)
    run("requeue", "--spool", spool.root)
    with start_session(spool) as session:
        add_segment(session, 1)
        code, out, _ = run("status", "--json", "--spool", spool.root)
        _, shown, _ = run("status", "--spool", spool.root)

    found = json.loads(out)
    assert code == 0
    assert found["broker"] == {
        "url": broker.url,
        "reachable": True,
        "queues": {"live": 1, "backlog": 0, "unacked": 0},
        "reason": None,
    }
    assert [camera["owed"] for camera in found["cameras"]] == [1]
    assert f"broker  {broker.url} answers; messages: live 1, backlog 0, unacked 0\n" in shown
    assert "recording" in shown


def test_status_without_a_broker_still_tells_the_rest(run, spool):
    code, out, _ = run("status", "--spool", spool.root)

    assert code == 0
    assert "no camera yet" in out
    assert "NOT reachable: no broker is set" in out


def test_status_watch_goes_on_until_interrupted(spool):
    child = subprocess.Popen(
        [sys.executable, "-m", "capture", "status", "--json", "--watch", "0.2", "--spool", str(spool.root)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        lines = [child.stdout.readline() for _ in range(2)]
        child.send_signal(2)
        assert child.wait(10) == 0
    assert all(json.loads(text)["format"] == 1 for text in lines)

"""A token of a camera's own: used for all its requests, and when refused it holds back that camera alone."""

import pytest

import tasks.worker
from capture.agent import Agent
from capture.gate import Gate
from capture.handoff import BACKLOG, REGISTER_CAMERA
from capture.outcome import Kind, Outcome
from capture.requeue import forgive, held_back
from capture.settings import load_settings
from capture.sink import Sink
from capture.spool import REFUSED_FILE
from capture.status import read_status
from tasks.celery import RefusedByCloudError
from tasks.recover import recover
from tasks.register import end_session, register_camera
from tasks.upload import upload_batch, upload_segment
from tasks.worker import this_worker
from tests.integration.conftest import (
    TOKEN,
    close_segments,
    messages,
    new_session,
    past_session,
    spool_time,
    uploads,
)

OWN = "the-gates-own-token"


@pytest.fixture
def own_file(tmp_path):
    path = tmp_path / "gate.token"
    path.write_text(OWN + "\n")
    return path


@pytest.fixture
def work(spool, in_worker, own_file, monkeypatch):
    """Give the worker of this process a camera `gate` with a token of its own, against an ingest of ours."""

    def run(sink, **ingest):
        environ = {
            "RELAY_CLOUD": sink.url,
            "RELAY_TOKEN": TOKEN,
            "RELAY_SPOOL": str(spool.root),
            "RELAY_BROKER": tasks.worker.settings.broker.url.get_secret_value(),
            **{f"RELAY_INGEST__{key}".upper(): value for key, value in ingest.items()},
        }
        config = own_file.with_name("relay.toml")
        config.write_text('[cameras.gate]\nsource = "test:"\ntoken_file = "gate.token"\n')
        as_agent = load_settings(environ=environ, config=config)
        settings = load_settings(environ=as_agent.worker_environment(), for_worker=True)
        monkeypatch.setattr(tasks.worker, "settings", settings)
        monkeypatch.setattr(tasks.worker, "_this_process", tasks.worker._PerProcess())
        return settings

    return run


def pairs(spool, *names):
    return [[str(name), str(segment)] for name in names for segment in spool.segments(name)]


@pytest.fixture
def knows_own(tmp_path):
    with Sink(tmp_path / "own", token=OWN) as sink:
        yield sink


def test_segments_registration_and_end_go_with_the_cameras_own_token(work, spool, knows_own):
    work(knows_own)
    name = past_session(spool, "gate", owes=1, registered=False)
    register_camera(str(name))
    assert upload_segment.run(*pairs(spool, name)[0]).startswith("delivered")
    end_session(str(name))
    assert list(knows_own.cameras) == ["gate"]
    assert len(knows_own.receipts()) == 1
    assert knows_own.ended == ["gate"]


def test_in_one_batch_a_refused_camera_stops_and_the_others_are_sent(work, spool, own_file, tmp_path):
    events = []
    with Sink(tmp_path / "seen", token=TOKEN, on_event=events.append) as sink:  # knows the general one alone
        work(sink)
        # They go on: at the end of a session a message for `live` goes out, and a batch makes way for that.
        with new_session(spool, "gate") as gate, new_session(spool, "yard") as yard:
            close_segments(gate, 2)
            close_segments(yard, 2)
            with pytest.raises(RefusedByCloudError, match=str(own_file)):
                upload_batch(pairs(spool, gate.name, yard.name))
    assert spool.owed_count({"yard"}) == 0
    assert spool.owed_count({"gate"}) == 2
    assert (spool.session_path(gate.name) / REFUSED_FILE).exists()
    assert [event.status for event in events if event.camera == "gate"] == [401]


def test_recover_leaves_out_the_camera_that_is_refused_until_its_file_has_another_token(
    work, spool, sink, broker, own_file
):
    work(sink)
    gate, _ = past_session(spool, "gate", owes=2), past_session(spool, "yard", owes=2)
    with pytest.raises(RefusedByCloudError):
        upload_segment.run(*pairs(spool, gate)[0])
    assert upload_segment.run(*pairs(spool, gate)[1]) == "owed: the token is refused"
    recover()
    assert uploads(broker) == [("yard", 1), ("yard", 2)]
    assert not [args for task, args in messages(broker, "live") if task == REGISTER_CAMERA]

    own_file.write_text(TOKEN)
    broker.flushall()
    recover()
    assert uploads(broker) == [("gate", 1), ("yard", 1), ("gate", 2), ("yard", 2)]
    assert upload_segment.run(*pairs(spool, gate)[0]).startswith("delivered")
    assert not (spool.session_path(gate) / REFUSED_FILE).exists()


def test_on_hold_the_refused_camera_is_probed_in_turn_while_the_others_go_on(work, spool, sink, broker):
    work(sink, on_refused="hold", hold_probe_every="30")
    gate = past_session(spool, "gate", owes=3)
    with pytest.raises(RefusedByCloudError):
        upload_segment.run(*pairs(spool, gate)[0])
    past_session(spool, "yard", owes=2)
    recover()
    assert uploads(broker) == [("yard", 1), ("yard", 2)]  # not due yet

    refused = next(spool.state.glob("refused-*.json"))
    refused.write_text(f'{{"status": 401, "at": {spool_time() - 31}}}')
    this_worker().memory.clear()
    broker.delete(BACKLOG)
    recover()
    recover()
    assert sorted(uploads(broker)) == [("gate", 1), ("yard", 1), ("yard", 2)]


def test_with_every_token_refused_nothing_is_sent(work, spool, sink, broker):
    work(sink)
    gate = past_session(spool, "gate", owes=1)
    with pytest.raises(RefusedByCloudError):
        upload_segment.run(*pairs(spool, gate)[0])
    worker = this_worker()
    (spool.state / f"refused-{worker.gate.token_id(TOKEN)}.json").write_text("{}")
    assert recover() == "the token is refused: nothing is sent"


def test_a_token_file_that_is_gone_holds_back_its_camera_alone_and_says_so(
    work, spool, sink, broker, own_file, *, capsys
):
    work(sink)
    own_file.unlink()
    gate, yard = past_session(spool, "gate", owes=1), past_session(spool, "yard", owes=1)
    recover()
    assert uploads(broker) == [("yard", 1)]
    assert capsys.readouterr().out.count("cannot read the token file") == 1
    assert upload_batch(pairs(spool, gate, yard)) == "sent 1 of 2"
    assert "cannot read" not in capsys.readouterr().out  # told once, not at every attempt
    assert spool.owed_count({"gate"}) == 1


def test_requeue_and_status_know_the_own_tokens(work, spool, sink, tmp_path):
    settings = work(sink)
    gate = past_session(spool, "gate", owes=1)
    with pytest.raises(RefusedByCloudError):
        upload_segment.run(*pairs(spool, gate)[0])
    found = read_status(spool, settings).ingest
    assert found.state == "refused"
    assert "gate.token" in found.advice
    assert held_back(spool, settings)
    assert held_back(spool, settings, "gate")
    assert not held_back(spool, settings, "yard")
    assert forgive(spool, settings, "yard") == (0, 0)
    assert forgive(spool, settings) == (1, 1)
    assert Gate(spool, settings.ingest).refusal(OWN) is None


# --- the agent -------------------------------------------------------------------------------------


@pytest.fixture
def agent(work, spool, sink, own_file, server):
    """An agent of two cameras that was never started; one has a token of its own."""
    text = '[cameras.gate]\nsource = "test:"\ntoken_file = "gate.token"\n[cameras.yard]\nsource = "test:"\n'
    config = own_file.with_name("relay.toml")
    config.write_text(text)
    environ = {"RELAY_CLOUD": sink.url, "RELAY_TOKEN": TOKEN, "RELAY_BROKER": server.url}
    return Agent(load_settings(environ=environ, config=config), spool, "ffmpeg")


def refuse(spool, agent, *tokens):
    gate = Gate(spool, agent._settings.ingest)
    for token in tokens:
        camera = "gate" if token == OWN else "yard"
        gate.report(Outcome(Kind.FATAL, 401, "HTTP 401"), token, camera)


def test_the_agent_goes_on_while_one_cameras_own_token_is_refused_and_tells_it_once(spool, agent, capsys):
    refuse(spool, agent, OWN)
    assert [agent.refusal() for _ in range(3)] == [None] * 3
    said = capsys.readouterr().out
    assert said.count("camera_refused") == 1
    assert "gate.token" in said
    assert OWN not in said


def test_the_agent_ends_when_every_camera_is_refused(spool, agent):
    refuse(spool, agent, OWN, TOKEN)
    assert "401" in agent.refusal()


def test_the_agent_ends_when_the_only_camera_that_still_owes_is_refused(spool, agent):
    past_session(spool, "gate", owes=1)
    refuse(spool, agent, OWN)
    assert "gate.token" in agent.refusal()
    past_session(spool, "yard", owes=1)
    assert agent.refusal() is None

"""The metrics of a real worker: what it counts over the lives and deaths of its children."""

import re
import signal
import socket
import urllib.error
import urllib.request
from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families

from capture.sink import Fault
from tests.acceptance.conftest import TOKEN
from tests.promtool import check_metrics

SECRETS = (TOKEN, "redis", "sock", "http:", "/tmp")


def get(url, **headers):
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - our own worker
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return answer.read()


def status_of(url, **headers):
    try:
        get(url, **headers)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def values(body, name, **labels):
    """Add up the samples of this name that have these labels."""
    found = [
        sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert found, f"there is no {name} {labels}"
    return sum(found)


@pytest.fixture
def settings(settings):
    web = settings.web.model_copy(update={"worker_listen": "127.0.0.1:0"})
    return settings.model_copy(update={"web": web})


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The directory for temporary files of workers that start from now on."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


@pytest.fixture
def measuring(temporary, worker):
    """Starts a worker that measures; gives it and the address of its metrics."""

    def run(*options):
        started = worker(*options)
        started.wait_ready()
        found = started.wait_for(
            lambda: re.search(r"http://127\.0\.0\.1:[0-9]+/metrics", started.log), "it serves metrics"
        )
        return started, found[0]

    return run


def files_in(temporary):
    return [path.name for path in temporary.glob("relay-capture-*/*")]


@pytest.mark.timeout(180)
def test_counts_survive_the_renewal_and_the_killing_of_children_and_their_files_do_not(
    measuring, send, temporary
):
    worker, url = measuring("-c", "2", "--max-tasks-per-child", "2")
    send(*range(1, 9))
    confirmed = "relay_capture_close_to_confirmed_seconds_count"
    worker.wait_for(lambda: values(get(url), confirmed) == 8, "all are delivered and counted")
    for child in worker.children():
        child.send_signal(signal.SIGKILL)
    send(*range(9, 15))
    worker.wait_for(lambda: values(get(url), confirmed) == 14, "all are delivered after the kill")

    body = get(url)
    check_metrics(body)
    assert values(body, "relay_capture_upload_attempts_total", outcome="ok") == 14
    assert values(body, "relay_capture_delivered_bytes_total") == 14 * 188_000
    assert values(body, "relay_capture_delivered_segments_total", camera="gate") == 14
    assert values(body, "relay_capture_upload_attempt_duration_seconds_count", outcome="ok") == 14
    assert values(body, "relay_capture_worker_processes") == 2
    # Eight children or more have come and gone; two live, and the main process counts, too, if it has to.
    assert len(list(temporary.glob("relay-capture-*"))) == 1
    assert len(files_in(temporary)) <= 3
    listening = [line for child in worker.children() for line in child.net_connections() if not line.raddr]
    assert listening == [], "a child has the server's socket"
    assert not [secret for secret in SECRETS if secret in body.decode()]

    worker.process.send_signal(signal.SIGTERM)
    worker.process.wait(60)
    assert list(temporary.glob("relay-capture-*")) == []


@pytest.mark.timeout(180)
def test_failures_are_told_apart_and_a_retry_is_no_failure_of_its_own(measuring, send, sink):
    worker, url = measuring("-c", "1")
    sink.faults.add(Fault("status", status=503, count=1))
    send(1)
    worker.wait_for(lambda: len(sink.receipts()) == 1, "delivered at the second attempt")
    sink.faults.add(Fault("status", status=422, count=1))
    send(2)
    rejected = "relay_capture_rejected_segments_total"
    worker.wait_for(lambda: b"relay_capture_rejected_segments_total{" in get(url), "known")
    worker.wait_for(lambda: values(get(url), rejected) == 1, "rejected")
    sink.faults.add(Fault("status", status=401, count=1))
    send(3)
    worker.wait_for(lambda: values(get(url), "relay_capture_token_refusals_total") >= 1, "token refused")
    send(4)
    held = "relay_capture_upload_held_back_total"
    worker.wait_for(lambda: values(get(url), held, reason="token_refused") >= 1, "held back")

    attempts = Counter()
    for outcome in ("ok", "transient", "rejected", "fatal", "deadline"):
        name = "relay_capture_upload_attempts_total"
        attempts[outcome] = int(values(get(url), name, outcome=outcome))
    assert attempts == {"ok": 1, "transient": 1, "rejected": 1, "fatal": 1, "deadline": 0}
    assert values(get(url), "relay_capture_upload_retries_total") == 1


def test_the_endpoint_answers_its_path_alone_and_strangers_not_at_all(measuring, temporary):
    worker, url = measuring("-c", "1")
    base = url.removesuffix("/metrics")
    assert status_of(url + "?name[]=x") == 200
    assert status_of(base + "/") == 404
    assert status_of(url, Host="evil.example.com") == 421
    assert status_of(url, Host="localhost:9") == 200
    directory = next(temporary.glob("relay-capture-*"))
    assert directory.stat().st_mode & 0o777 == 0o700
    assert "Traceback" not in worker.log


@pytest.mark.timeout(180)
def test_up_serves_the_metrics_of_its_agent_and_of_its_worker(temporary, up, sink):
    relay = up("test:320x180@25", "--web", "0", env={"RELAY_WEB__WORKER_LISTEN": "0"})
    page = relay.wait_for(lambda: re.search(r"web_listening\s.*?url=(\S+)", relay.log), "the agent serves")
    worker = relay.wait_for(
        lambda: re.search(r"metrics_served\s.*?url=(\S+)", relay.log), "the worker serves"
    )
    agent_url, worker_url = f"{page[1].rstrip('/')}/metrics", worker[1]

    def both_know():
        agent, worker = get(agent_url), get(worker_url)
        whole = b"\nrelay_capture_broker_up 1.0" in agent and b"\nrelay_capture_owed_segments{" in agent
        return whole and b'delivered_segments_total{camera="gate"}' in worker and (agent, worker)

    agent, worker = relay.wait_for(both_know, "both know the camera")
    for body in (agent, worker):
        check_metrics(body)
        assert not [secret for secret in SECRETS if secret in body.decode()]
    assert values(agent, "relay_capture_captured_segments_total", camera="gate") >= 1
    assert values(agent, "relay_capture_camera_state", camera="gate", state="running") == 1
    assert values(agent, "relay_capture_queue_messages", queue="live") >= 0
    assert values(worker, "relay_capture_delivered_segments_total", camera="gate") >= 1
    relay.signal(signal.SIGTERM)
    assert relay.exit_code() == 0, relay.tail()
    assert "metrics_not_served" not in relay.log


SET_LISTEN = "import os; os.environ['RELAY_WEB__WORKER_LISTEN'] = {!r}\n"
DEL_LISTEN = "import os; del os.environ['RELAY_WEB__WORKER_LISTEN']\n"


def test_a_port_in_use_stops_no_uploads(temporary, worker, send, sink):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        started = worker("-c", "1", changed=SET_LISTEN.format(f"127.0.0.1:{port}"))
        started.wait_ready()
        send(1)
        started.wait_for(lambda: sink.receipts(), "delivered")
        assert started.log.count("metrics_not_served") == 1


def test_off_by_default_nothing_listens_and_nothing_is_made(temporary, worker, send, sink):
    started = worker("-c", "1", changed=DEL_LISTEN)
    started.wait_ready()
    send(1)
    started.wait_for(lambda: sink.receipts(), "delivered")
    assert list(temporary.glob("relay-capture-*")) == []
    assert "metrics" not in started.log

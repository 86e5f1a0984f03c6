"""The metrics of a real agent on a real spool, and what promtool says of them and of the alert rules."""

import json
import threading
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from capture.agent import Agent
from capture.ffmpeg_binary import find_ffmpeg
from capture.journal import Event
from capture.metrics import AgentMetrics, Look
from capture.metrics_catalogue import AGENT
from capture.settings import load_settings
from capture.spool import MARKER
from tests.conftest import owing
from tests.promtool import check_metrics, promtool

MONITORING = Path(__file__).parents[2] / "docs/monitoring"
DEADLINE = 60.0
TOKEN = "metrics-token"
CONFIG = """
[cameras.gate]
source = "test:320x180@25,3s"
realtime = false

[cameras.yard]
source = "rtsp://user:hunter22@127.0.0.1:1/stream"

[cameras.desk]
source = "test:"
enabled = false
"""
SECRETS = ("hunter22", "rtsp", "user:", "127.0.0.1", "stream", TOKEN, "password", "/tmp")


def wait_for(condition, what):
    end = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {DEADLINE:g} s: {what}"
        time.sleep(0.02)
    return found


@pytest.fixture
def settings(tmp_path):
    config = tmp_path / "relay.toml"
    config.write_text(CONFIG)
    environ = {
        "RELAY_CONFIG": str(config),
        "RELAY_CLOUD": "http://127.0.0.1:1",
        "RELAY_TOKEN": TOKEN,
        "RELAY_SPOOL": str(tmp_path / "spool"),
        "RELAY_BROKER": "redis://:password@127.0.0.1:1/0",
        "RELAY_DEFAULTS__SEGMENT_SECONDS": "1",
    }
    return load_settings(environ=environ)


@pytest.fixture
def agent(settings, spool):
    return Agent(settings, spool, find_ffmpeg(None).path)


@pytest.fixture
def metrics(agent, spool):
    metrics = AgentMetrics(agent, spool, look_every=0.05)
    yield metrics
    metrics.close()


class Scrape:
    def __init__(self, metrics):
        content_type, self.body = metrics.scrape()
        assert content_type.startswith("text/plain; version=0.0.4")
        self.families = {family.name for family in text_string_to_metric_families(self.body.decode())}

    def __call__(self, name, **labels):
        found = [
            sample.value
            for family in text_string_to_metric_families(self.body.decode())
            for sample in family.samples
            if sample.name == f"relay_capture_{name}" and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None


def test_what_an_agent_captured_stands_in_its_metrics(agent, metrics, spool):
    agent.start()
    try:
        wait_for(lambda: Scrape(metrics)("camera_state", camera="gate", state="stopped") == 1, "captured")
        wait_for(lambda: (Scrape(metrics)("ffmpeg_restarts_total", camera="yard") or 0) >= 1, "retried")
        closed = [entry for entry in spool.journal.read("gate") if entry.event is Event.CLOSED]
        size = sum(entry.fields["bytes"] for entry in closed)
        assert len(closed) >= 3
        found = wait_for(
            lambda: (seen := Scrape(metrics))("owed_segments", camera="gate") == len(closed) and seen,
            "the spool was looked at",
        )
    finally:
        agent.stop()
        agent.close(0.0)

    assert found("captured_segments_total", camera="gate") == len(closed)
    assert found("captured_bytes_total", camera="gate") == size
    assert found("owed_bytes", camera="gate") == found("spool_bytes", what="owed") == size
    assert found("camera_frames_total", camera="gate") == 75
    assert found("captured_segments_total", camera="yard") == 0
    assert found("camera_state", camera="yard", state="running") == 0
    assert found("last_segment_age_seconds", camera="gate") < DEADLINE
    assert found("last_segment_age_seconds", camera="yard") is None
    assert [found("cameras", setting=each) for each in ("enabled", "disabled", "faulty")] == [2, 1, 0]
    assert found("broker_up") == 0
    assert found("spool_readable") == 1
    assert {metric.name.removesuffix("_total") for metric in AGENT} <= found.families
    check_metrics(found.body)
    assert not [secret for secret in SECRETS if secret in found.body.decode()]


def test_debts_of_cameras_that_this_agent_does_not_run_are_shown(metrics, spool):
    owing(spool, "other-site", 4)
    wait_for(lambda: Scrape(metrics)("owed_segments", camera="other-site") == 4, "seen")


def test_a_spool_that_is_gone_shows_and_its_return_too(metrics, spool):
    wait_for(lambda: Scrape(metrics)("spool_readable") == 1, "readable")
    (spool.root / MARKER).rename(spool.root / "elsewhere")
    wait_for(lambda: Scrape(metrics)("spool_readable") == 0, "gone")
    (spool.root / "elsewhere").rename(spool.root / MARKER)
    wait_for(lambda: Scrape(metrics)("spool_readable") == 1, "back")


def test_a_spool_that_hangs_holds_up_no_scrape():
    hangs = threading.Event()
    look = Look(lambda: hangs.wait(DEADLINE) and None, every=0.01)
    look.start()
    try:
        assert look.latest() == (None, True)
        assert not hangs.is_set()
    finally:
        hangs.set()
        look.close()


def test_nobody_looks_while_nobody_scrapes(monkeypatch):
    monkeypatch.setattr("capture.metrics.IDLE_SECONDS", 0.1)
    looks = []
    look = Look(lambda: looks.append(time.monotonic()), every=0.01)
    look.start()
    try:
        wait_for(lambda: looks and time.monotonic() - looks[-1] > 0.5, "it rests")
        before = len(looks)
        look.latest()
        wait_for(lambda: len(looks) > before, "it looks again")
    finally:
        look.close()


def test_a_look_that_fails_for_a_bug_is_tried_again():
    looks = []

    def broken():
        looks.append(1)
        raise KeyError(len(looks))

    look = Look(broken, every=0.01)
    look.start()
    try:
        wait_for(lambda: len(looks) > 2, "it goes on")
        assert look.latest() == (None, False)
    finally:
        look.close()


# --- Prometheus' own checks ------------------------------------------------------------------------


def test_the_sample_configuration_is_valid():
    assert "SUCCESS" in promtool("check", "config", MONITORING / "prometheus.yml")


def test_the_alert_rules_are_valid_and_fire_when_they_should():
    promtool("check", "rules", MONITORING / "relay-capture.rules.yml")
    promtool("test", "rules", MONITORING / "relay-capture.test.yml")


def test_prometheus_understands_every_query_of_the_dashboard(tmp_path):
    dashboard = json.loads((MONITORING / "relay-capture.dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    lines = ["groups:", "  - name: dashboard", "    rules:"]
    for number, query in enumerate(queries):
        expression = query.replace("$__rate_interval", "5m").replace("$site", ".*").replace("$camera", ".*")
        lines += [f"      - record: panel_{number}", f"        expr: {json.dumps(expression)}"]
    path = tmp_path / "dashboard.yml"
    path.write_text("\n".join(lines) + "\n")
    promtool("check", "rules", path)

"""Flower as `up` and Celery start it: what it shows of uploads, to whom, and that it steers nothing."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from ast import literal_eval
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import redis
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from capture.broker import EmbeddedBroker, RuntimeDir
from capture.handoff import publisher_app
from capture.settings import load_settings
from capture.sink_faults import Fault
from tests.acceptance.conftest import DEADLINE, TOKEN

CAMERA_SECRET = "camera-pass-7731"
BROKER_SECRET = "broker-pass-7731"
YARD_TOKEN = "made-up-token-of-the-yard"
PASSWORD = "operator:flower-pass-7731"
UPLOAD = "tasks.upload.upload_segment"
CHROMIUM = Path("/usr/bin/chromium")
DRIVER = Path("/usr/bin/chromedriver")
SHOWN_WITHIN = 60.0  # seconds; Flower switches the events on five seconds after its start
CONFIG = f"""
    [ingest]
    on_refused = "hold"
    [defaults]
    segment_seconds = 1
    [cameras.gate]
    source = "test:320x180@10"
    [cameras.yard]
    source = "test:320x180@10"
    token_file = "yard.token"
    [cameras.gone]
    source = "http://user:{CAMERA_SECRET}@127.0.0.1:1/live.ts"
    """


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


class Flower:
    """Its pages and its API, as a program asks for them."""

    def __init__(self, port):
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path, *, method="GET", password=None):
        """Return the status and the body; (0, "") while nobody listens."""
        auth = None if password is None else tuple(password.split(":"))
        try:
            answer = httpx.request(method, self.url + path, auth=auth, timeout=20, trust_env=False)
        except httpx.TransportError:
            return 0, ""
        return answer.status_code, answer.text

    def get(self, path, **options):
        status, body = self.ask(path, **options)
        assert status in (0, 200), body
        return json.loads(body) if status else {}

    def tasks(self, state):
        return list(self.get(f"/api/tasks?state={state}&taskname={UPLOAD}").values())

    def failure(self, kind):
        """Return the first upload that failed with such an exception."""
        return next((task for task in self.tasks("FAILURE") if task["exception"].startswith(kind)), None)


@pytest.fixture
def flower():
    return Flower(free_port())


@pytest.fixture
def relay(start, sink, spool, tmp_path, flower):
    (tmp_path / "relay.toml").write_text(CONFIG)
    (tmp_path / "relay.toml").chmod(0o600)
    (tmp_path / "yard.token").write_text(TOKEN)
    (tmp_path / "yard.token").chmod(0o600)
    settings = {"RELAY_CLOUD": sink.url, "RELAY_TOKEN": TOKEN, "RELAY_SPOOL": str(spool.path)}
    # Flower's own switch for its API without a password: not ours, and not on by default.
    settings |= {"FLOWER_UNAUTHENTICATED_API": "true", "RELAY_DRAIN_TIMEOUT": "0"}
    config = tmp_path / "relay.toml"
    relay = start("up", "--config", config, "--flower", str(flower.port), "--json", env=settings)
    relay.wait_for(lambda: flower.ask("/api/tasks")[0] == 200, "Flower", deadline=SHOWN_WITHIN)
    return relay


@pytest.fixture
def relay_with_trouble(relay, flower, sink, tmp_path):
    """One upload that was tried again, one rejected, one refused, and many that went well."""

    def seen(condition, what):
        return relay.wait_for(condition, what, deadline=SHOWN_WITHIN)

    def retried():
        """Celery waits for up to a second, at random: look until it is seen waiting."""
        if not sink.faults.active():
            sink.faults.add(Fault.parse("503#1:camera=gate"))
        return flower.tasks("RETRY")

    seen(lambda: flower.tasks("SUCCESS"), "a delivered segment")
    relay.retry = seen(retried, "a segment that is tried again")[0]
    sink.faults.clear()
    sink.faults.add(Fault.parse("400#1:camera=gate"))
    seen(lambda: flower.failure("Rejected"), "a rejected segment")
    (tmp_path / "yard.token").write_text(YARD_TOKEN)
    seen(lambda: flower.failure("Refused"), "a refused token")
    return relay


def test_each_segment_is_a_line_that_tells_its_names_and_what_became_of_it(relay_with_trouble, flower, spool):
    relay = relay_with_trouble
    closed = {(line["session"], line["segment"]) for line in spool.journal("closed")}
    retry = relay.retry
    refused, rejected = flower.failure("Refused"), flower.failure("Rejected")
    assert retry["exception"] == "TransientError('HTTP 503')"
    assert rejected["exception"] == "RejectedByCloudError('rejected: HTTP 400')"
    assert (
        "the cloud does not know the token of camera yard (401): put the current one into"
        in refused["exception"]
    )
    assert "nothing was deleted" in refused["exception"]
    for task in (retry, refused, rejected):
        assert tuple(literal_eval(task["args"])) in closed
    assert [path.name for path in spool.rejected()] == [literal_eval(rejected["args"])[1]]
    assert "'delivered: HTTP 204'" in {task["result"] for task in flower.tasks("SUCCESS")}

    [(name, worker)] = flower.get("/api/workers?refresh=1").items()
    assert name.startswith("relay@")
    assert {queue["name"] for queue in worker["active_queues"]} == {"live", "backlog"}
    assert UPLOAD in worker["registered"]
    [online] = flower.get("/workers?json=1")["data"]
    assert online["status"] is True

    pages = ["/api/tasks", "/api/workers", "/workers", "/tasks", "/broker", "/metrics", f"/worker/{name}"]
    pages += [f"/task/{task['uuid']}" for task in (retry, refused, rejected)]
    shown = "".join(flower.ask(page)[1] for page in pages)
    assert "RejectedByCloudError" in shown
    for secret in (TOKEN, YARD_TOKEN, CAMERA_SECRET):
        assert secret not in shown
        assert secret not in relay.log
    for line in relay.log.splitlines():
        assert {"event", "level", "timestamp"} <= json.loads(line).keys(), line


def test_it_shows_this_machine_alone_and_steers_nothing(relay, flower):
    [process] = [each for each in relay.descendants() if "flower" in each.cmdline()]
    listening = [line.laddr for line in process.net_connections("inet") if line.status == psutil.CONN_LISTEN]
    assert listening == [("127.0.0.1", flower.port)]
    relay.wait_for(lambda: flower.get("/api/workers?refresh=1"), "the worker", deadline=SHOWN_WITHIN)
    [worker] = flower.get("/api/workers")
    for path in (
        f"/api/worker/shutdown/{worker}",
        f"/api/worker/pool/grow/{worker}?n=1",
        f"/api/worker/queue/cancel-consumer/{worker}?queue=live",
        "/api/task/revoke/0b1c0e8e-0000-4000-8000-000000000000?terminate=true",
        f"/api/task/rate-limit/{UPLOAD}?ratelimit=1",
        "/api/task/async-apply/tasks.sweep.sweep",
        "/api/task/send-task/tasks.sweep.sweep",
    ):
        assert flower.ask(path, method="POST")[0] == 403, path
    assert flower.get("/api/workers?refresh=1").keys() == {worker}


@pytest.mark.skipif(
    not (CHROMIUM.exists() and DRIVER.exists()) and not os.environ.get("CI"),
    reason="no chromium and chromedriver in /usr/bin; Debian: chromium, chromium-driver",
)
def test_the_page_of_tasks_says_it_in_words_and_red(relay_with_trouble, flower, spool, tmp_path):
    rejected = spool.rejected()[0].name
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        browser.set_window_size(1500, 900)
        browser.get(f"{flower.url}/tasks")

        browser.find_element(By.CSS_SELECTOR, "[data-task-state=FAILURE]").click()

        def row():
            rows = browser.find_elements(By.CSS_SELECTOR, "#tasks-table tbody tr")
            return next((each for each in rows if rejected in each.text), None)

        found = relay_with_trouble.wait_for(row, "the rejected segment", deadline=SHOWN_WITHIN)
        assert "rejected: HTTP 400" in found.text
        badge = next(
            each for each in found.find_elements(By.CSS_SELECTOR, ".badge") if "FAILURE" in each.text
        )
        colour = badge.value_of_css_property("background-color").strip("rgba()")
        red, green, blue = (int(part) for part in colour.split(",")[:3])
        assert red > green
        assert red > blue
    finally:
        browser.quit()


# --- as a container or a service starts it, with a worker and a broker of their own ---------------------


@pytest.fixture
def locked_settings(sink, tmp_path):
    """Settings for a broker that wants a password."""
    with tempfile.TemporaryDirectory(prefix="acc-") as base, RuntimeDir(Path(base)) as runtime:
        broker = EmbeddedBroker(runtime.path)
        broker.start()
        with redis.Redis.from_url(broker.url.replace("redis+socket", "unix")) as client:
            client.config_set("requirepass", BROKER_SECRET)
        variables = {"RELAY_CLOUD": sink.url, "RELAY_TOKEN": TOKEN, "RELAY_SPOOL": str(tmp_path / "spool")}
        variables["RELAY_BROKER"] = broker.url.replace("://", f"://:{BROKER_SECRET}@")
        yield load_settings(environ=variables)
        broker.stop()


@pytest.fixture
def settings(request, locked_settings):
    """Takes the place of the settings that the fixtures of the workers use."""
    return locked_settings


@pytest.fixture
def guarded(settings, flower, tmp_path):
    """Flower by itself as docker/compose.yaml starts it: its password in its environment."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
    argv = [sys.executable, "-P", "-m", "celery", "-A", "tasks", "flower"]
    log = tmp_path / "flower.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*argv, "--address=127.0.0.1", f"--port={flower.port}", "--read_only=True"],
            env={
                **clean,
                **settings.worker_environment(),
                "FLOWER_BASIC_AUTH": PASSWORD,
                "RELAY_LOG_JSON": "1",
            },
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    end = time.monotonic() + SHOWN_WITHIN
    while flower.ask("/healthcheck")[0] != 200:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    yield log
    process.terminate()
    process.wait(DEADLINE)


def test_the_password_is_asked_for_and_no_page_tells_the_brokers(worker, guarded, flower):
    running = worker()
    running.wait_ready()
    for path in ("/", "/tasks", "/workers", "/broker", "/api/tasks", "/api/workers"):
        assert flower.ask(path)[0] == 401, path
        assert flower.ask(path, password="operator:wrong")[0] == 401, path
        assert flower.ask(path, password=PASSWORD)[0] == 200, path

    running.wait_for(lambda: flower.get("/api/workers?refresh=1", password=PASSWORD), "the worker in Flower")
    [name] = flower.get("/api/workers", password=PASSWORD)
    pages = ("/api/workers", "/workers", "/broker", f"/worker/{name}")
    shown = "".join(flower.ask(page, password=PASSWORD)[1] for page in pages)
    assert "task_acks_late" in shown
    log = guarded.read_text()
    for secret in (BROKER_SECRET, TOKEN, PASSWORD.partition(":")[2]):
        assert secret not in shown
        assert secret not in log
    for line in log.splitlines():
        assert {"event", "level", "timestamp"} <= json.loads(line).keys(), line


@contextmanager
def watching(app, seen):
    """Note the types of all events that are sent meanwhile."""
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": lambda event: seen.append(event["type"])})
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False}, daemon=True)
        thread.start()
        yield
        receiver.should_stop = True
        thread.join(DEADLINE)


def test_events_are_sent_only_while_somebody_watches(worker, send, settings, sink):
    """With all the flags that spare an unwatched worker its messages."""
    running = worker(changed="import tasks.watched as w; w.UNWATCHED_SECONDS = 2.0; w.LOOK_SECONDS = 0.2")
    running.wait_ready()
    seen = []
    with publisher_app(settings) as app, watching(app, seen):

        def watch(condition, what, *, ask):
            end = time.monotonic() + DEADLINE
            while not condition():
                assert time.monotonic() < end, f"{what}: {seen}\n{running.log[-4000:]}"
                if ask:
                    app.control.enable_events()
                time.sleep(0.1)

        send(1)
        watch(lambda: len(sink.receipts()) == 1, "a segment that nobody watches", ask=False)
        assert seen == []
        watch(lambda: "worker-heartbeat" in seen, "a heartbeat", ask=True)
        send(2)
        watch(lambda: "task-succeeded" in seen, "a task", ask=True)
        watch(lambda: "events_ended" in running.log, "the end of events", ask=False)
        seen.clear()
        send(3)
        watch(lambda: len(sink.receipts()) == 3, "a segment that nobody watches any more", ask=False)
        assert [event for event in seen if event.startswith("task-")] == []
        watch(lambda: "task-succeeded" in seen or send(4), "somebody who watches anew", ask=True)
    assert running.log.count("events_sent") == 2

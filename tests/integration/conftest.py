"""A worker's tasks run in this process, on real spool directories, with a real broker and a real ingest."""

import base64
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
import redis
from celery import Celery

import tasks.worker
from capture.broker import EmbeddedBroker, RuntimeDir
from capture.claim import claim
from capture.clock import Clock
from capture.handoff import BACKLOG, UPLOAD_BATCH, UPLOAD_SEGMENT, configure
from capture.segment import open_name
from capture.session import Session
from capture.settings import load_settings
from capture.sink import Sink
from capture.source import parse_source
from capture.spool import Spool, write_json
from capture.upkeep import REGISTERED_NOTE

HOUR = 3600.0
TOKEN = "upkeep-token"
BEGUN = datetime(2026, 11, 23, 21, 11, 31, 120000, tzinfo=UTC)
PACKETS = (b"\x47" + bytes(187)) * 3


class FixedClock(Clock):
    """Stands still at a wall time, so that sessions are named in a known order."""

    def __init__(self, now):
        self._now = now

    def now(self):
        return self._now

    def time(self):
        return self._now.timestamp()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with RuntimeDir(tmp_path_factory.mktemp("r")) as directory:
        embedded = EmbeddedBroker(directory.path)
        embedded.start()
        yield embedded
        embedded.stop()


@pytest.fixture
def broker(server):
    with redis.Redis(unix_socket_path=str(server.socket), socket_timeout=5) as client:
        client.flushall()
        yield client


@pytest.fixture
def sink(tmp_path):
    with Sink(tmp_path / "sink", token=TOKEN) as sink:
        yield sink


@pytest.fixture
def spool(tmp_path):
    return Spool.open(tmp_path / "spool", create=True)


@pytest.fixture
def in_worker(spool, server, broker, sink, monkeypatch):
    """Make this process the worker of `spool`, as a child that was just forked would be."""
    environment = {
        "RELAY_CLOUD": sink.url,
        "RELAY_TOKEN": TOKEN,
        "RELAY_SPOOL": str(spool.root),
        "RELAY_BROKER": server.url,
    }
    settings = load_settings(environ=environment)
    app = Celery("upkeep", set_as_current=False)
    configure(app, settings)
    monkeypatch.setattr(tasks.worker, "settings", settings)
    monkeypatch.setattr(tasks.worker, "_this_process", tasks.worker._PerProcess())
    monkeypatch.setattr(tasks.worker, "app", app)
    yield
    tasks.worker.this_worker().ingest.close()
    app.close()


def new_session(spool, camera="gate", *, begun=BEGUN):
    """Start a session at a given time; it lives until its context ends."""
    then = Spool(spool.root, spool.id, FixedClock(begun))
    return Session.start(then, camera, display_name=camera, source=parse_source("test:"), segment_seconds=10)


def write_open(session, sequence, content=PACKETS):
    (session.open_directory / open_name(sequence)).write_bytes(content)


def close_segments(session, count, content=PACKETS):
    for number in range(1, count + 1):
        write_open(session, number, content)
        session.close_segment(number, BEGUN + timedelta(seconds=10 * number), 10.0)


def past_session(spool, camera="gate", *, owes=0, begun=BEGUN, age=HOUR, registered=True, content=PACKETS):
    """Leave a session that ended `age` seconds ago; return its name."""
    with new_session(spool, camera, begun=begun) as session:
        close_segments(session, owes, content)
        session.end()
        if registered:
            write_json(session.path / REGISTERED_NOTE, {})
    make_older(session.path, age)
    return session.name


def make_older(path, age):
    moment = spool_time() - age
    for entry in [*path.rglob("*"), path]:
        os.utime(entry, (moment, moment))


def spool_time():
    return Clock().time()


def messages(broker, queue):
    """Return the task names and first arguments that wait in a queue, oldest first."""
    found = []
    for raw in reversed(broker.lrange(queue, 0, -1)):
        message = json.loads(raw)
        args, _, _ = json.loads(base64.b64decode(message["body"]))
        found.append((message["headers"]["task"], args))
    return found


def uploads(broker, queue=BACKLOG):
    """Return the camera and sequence of every segment that has a message."""
    found = []
    for task, args in messages(broker, queue):
        if task == UPLOAD_BATCH:
            found += args[0]
        elif task == UPLOAD_SEGMENT:
            found.append(args)
    return [(session.split("-")[2], int(segment.partition("_")[0])) for session, segment in found]


def events(spool, camera="gate"):
    return [entry.event for entry in spool.journal.read(camera)]


@pytest.fixture
def command_seconds():
    """How long a command may take."""
    return 60


@pytest.fixture
def run(tmp_path, command_seconds):
    """Run the command as a person does; return exit code, output, and what went to standard error."""

    def run(*arguments, **environ):
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
        done = subprocess.run(
            [sys.executable, "-m", "capture", *map(str, arguments)],
            cwd=tmp_path,
            env=clean | {"COLUMNS": "80"} | environ,
            capture_output=True,
            text=True,
            timeout=command_seconds,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


def pairs(spool, name):
    return [[str(name), str(segment)] for segment in spool.segments(name)]


def is_free(spool, name, segment):
    found = claim(spool, name, segment)
    if found is None:
        return False
    with found:
        return True

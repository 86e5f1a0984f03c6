"""The search for secrets finds them: in every spelling, and in every place where it looks."""

import os
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import redis

from tests.acceptance import secret_places as places
from tests.acceptance.secret_hosts import Cloud, valkey
from tests.acceptance.secret_search import HASHES, SPELLINGS, Maker, Search, hashlib

SLEEPER = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def maker():
    maker = Maker(7)
    maker.password("one")
    maker.token("two")
    maker.plain_password("three")
    return maker


@pytest.fixture
def search(maker):
    return Search(maker)


def found(search):
    return {finding.secret for finding in search.findings.values()}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("number", range(3))
def test_a_secret_is_found_and_named_in_every_spelling(maker, search, spelling, number):
    secret = maker.secrets[number]
    search.look("log", "planted", f"GET {SPELLINGS[spelling](secret.text)} 200")
    assert found(search) == {secret.name}


@pytest.mark.parametrize("algorithm", HASHES)
def test_a_hash_of_a_secret_is_found(maker, search, algorithm):
    digest = hashlib.new(algorithm, maker.secrets[0].text.encode()).hexdigest()
    search.look("spool", "planted", f"refused-{digest[:20]}.json")
    assert found(search) == {"one"}


@pytest.mark.parametrize("part", [slice(0, 12), slice(-12, None)])
def test_a_secret_that_was_masked_in_part_is_found(maker, search, part):
    search.look("log", "planted", f"***{maker.secrets[0].text[part]}***")
    assert found(search) == {"one"}


def test_what_is_allowed_in_one_place_is_found_in_another_and_nothing_is_found_in_nothing(maker, search):
    text = maker.secrets[1].text
    search.look("environment", "worker", text, may_hold=["two"])
    search.look("log", "clean", "nothing of it ***")
    assert not search.findings
    search.look("environment", "ffmpeg", text)
    assert found(search) == {"two"}


def test_a_secret_is_found_on_a_command_line_and_in_an_environment(maker, search):
    one, two = (secret.text for secret in maker.secrets[:2])
    scanner = places.ProcessScanner(search, lambda _role, _variable: [])
    child = subprocess.Popen(
        [*SLEEPER, one], env={"PATH": os.environ["PATH"], "KEY": two}, stdin=subprocess.PIPE
    )
    with child, scanner:
        for _ in range(200):
            if found(search) == {"one", "two"}:
                break
            threading.Event().wait(0.05)
        child.stdin.close()
    assert {finding.place.split(":")[0] for finding in search.findings.values()} == {
        places.COMMAND_LINES,
        places.ENVIRONMENTS,
    }
    assert found(search) == {"one", "two"}


@pytest.mark.parametrize(
    ("line", "role"),
    [
        (b"/v/bin/python\0-P\0-m\0celery\0-A\0tasks\0worker\0-Q\0live", "worker"),
        (b"/v/bin/python\0-P\0-m\0tasks.celery_command\0/tmp/relay-capture-1\0worker\0-Q\0live", "worker"),
        (
            b"/v/bin/python\0-I\0-S\0/x/leash.py\09\0001\0--\0/v/bin/python\0-m\0celery\0-A\0tasks\0beat",
            "beat",
        ),
        (b"/v/bin/python\0-I\0-S\0/x/leash.py\09\0001\0--\0/x/ffmpeg-linux\0-i\0pipe:0", "ffmpeg"),
        (b"valkey-server *:0 unixsocket:/run/relay-capture-1/broker.sock", "valkey"),
        (b"/v/bin/python\0/v/bin/relay-capture\0up", "command"),
        (b"sleep\x001", "other"),
    ],
)
def test_processes_are_known_by_their_command_lines(line, role):
    assert places.role_of(line) == role


def test_a_secret_is_found_in_files_in_their_names_and_in_files_without_a_name(maker, search, tmp_path):
    one, two, three = maker.secrets
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.log").write_text(SPELLINGS["JSON"](one.text))
    (tmp_path / f"of-{two.marks[0]}").touch()
    places.look_at_files(search, places.FILES, tmp_path)
    assert found(search) == {"one", "two"}
    mark = b"SECRETS_TEST=" + str(os.getpid()).encode()
    with tempfile.TemporaryFile() as file:
        file.write(three.text.encode())
        file.flush()
        environment = {"SECRETS_TEST": str(os.getpid())}
        with subprocess.Popen(
            SLEEPER, env=environment, stdin=subprocess.PIPE, pass_fds=[file.fileno()]
        ) as child:
            for _ in range(200):
                places.look_at_deleted_files(search, lambda found: mark in found)
                if "three" in found(search):
                    break
                threading.Event().wait(0.05)
            child.stdin.close()
    assert found(search) == {"one", "two", "three"}


def test_a_secret_is_found_in_every_kind_of_key_of_a_broker_and_by_its_monitor(maker, search, tmp_path):
    password, text = "p w/%41'ä", maker.secrets[0].text
    with valkey(tmp_path, password) as (port, client):
        with pytest.raises(redis.AuthenticationError), closing(redis.Redis(port=port)) as stranger:
            stranger.ping()
        monitor = places.BrokerMonitor(("127.0.0.1", port), password)
        plants = {
            "string": lambda key: client.set(key, text),
            "list": lambda key: client.rpush(key, "x", text),
            "hash": lambda key: client.hset(key, text, "x"),
            "set": lambda key: client.sadd(key, text),
            "zset": lambda key: client.zadd(key, {text: 1}),
        }
        for key, plant in plants.items():
            plant(key)
        assert places.look_at_broker(search, client) == len(plants)
        for key in plants:
            assert any(place.endswith(ascii(key.encode())) for place, _ in search.findings), key
        client.publish("events", maker.secrets[1].text)
        for _ in range(200):
            if b"events" in monitor.heard:
                break
            threading.Event().wait(0.05)
        search.look(places.MONITOR, "planted", monitor.close())
    assert found(search) == {"one", "two"}


class Page(BaseHTTPRequestHandler):
    """Answers with what its server was given."""

    def do_GET(self):
        self.send_response(404)
        self.send_header("X-Odd", self.server.header)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_):
        pass


def test_a_secret_is_found_on_a_page_and_in_its_headers(maker, search):
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        server.header, server.body = (
            maker.secrets[0].marks[0],
            SPELLINGS["HTML"](maker.secrets[1].text).encode(),
        )
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        assert places.look_at_pages(search, "planted", base, ["/"]) == {"/": 404}
        server.shutdown()
    assert found(search) == {"one", "two"}


def test_the_cloud_of_the_search_keeps_all_of_a_request_but_its_key(maker, search):
    with closing(Cloud([maker.secrets[1].text])) as cloud:
        subprocess.run(
            [sys.executable, "-c", ASK, cloud.url, maker.secrets[1].text, maker.secrets[0].text], check=True
        )
    for what, content in cloud.requests:
        search.look("request", what, content)
    assert found(search) == {"one"}


ASK = """
import sys, httpx
url, key, body = sys.argv[1:]
httpx.post(url + "/api/cameras", headers={"X-API-Key": key}, content=body.encode())
"""

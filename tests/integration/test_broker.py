"""`capture.broker` with the real Valkey, killed, flooded and asked for the wrong things."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import kombu
import psutil
import pytest
import redis

from capture import broker
from capture.broker import EmbeddedBroker, RuntimeDir, ping, queue_lengths, shown_url
from capture.errors import ConfigError

ROOT = Path(__file__).parents[2]
DEADLINE = 10.0
SECRET = "hunter2"


def wait_until(condition, deadline=DEADLINE):
    end = time.monotonic() + deadline
    while not (result := condition()):
        assert time.monotonic() < end, f"not within {deadline} s"
        time.sleep(0.01)
    return result


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def runtime_dir(tmp_path_factory):
    with RuntimeDir(tmp_path_factory.mktemp("r")) as directory:
        yield directory.path


@pytest.fixture
def server(runtime_dir):
    embedded = EmbeddedBroker(runtime_dir)
    embedded.start()
    yield embedded
    embedded.stop()


@pytest.fixture
def client(server):
    with redis.Redis(unix_socket_path=str(server.socket), socket_timeout=5) as client:
        yield client


# --- the embedded server -------------------------------------------------------------------------


def test_it_starts_answers_and_stops_without_a_trace(runtime_dir):
    embedded = EmbeddedBroker(runtime_dir)
    embedded.start()
    pid = embedded.pid
    assert embedded.poll() is None
    ping(embedded.url)
    embedded.stop()
    embedded.stop()
    assert psutil.pid_exists(pid) is False
    assert [each.name for each in runtime_dir.iterdir()] == ["broker.log"]


def test_only_we_may_reach_it(server, client):
    assert mode(server.runtime_dir) == 0o700
    assert mode(server.socket) == 0o700
    assert mode(server.log) == 0o600
    assert psutil.Process(server.pid).net_connections("inet") == []
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert client.config_get("save") == {"save": ""}
    assert client.config_get("appendonly") == {"appendonly": "no"}


def test_a_crash_is_noticed_and_a_restart_is_empty_at_the_same_url(server, client):
    client.rpush("live", "message")
    url, first = server.url, server.pid
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: server.poll() == -signal.SIGKILL)
    assert server.socket.exists()
    server.start()
    assert (server.url, server.poll()) == (url, None)
    assert server.pid != first
    assert queue_lengths(server.url, ["live"]) == {"live": 0, "unacked": 0}


def test_a_flood_of_log_lines_does_not_hang_it(server, client):
    script = "for i = 1, 5000 do server.log(server.LOG_WARNING, string.rep('x', 100)) end"
    client.eval(script, 0)
    assert client.ping()
    assert server.log.stat().st_size > 500_000


OWNER = """
import sys, time
from pathlib import Path
from capture.broker import EmbeddedBroker, RuntimeDir
directory = RuntimeDir(Path(sys.argv[1]))
server = EmbeddedBroker(directory.path)
server.start()
print(server.pid, directory.path, flush=True)
time.sleep(60)
"""


def test_an_owner_that_is_killed_leaves_no_server_and_the_next_one_cleans_up(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as owner:
        pid, path = owner.stdout.readline().split()
        with RuntimeDir(tmp_path):
            assert Path(path).exists()
        owner.kill()
        wait_until(lambda: is_gone(int(pid)), deadline=2.0)
    assert Path(path, "broker.sock").exists()
    with RuntimeDir(tmp_path) as directory:
        assert list(tmp_path.iterdir()) == [directory.path]


def test_a_server_that_cannot_start_is_reported_with_its_own_words(runtime_dir, monkeypatch):
    argv = broker._argv
    monkeypatch.setattr(broker, "_argv", lambda path: [*argv(path), "--no-such-option", "1"])
    with pytest.raises(ConfigError, match=r"exited with 1: (.|\n)*no-such-option"):
        EmbeddedBroker(runtime_dir).start()


def test_a_server_that_never_answers_is_killed_and_reported(runtime_dir, monkeypatch):
    monkeypatch.setattr(broker, "_argv", lambda _path: ["sleep", "60"])
    embedded = EmbeddedBroker(runtime_dir)
    with pytest.raises(ConfigError, match="does not answer: its log is empty"):
        embedded.start(timeout=0.1)
    assert embedded.pid is None


def test_a_path_too_long_for_a_socket_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"too long for a socket, which may have 10[37] bytes"):
        EmbeddedBroker(tmp_path / ("x" * 100))


def test_a_directory_that_others_may_enter_is_refused(tmp_path):
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match=r"open to other users \(mode 755\).*chmod 700"):
        EmbeddedBroker(tmp_path).start()


def test_a_path_that_needs_quoting_works_for_celery_too(tmp_path):
    odd = tmp_path / "a b#c?%41"
    odd.mkdir(mode=0o700)
    embedded = EmbeddedBroker(odd)
    embedded.start()
    try:
        ping(embedded.url)
        with kombu.Connection(embedded.url) as connection:
            connection.default_channel.client.ping()
    finally:
        embedded.stop()


# --- questions to any broker ---------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "relay."])
def test_queue_lengths_are_what_kombu_put_there(server, prefix):
    options = {"global_keyprefix": prefix}
    with kombu.Connection(server.url, transport_options=options) as connection:
        live = connection.SimpleQueue("live")
        for number in range(3):
            live.put({"number": number})
        held = live.get(timeout=5)
        assert queue_lengths(server.url, ["live", "backlog"], prefix) == {
            "live": 2,
            "backlog": 0,
            "unacked": 1,
        }
        held.ack()
        live.close()
    assert queue_lengths(server.url, ["live"], prefix) == {"live": 2, "unacked": 0}
    assert queue_lengths(server.url, ["live"], "other.") == {"live": 0, "unacked": 0}


def test_a_password_is_used_and_never_shown(server, client):
    client.config_set("requirepass", SECRET)
    right = server.url.replace("://", f"://:{SECRET}@")
    ping(right)
    with pytest.raises(ConfigError, match="does not serve us"):
        ping(server.url)
    with pytest.raises(ConfigError, match="does not serve us") as caught:
        ping(server.url.replace("://", f"://:not-{SECRET}@"))
    assert SECRET not in str(caught.value)
    assert shown_url(right) == server.url


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}@127.0.0.1:1/0",
        f"rediss://:{SECRET}@127.0.0.1:1/0?ssl_cert_reqs=CERT_NONE",
        f"redis+socket://:{SECRET}@/no/such/socket?virtual_host=1",
        f"redis://:{SECRET}@.:6379/0",
    ],
)
def test_a_broker_that_is_not_there_is_named_without_its_password(url):
    with pytest.raises(ConfigError, match=r"The broker at redis.* does not serve us") as caught:
        ping(url, timeout=0.5)
    assert SECRET not in str(caught.value) + repr(caught.value.__cause__)


@pytest.mark.parametrize(
    "url",
    [
        "",
        SECRET,
        f"{SECRET}:6379",
        f"amqp://guest:{SECRET}@host",
        f"redis://:{SECRET}/x@host:6379/0",
        "redis://:12#hunter2",
        "redis://:12?hunter2@host",
        "redis://:12/hunter2@host",
        f"redis://host:{SECRET}/0",
        f"redis://host/{SECRET}",
        f"redis://[{SECRET}/0",
        "redis+socket://",
        "redis+socket:///path?virtual_host=hunter2",
    ],
)
def test_a_malformed_url_is_explained_and_never_repeated(url):
    with pytest.raises(ConfigError, match=r"malformed.*looks like redis://") as caught:
        ping(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_server_that_says_nothing_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(ConfigError, match="does not serve us"):
            ping(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", timeout=0.2)
        assert time.monotonic() - started < 2


# --- the runtime directory -----------------------------------------------------------------------


def test_a_runtime_directory_is_private_locked_and_removed(tmp_path):
    with RuntimeDir(tmp_path) as directory:
        assert directory.path.parent == tmp_path
        assert mode(directory.path) == 0o700
        (directory.path / "sub").mkdir()
        (directory.path / "sub" / "file").touch()
        assert broker.sweep_runtime_dirs(tmp_path) == 0
        assert directory.path.exists()
    directory.close()
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_takes_leftovers_and_nothing_else(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    (tmp_path / "relay-capture-link0000").symlink_to(precious)
    (tmp_path / "relay-capture-file0000").touch()
    (tmp_path / "relay-capture-longer-name").mkdir()
    kept = set(tmp_path.iterdir())
    leftover = tmp_path / "relay-capture-leftover"
    leftover.mkdir(mode=0o700)
    (leftover / "link").symlink_to(precious)
    assert broker.sweep_runtime_dirs(tmp_path) == 1
    assert set(tmp_path.iterdir()) == kept
    assert (precious / "file").exists()


def test_a_directory_swept_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    lock, swept = broker._lock_directory, []

    def sweep_first(path, base_fd=None):
        if base_fd is None and not swept:
            swept.append(broker.sweep_runtime_dirs(tmp_path))
        return lock(path, base_fd)

    monkeypatch.setattr(broker, "_lock_directory", sweep_first)
    with RuntimeDir(tmp_path) as directory:
        assert swept == [1]
        assert list(tmp_path.iterdir()) == [directory.path]


@pytest.fixture
def short_path():
    with tempfile.TemporaryDirectory(prefix="rc-") as path:
        yield Path(path)


def test_the_first_usable_base_that_is_short_enough_is_taken(short_path, monkeypatch):
    tmp_path = short_path
    long = tmp_path / ("x" * 100)
    long.mkdir()
    usable = tmp_path / "u"
    usable.mkdir()
    monkeypatch.setattr(broker.tempfile, "tempdir", str(usable))
    for unusable in ("", "relative", str(tmp_path / "missing"), str(long)):
        monkeypatch.setenv("XDG_RUNTIME_DIR", unusable)
        with RuntimeDir() as directory:
            assert directory.path.parent == usable
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with RuntimeDir() as directory:
        assert directory.path.parent == tmp_path


def test_no_usable_base_is_explained(tmp_path):
    with pytest.raises(ConfigError, match=r"No private directory can be made in .*missing; .*TMPDIR"):
        RuntimeDir(tmp_path / "missing")

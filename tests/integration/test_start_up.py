"""A command that opens nothing imports nothing for it: that is what makes it start at once."""

import subprocess
import sys

import psutil
import pytest

from capture.broker import RuntimeDir
from capture.process import Stream
from capture.settings import load_settings
from capture.stack import Stack

# Each of these takes longer to import than all that a help text needs.
HEAVY = {
    *("aiohttp", "amqp", "asyncio", "billiard", "celery", "flower", "httpx", "kombu", "lxml", "onvif"),
    *("prometheus_client", "pydantic", "redis", "rich", "ssl", "structlog", "tornado", "zeep"),
}
BROKER_AND_CLOUD = HEAVY - {"asyncio", "pydantic", "rich", "ssl", "structlog"}  # logs and settings need these
RUN = """
import atexit, sys
atexit.register(lambda: print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr))
from capture.__main__ import main
main()
"""


def imported(*arguments: str, code: int = 0) -> set[str]:
    """Return the packages that a command had imported when it ended, which it has to with this code."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == code, done.stderr
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "words",
    ["--help", "--version", "up --help", "run --help", "status --help", "doctor --help", "demo --help"],
)
def test_a_help_text_imports_nothing_heavy(words):
    assert imported(*words.split()) & HEAVY == set()


def test_a_look_at_the_settings_imports_neither_broker_nor_cloud(tmp_path):
    config = tmp_path / "relay.toml"
    config.write_text('[ingest]\nurl = "https://cloud.example.com"\n[cameras.cam]\nsource = "test:"\n')
    found = imported("config", "check", "--config", str(config))
    assert "pydantic" in found  # it did look
    assert found & BROKER_AND_CLOUD == set()


def test_a_health_check_imports_neither_broker_nor_cloud(spool):
    """It comes every few seconds, for years."""
    found = imported("health", "any", "--spool", str(spool.root), code=1)  # nothing runs here
    assert found & BROKER_AND_CLOUD == set()


def test_worker_and_beat_of_up_bring_neither_a_shell_nor_a_web_server():
    """What Celery's other commands import would stay in each of these processes for as long as it runs."""
    code = "import sys, tasks.celery_command, celery.bin.beat, celery.bin.worker\n"
    code += "print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert "celery" in found
    assert found & {"click_repl", "flower", "prompt_toolkit", "tornado"} == set()


def test_up_starts_worker_and_beat_by_what_brings_neither(tmp_path):
    settings = load_settings(
        environ={"RELAY_CLOUD": "http://127.0.0.1:9", "RELAY_SPOOL": str(tmp_path / "s")}
    )
    with RuntimeDir(tmp_path) as runtime:
        stack = Stack(settings, runtime.path, concurrency=1, embedded_broker=True, stderr=Stream.NULL)
        stack.start()
        try:
            words = {
                name: psutil.Process(pid).cmdline() for name, pid in stack.pids.items() if name != "broker"
            }
        finally:
            stack.stop(idle=True)
    assert {name: "tasks.celery_command" in each for name, each in words.items()} == {
        "worker": True,
        "beat": True,
    }


def test_another_command_of_celery_is_refused(tmp_path):
    command = [sys.executable, "-m", "tasks.celery_command", str(tmp_path), "purge"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "found 'purge'; expected one of worker, beat\n")

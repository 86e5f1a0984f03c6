"""What a reload takes over, what it says, and what it leaves alone."""

import io
import json
import logging
import os
import signal

import pytest
import structlog
from structlog.testing import capture_logs

from capture.errors import ConfigError, SourceError
from capture.fleet import Changes
from capture.log import configure_logging
from capture.reload import Reloader
from capture.runner import StopSignals, _together
from capture.settings import load_settings

FILE = """
[ingest]
url = "http://cloud"
token = "t0ken"
[cameras.gate]
source = "rtsp://user:s3same@cam/live"
token_file = "gate.token"
"""


def settings(tmp_path, text, **environ):
    config = tmp_path / "relay.toml"
    config.write_text(text)
    return load_settings(environ=environ, config=config)


@pytest.fixture
def signals():
    before = signal.getsignal(signal.SIGHUP)
    yield StopSignals()
    signal.signal(signal.SIGHUP, before)


def test_however_often_a_reload_is_asked_for_it_is_taken_once(signals):
    signals.listen_for_reload()
    signals._terminal = None
    assert not signals.take_reload()
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGHUP)
    assert [signals.take_reload() for _ in range(2)] == [True, False]
    assert not signals.is_asked()


def test_a_hang_up_is_a_stop_when_the_terminal_is_gone_and_a_reload_while_it_is_there(signals):
    signals.listen_for_reload()
    ours, theirs = os.openpty()
    signals._terminal = theirs
    os.kill(os.getpid(), signal.SIGHUP)
    assert signals.take_reload()
    os.close(ours)
    os.kill(os.getpid(), signal.SIGHUP)
    assert not signals.take_reload()
    assert signals.is_asked()
    assert signals.name == "SIGHUP"
    os.close(theirs)


def test_of_several_failures_the_first_decides_and_the_others_are_counted():
    first, second = SourceError("a is missing"), ConfigError("b is wrong")
    assert _together([first]) is first
    both = _together([first, second, second])
    assert both.exit_code == 66
    assert str(both) == "a is missing; and 2 other cameras failed, see the log"


# --- what is said ----------------------------------------------------------------------------------


class Agent:
    """Takes over whatever it is given, and says what a log would show of it."""

    def __init__(self, settings):
        self.settings = settings
        self.cameras = dict.fromkeys(settings.cameras)

    def reload(self, settings):
        structlog.get_logger().warning("tried", source=settings.cameras["gate"].parsed_source().reveal())
        self.settings = settings
        return Changes(unchanged=tuple(settings.cameras))


class Workers:
    def __init__(self):
        self.renewed = []

    def use_token_files(self, settings):
        self.renewed.append(settings.ingest.token_files["gate"].name)


@pytest.fixture
def reload(tmp_path):
    """Reloads a file that became another; returns the lines of the log, and what the workers here learnt."""

    def run(after, *, workers=None):
        config, said = tmp_path / "relay.toml", io.StringIO()

        def learn(settings):
            configure_logging(secrets=settings.secrets(), as_json=True, stream=said)

        first = settings(tmp_path, FILE)
        learn(first)
        config.write_text(after)
        reloader = Reloader(first, lambda: load_settings(environ={}, config=config), learn=learn)
        reloader.reload(Agent(first), workers)
        return [json.loads(line) for line in said.getvalue().splitlines()]

    root = logging.getLogger()
    before = {"handlers": root.handlers, "level": root.level}
    yield run
    structlog.reset_defaults()
    root.handlers = before["handlers"]
    root.setLevel(before["level"])


def test_a_password_that_is_new_shows_in_no_log(reload):
    said = reload(FILE.replace("s3same", "n3w-password"))
    assert [entry["event"] for entry in said] == ["tried", "settings_reloaded"]
    assert said[0]["source"].startswith("rtsp://")
    assert "n3w-password" not in json.dumps(said)


def test_workers_here_learn_of_a_new_token_file(reload):
    workers = Workers()
    said = reload(FILE.replace("gate.token", "new.token"), workers=workers)
    assert workers.renewed == ["new.token"]
    assert "settings_need_restart" not in [entry["event"] for entry in said]


def test_workers_elsewhere_have_to_be_restarted_for_a_new_token_file(reload):
    said = reload(FILE.replace("gate.token", "new.token"))
    (told,) = [entry for entry in said if entry["event"] == "settings_need_restart"]
    assert told["keys"] == ["ingest.token_files"]
    assert "restart the workers" in told["then"]


def test_all_that_is_wrong_with_a_new_file_is_said_at_once_and_no_secret(reload):
    wrong = FILE.replace("[cameras", "success = 9\n[cameras").replace("token_file", "fps = 0\ntoken_file")
    (entry,) = reload(wrong.replace("rtsp://user:s3same@cam", "rtsp://user:h1dden@cam:99999"))
    assert entry["event"] == "reload_failed"
    assert [word in entry["reason"] for word in ("success", "fps", "source")] == [True] * 3
    assert "h1dden" not in json.dumps(entry)


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(5, "Input/output error")])
def test_whatever_fails_in_a_reload_is_logged_and_ends_nothing(tmp_path, error):
    def fail():
        raise error

    first = settings(tmp_path, FILE)
    with capture_logs() as said:
        Reloader(first, fail).reload(Agent(first), None)
    (entry,) = said
    assert (entry["event"], entry["log_level"]) == ("reload_failed", "error")
    assert entry["then"] == "everything goes on as it was"
    assert entry.get("reason") == "Input/output error" or entry["exc_info"]

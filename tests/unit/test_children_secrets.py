"""Who is given which secret: children only what they need, the log's mask all of them."""

import ast
from pathlib import Path

import pytest

from capture.settings import child_environment, load_settings
from capture.stack import Stack

CAPTURE = Path(__file__).parents[2] / "capture"
STARTERS = {"Child", "run", "Popen", "check_call", "check_output"}


def started_without_an_environment(path):
    """Return the lines that start a child with all of our own environment."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
            of_subprocess = (
                isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "subprocess"
            )
            starts = name == "Child" or (of_subprocess and name in STARTERS)
            if starts and "env" not in {keyword.arg for keyword in node.keywords}:
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", sorted(CAPTURE.glob("*.py")), ids=lambda path: path.stem)
def test_every_child_is_given_its_environment_on_purpose(path):
    assert started_without_an_environment(path) == []


def test_a_child_without_an_environment_of_its_own_would_be_seen(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("Child(argv)\nsubprocess.run(argv)\nChild(argv, env=e)\nother.run(argv)\n")
    assert started_without_an_environment(path) == [1, 2]


def test_ffmpeg_is_not_told_to_write_a_report_of_all_that_it_does(monkeypatch):
    monkeypatch.setenv("FFREPORT", "level=48")
    assert "FFREPORT" not in child_environment()


class _StartedError(Exception):
    pass


@pytest.mark.parametrize(("service", "has_token"), [("worker", True), ("beat", False), ("flower", False)])
def test_only_the_worker_is_given_the_key(monkeypatch, tmp_path, service, has_token):
    settings = load_settings(environ={"RELAY_CLOUD": "https://cloud.example.com", "RELAY_TOKEN": "s3cret"})
    given = {}

    def start(argv, *, env, **_):
        given.update(env)
        raise _StartedError

    monkeypatch.setattr("capture.stack.Child", start)
    stack = Stack(settings, tmp_path, concurrency=1, embedded_broker=False, flower_port=5555)
    with pytest.raises(_StartedError):
        stack.services[service].start()
    assert ("s3cret" in given.values()) is has_token
    assert given["RELAY_INGEST__URL"] == "https://cloud.example.com"


def test_what_is_in_token_files_is_among_the_secrets_as_it_is_now(tmp_path):
    (tmp_path / "relay.toml").write_text(
        '[ingest]\ntoken_file = "all"\n[cameras.gate]\nsource = "test:"\ntoken_file = "own"\n'
        '[cameras.yard]\nsource = "test:"\ntoken_file = "gone"\n'
    )
    (tmp_path / "all").write_text("one\n")
    (tmp_path / "own").write_bytes(b"two\xff\n")
    settings = load_settings(environ={}, config=tmp_path / "relay.toml")
    assert set(settings.secrets()) == {"one", "two\udcff"}
    (tmp_path / "all").write_text("another")
    assert "another" in settings.secrets()

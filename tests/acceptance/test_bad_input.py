"""What cannot work: one message, the right exit code, and nothing half-made left behind."""

import json
import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

USAGE, SOURCE, FULL, CONFIG = 2, 66, 75, 78
SECRET = "s3cr3t"  # stands in every token and password here, and may stand in no message
NOBODY = "127.0.0.1:9"  # a port where nothing listens
MOST_LINES = 6
MOST_CHARACTERS = 900
BAD_TOML = """\
[ingest]
url = "ftp://cloud.example.com"
attempt_seconds = 0
[spool]
sweep_after = "soon"
colour = "blue"
"""


@dataclass(frozen=True)
class Bad:
    """A command line with something wrong, the exit code, and words that the message must hold.

    What is given here stands over what would work: a flag over the same flag, None leaves one out.
    `make` prepares the working directory.
    """

    code: int
    says: list[str]
    flags: dict[str, str | None] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    make: Callable[[Path], object] = lambda _directory: None
    spool: str = "spool"


def config(text):
    return lambda directory: (directory / "relay.toml").write_text(text)


def marker(**fields):
    def make(directory):
        (directory / "spool").mkdir()
        (directory / "spool" / ".relay-spool").write_text(json.dumps(fields))

    return make


def foreign(directory):
    (directory / "spool").mkdir()
    (directory / "spool" / "holiday.jpg").write_bytes(b"a picture")


TABLE = {
    "a missing file": Bad(
        SOURCE, ["missing.mp4", "No such file", "--source"], flags={"--source": "missing.mp4"}
    ),
    "a directory as the source": Bad(SOURCE, ["directory", "--source"], flags={"--source": "."}),
    "no source": Bad(CONFIG, ["no camera", "--source"], flags={"--source": None}),
    "a malformed source URL": Bad(
        USAGE, ["--source", "rtsp://"], flags={"--source": f"rtsp://user:{SECRET}@@:port/x"}
    ),
    "a source of an unknown kind": Bad(
        USAGE, ["--source", "'gopher://'"], flags={"--source": "gopher://host/x"}
    ),
    "a malformed test pattern": Bad(USAGE, ["--source", "test:640x360"], flags={"--source": "test:huge"}),
    "a malformed source URL in the environment": Bad(
        CONFIG,
        ["RELAY_SOURCE", "rtsp://"],
        flags={"--source": None},
        env={"RELAY_SOURCE": f"rtsp://user:{SECRET}@@:port/x"},
    ),
    "a camera id with a path in it": Bad(
        USAGE, ["--camera-id", "'../gate'", "letters"], flags={"--camera-id": "../gate"}
    ),
    "a spool below a file": Bad(CONFIG, ["clip.mp4/spool", "--spool"], spool="clip.mp4/spool"),
    "a spool where nothing can be made": Bad(CONFIG, ["/proc/spool", "--spool"], spool="/proc/spool"),
    "a spool of a newer version": Bad(
        CONFIG, ["format 99", "format 1", "upgrade"], make=marker(format=99, id="x")
    ),
    "a spool with a damaged marker": Bad(CONFIG, [".relay-spool", "damaged"], make=marker(colour="blue")),
    "a directory of other things as the spool": Bad(
        CONFIG, ["holiday.jpg", "empty", "--spool"], make=foreign
    ),
    "no ffmpeg": Bad(
        CONFIG, ["/nonexistent", "no such program", "RELAY_FFMPEG"], env={"RELAY_FFMPEG": "/nonexistent"}
    ),
    "an ffmpeg that is none": Bad(
        CONFIG, ["true", "no ffmpeg", "RELAY_FFMPEG"], env={"RELAY_FFMPEG": "true"}
    ),
    "no token": Bad(CONFIG, ["no token", "RELAY_TOKEN", "--token-file"], flags={"--token": None}),
    "a malformed token": Bad(USAGE, ["--token", "printable ASCII"], flags={"--token": f"two words {SECRET}"}),
    "a malformed token in the environment": Bad(
        CONFIG,
        ["RELAY_TOKEN", "printable ASCII"],
        flags={"--token": None},
        env={"RELAY_TOKEN": f"{SECRET}-schlüssel"},
    ),
    "a missing token file": Bad(
        CONFIG, ["no-key", "No such file"], flags={"--token": None, "--token-file": "no-key"}
    ),
    "a malformed token file": Bad(
        CONFIG,
        ["key.txt", "printable ASCII"],
        flags={"--token": None, "--token-file": "key.txt"},
        make=lambda directory: (directory / "key.txt").write_text(f"{SECRET}\n{SECRET}\n"),
    ),
    "no cloud": Bad(CONFIG, ["no cloud", "--cloud", "RELAY_CLOUD"], flags={"--cloud": None}),
    "a malformed cloud URL": Bad(USAGE, ["--cloud", "https://"], flags={"--cloud": "cloud.example.com"}),
    "a password in the cloud URL": Bad(
        USAGE, ["--cloud", "RELAY_TOKEN"], flags={"--cloud": f"https://user:{SECRET}@cloud.example.com"}
    ),
    "a malformed cloud URL in the environment": Bad(
        CONFIG, ["RELAY_CLOUD", "https://"], flags={"--cloud": None}, env={"RELAY_CLOUD": "http://[::1"}
    ),
    "an unknown option": Bad(USAGE, ["--colour"], flags={"--colour": "blue"}),
    "a duration that is none": Bad(
        USAGE, ["--segment-duration", "soon"], flags={"--segment-duration": "soon"}
    ),
    "a duration that is too short": Bad(
        USAGE, ["--segment-duration", "0.5"], flags={"--segment-duration": "0.01"}
    ),
    "an odd size": Bad(USAGE, ["--resolution", "641x361", "even"], flags={"--resolution": "641x361"}),
    "no upload at once": Bad(USAGE, ["--concurrency"], flags={"--concurrency": "0"}),
    "an unknown way to be refused": Bad(
        USAGE, ["--on-refused", "stop", "hold"], flags={"--on-refused": "shout"}
    ),
    "a broker that is not there": Bad(
        CONFIG, [NOBODY, "start it"], flags={"--broker": f"redis://:{SECRET}@{NOBODY}/0"}
    ),
    "a malformed broker URL": Bad(
        USAGE, ["--broker", "redis://"], flags={"--broker": f"amqp://user:{SECRET}@{NOBODY}"}
    ),
    "a missing configuration": Bad(
        CONFIG, ["relay.toml", "No such file", "--config"], flags={"--config": "relay.toml"}
    ),
    "a configuration that is no TOML": Bad(
        CONFIG, ["relay.toml", "line 1"], flags={"--config": "relay.toml"}, make=config(f"token = {SECRET}\n")
    ),
    "a configuration with an unknown key": Bad(
        CONFIG,
        ["relay.toml", "ingest.colour", "no such setting"],
        flags={"--config": "relay.toml"},
        make=config('[ingest]\ncolour = "blue"\n'),
    ),
    "a configuration with several problems": Bad(
        CONFIG,
        ["ingest.url", "ingest.attempt_seconds", "spool.sweep_after", "spool.colour", "4 settings"],
        flags={"--config": "relay.toml", "--cloud": None},
        make=config(BAD_TOML),
    ),
}


def tree(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def arguments(bad, clip):
    flags = {"--source": str(clip), "--cloud": f"http://{NOBODY}", "--token": f"{SECRET}-key"}
    flags |= {"--spool": bad.spool} | bad.flags
    return [word for flag, value in flags.items() if value is not None for word in (flag, value)]


def assert_is_one_message(log, says):
    assert "Traceback" not in log
    assert SECRET not in log
    lines = log.strip().splitlines()
    assert lines, "it says nothing"
    # Click, which reads the flags, puts two lines of usage before its message.
    is_clicks = lines[0].startswith("Usage: relay-capture")
    assert is_clicks or lines[0].startswith("relay-capture: "), log
    assert sum(line.startswith(("relay-capture: ", "Error: ")) for line in lines) == 1, log
    assert len(lines) <= MOST_LINES, log
    assert len(log) <= MOST_CHARACTERS, log
    missing = [words for words in says if words not in log]
    assert not missing, f"{missing} not in: {log}"


@pytest.fixture
def here(tmp_path, clip):
    """The working directory of the command, with a good source in it."""
    os.link(clip.path, tmp_path / "clip.mp4")
    return tmp_path


@pytest.mark.parametrize("bad", TABLE.values(), ids=TABLE.keys())
def test_bad_input_gets_one_message_its_exit_code_and_leaves_nothing(bad, start, here):
    bad.make(here)
    before = tree(here)

    relay = start("up", "--no-realtime", *arguments(bad, here / "clip.mp4"), env=bad.env)

    assert relay.exit_code(deadline=10) == bad.code, relay.tail()
    assert_is_one_message(relay.log, bad.says)
    assert tree(here) - {"relay-1.log"} == before
    assert not list(relay.runtime.iterdir())


def test_a_source_that_is_no_video_is_named_and_nothing_is_owed(up, spool, sink, tmp_path):
    poem = tmp_path / "poem.mp4"
    poem.write_text("Shall I compare thee to a summer's day?\n" * 100)
    relay = up(poem, "--no-realtime")

    assert relay.exit_code(deadline=15) == SOURCE, relay.tail()
    assert_ends_with_one_message(relay.log, ["poem.mp4", "no video", "--source"])
    assert spool.owed() == spool.open() == spool.rejected() == []
    assert sink.receipts() == []


def test_a_source_that_is_no_video_does_not_wait_for_a_cloud_that_is_down(up, sink, tmp_path):
    sink.stop()
    poem = tmp_path / "poem.mp4"
    poem.write_text("Shall I compare thee to a summer's day?\n" * 100)
    relay = up(poem, "--no-realtime")

    assert relay.exit_code(deadline=15) == SOURCE, relay.tail()


def assert_ends_with_one_message(log, says):
    """A command that was under way has said other things before."""
    assert "Traceback" not in log
    messages = [line for line in log.splitlines() if line.startswith("relay-capture: ")]
    assert len(messages) == 1, log
    assert_is_one_message(messages[0], says)


# --- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB with room for one name: its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = "size=64k,nr_inodes=1"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_spool_is_named(start, here, small_disk):
    bad = Bad(FULL, ["disk", "No space left", "make room"], spool=str(small_disk))
    relay = start("up", *arguments(bad, here / "clip.mp4"))

    assert relay.exit_code(deadline=10) == bad.code, relay.tail()
    assert_is_one_message(relay.log, bad.says)
    assert list(small_disk.iterdir()) == []


# --- the local ingest ----------------------------------------------------------------------------


def test_a_sink_on_a_port_in_use_says_so_and_makes_no_directory(start, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        sink = start("sink", "--port", port, "--dir", "stored")
        assert sink.exit_code(deadline=10) == CONFIG
    assert_is_one_message(sink.log, [port, "in use", "another port"])
    assert tree(tmp_path) == {"relay-1.log"}


def test_a_sink_with_a_fault_nobody_knows_says_so(start, tmp_path):
    sink = start("sink", "--port", "0", "--fault", "earthquake@3", "--dir", "stored")
    assert sink.exit_code(deadline=10) == USAGE
    assert_is_one_message(sink.log, ["earthquake", "503@10+8"])
    assert tree(tmp_path) == {"relay-1.log"}

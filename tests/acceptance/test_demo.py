"""The installed command, whole: a short demo, one that is interrupted, and one whose ffmpeg is killed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

COMMAND = Path(sys.executable).with_name("relay-capture")
SECONDS = "10"


@pytest.fixture
def start(tmp_path):
    """Start the demo with a directory for temporary files that is its own."""
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "tmp").mkdir()

    def run(*arguments: str) -> subprocess.Popen[str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
        # Decoys: a demo must not speak to anybody's real cloud.
        env |= {"RELAY_CLOUD": "https://cloud.invalid", "RELAY_TOKEN": "a-real-token-of-somebody"}
        env |= {"TMPDIR": str(tmp_path / "tmp"), "XDG_RUNTIME_DIR": ""}
        process = subprocess.Popen(
            [COMMAND, "demo", "--seconds", SECONDS, *arguments],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[str], words: str) -> list[str]:
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError(f"{words!r} was never said:\n{''.join(lines)}")


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def eventually(check: Callable[[], object], *, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "the expected state never came"
        time.sleep(0.02)


def test_every_frame_arrives_through_an_outage(start, tmp_path):
    process = start("--keep", "kept")
    text, _ = process.communicate(timeout=90)
    assert process.returncode == 0, text
    for words in (
        "capture started",
        "segment  1 closed",
        "OUTAGE begins: the cloud answers 503",
        "OUTAGE goes on: the cloud refuses connections",
        "OUTAGE over",
        "backlog caught up",
        "Every frame arrived: 250 of 250",
    ):
        assert words in text
    assert re.search(r"frames in / out +250 / 250\n", text)
    assert "\x1b" not in text
    assert "✗" not in text
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "demo.log",
        "ingest",
        "joined.ts",
        "spool",
    ]
    assert list((tmp_path / "tmp").iterdir()) == []
    assert "a-real-token-of-somebody" not in (tmp_path / "kept" / "demo.log").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_leaves_nothing_behind(start, tmp_path, number, code):
    process = start()
    read_until(process, "OUTAGE begins")
    family = children(process)
    process.send_signal(number)
    text, _ = process.communicate(timeout=20)
    assert process.returncode == code, text
    assert f"stopped by {number.name}" in text
    assert "Every frame arrived" not in text
    assert len(family) >= 4
    eventually(lambda: not [child for child in family if child.is_running()])
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_killed_ffmpeg_fails_the_demo_and_the_log_is_kept(start, tmp_path):
    process = start()
    read_until(process, "segment  2 closed")
    ffmpeg = next(child for child in children(process) if "testsrc2" in " ".join(child.cmdline()))
    ffmpeg.kill()
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1, text
    assert "✗ frames in / out" in text
    assert "FAILED" in text
    kept = list((tmp_path / "tmp").iterdir())
    assert len(kept) == 1
    assert str(kept[0]) in text
    assert (kept[0] / "demo.log").stat().st_size > 0


def test_a_reader_that_leaves_ends_the_demo_without_success(start, tmp_path):
    process = start()
    read_until(process, "segment  1 closed")
    family = children(process)
    process.stdout.close()
    assert process.wait(timeout=30) == 1
    eventually(lambda: not [child for child in family if child.is_running()])
    assert list((tmp_path / "tmp").iterdir()) == []

"""The counter of new video: shared, and harmless whatever lies in its place."""

import fcntl
import os

import pytest

from capture.host import host
from capture.live_bytes import LiveBytes


@pytest.fixture
def path(tmp_path):
    return tmp_path / f"live-{host()}.bin"


def test_all_of_a_host_count_in_one_place(tmp_path):
    first, second = LiveBytes(tmp_path), LiveBytes(tmp_path)
    assert first.total() == 0
    first.add(1_000)
    second.add(500)
    assert first.total() == second.total() == 1_500


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 8, b"\xff" * 4096], ids=len)
def test_a_damaged_file_is_a_number_or_none_and_is_counted_on(tmp_path, path, content):
    path.write_bytes(content)
    counter = LiveBytes(tmp_path)
    before = counter.total()
    counter.add(10)
    assert counter.total() == (before + 10) % 2**63


def test_a_link_in_its_place_is_not_followed(tmp_path, path):
    victim = tmp_path / "victim"
    victim.write_bytes(bytes(8))
    path.symlink_to(victim)
    counter = LiveBytes(tmp_path)
    counter.add(10)
    assert counter.total() == 0
    assert victim.read_bytes() == bytes(8)


def test_a_pipe_in_its_place_holds_nobody_up(tmp_path, path):
    os.mkfifo(path)
    counter = LiveBytes(tmp_path)
    counter.add(10)
    assert counter.total() == 0


def test_without_a_directory_nothing_is_counted(tmp_path):
    counter = LiveBytes(tmp_path / "gone")
    counter.add(10)
    assert counter.total() == 0


def test_those_of_other_machines_are_removed_when_they_are_old(tmp_path):
    old, young = tmp_path / "live-other.bin", tmp_path / "live-another.bin"
    for each in (old, young):
        each.write_bytes(bytes(8))
    os.utime(old, (1.0, 1.0))
    LiveBytes(tmp_path)
    assert (old.exists(), young.exists()) == (False, True)


def test_whoever_holds_it_does_not_hold_up_new_video(tmp_path, path):
    counter = LiveBytes(tmp_path)
    counter.add(10)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        counter.add(10)
    assert counter.total() == 10

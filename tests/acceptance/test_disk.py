"""The disk: a budget that is never exceeded, a disk that is really full, a mount that goes away."""

import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

from capture.segment import SegmentName
from capture.sink import Sink
from capture.spool import Spool
from tests.acceptance.conftest import COMMAND, TOKEN, Relay, SpoolFiles
from tests.chaos.oracle import judge
from tests.chaos.witness import POLL_SECONDS, Seen, Witness, seen
from tests.conftest import PACKET, add_segment, start_session
from tests.small_disk import fill_up, small_disk

NOBODY = "http://127.0.0.1:9"  # refuses every connection
PATTERNS = {"wide": "test:1280x720@25", "door": "test:640x360@25", "yard": "test:320x180@10"}
MAX_BYTES = 4_000_000


class Scale:
    """Weighs all segments of a spool every few milliseconds, those being written too; keeps the most."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.most = 0
        self.looks = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(0.02):
            self.most = max(self.most, self.weigh())
            self.looks += 1

    def weigh(self) -> int:
        """Add up by inode: a segment that closes while we look is seen twice, and never not at all."""
        sizes: dict[int, int] = {}
        for place in ("relay-segments-*/open", "relay-segments-*", "relay-segments-*/rejected"):
            for folder in self._spool.glob(place):
                with suppress(FileNotFoundError), os.scandir(folder) as entries:
                    for entry in entries:
                        with suppress(FileNotFoundError):
                            if entry.name.endswith(".ts"):
                                status = entry.stat(follow_symlinks=False)
                                sizes[status.st_ino] = status.st_size
        return sum(sizes.values())


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "relay.toml"
    path.write_text("".join(f'[cameras.{name}]\nsource = "{text}"\n' for name, text in PATTERNS.items()))
    return path


@pytest.fixture
def cameras(start, config) -> Callable[..., Relay]:
    """Starts `up` with all cameras and segments of two seconds."""

    def run(spool: Path, cloud: str, env: Mapping[str, str] | None = None) -> Relay:
        settings = {"RELAY_CLOUD": cloud, "RELAY_TOKEN": TOKEN, "RELAY_SPOOL": str(spool)}
        settings["RELAY_SPOOL__RECOVER_AFTER"] = "2"
        words = ["up", "--config", config, "--segment-duration", "2"]
        return start(*words, env={**settings, **(env or {})})

    return run


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
    return subprocess.run(
        [COMMAND, *arguments], env=clean, capture_output=True, text=True, check=False, timeout=60
    )


def assert_audit_is_clean(spool: Path) -> None:
    done = command("audit", "--spool", spool)
    assert done.returncode == 0, done.stdout + done.stderr


def dropped(spool: SpoolFiles) -> int:
    return len(spool.journal("dropped"))


# --- the budget ---


def test_the_budget_is_never_exceeded_not_after_a_kill_and_not_after_it_was_lowered(cameras, spool):
    limit = {"RELAY_SPOOL__MAX_BYTES": str(MAX_BYTES), "RELAY_SPOOL__MIN_FREE": "0"}
    with Scale(spool.path) as scale:
        relay = cameras(spool.path, NOBODY, limit)
        relay.wait_for(lambda: dropped(spool) >= 5, "segments are dropped", deadline=90)
        relay.signal(signal.SIGKILL)
        relay.exit_code()
        before = dropped(spool)
        again = cameras(spool.path, NOBODY, limit)
        again.wait_for(lambda: dropped(spool) >= before + 5, "more are dropped", deadline=90)
        again.signal(signal.SIGKILL)
        again.exit_code()
    assert scale.looks > 100
    assert MAX_BYTES * 0.7 < scale.most <= MAX_BYTES
    lowered = cameras(spool.path, NOBODY, {**limit, "RELAY_SPOOL__MAX_BYTES": "2000000"})
    lowered.wait_for(lambda: "capture_running" in lowered.log, "it captures again")
    with Scale(spool.path) as scale:
        before = dropped(spool)
        lowered.wait_for(lambda: dropped(spool) >= before + 3, "more are dropped", deadline=90)
        lowered.signal()
        assert lowered.exit_code() == 75
    assert scale.most <= 2_000_000
    assert "segments_dropped" in lowered.log
    assert_the_oldest_went(spool)
    assert_audit_is_clean(spool.path)


@pytest.fixture(scope="session")
def jump(ffmpeg, tmp_path_factory) -> Path:
    """Four seconds of a still picture, then four of noise: from kilobytes a second to megabytes."""
    path = tmp_path_factory.mktemp("jump") / "jump.mp4"
    still = "color=gray:size=640x360:rate=25:duration=4"
    noise = f"{still},noise=alls=100:allf=t"
    graph = f"{still}[a];{noise}[b];[a][b]concat=n=2"
    options = ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "18", "-g", "25", "-pix_fmt", "yuv420p"]
    command = [ffmpeg, "-nostdin", "-v", "error", "-f", "lavfi", "-i", graph, *options, path]
    subprocess.run(command, check=True, timeout=60)
    return path


def owe(root: Path, camera: str, count: int, packets: int) -> int:
    """Fill a spool as a killed agent leaves it; return its bytes."""
    with start_session(Spool.open(root, create=True), camera) as session:
        return sum(add_segment(session, n, PACKET * packets).size for n in range(1, count + 1))


def test_a_camera_whose_bitrate_jumps_does_not_pass_the_budget(start, spool, jump):
    limit = owe(spool.path, "gate", 250, 500)  # at the limit from the first moment
    settings = {"RELAY_CLOUD": NOBODY, "RELAY_TOKEN": TOKEN, "RELAY_SPOOL": str(spool.path)}
    settings |= {"RELAY_SPOOL__MAX_BYTES": str(limit), "RELAY_SPOOL__MIN_FREE": "0"}
    with Scale(spool.path) as scale:
        words = ["up", "--source", jump, "--camera-id", "gate", "--segment-duration", "1"]
        relay = start(*words, env=settings)
        relay.wait_for(lambda: len(spool.journal("closed")) >= 250 + 8, "the clip is captured")
        relay.signal()
        assert relay.exit_code() == 75
    sizes = [line["bytes"] for line in spool.journal("closed")[250:]]
    assert max(sizes) > 10 * sizes[0]
    assert sum(sizes) < limit
    assert limit * 0.7 < scale.most <= limit
    assert_audit_is_clean(spool.path)


def test_two_agents_on_one_spool_keep_one_budget_together_and_drop_nothing_twice(start, spool):
    settings = {"RELAY_CLOUD": NOBODY, "RELAY_TOKEN": TOKEN, "RELAY_SPOOL": str(spool.path)}
    settings |= {"RELAY_SPOOL__MAX_BYTES": str(MAX_BYTES), "RELAY_SPOOL__MIN_FREE": "0"}
    with Scale(spool.path) as scale:
        relays = []
        for camera in ("wide", "door"):
            words = ["up", "--source", PATTERNS["wide"], "--camera-id", camera, "--segment-duration", "2"]
            relays.append(start(*words, env=settings))
            relays[-1].wait_for(lambda: "capture_running" in relays[-1].log, "it captures")
        relays[0].wait_for(lambda: dropped(spool) >= 6, "segments are dropped", deadline=90)
        for relay in relays:
            relay.signal()
        assert [relay.exit_code() for relay in relays] == [75, 75]
    assert MAX_BYTES * 0.7 < scale.most <= MAX_BYTES
    gone = [(line["session"], line["segment"]) for line in spool.journal("dropped")]
    assert len(gone) == len(set(gone))
    assert_audit_is_clean(spool.path)


def assert_the_oldest_went(spool: SpoolFiles) -> None:
    """Within a camera nothing that was dropped is newer than anything that is still owed."""
    newest: dict[str, tuple[str, int]] = {}
    weights: Counter[str] = Counter()
    for line in spool.journal("dropped"):
        camera = line["session"].removeprefix("relay-segments-").split("-")[0]
        key = line["session"], SegmentName.parse(line["segment"]).sequence
        newest[camera] = max(newest.get(camera, ("", 0)), key)
        weights[camera] += line["bytes"]
    assert weights["wide"] == max(weights.values())  # the one that owes most
    for path in spool.owed():
        camera = path.parent.name.removeprefix("relay-segments-").split("-")[0]
        if camera in newest:
            assert (path.parent.name, SegmentName.parse(path.name).sequence) > newest[camera]


# --- a disk that is really full ---


@contextmanager
def witnessed(spool: Path, kept: Path, notes: Path) -> Iterator[Callable[[], list[Seen]]]:
    """Watch what is written; yields what ends that and tells it."""
    witness = Witness(spool, kept, notes)
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.wait(POLL_SECONDS):
            witness.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()

    def told() -> list[Seen]:
        stopping.set()
        thread.join()
        witness.close()
        return list(seen(kept, notes))

    try:
        yield told
    finally:
        stopping.set()
        thread.join()


@pytest.mark.parametrize("min_free", ["0", "2000000"], ids=["no floor", "a floor"])
def test_a_full_disk_costs_what_the_journal_says_and_all_goes_on_by_itself(
    cameras, tmp_path, min_free, decode
):
    folder, notes = tmp_path / "disk", tmp_path / "notes"
    folder.mkdir()
    with small_disk(folder, 24) as disk, witnessed(disk / "spool", disk / "kept", notes) as told:
        spool = SpoolFiles(disk / "spool")
        sink = Sink(tmp_path / "sink", token=TOKEN)
        with sink:
            url = sink.url
        relay = cameras(spool.path, url, {"RELAY_SPOOL__MIN_FREE": min_free})
        relay.wait_for(lambda: has_closed(spool, 2), "each camera has closed two segments")
        filler = fill_up(disk)
        relay.wait_for(lambda: relay.log.count("the disk is full") >= 1, "ffmpeg finds no room")
        filler.unlink()
        before = len(spool.journal("closed")) + 9
        relay.wait_for(lambda: len(spool.journal("closed")) >= before, "all capture again", deadline=60)
        with sink:
            relay.wait_for(lambda: len(spool.journal("delivered")) >= before - 9, "it recovers", deadline=60)
            relay.signal()
            assert relay.exit_code() == 0, relay.tail()
            relay.close()
        assert_audit_is_clean(spool.path)
        verdict = judge(told(), spool.path, tmp_path / "sink")
        assert verdict.problems == []
        assert verdict.delivered + verdict.explained > before
        assert verdict.explained == len(spool.journal("dropped"))
        # Also without a floor: who looks before ffmpeg meets the full disk makes room for what is written.
        assert {line["reason"] for line in spool.journal("dropped")} <= {"no room: spool.min_free"}
        causes = Counter(line["cause"] for line in spool.journal("gap"))
        assert causes["the disk is full"] >= 1, causes


def test_a_disk_that_our_own_segments_fill_never_stops_the_capture(start, tmp_path, jump):
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 32) as disk:
        spool = SpoolFiles(disk / "spool")
        owe(spool.path, "gate", 250, 600)
        settings = {"RELAY_CLOUD": NOBODY, "RELAY_TOKEN": TOKEN, "RELAY_SPOOL": str(spool.path)}
        words = ["up", "--source", jump, "--camera-id", "gate", "--segment-duration", "1"]
        relay = start(*words, env=settings)
        relay.wait_for(lambda: len(spool.journal("closed")) >= 250 + 8, "the clip is captured")
        relay.signal()
        assert relay.exit_code() == 75
        relay.close()
        assert "the disk is full" not in relay.log
        assert spool.journal("gap") == []
        assert {line["reason"] for line in spool.journal("dropped")} == {"no room: spool.min_free"}
        assert_audit_is_clean(spool.path)


def has_closed(spool: SpoolFiles, count: int) -> bool:
    closed = Counter(line["session"] for line in spool.journal("closed"))
    return len(closed) == len(PATTERNS) and min(closed.values()) >= count


# --- a mount that goes away ---


def test_without_its_mount_nothing_is_written_and_all_goes_on_when_it_is_back(cameras, sink, spool, tmp_path):
    relay = cameras(spool.path, sink.url)
    relay.wait_for(lambda: len(spool.journal("delivered")) >= 3, "it delivers")
    away = tmp_path / "away"
    spool.path.rename(away)
    spool.path.mkdir()
    written: set[str] = set()

    def is_noticed() -> bool:
        written.update(os.listdir(spool.path))
        return relay.log.count("session_not_started") == len(PATTERNS) and "budget_not_enforced" in relay.log

    relay.wait_for(is_noticed, "everybody notices")
    for name in ("status", "audit"):
        done = command(name, "--spool", spool.path)
        assert done.returncode == 78
        assert "no marker" in done.stderr
    end = relay.seconds + 8.0  # several rounds of beat, the budget and the cameras
    relay.wait_for(lambda: is_noticed() and relay.seconds > end, "it stays away", deadline=20)
    written.update(os.listdir(spool.path))
    assert written == set()
    assert relay.log.count("budget_not_enforced") == 1
    spool.path.rmdir()
    away.rename(spool.path)
    before = len(spool.journal("delivered"))
    relay.wait_for(lambda: len(spool.journal("delivered")) >= before + 6, "it goes on by itself", deadline=90)
    relay.signal()
    assert relay.exit_code() == 0, relay.tail()
    assert "Traceback" not in relay.log
    assert 1 <= relay.log.count("spool_not_mounted") <= 4
    assert_audit_is_clean(spool.path)
    assert len(spool.journal("gap")) == len(PATTERNS)
    assert min(line["seconds"] for line in spool.journal("gap")) > 5

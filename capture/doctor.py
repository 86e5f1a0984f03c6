"""The doctor: tries each thing that a capture needs, and says what to do about what does not work.

It sends no video, registers no camera, and leaves nothing behind in the spool.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from capture.agent import plan_cameras
from capture.broker import EmbeddedBroker, RuntimeDir, ping, shown_url
from capture.camera import CameraPlan
from capture.errors import EXIT_CONFIG, EXIT_REFUSED, EXIT_SOURCE, ConfigError, RelayError
from capture.ffmpeg import (
    FfmpegBinary,
    Progress,
    SegmentClosed,
    StdoutParser,
    capture_command,
    explain,
    find_ffmpeg,
)
from capture.gate import Gate
from capture.ingest import Answer, Ingest
from capture.process import Child, LineTail, Output, Stream
from capture.settings import Settings, child_environment, read_token
from capture.source import SourceKind, redact
from capture.spool import MARKER, Spool
from capture.words import bytes_text, seconds_text

Verdict = Literal["ok", "warn", "fail"]

FIRST_FRAME_SECONDS = 12.0
LOOK_SECONDS = 6.0
ENOUGH_SECONDS = 3.0
KNOCK_SECONDS = 10.0
LARGEST_CLOCK_OFFSET = 5.0
SLOW_SYNC_SECONDS = 0.1
LITTLE_SPACE = 1_000_000_000
_AT_ONCE = 4
_PROBE_BYTES = 64 * 1024
_EARLY_KEY_FRAME = 1.25  # key frames are rarely exact

_VIDEO = re.compile(r"Stream #\d+:\d+.*?: Video: (?P<codec>\w+)(?P<rest>.*)")
_SIZE = re.compile(r"\b([0-9]{2,5}x[0-9]{2,5})\b")
_FPS = re.compile(r"\b([0-9]+(?:\.[0-9]+)?) fps\b")


@dataclass(frozen=True)
class Check:
    """One result: what was tried, what was found, and what to do; the exit code that a failure asks for."""

    verdict: Verdict
    what: str
    found: str
    fix: str | None = None
    exit_code: int = EXIT_CONFIG


def examine(settings: Settings) -> Iterator[Check]:
    """Yield the results as they come, without a secret in any."""
    secrets = _secrets(settings)
    for checks in (_ffmpeg_and_sources, _spool, _broker, _ingest):
        for check in checks(settings):
            fix = None if check.fix is None else redact(check.fix, secrets)
            yield replace(check, found=redact(check.found, secrets), fix=fix)


def exit_code(checks: list[Check]) -> int:
    """Return 0, or what fits the first failure."""
    return next((check.exit_code for check in checks if check.verdict == "fail"), 0)


def _secrets(settings: Settings) -> list[str]:
    try:
        return [*settings.secrets(), read_token(settings.ingest)]
    except ConfigError:
        return list(settings.secrets())


def _fail(what: str, error: RelayError, code: int = EXIT_CONFIG) -> Check:
    """Return a failure from a message of ours, whose last part says what to do."""
    found, _, fix = str(error).rpartition("; ")
    return Check("fail", what, found or fix, fix if found else None, code)


# --- ffmpeg and sources ----------------------------------------------------------------------------


def _ffmpeg_and_sources(settings: Settings) -> Iterator[Check]:
    try:
        ffmpeg = find_ffmpeg(
            str(settings.ffmpeg) if settings.ffmpeg else None, hidden=settings.secret_variables()
        )
    except ConfigError as error:
        yield _fail("ffmpeg", error)
        return
    yield Check("ok", "ffmpeg", f"version {ffmpeg.version} ({ffmpeg.origin}), {ffmpeg.path}")
    try:
        plans = plan_cameras(settings)
    except ConfigError as error:
        yield replace(_fail("source", error), verdict="warn")
        return
    # Each child is made in the thread that watches it: it dies with that thread.
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(lambda plan: check_source(plan, ffmpeg), plans)


@dataclass
class _Look:
    """What a short capture showed."""

    frames: int = 0
    out_time: float = 0.0
    key_frames_apart: float | None = None
    ended: bool = False

    @property
    def is_enough(self) -> bool:
        return self.key_frames_apart is not None and self.out_time >= ENOUGH_SECONDS


def check_source(plan: CameraPlan, ffmpeg: FfmpegBinary) -> Check:
    """Capture a few seconds into a scratch directory, with the very command that the agent would run."""
    what = f"source {plan.id}"
    tail = LineTail(maxlen=200, redact=lambda line: redact(line, plan.source.secrets()))
    try:
        with tempfile.TemporaryDirectory(prefix="relay-capture-look-") as scratch:
            look = _look(plan, ffmpeg.path, Path(scratch), tail)
    except (OSError, ConfigError) as error:
        return Check("fail", what, f"{plan.source}: cannot be tried: {error}", "make room in /tmp")
    if not look.frames:
        return _no_frames(plan, what, tail, ended=look.ended)
    return _judge_video(plan, what, look, tail.lines())


def _look(plan: CameraPlan, ffmpeg: str, scratch: Path, tail: LineTail) -> _Look:
    # Segments of a second show how far key frames lie apart; a source without a pace is read as it comes.
    options = replace(plan.options, segment_seconds=1.0, realtime=False)
    command = capture_command(ffmpeg, plan.source, options, open_dir=scratch, first_sequence=1)
    argv = ["level+info" if word == "level+warning" else word for word in command.argv]
    argv[-1:-1] = ["-t", f"{LOOK_SECONDS:g}"]
    environment = child_environment(plan.hidden)
    look, parser = _Look(), StdoutParser()
    deadline = time.monotonic() + FIRST_FRAME_SECONDS
    with (
        Child(argv, script=command.script, env=environment, stdout=Stream.PIPE, stderr=Stream.PIPE) as child,
        Output(child) as output,
    ):
        while not output.eof and not look.is_enough and time.monotonic() < deadline:
            for stream, data in output.read(0.2):
                if stream == "stderr":
                    tail.feed(data)
                    continue
                for event in parser.feed(data):
                    _take(event, look)
            if look.frames and deadline - time.monotonic() > LOOK_SECONDS + 1:
                deadline = time.monotonic() + LOOK_SECONDS + 1
        look.ended = output.eof
    return look


def _take(event: SegmentClosed | Progress, look: _Look) -> None:
    if isinstance(event, Progress):
        look.frames = max(look.frames, event.frames)
        look.out_time = max(look.out_time, event.out_time or 0.0)
    else:
        apart = event.end - event.start
        look.frames = max(look.frames, 1)
        # The last piece ends with the look, not at a key frame.
        if event.end < LOOK_SECONDS:
            look.key_frames_apart = max(look.key_frames_apart or 0.0, apart)


def _no_frames(plan: CameraPlan, what: str, tail: LineTail, *, ended: bool) -> Check:
    complaints = [line for line in tail.lines() if "[info]" not in line]
    cause = explain(complaints).cause if ended else f"no frame within {FIRST_FRAME_SECONDS:.0f} s"
    fixes = {
        SourceKind.RTSP: "check address, user, password and path; does the camera's own player show it?",
        SourceKind.HTTP: "check the address; does a browser or player show it?",
        SourceKind.WEBCAM: "check that it is plugged in, that this user may use it (group video), and no "
        "other program does",
        SourceKind.FILE: "check the path, and that it is a video",
        SourceKind.TEST: "use another pattern, like test:640x360@25",
    }
    return Check("fail", what, f"{plan.source}: {cause}", fixes[plan.source.kind], EXIT_SOURCE)


def _judge_video(plan: CameraPlan, what: str, look: _Look, lines: list[str]) -> Check:
    codec, shown = _video(lines)
    found = f"{plan.source}: {shown}, {look.frames} frames in {seconds_text(look.out_time)}"
    if plan.options.transcodes or plan.source.kind in {SourceKind.TEST, SourceKind.WEBCAM}:
        return Check("ok", what, f"{found}; transcoded to H.264")
    if codec not in {"h264", None}:
        fix = "make sure that the cloud takes it; or set the camera to H.264, or transcode with --fps"
        return Check("warn", what, f"{found}; it is not H.264", fix)
    length = plan.options.segment_seconds
    apart = look.key_frames_apart
    if apart is None and look.out_time >= LOOK_SECONDS - 1 and look.out_time > length:
        apart = look.out_time
    if apart is not None and apart > length * _EARLY_KEY_FRAME:
        fix = f"segments will be as long as that; set the camera's key-frame interval below {length:g} s"
        return Check("warn", what, f"{found}; key frames are {apart:.1f} s or more apart", fix)
    return Check("ok", what, found)


def _video(lines: list[str]) -> tuple[str | None, str]:
    """Return the codec, and codec, size and rate in words, from what ffmpeg says about its input."""
    match = next((found for line in lines if (found := _VIDEO.search(line))), None)
    if match is None:
        return None, "video"
    size, fps = _SIZE.search(match["rest"]), _FPS.search(match["rest"])
    codec = "pictures" if match["codec"] in {"wrapped_avframe", "rawvideo"} else match["codec"]
    words = [codec, size[1] if size else "size unknown", f"{fps[1]} fps" if fps else "rate unknown"]
    return match["codec"], " ".join(words)


# --- spool -----------------------------------------------------------------------------------------


def _spool(settings: Settings) -> Iterator[Check]:
    root = settings.spool.path.absolute()
    try:
        is_new = not (root / MARKER).exists() and (not root.exists() or not _entries(root))
        if not is_new:
            Spool.open(root)
        place = _nearest(root) if is_new else root
        took = _sync_time(place)
        free = shutil.disk_usage(place).free
    except RelayError as error:
        yield _fail("spool", error)
        return
    except OSError as error:
        found = f"{error.filename or root}: {error.strerror}"
        yield Check("fail", "spool", found, "check owner, mode and mount, or give another --spool")
        return
    state = "will be made" if is_new else "is a spool"
    found = f"{root} {state}; {bytes_text(free)} free; a write is durable after {took * 1000:.1f} ms"
    if free < LITTLE_SPACE:
        yield Check("warn", "spool", found, "make room: this is what an outage is bridged with")
    elif took > SLOW_SYNC_SECONDS:
        yield Check("warn", "spool", found, "use a faster disk: each segment waits for this")
    else:
        yield Check("ok", "spool", found)


def _entries(root: Path) -> set[str]:
    return set(os.listdir(root)) - {"lost+found"}


def _nearest(path: Path) -> Path:
    """Return the directory that is there: the path, or its closest parent."""
    return next(place for place in (path, *path.parents) if place.exists())


def _sync_time(directory: Path) -> float:
    """Return how many seconds a small file takes to be durable. Raises OSError where none can be written."""
    with tempfile.TemporaryFile(dir=directory, prefix=".relay-look-") as file:
        file.write(os.urandom(_PROBE_BYTES))
        file.flush()
        began = time.monotonic()
        os.fsync(file.fileno())
        return time.monotonic() - began


# --- broker ----------------------------------------------------------------------------------------


def _broker(settings: Settings) -> Iterator[Check]:
    yield (_given_broker if "url" in settings.broker.model_fields_set else _embedded_broker)(settings)


def _given_broker(settings: Settings) -> Check:
    url = settings.broker.url.get_secret_value()
    try:
        ping(url)
    except ConfigError as error:
        return _fail("broker", error)
    return Check("ok", "broker", f"{shown_url(url)} answers")


def _embedded_broker(settings: Settings) -> Check:
    try:
        with RuntimeDir() as runtime:
            broker = EmbeddedBroker(runtime.path, hidden=settings.secret_variables())
            began = time.monotonic()
            broker.start()
            took = time.monotonic() - began
            broker.stop()
    except ConfigError as error:
        return _fail("broker", error)
    return Check("ok", "broker", f"embedded: valkey-server found; it answers after {took * 1000:.0f} ms")


# --- ingest ----------------------------------------------------------------------------------------


def _ingest(settings: Settings) -> Iterator[Check]:
    if settings.ingest.url is None:
        yield Check("fail", "ingest", "no cloud is set", "give --cloud, or set RELAY_CLOUD")
        return
    try:
        token = read_token(settings.ingest)
        ingest = Ingest(settings.ingest)
    except ConfigError as error:
        yield _fail("token" if "token" in str(error) else "ingest", error)
        return
    try:
        answer = ingest.knock(token, seconds=KNOCK_SECONDS)
    finally:
        ingest.close()
    now = datetime.now(UTC)
    yield from _reachable(settings.ingest.url, answer)
    if answer.status:
        yield _token(answer, _held_back(settings, token))
        yield _clock(answer, now)


def _reachable(url: str, answer: Answer) -> Iterator[Check]:
    if not answer.status:
        fix = "check the address, the network and a firewall between here and there"
        yield Check("fail", "ingest", f"{url} cannot be reached: {answer.reason}", fix)
    elif answer.status >= 500:  # noqa: PLR2004 - a server's error
        fix = "nothing is lost meanwhile; ask the cloud's operator if it lasts"
        yield Check("warn", "ingest", f"{url} answers, with an error of its own ({answer.status})", fix)
    elif 300 <= answer.status < 400:  # noqa: PLR2004 - redirects
        fix = "give the address that it redirects to with --cloud"
        yield Check("warn", "ingest", f"{url} redirects ({answer.status})", fix)
    elif answer.is_page and answer.status == 200:  # noqa: PLR2004
        fix = "see whether this network wants a sign-in, and whether --cloud is the API's address"
        yield Check("warn", "ingest", f"{url} answers with a web page", fix)
    else:
        yield Check("ok", "ingest", f"{url} answers ({answer.status})")


def _token(answer: Answer, held_back: str | None) -> Check:
    if answer.status in {401, 403}:
        fix = "give the current one with RELAY_TOKEN or --token-file; then start again, or run "
        fix += "`relay-capture requeue`"
        return Check("fail", "token", f"refused: {answer.reason}", fix, EXIT_REFUSED)
    if held_back:
        return Check("warn", "token", held_back, "start again, or run `relay-capture requeue`")
    if not 200 <= answer.status < 300:  # noqa: PLR2004 - success
        found = f"cannot be told: GET /api/cameras is answered with {answer.status} there"
        return Check(
            "warn", "token", found, "start `up`: the first segment tells, and nothing is lost if not"
        )
    return Check("ok", "token", "accepted")


def _held_back(settings: Settings, token: str) -> str | None:
    """Return words about an earlier refusal that still keeps uploads back."""
    try:
        found = Gate(Spool.open(settings.spool.path), settings.ingest).refusal(token)
    except ConfigError:
        return None
    return f"was refused at {found.get('time')}; uploads are held back since" if found else None


def _clock(answer: Answer, now: datetime) -> Check:
    if answer.date is None:
        return Check("ok", "clock", "the cloud does not tell its time")
    offset = (now - answer.date).total_seconds()
    found = f"{abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the cloud's"
    if abs(offset) > LARGEST_CLOCK_OFFSET:
        return Check("warn", "clock", found, "set this machine's clock (NTP): segments carry its time")
    return Check("ok", "clock", "agrees with the cloud's to a few seconds")

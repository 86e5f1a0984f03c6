"""The doctor at a camera: captures a few seconds with the agent's own command, and says what came."""

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from capture.agent import plan_cameras
from capture.camera import CameraPlan
from capture.doctor_camera_clock import clock_words
from capture.doctor_check import Check, failed
from capture.doctor_video import LOOK_SECONDS, Look, describe, measure, read_stream, warnings
from capture.errors import EXIT_SOURCE, ConfigError
from capture.ffmpeg import (
    FfmpegBinary,
    Progress,
    SegmentClosed,
    StdoutParser,
    capture_command,
    explain,
    find_ffmpeg,
)
from capture.process import Child, LineTail, Output, Stream
from capture.settings import Settings, child_environment
from capture.source import SourceKind, redact

FIRST_FRAME_SECONDS = 15.0  # more than ffmpeg waits for a source that says nothing
AT_ONCE = 8
_PATIENCE_SECONDS = 1.0
_MOST_LINE_BYTES = 1024

_FIXES = {
    SourceKind.RTSP: "check address, user, password and path; does the camera's own player show it?",
    SourceKind.HTTP: "check the address; does a browser or player show it?",
    SourceKind.WEBCAM: "check that it is plugged in, that this user may use it (group video), and no other "
    "program does",
    SourceKind.FILE: "check the path, and that it is a video",
    SourceKind.TEST: "use another pattern, like test:640x360@25",
}


@dataclass(frozen=True)
class Seen:
    """What is known of a camera after its look: the checks, and the bits per second that the cloud would get.

    `sent` is None where nothing could be measured.
    """

    camera: str
    checks: tuple[Check, ...]
    sent: float | None = None
    is_continuous: bool = True


def examine_sources(settings: Settings, seen: list[Seen]) -> Iterator[Check]:
    """Yield what is found about ffmpeg and each camera, in their order; `seen` gets an entry for each."""
    for camera, problems in settings.faulty_cameras.items():
        fix = f"mend [cameras.{camera}]; `relay-capture config check` names all that is wrong"
        yield Check("fail", f"source {camera}", "; ".join(problems), fix)
    try:
        ffmpeg = find_ffmpeg(
            str(settings.ffmpeg) if settings.ffmpeg else None, hidden=settings.secret_variables()
        )
    except ConfigError as error:
        yield failed("ffmpeg", error)
        return
    yield Check("ok", "ffmpeg", f"version {ffmpeg.version} ({ffmpeg.origin}), {ffmpeg.path}")
    try:
        plans = plan_cameras(settings)
    except ConfigError as error:
        yield replace(failed("source", error), verdict="warn")
        return
    # Each child is made in the thread that watches it: it dies with that thread.
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for each in pool.map(lambda plan: examine_source(plan, ffmpeg), plans):
            seen.append(each)
            yield from each.checks


def examine_source(plan: CameraPlan, ffmpeg: FfmpegBinary) -> Seen:
    """Capture a few seconds into a scratch directory, with the very command that the agent would run."""
    what = f"source {plan.id}"
    tail = LineTail(maxlen=200, redact=lambda line: redact(line, plan.source.secrets()))
    encodes = plan.options.transcodes or plan.source.kind in {SourceKind.TEST, SourceKind.WEBCAM}
    try:
        with tempfile.TemporaryDirectory(prefix="relay-capture-look-") as scratch:
            look = _look(plan, ffmpeg.path, Path(scratch), tail, encodes=encodes)
    except (OSError, ConfigError) as error:
        check = Check("fail", what, f"{plan.source}: cannot be tried: {error}", "make room in /tmp")
        return Seen(plan.id, (check,))
    if not look.frames:
        return Seen(plan.id, (_no_frames(plan, what, tail.lines(), ended=look.ended),))
    return _judge(plan, what, look, tail.lines(), encodes=encodes)


def _judge(plan: CameraPlan, what: str, look: Look, lines: list[str], *, encodes: bool) -> Seen:
    stream, kind = read_stream(lines), plan.source.kind
    figures = measure(look, plan.options, kind, encodes=encodes)
    shown = describe(stream, figures, plan.options, encodes=encodes)
    found = f"{plan.source}: {shown}{clock_words(plan.source)}"
    warned = warnings(stream, figures, plan.options, kind, encodes=encodes)
    checks = [Check("ok", what, found)]
    checks += [Check("warn", f"{what}: {each.about}", each.found, each.fix) for each in warned]
    return Seen(plan.id, tuple(checks), figures.sent, is_continuous=not plan.source.is_finite)


def _command(plan: CameraPlan, ffmpeg: str, scratch: Path) -> tuple[list[str], bytes]:
    # Segments of a second show early that they can be cut; a source without a pace is read as it comes.
    options = replace(plan.options, segment_seconds=1.0, realtime=False)
    command = capture_command(ffmpeg, plan.source, options, open_dir=scratch, first_sequence=1)
    argv = ["level+info" if word == "level+warning" else word for word in command.argv]
    limit = [] if plan.source.kind is SourceKind.RTSP else ["-t", f"{LOOK_SECONDS:g}"]
    argv[-1:-1] = limit
    if plan.source.kind not in {SourceKind.TEST, SourceKind.WEBCAM}:
        # A second output tells of each packet, also of those before the first key frame.
        argv += ["-map", "0:v:0", "-map", "0:a:0?", "-c", "copy", "-copyinkf", *limit]
        argv += ["-flush_packets", "1", "-f", "framecrc", "pipe:1"]
    # Sound is asked for so that it can be told of; whether it is captured stands in the arguments.
    heard = replace(options, audio="copy")
    script = capture_command(ffmpeg, plan.source, heard, open_dir=scratch, first_sequence=1).script
    return argv, script


def _look(plan: CameraPlan, ffmpeg: str, scratch: Path, tail: LineTail, *, encodes: bool) -> Look:
    argv, script = _command(plan, ffmpeg, scratch)
    environment = child_environment(plan.hidden)
    look, reader = Look(), _Reader()
    deadline = time.monotonic() + FIRST_FRAME_SECONDS
    is_live = plan.source.kind is SourceKind.RTSP
    with (
        Child(argv, script=script, env=environment, stdout=Stream.PIPE, stderr=Stream.PIPE) as child,
        Output(child) as output,
    ):
        while not output.eof and time.monotonic() < deadline:
            for name, data in output.read(0.2):
                if name == "stderr":
                    tail.feed(data)
                else:
                    reader.feed(data, look)
            if look.is_enough(encodes=encodes, is_live=is_live):
                break
            if look.began is not None:
                deadline = look.began + LOOK_SECONDS + (0.0 if is_live else _PATIENCE_SECONDS)
        look.ended = output.eof
    look.is_whole = look.ended and plan.source.kind is SourceKind.FILE
    look.out_bytes = sum(path.stat().st_size for path in scratch.glob("*.ts"))
    return look


class _Reader:
    """Tells the lines about packets from ffmpeg's reports; both come on one pipe, each line in one piece."""

    def __init__(self) -> None:
        self._rest = b""
        self._reports = StdoutParser()

    def feed(self, data: bytes, look: Look) -> None:
        at = time.monotonic()
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-_MOST_LINE_BYTES:]
        for line in lines:
            if not look.take(line, at):
                for event in self._reports.feed(line + b"\n"):
                    _note(event, look, at)


def _note(event: SegmentClosed | Progress, look: Look, at: float) -> None:
    if isinstance(event, Progress):
        look.note_frames(event.frames, at)
        look.out_time = max(look.out_time, event.out_time or 0.0)
    else:
        look.note_frames(max(1, look.frames), at)
        look.out_time = max(look.out_time, event.end)


def _no_frames(plan: CameraPlan, what: str, lines: list[str], *, ended: bool) -> Check:
    complaints = [line for line in lines if "[info]" not in line]
    fix = _FIXES[plan.source.kind]
    if ended:
        cause = explain(complaints).cause
    else:
        # A source that says nothing has ended ffmpeg by now, so something comes.
        cause = (
            f"nothing that a segment can begin with came within {FIRST_FRAME_SECONDS:.0f} s: no key frame, "
        )
        cause += "or no video at all"
        fix = f"set the camera's key-frame interval (GOP, I-frame interval) to 2 s; {fix}"
    if plan.options.audio == "copy" and any("Audio: pcm" in line for line in lines):
        fix = f'the sound may be what cannot be copied: set audio = "aac"; {fix}'
    return Check("fail", what, f"{plan.source}: {cause}", fix, EXIT_SOURCE)

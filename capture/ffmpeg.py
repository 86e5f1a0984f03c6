"""The ffmpeg command of one source: argument list and input script, built and not run.

The script goes to ffmpeg's standard input, which must then be closed: the concat demuxer reads it
to its end before it opens anything. It carries the URL, so that no password is in the process list.

Facts behind the options were tried with ffmpeg 9.0; each stands beside its option.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from capture.errors import UsageError
from capture.ffmpeg_binary import FfmpegBinary, find_ffmpeg
from capture.ffmpeg_output import (
    Failure,
    FailureKind,
    Progress,
    SegmentClosed,
    StdoutParser,
    explain,
    least_wait,
    parse_segment_line,
)
from capture.source import Source, SourceKind

__all__ = [
    "REPORT_SECONDS",
    "CaptureOptions",
    "Command",
    "Failure",
    "FailureKind",
    "FfmpegBinary",
    "Progress",
    "SegmentClosed",
    "StdoutParser",
    "capture_command",
    "explain",
    "find_ffmpeg",
    "least_wait",
    "parse_segment_line",
]

Audio = Literal["off", "copy", "aac"]

# Seconds between two reports of ffmpeg. Only then it looks for a SIGTERM: two would delay each stop.
REPORT_SECONDS = 1
# Below the 15 s within which a stalled camera must be noticed.
_NETWORK_TIMEOUT_US = 10_000_000
# A copied key frame may come this share of a segment before the border and still begin the next
# one: a camera whose key frames jitter around the border would otherwise give long and short turns.
_EARLY_KEY_FRAME = 0.05
# Our own key frames are on the border; this only absorbs rounding (1 ms is less than any frame).
_ROUNDING_S = 0.001


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """How to capture: seconds, frames per second, pixels (width, height).

    `realtime` paces a source that has no pace of its own (a file, the test pattern). `encode` has the video
    encoded anew where neither rate nor size is asked for. With a `phase`, a share of a segment, borders
    come at times of a steady clock that lie so far behind a multiple of `segment_seconds`; without one, that
    long after the first frame. It is no difference between two cameras' settings.
    """

    segment_seconds: float
    fps: float | None = None
    resolution: tuple[int, int] | None = None
    audio: Audio = "off"
    realtime: bool = True
    encode: bool = False
    phase: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.segment_seconds <= 0:
            raise UsageError(f"segments of {self.segment_seconds:g} s; expected more than 0 s")
        if self.fps is not None and self.fps <= 0:
            raise UsageError(f"{self.fps:g} frames per second; expected more than 0")
        # Halved colour planes (yuv420p) need an even width and height.
        if self.resolution and any(side <= 0 or side % 2 for side in self.resolution):
            width, height = self.resolution
            raise UsageError(f"a picture of {width}x{height}; expected even numbers above 0")

    @property
    def transcodes(self) -> bool:
        """Whether a picture is asked for that copying cannot give."""
        return self.encode or self.fps is not None or self.resolution is not None

    def ahead(self, now: float) -> float:
        """Return by how many seconds every border comes sooner for a capture that begins `now` (seconds)."""
        if self.phase is None:
            return 0.0
        return round((now - self.phase * self.segment_seconds) % self.segment_seconds, 3)


@dataclass(frozen=True, slots=True)
class Command:
    """An argument list without a secret, and what to write to standard input (it may hold one)."""

    argv: list[str]
    script: bytes

    def __repr__(self) -> str:
        return f"Command(argv={self.argv!r}, script=<{len(self.script)} bytes>)"


def capture_command(
    ffmpeg: str,
    source: Source,
    options: CaptureOptions,
    *,
    open_dir: Path,
    first_sequence: int,
    now: float = 0.0,
    platform: str = sys.platform,
) -> Command:
    """Return the command that cuts `source` into ``<open_dir>/<sequence>.ts``.

    `now` is seconds of a steady clock that all cameras share; it matters for options with a phase alone.
    `platform` is Python's name for the system: "darwin" or "linux".
    Its standard output is for StdoutParser, its standard error for `explain`. SIGTERM makes it
    finish the open segment and report it; the exit code is then 255. A live source that fell silent
    ends with exit code 0, like one that ended: only standard error tells.
    """
    encodes = options.transcodes or source.kind in {SourceKind.TEST, SourceKind.WEBCAM}
    ahead = options.ahead(now)
    argv = [
        ffmpeg,
        "-hide_banner",
        # Never read keys: standard input is the script, or somebody's terminal.
        "-nostdin",
        # Progress goes to standard output, beside the segment list: each report is one write, and
        # short enough that a pipe keeps it in one piece. Standard error is for trouble alone.
        *("-nostats", "-progress", "pipe:1", "-stats_period", str(REPORT_SECONDS)),
        *("-loglevel", "level+warning"),
        *_input(source, options, platform),
        *_video(source, options, ahead, encodes=encodes),
        *_audio(options.audio),
        *_segments(options.segment_seconds, ahead, open_dir, first_sequence, encodes=encodes),
    ]
    return Command(argv, _script(source, options))


def probe_command(ffmpeg: str, source: Source) -> Command:
    """Return the command that reads one packet of video, and succeeds if there is one."""
    options = CaptureOptions(segment_seconds=1.0, realtime=False)
    argv = [
        *(ffmpeg, "-hide_banner", "-nostdin", "-nostats", "-loglevel", "level+warning"),
        *_input(source, options, sys.platform),
        *("-map", "0:v:0", "-c:v", "copy", "-frames:v", "1"),
        # Without it a file that ends before its first frame would pass.
        *("-abort_on", "empty_output", "-f", "null", "-"),
    ]
    return Command(argv, _script(source, options))


def _input(source: Source, options: CaptureOptions, platform: str) -> list[str]:
    match source.kind:
        case SourceKind.TEST:
            pace = ["-re"] if options.realtime else []
            return [*pace, "-f", "lavfi", "-i", _pattern(source)]
        case SourceKind.WEBCAM:
            return _webcam(source.device, options, platform)
        case SourceKind.FILE:
            pace = ["-re"] if options.realtime else []
            return [*pace, *_concat("file,crypto,data")]
        case SourceKind.RTSP:
            # No pace: a live source must never be held back.
            return _concat("rtp,srtp,udp,tcp,tls")
        case SourceKind.HTTP:
            return _concat("http,https,httpproxy,tcp,tls,crypto,data")


def _concat(protocols: str) -> list[str]:
    # "-safe 0": the script is ours, and holds absolute paths and URLs.
    # Without its own list of protocols a script from a pipe may open nothing but pipes.
    return [
        "-f",
        "concat",
        "-safe",
        "0",
        "-protocol_whitelist",
        f"pipe,{protocols}",
        "-i",
        "pipe:0",
    ]


def _pattern(source: Source) -> str:
    if source.pattern is None:
        raise ValueError("a test source has a pattern")
    width, height, fps = source.pattern.width, source.pattern.height, source.pattern.fps
    end = "" if source.pattern.seconds is None else f":duration={source.pattern.seconds:g}"
    return f"testsrc2=size={width}x{height}:rate={fps:g}{end}"


def _webcam(device: str, options: CaptureOptions, platform: str) -> list[str]:
    if platform == "darwin":
        # FaceTime cameras take 30 and refuse avfoundation's own default of 29.97. Standard input is
        # not needed; ":none" leaves the microphone off.
        sound = "none" if options.audio == "off" else "default"
        return ["-f", "avfoundation", "-framerate", "30", "-i", f"{device}:{sound}"]
    path = f"/dev/video{device}" if device.isdigit() else device
    # The driver takes the nearest that it can do, and the filters do the rest.
    rate = [] if options.fps is None else ["-framerate", f"{options.fps:g}"]
    size = [] if options.resolution is None else ["-video_size", "{}x{}".format(*options.resolution)]
    return ["-f", "v4l2", *rate, *size, "-i", path]


def _video(source: Source, options: CaptureOptions, ahead: float, *, encodes: bool) -> list[str]:
    chosen = ["-map", "0:v:0"]
    if not encodes:
        return [*chosen, "-c:v", "copy", *_repairs(source)]
    quick = ["-preset", "ultrafast", "-crf", "30"] if source.pattern else ["-preset", "veryfast"]
    return [
        *chosen,
        *_filters(options),
        # The segment muxer would ask for a constant rate: frames doubled and dropped at a guess.
        *("-fps_mode", "vfr"),
        *("-c:v", "libx264", *quick, "-pix_fmt", "yuv420p"),
        # B-frames shift all times by their delay, and the first segment is then too long by it.
        *("-bf", "0"),
        *("-force_key_frames", _key_frames(options.segment_seconds, ahead)),
    ]


def _repairs(source: Source) -> list[str]:
    """Return the bitstream filters that mend what RTSP leaves out.

    Headers: some cameras send them once, in the session description. The muxer puts them before
    each full key frame itself, and not where a GOP is open or refreshed bit by bit; a segment that
    begins there would not play by itself. Not for files and HTTP: there H.265 may come with MP4's
    headers, which this filter would copy into the stream and break it.

    Times: ffmpeg loses the display time of the first frame of an RTSP stream, and the decode times
    of a few more where it has B-frames. Without this it shows the first two frames at once, and
    with B-frames it fails.
    """
    if source.kind is not SourceKind.RTSP:
        return []
    pts = "if(eq(PTS,NOPTS),if(eq(NEXT_PTS,NOPTS),DTS,NEXT_PTS-DURATION),PTS)"
    return ["-bsf:v", f"dump_extra=freq=keyframe,setts=pts='{pts}':dts='min(DTS,{pts})'"]


def _filters(options: CaptureOptions) -> list[str]:
    rate = [] if options.fps is None else [f"fps={options.fps:g}"]
    size = [] if options.resolution is None else ["scale={}:{}".format(*options.resolution), "setsar=1"]
    return ["-vf", ",".join(rate + size)] if rate or size else []


def _key_frames(segment_seconds: float, ahead: float) -> str:
    """Force a key frame on the first frame at or after each border; these come `ahead` seconds sooner.

    Asked as "has a border passed since the last forced one", which also holds when a camera's clock
    jumps; the usual ``gte(t,n_forced*S)`` would then force one on every frame until it caught up.
    """
    sooner = _ROUNDING_S + ahead
    now, then = (f"floor(({t}+{sooner:g})/{segment_seconds:g})" for t in ("t", "prev_forced_t"))
    return f"expr:if(isnan(prev_forced_t),1,gt({now},{then}))"


def _audio(audio: Audio) -> list[str]:
    if audio == "off":
        return []
    codec = ["-c:a", "copy"] if audio == "copy" else ["-c:a", "aac", "-b:a", "128k"]
    # "?": a camera without sound is no error. The queue holds video until the first sound arrives.
    return ["-map", "0:a:0?", *codec, "-max_muxing_queue_size", "1024"]


def _segments(
    seconds: float, ahead: float, open_dir: Path, first_sequence: int, *, encodes: bool
) -> list[str]:
    # The muxer counts borders from its first packet, whatever time that has, and takes this from each of
    # them: the first segment alone becomes shorter by it, and all later borders keep step.
    delta = ahead + (_ROUNDING_S if encodes else seconds * _EARLY_KEY_FRAME)
    directory = str(open_dir.absolute()).replace("%", "%%")
    return [
        # Timestamps in the file are then those of the segment list; the default adds 1.4 s.
        *("-muxdelay", "0", "-muxpreload", "0"),
        # -avoid_negative_ts stays at its default: "disabled" shifts the first segment alone, which
        # then overlaps the second.
        *("-f", "segment", "-segment_format", "mpegts"),
        *("-segment_time", f"{seconds:g}", "-segment_time_delta", f"{delta:g}"),
        *("-segment_start_number", str(first_sequence)),
        # flush_packets: a killed ffmpeg leaves all but the last packets on disk, and the size of
        # the open file shows a stall. initial_discontinuity: each segment counts its packets from
        # zero; without the mark a player of the joined segments takes the jump for a loss and calls
        # the first frame of each corrupt.
        *("-segment_format_options", "flush_packets=1:mpegts_flags=+initial_discontinuity"),
        # The list line of a segment is written after its last byte, and before the next is opened.
        *("-segment_list", "pipe:1", "-segment_list_type", "csv"),
        f"{directory}/%08d.ts",
    ]


def _script(source: Source, options: CaptureOptions) -> bytes:
    match source.kind:
        case SourceKind.TEST | SourceKind.WEBCAM:
            return b""
        case SourceKind.FILE:
            # "file:" stands because a bare path would be read as a name inside the pipe.
            # genpts: AVI holds no display times, and no segment can be cut without them.
            return _concat_script(f"file:{source.path}", {"fflags": "+genpts"})
        case SourceKind.RTSP:
            media = "video" if options.audio == "off" else "video+audio"
            return _concat_script(
                source.reveal(),
                {
                    "rtsp_transport": "tcp",
                    "timeout": str(_NETWORK_TIMEOUT_US),
                    "allowed_media_types": media,
                },
            )
        case SourceKind.HTTP:
            # Reconnecting is left to the caller, who must know of every gap: ffmpeg's default too.
            return _concat_script(source.reveal(), {"rw_timeout": str(_NETWORK_TIMEOUT_US)})


def _concat_script(url: str, options: dict[str, str]) -> bytes:
    # Inside single quotes only the single quote itself is special to ffmpeg, backslashes are not.
    quoted = url.replace("'", r"'\''")
    lines = ["ffconcat version 1.0", f"file '{quoted}'"]
    lines += [f"option {name} {value}" for name, value in options.items()]
    return os.fsencode("\n".join([*lines, ""]))

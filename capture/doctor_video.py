"""What a few seconds of video show: codec, rates, key frames, pace, and which of it will hurt. Pure.

ffmpeg's ``framecrc`` muxer writes a line for each packet: stream, decode time, display time, duration, size,
checksum, and ``F=0x…`` where it is no key frame.
"""

import itertools
import re
from dataclasses import dataclass, field

from capture.ffmpeg import CaptureOptions
from capture.source import SourceKind
from capture.words import rate_text

LOOK_SECONDS = 15.0  # longest: key frames further apart than this are bad enough
ENOUGH_SECONDS = 4.0
_EARLY_KEY_FRAME = 1.25  # key frames are rarely exact
_LONG_INTERVAL = 9.5  # seconds; cameras count it in frames, and are rarely exact
_LONG_PART = 7.0  # seconds, of one whose ends were not seen
_SETTLED_SECONDS = 1.0  # a camera may begin with what it kept since its last key frame
_PACE_SECONDS = 2.0
_PACES = (0.8, 1.25)  # of timestamps against the clock, that a busy machine can make of a good camera
TS_OVERHEAD = 1.05  # of packets of 188 bytes with their headers over the bare video

_PACKET = re.compile(rb"\s*([01]),\s*(-?[0-9]+),\s*(-?[0-9]+),\s*[0-9]+,\s*([0-9]+),\s*0x[0-9a-f]+(.*)")
_TIME_BASE = re.compile(rb"#tb ([01]): ([0-9]+)/([0-9]+)")
_VIDEO = re.compile(r"Stream #\d+:\d+.*?: Video: (?P<codec>\w+)(?: \((?P<profile>[\w :.+-]+)\))?(?P<rest>.*)")
_AUDIO = re.compile(r"Stream #\d+:\d+.*?: Audio: (?P<codec>\w+)")
_SIZE = re.compile(r"\b([0-9]{2,5}x[0-9]{2,5})\b")
_FPS = re.compile(r"\b([0-9]+(?:\.[0-9]+)?) fps\b")


@dataclass(frozen=True)
class Packet:
    """One frame of video as it came: its time in the stream and on our clock, in seconds."""

    time: float
    at: float
    size: int
    is_key: bool


@dataclass
class Look:
    """What was seen of one source; `out_time` and `out_bytes` are of the segments that were cut."""

    packets: list[Packet] = field(default_factory=list)
    audio_bytes: int = 0
    frames: int = 0
    out_time: float = 0.0
    out_bytes: int = 0
    began: float | None = None
    ended: bool = False
    is_whole: bool = False  # a file that was read to its end
    _bases: dict[bytes, float] = field(default_factory=dict)

    def take(self, line: bytes, at: float) -> bool:
        """Take a line of ffmpeg's output that came at a moment; False if it is none of framecrc's."""
        if base := _TIME_BASE.match(line):
            self._bases[base[1]] = int(base[2]) / max(1, int(base[3]))
            return True
        packet = _PACKET.fullmatch(line)
        if packet is None:
            return line.startswith(b"#")
        stream, decoded, _, size, rest = packet.groups()
        if stream == b"1":
            self.audio_bytes += int(size)
            return True
        is_key = b"F=0x" not in rest
        self.packets.append(Packet(int(decoded) * self._bases.get(stream, 0.0), at, int(size), is_key))
        self.note_frames(len(self.packets), at)
        return True

    def note_frames(self, frames: int, at: float) -> None:
        self.frames = max(self.frames, frames)
        if frames and self.began is None:
            self.began = at

    def is_enough(self, *, encodes: bool, is_live: bool) -> bool:
        """Tell whether a longer look would show nothing new. Of a live source our clock counts."""
        if encodes:
            return self.out_time >= ENOUGH_SECONDS
        if sum(packet.is_key for packet in self.packets) < 2:  # noqa: PLR2004 - what lies between them counts
            return False
        first, last = self.packets[0], self.packets[-1]
        return (last.at - first.at if is_live else last.time - first.time) >= ENOUGH_SECONDS


@dataclass(frozen=True)
class Stream:
    """What ffmpeg says about the input; None for what it does not say."""

    codec: str | None = None
    profile: str | None = None
    size: str | None = None
    fps: float | None = None
    audio: str | None = None


def read_stream(lines: list[str]) -> Stream:
    """Read the first video stream and the first audio stream from ffmpeg's messages."""
    video = next((found for line in lines if (found := _VIDEO.search(line))), None)
    audio = next((found for line in lines if (found := _AUDIO.search(line))), None)
    if video is None:
        return Stream(audio=audio["codec"] if audio else None)
    size, fps = _SIZE.search(video["rest"]), _FPS.search(video["rest"])
    return Stream(
        video["codec"],
        video["profile"],
        size[1] if size else None,
        float(fps[1]) if fps else None,
        audio["codec"] if audio else None,
    )


@dataclass(frozen=True)
class Figures:
    """What was measured: frames per second, bits per second, seconds. None where it could not be.

    `key_seconds` is the longest time between two key frames; with `is_longer` it is longer still, and nobody
    saw by how much. `pace` is how fast timestamps move against the clock. `sent` is what the cloud would get.
    """

    fps: float | None
    bits: float | None
    sent: float | None
    key_seconds: float | None
    is_longer: bool
    has_keys: bool
    pace: float | None


def measure(look: Look, options: CaptureOptions, kind: SourceKind, *, encodes: bool) -> Figures:
    """Work out the figures of a look."""
    first_key = next((place for place, packet in enumerate(look.packets) if packet.is_key), None)
    # Before the first key frame times stand still: they are ffmpeg's, not the camera's.
    body = look.packets[first_key or 0 :]
    pace = _pace(body) if kind is SourceKind.RTSP and first_key is not None else None
    trusts_times = first_key is not None and is_fit(pace)
    times = [packet.time if trusts_times else packet.at for packet in body]
    span = max(times) - min(times) if times else 0.0
    key_seconds, is_longer = _key_frames(look, first_key, times)
    bits = _bits(body, times)
    copied = None if bits is None else bits * TS_OVERHEAD
    if copied is not None and options.audio != "off":
        copied += look.audio_bytes * 8 / span
    cut = look.out_bytes * 8 / look.out_time if look.out_time >= 1 else None
    return Figures(
        fps=(len(body) - 1) / span if span >= 1 else None,
        bits=bits,
        sent=cut if encodes else copied,
        key_seconds=key_seconds,
        is_longer=is_longer,
        has_keys=first_key is not None,
        pace=pace,
    )


def _pace(packets: list[Packet]) -> float | None:
    """Return how fast the stream's time moves against the clock, once the camera has settled."""
    settled = [each for each in packets if each.at - packets[0].at >= _SETTLED_SECONDS]
    if not settled or settled[-1].at - settled[0].at < _PACE_SECONDS:
        return None
    return (settled[-1].time - settled[0].time) / (settled[-1].at - settled[0].at)


def is_fit(pace: float | None) -> bool:
    """Tell whether timestamps move about as fast as the clock; what is not known is taken as fit."""
    return pace is None or _PACES[0] <= pace <= _PACES[1]


def _key_frames(look: Look, first_key: int | None, times: list[float]) -> tuple[float | None, bool]:
    """Return the longest time between key frames, and whether it is longer than what was seen.

    `times` are of the packets from the first key frame on.
    """
    packets = look.packets
    if not packets:
        return None, False
    if first_key is None:
        return packets[-1].at - packets[0].at, True
    keys = [time for packet, time in zip(packets[first_key:], times, strict=True) if packet.is_key]
    between = max((after - before for before, after in itertools.pairwise(keys)), default=0.0)
    # What comes before the first and after the last is a part of something that may be longer.
    part = max(packets[first_key].at - packets[0].at, times[-1] - keys[-1])
    if between and part <= between * _EARLY_KEY_FRAME:
        return between, False
    return max(part, between), not look.is_whole


def _bits(packets: list[Packet], times: list[float]) -> float | None:
    """Return the bits per second, over whole groups of pictures if there are any: key frames are large."""
    keys = [place for place, packet in enumerate(packets) if packet.is_key]
    first, last = (keys[0], keys[-1]) if len(keys) > 1 else (0, len(packets) - 1)
    if last <= first or times[last] - times[first] < 1:
        first, last = 0, len(packets) - 1
    if last <= first or times[last] <= times[first]:
        return None
    return sum(packet.size for packet in packets[first:last]) * 8 / (times[last] - times[first])


# --- in words --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Warned:
    """Something that will hurt: its subject in a word or two, what was found, what to do."""

    about: str
    found: str
    fix: str


def describe(stream: Stream, figures: Figures, options: CaptureOptions, *, encodes: bool) -> str:
    """Say in words what was found."""
    codec = "pictures" if stream.codec in {"wrapped_avframe", "rawvideo"} else stream.codec or "video"
    profile = f" ({stream.profile})" if stream.profile and codec != "pictures" else ""
    parts = [f"{codec}{profile} {stream.size or 'of unknown size'}", _rates(stream.fps, figures.fps)]
    if figures.key_seconds is not None and figures.has_keys:
        more = " or more" if figures.is_longer else ""
        parts.append(f"a key frame every {figures.key_seconds:.1f} s{more}")
    if figures.bits is not None:
        parts.append(rate_text(figures.bits))
    taken = {"off": "not captured", "copy": "captured", "aac": "captured as aac"}[options.audio]
    parts.append(f"audio {stream.audio} ({taken})" if stream.audio else "no audio")
    if encodes:
        sent = "" if figures.sent is None else f" of {rate_text(figures.sent)}"
        parts.append(f"transcoded to H.264{sent}")
    return ", ".join(parts)


def _rates(declared: float | None, measured: float | None) -> str:
    if declared is None and measured is None:
        return "rate unknown"
    if measured is None:
        return f"{declared:g} fps"
    said = "no rate declared" if declared is None else f"{declared:g} fps declared"
    return f"{said} and {measured:.1f} measured"


def warnings(
    stream: Stream, figures: Figures, options: CaptureOptions, kind: SourceKind, *, encodes: bool
) -> list[Warned]:
    """Return what will hurt. A source that is transcoded has the codec and key frames that we give it."""
    found = [] if encodes else [*_about_codec(stream), *_about_keys(figures, options)]
    if not is_fit(figures.pace):
        found.append(
            Warned(
                "timestamps",
                f"its time moves {figures.pace:.2f} times as fast as the clock",
                "check the camera's frame rate, and its firmware; until then segments are longer or shorter "
                "than their times say",
            )
        )
    if stream.audio and stream.audio.startswith("pcm_") and options.audio == "copy":
        fix = 'set audio = "aac" for this camera, or "off"'
        found.append(Warned("audio", f"{stream.audio} has no place in MPEG-TS", fix))
    if kind is SourceKind.RTSP and not stream.size:
        fix = "check the camera's encoder: players need its headers at each key frame"
        found.append(Warned("headers", "the camera does not tell the size of its picture", fix))
    return found


def _about_codec(stream: Stream) -> list[Warned]:
    if stream.codec in {"h264", None}:
        return []
    name = "H.265" if stream.codec == "hevc" else stream.codec
    fix = (
        "make sure that the cloud and its players take it; or set the camera to H.264, or transcode with fps"
    )
    return [Warned("codec", f"{name}, not H.264", f"{fix} or resolution")]


def _about_keys(figures: Figures, options: CaptureOptions) -> list[Warned]:
    length, seconds = options.segment_seconds, figures.key_seconds
    advice = f"set the camera's key-frame interval (GOP, I-frame interval) to {min(2.0, length):g} s"
    if seconds is None:
        return []
    if not figures.has_keys:
        found = f"no key frame within {seconds:.0f} s; a segment can begin only at one"
        return [Warned("key frames", found, advice)]
    more = " or more" if figures.is_longer else ""
    if seconds > length * _EARLY_KEY_FRAME:
        found = (
            f"key frames are {seconds:.1f} s{more} apart: segments of {length:g} s will be as long as that"
        )
        return [Warned("key frames", found, advice)]
    if seconds >= (_LONG_PART if figures.is_longer else _LONG_INTERVAL):
        found = f"key frames are {seconds:.1f} s{more} apart: a lost connection costs as much video again"
        return [Warned("key frames", found, advice)]
    return []

"""Short clips whose frames carry their number, encoded once, so that a served camera costs next to nothing.

For the system's Python, which has GStreamer's bindings. Sizes in pixels, bitrate in kbit/s.
"""

import random
from dataclasses import dataclass

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
from gi.repository import Gst  # noqa: E402 - a version has to be asked for first

BITS = 16  # of the number in each picture, the most significant at the left
WHITE, BLACK, GREY = 235, 16, 128
ENCODERS = {
    "h264": (
        "x264enc speed-preset=ultrafast tune=zerolatency bframes=0 byte-stream=true threads=1 {rate} "
        'key-int-max={key} option-string="keyint={key}:min-keyint={key}:scenecut=0" '
        "! video/x-h264,stream-format=byte-stream,alignment=au,profile=baseline"
    ),
    "h265": (
        "x265enc speed-preset=ultrafast tune=zerolatency {rate} key-int-max={key} log-level=none "
        'option-string="keyint={key}:min-keyint={key}:scenecut=0:open-gop=0:bframes=0:repeat-headers=1" '
        "! video/x-h265,stream-format=byte-stream,alignment=au"
    ),
    "mjpeg": "jpegenc quality=60",
}


@dataclass(frozen=True)
class Unit:
    """One encoded picture."""

    data: bytes
    is_key: bool


@dataclass(frozen=True)
class Video:
    """A clip to be played in a loop; it begins with a key frame. `caps` is what GStreamer calls it."""

    codec: str
    fps: int
    units: tuple[Unit, ...]
    caps: str


def encode(codec: str, size: tuple[int, int], fps: int, *, key_every: int, frames: int, kbps: int) -> Video:
    """Encode numbered pictures, each `key_every`-th a key frame; `kbps` 0 is whatever it takes."""
    rate = f"bitrate={kbps}" if kbps else ""
    width, height = size
    raw = f"video/x-raw,format=I420,width={width},height={height},framerate={fps}/1"
    encoder = ENCODERS[codec].format(key=key_every, rate=rate)
    pipeline = Gst.parse_launch(
        f"appsrc name=in format=time caps={raw} ! {encoder} ! appsink name=out sync=false"
    )
    source, sink = pipeline.get_by_name("in"), pipeline.get_by_name("out")
    source.set_property("max-bytes", 0)
    pipeline.set_state(Gst.State.PLAYING)
    try:
        for number in range(frames):
            buffer = Gst.Buffer.new_wrapped(_picture(number, frames, size, is_noisy=kbps > 0))
            buffer.pts = buffer.dts = number * Gst.SECOND // fps
            buffer.duration = Gst.SECOND // fps
            source.emit("push-buffer", buffer)
        source.emit("end-of-stream")
        units = tuple(_units(sink))
        caps = sink.get_static_pad("sink").get_current_caps().to_string()
    finally:
        pipeline.set_state(Gst.State.NULL)
    if len(units) != frames:
        raise RuntimeError(f"{codec} gave {len(units)} pictures; expected {frames}")
    return Video(codec, fps, units, caps)


def _units(sink):
    while (sample := sink.emit("pull-sample")) is not None:
        buffer = sample.get_buffer()
        is_key = not buffer.has_flags(Gst.BufferFlags.DELTA_UNIT)
        yield Unit(buffer.extract_dup(0, buffer.get_size()), is_key)


def _picture(number: int, frames: int, size: tuple[int, int], *, is_noisy: bool) -> bytes:
    """Return an I420 picture: above the number in black and white, below a bar that moves, or noise."""
    width, height = size
    block = width // BITS
    bits = (WHITE if number >> (BITS - 1 - place) & 1 else BLACK for place in range(BITS))
    above = b"".join(bytes([bit]) * block for bit in bits).ljust(width, bytes([BLACK]))
    at = number * (width - block) // frames
    below = bytes([GREY]) * at + bytes([WHITE]) * block + bytes([GREY]) * (width - block - at)
    rows = height // 2
    lower = random.Random(number).randbytes(width * (height - rows)) if is_noisy else below * (height - rows)
    colour = bytes([GREY]) * (2 * ((width + 1) // 2) * ((height + 1) // 2))
    return above * rows + lower + colour

"""A real RTSP camera: GStreamer's RTSP server with numbered video, told what to do by standard input.

For the system's Python: ``/usr/bin/python3 rtsp_server.py``. The first line of standard input is a JSON
object with options (`OPTIONS` has them all), so that no password stands in the process list; ``{}`` is a
camera. It answers ``ready PORT`` and then a line for whatever happens: ``connected``, ``describe``,
``refused``, ``setup``, ``play``, ``closed``. Further lines are commands, each answered with ``ok COMMAND``:

======================  =============================================================================
``stall``, ``resume``   send no picture, and go on, keeping connections
``size 640x360``        another resolution from the next picture on, in the same connections
``codec h265``          another codec for those who connect from now on (``drop`` makes them)
``refuse [453|503]``    refuse further SETUPs; ``accept`` takes them again
``drop``                close all connections
``gone``, ``back``      the path answers 404, and is there again
``keys off|on``         send pictures without key frames
``spoil``, ``mend``     send pictures that no decoder can read
``speed 20``            let timestamps run at 20 times real time; ``speed 1`` ends it
``jump -30``            let timestamps jump once by so many seconds
``exit``                end at once; so does the end of standard input
======================  =============================================================================
"""

import json
import os
import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402 - as above
from rtsp_video import Video, encode  # noqa: E402 - beside this file

OPTIONS = {
    "address": "127.0.0.1",
    "port": 0,
    "path": "/live",
    "auth": "none",  # basic, digest
    "user": "admin",
    "password": "",
    "codec": "h264",  # h265, mjpeg; none is a camera without video
    "size": "320x180",
    "fps": 10,
    "key_seconds": 1.0,
    "loop_seconds": 10.0,
    "kbps": 0,  # with a number the picture is noise, to fill that rate
    "audio": "none",  # aac, pcma
    "join": "key",  # live: who connects comes in anywhere between two key frames
    "max_sessions": 0,  # 0: any number; others are refused with 453
    "stale_seconds": 0.0,  # how long a session takes a place after its connection was lost
    "dump": "",  # a file for the encoded clip
}
PAYLOADERS = {
    "h264": "rtph264pay config-interval=-1",
    "h265": "rtph265pay config-interval=-1",
    "mjpeg": "rtpjpegpay",
}
SOUND = {
    "aac": "voaacenc ! aacparse ! rtpmp4gpay",
    "pcma": "audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay",
}
AUTHS = {
    "basic": GstRtsp.RTSPAuthMethod.BASIC,
    "digest": GstRtsp.RTSPAuthMethod.DIGEST,
}
ROLE = "viewer"
TICK_MS = 5


def say(*words: object) -> None:
    # In one write: it is said from several threads, and two lines must not run into each other.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Player:
    """Sends the clip to one pipeline, picture by picture, at its pace."""

    def __init__(self, camera: "Camera", source: Gst.Element) -> None:
        self.camera = camera
        self.source = source
        self.video = camera.video
        self.begun = time.monotonic()
        self.due = 0  # pictures since it began, those left out among them
        self.index = camera.first_index()
        self.pts = 0.0

    def tick(self) -> bool:
        """Send what is due by now; False ends it."""
        if self.video is not self.camera.video:
            self.video, self.index = self.camera.video, 0
        while self.begun + self.due / self.video.fps <= time.monotonic():
            if not self.camera.stalled and self.send() is not Gst.FlowReturn.OK:
                return False
            self.due += 1
            self.index = (self.index + 1) % len(self.video.units)
            self.pts += self.camera.speed / self.video.fps
        return True

    def send(self) -> Gst.FlowReturn:
        unit = self.video.units[self.index]
        if unit.is_key and not self.camera.has_keys:
            return Gst.FlowReturn.OK
        buffer = Gst.Buffer.new_wrapped(spoilt(unit.data) if self.camera.spoils else unit.data)
        # One offset for all: a jump is a jump of the camera's clock.
        buffer.pts = buffer.dts = max(0, round((self.pts + self.camera.offset) * Gst.SECOND))
        buffer.duration = Gst.SECOND // self.video.fps
        return self.source.emit("push-buffer", buffer)


def spoilt(data: bytes) -> bytes:
    """Return a picture of the same framing whose content is noise."""
    return b"\0\0\0\1\x41" + bytes(1 + byte % 255 for byte in os.urandom(max(16, len(data))))


class Camera:
    """The server, what it serves, and how it misbehaves at the moment."""

    def __init__(self, options: dict) -> None:
        self.options = options
        self.stalled = self.spoils = False
        self.has_keys = True
        self.refuses = 0  # the status
        self.speed = 1.0
        self.offset = 0.0
        self.began = time.monotonic()
        self.seats: dict[object, float] = {}  # who has a session: until when, infinity while connected
        self.video = self.encode()
        self.server = GstRtspServer.RTSPServer()
        self.server.set_address(options["address"])
        self.server.set_service(str(options["port"]))
        self.server.connect("client-connected", self.on_client)
        if options["auth"] != "none":
            self.server.set_auth(self.auth())
        self.back()

    def encode(self) -> Video | None:
        options = self.options
        if options["codec"] == "none":
            return None
        fps = options["fps"]
        key_every = max(1, round(options["key_seconds"] * fps))
        frames = max(1, round(options["loop_seconds"] * fps / key_every)) * key_every
        size = tuple(map(int, options["size"].split("x")))
        video = encode(options["codec"], size, fps, key_every=key_every, frames=frames, kbps=options["kbps"])
        if options["dump"]:
            with open(options["dump"], "wb") as file:  # noqa: PTH123 - a plain script
                file.write(b"".join(unit.data for unit in video.units))
        return video

    def first_index(self) -> int:
        if self.options["join"] != "live":
            return 0
        return int((time.monotonic() - self.began) * self.video.fps) % len(self.video.units)

    # --- what it serves ---

    def back(self) -> None:
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(f"( {self.launch()} )")
        factory.connect("media-configure", self.on_media)
        if self.options["auth"] != "none":
            may = ",media.factory.access=(boolean)true,media.factory.construct=(boolean)true"
            factory.add_role_from_structure(Gst.Structure.new_from_string(ROLE + may))
        self.server.get_mount_points().add_factory(self.options["path"], factory)

    def gone(self) -> None:
        self.server.get_mount_points().remove_factory(self.options["path"])

    def launch(self) -> str:
        payloads = []
        if self.video:
            # The encoder's caps without the size, which may change while it runs.
            kind = ",".join(self.video.caps.split(",")[:1])
            form = "" if self.video.codec == "mjpeg" else ",stream-format=byte-stream,alignment=au"
            source = f"appsrc name=video is-live=true format=time max-bytes=0 caps={kind}{form}"
            if self.video.codec == "mjpeg":
                source += ",width={},height={},framerate={}/1".format(
                    *self.options["size"].split("x"), self.video.fps
                )
            payloads.append(f"{source} ! {PAYLOADERS[self.video.codec]} name=pay{{}}")
        if self.options["audio"] != "none":
            sound = SOUND[self.options["audio"]]
            payloads.append(f"audiotestsrc is-live=true wave=ticks ! audioconvert ! {sound} name=pay{{}}")
        return " ".join(text.format(number) for number, text in enumerate(payloads))

    def on_media(self, _: object, media: GstRtspServer.RTSPMedia) -> None:
        bin_ = media.get_element()
        bin_.get_parent().connect("deep-element-added", unsynchronised)
        source = bin_.get_by_name("video")
        if source is not None:
            source.connect("need-data", self.on_need_data())

    def on_need_data(self):
        players = []

        def start(source: Gst.Element, _: int) -> None:
            if not players:
                players.append(Player(self, source))
                GLib.timeout_add(TICK_MS, players[0].tick)

        return start

    # --- who comes ---

    def auth(self) -> GstRtspServer.RTSPAuth:
        options = self.options
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", ROLE)
        if options["auth"] == "basic":
            auth.add_basic(auth.make_basic(options["user"], options["password"]), token)
        if options["auth"] == "digest":
            auth.add_digest(options["user"], options["password"], token)
        auth.set_supported_methods(AUTHS[options["auth"]])
        return auth

    def on_client(self, _: object, client: GstRtspServer.RTSPClient) -> None:
        say("connected")
        client.connect("describe-request", lambda *_: say("describe"))
        client.connect("pre-setup-request", self.on_setup)
        client.connect("play-request", lambda *_: say("play"))
        client.connect("closed", self.on_closed)

    def on_setup(self, client: GstRtspServer.RTSPClient, _: object) -> GstRtsp.RTSPStatusCode:
        now = time.monotonic()
        self.seats = {who: until for who, until in self.seats.items() if until > now}
        limit = self.options["max_sessions"]
        is_full = bool(limit) and client not in self.seats and len(self.seats) >= limit
        if self.refuses or is_full:
            say("refused", self.refuses or 453)
            return GstRtsp.RTSPStatusCode(self.refuses or 453)
        self.seats[client] = float("inf")
        say("setup")
        return GstRtsp.RTSPStatusCode.OK

    def on_closed(self, client: GstRtspServer.RTSPClient) -> None:
        if client in self.seats:
            self.seats[client] = time.monotonic() + self.options["stale_seconds"]
        say("closed")

    def drop(self) -> None:
        self.server.client_filter(lambda *_: GstRtspServer.RTSPFilterResult.REMOVE)

    # --- what it is told ---

    def obey(self, command: str, value: str) -> None:
        match command:
            case "stall" | "resume":
                self.stalled = command == "stall"
            case "size" | "codec":
                self.options[command] = value
                self.video = self.encode()
                self.gone()
                self.back()
            case "refuse" | "accept":
                self.refuses = int(value or 453) if command == "refuse" else 0
            case "keys":
                self.has_keys = value == "on"
            case "spoil" | "mend":
                self.spoils = command == "spoil"
            case "speed":
                self.speed = float(value)
            case "jump":
                self.offset += float(value)
            case "drop" | "gone" | "back":
                getattr(self, command)()
            case "exit":
                os._exit(0)
            case _:
                raise ValueError(f"no such command: {command}")


def unsynchronised(_: object, __: object, element: Gst.Element) -> None:
    """Have pictures sent as they come, whatever their timestamps say."""
    if element.find_property("sync"):
        element.connect("notify::sync", hasten)  # the server sets it after it has added the sink
        hasten(element)


def hasten(sink: Gst.Element, _: object = None) -> None:
    if sink.get_property("sync"):
        sink.set_property("sync", False)


def main() -> None:
    options = json.loads(sys.stdin.readline())
    if unknown := options.keys() - OPTIONS.keys():
        raise SystemExit(f"unknown options: {unknown}")
    Gst.init(None)
    camera = Camera(OPTIONS | options)

    def on_line(channel: GLib.IOChannel, _: GLib.IOCondition) -> bool:
        line = channel.readline()
        if not line:
            os._exit(0)
        command, _, value = line.strip().partition(" ")
        camera.obey(command, value)
        say("ok", command)
        return True

    channel = GLib.IOChannel(sys.stdin.fileno())
    GLib.io_add_watch(channel, GLib.PRIORITY_HIGH, GLib.IO_IN | GLib.IO_HUP, on_line)
    if camera.server.attach(None) == 0:
        raise SystemExit(f"cannot listen at {options}")
    say("ready", camera.server.get_bound_port())
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()

"""A small ONVIF device on the loopback interface: answers WS-Discovery probes, and SOAP over HTTP.

From ONVIF's Core and Media Specifications. It checks logins as they say (WS-UsernameToken with a digest, the
time within a few seconds of its own clock), and can be told to misbehave: what is in `answers` goes out as it
is, by the name of the operation.
"""

import base64
import hashlib
import http.server
import re
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self
from urllib.parse import quote
from xml.sax.saxutils import escape

GROUP, PORT = "239.255.255.250", 3702
LOOPBACK = "127.0.0.1"
NAMESPACES = {
    "s": "http://www.w3.org/2003/05/soap-envelope",
    "a": "http://schemas.xmlsoap.org/ws/2004/08/addressing",
    "d": "http://schemas.xmlsoap.org/ws/2005/04/discovery",
    "dn": "http://www.onvif.org/ver10/network/wsdl",
    "tds": "http://www.onvif.org/ver10/device/wsdl",
    "trt": "http://www.onvif.org/ver10/media/wsdl",
    "tt": "http://www.onvif.org/ver10/schema",
    "ter": "http://www.onvif.org/ver10/error",
}
SPACES = " ".join(f'xmlns:{prefix}="{space}"' for prefix, space in NAMESPACES.items())
FREE = {"GetSystemDateAndTime", "GetServices", "GetCapabilities"}  # by the specification, without a login
PATIENCE = 5.0  # seconds that the time of a login may be off


@dataclass(frozen=True)
class Stream:
    """One profile of the device."""

    token: str
    uri: str
    name: str = "Main"
    codec: str = "H264"
    size: tuple[int, int] = (1920, 1080)
    fps: int = 25
    gov: int = 50
    source: str = "VS1"


class OnvifDevice:
    """Answers from the moment it is made until its context ends. `calls` are the operations it was asked for.

    `address` is its own, in 127.0.0.0/8. `named` is what it tells as its address instead of the real one.
    """

    def __init__(
        self,
        *streams: Stream,
        address: str = LOOPBACK,
        name: str = "Front door",
        maker: str = "ACME",
        model: str = "IPC-A12",
        serial: str = "00:0A:4F:9C:21:7E",
        user: str = "",
        password: str = "",
        login: str = "token",
        ahead: float = 0.0,
        named: str = "",
        media: str = "",
        has_services: bool = True,
        is_found: bool = True,
    ) -> None:
        self.streams = streams or (Stream("main", f"rtsp://{address}:554/stream1"),)
        self.address, self.name = address, name
        self.identity = {
            "Manufacturer": maker,
            "Model": model,
            "FirmwareVersion": "1.2.3",
            "SerialNumber": serial,
            "HardwareId": "1",
        }
        self.user, self.password, self.login, self.ahead = user, password, login, ahead
        self.media, self.has_services = media, has_services
        self.answers: dict[str, bytes] = {}
        self.location = ""
        self.calls: list[str] = []
        self.headers: list[str] = []
        self._server = http.server.ThreadingHTTPServer((address, 0), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://{address}:{self.port}/onvif/device_service"
        self.named = named or self.url
        self._threads = [threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)]
        self._ended = threading.Event()
        self._ear = self._voice = None
        if is_found:
            self._ear, self._voice = _ear(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._voice.bind((address, 0))
            self._threads.append(threading.Thread(target=self._hear, daemon=True))
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._ended.set()
        self._server.shutdown()
        for thread in self._threads:
            thread.join(5)
        self._server.server_close()
        for each in filter(None, (self._ear, self._voice)):
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- discovery ---

    def _hear(self) -> None:
        assert self._ear
        assert self._voice
        while not self._ended.is_set():
            with suppress(TimeoutError):
                data, peer = self._ear.recvfrom(65536)
                text = data.decode("utf-8", "replace")
                message = re.search(r"<a:MessageID>([^<]+)<", text)
                if message and "NetworkVideoTransmitter" in text:
                    self._voice.sendto(self.match(message[1]), peer)

    def match(self, relates_to: str) -> bytes:
        """Return the answer to a probe."""
        if "ProbeMatches" in self.answers:
            return self.answers["ProbeMatches"].replace(b"@RELATES@", relates_to.encode())
        endpoint = hashlib.md5(self.identity["SerialNumber"].encode(), usedforsecurity=False).hexdigest()
        return (
            f"<?xml version='1.0'?><s:Envelope {SPACES}><s:Header><a:MessageID>uuid:1</a:MessageID>"
            f"<a:RelatesTo>{relates_to}</a:RelatesTo><a:Action>http://schemas.xmlsoap.org/ws/2005/04/discovery/"
            "ProbeMatches</a:Action></s:Header><s:Body><d:ProbeMatches><d:ProbeMatch><a:EndpointReference>"
            f"<a:Address>urn:uuid:{endpoint}</a:Address></a:EndpointReference>"
            "<d:Types>dn:NetworkVideoTransmitter tds:Device</d:Types><d:Scopes>"
            f"onvif://www.onvif.org/Profile/S onvif://www.onvif.org/name/{quote(self.name)}</d:Scopes>"
            f"<d:XAddrs>{escape(self.named)}</d:XAddrs><d:MetadataVersion>1</d:MetadataVersion>"
            "</d:ProbeMatch></d:ProbeMatches></s:Body></s:Envelope>"
        ).encode()

    # --- SOAP ---

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        device = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                device.headers.append(str(self.headers))
                status, content = device.reply(body, self.headers.get("Authorization", ""))
                self.send_response(307 if device.location else status)
                if device.location:
                    self.send_header("Location", device.location)
                if status == 401:
                    self.send_header("WWW-Authenticate", 'Digest realm="cam", nonce="n1", qop="auth"')
                self.send_header("Content-Type", "application/soap+xml; charset=utf-8")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                with suppress(OSError):
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def reply(self, body: str, authorization: str) -> tuple[int, bytes]:
        operation = re.search(r"Body><(?:\w+:)?(\w+)", body)
        name = operation[1] if operation else ""
        self.calls.append(name)
        if name in self.answers:
            return 200, self.answers[name]
        if self.user and name not in FREE:
            if self.login == "http" and "Digest" not in authorization:
                return 401, b""
            if self.login == "token" and not self.admits(body):
                return 400, fault("Sender", "NotAuthorized", "Sender not Authorized")
        answer = {
            "GetSystemDateAndTime": self.time,
            "GetDeviceInformation": self.information,
            "GetServices": self.services,
            "GetCapabilities": self.capabilities,
            "GetProfiles": self.profiles,
        }.get(name)
        if name == "GetStreamUri":
            return self.stream(body)
        if answer is None or (name == "GetServices" and not self.has_services):
            return 500, fault("Receiver", "ActionNotSupported", f"no <{name}>")
        return 200, envelope(answer())

    def admits(self, body: str) -> bool:
        """Check a WS-UsernameToken as the profile says."""
        found = {
            key: re.search(rf"<(?:\w+:)?{key}[^>]*>([^<]+)<", body)
            for key in ("Username", "Password", "Nonce", "Created")
        }
        if not all(found.values()) or "PasswordDigest" not in body:
            return False
        user, digest, nonce, created = (match[1] for match in found.values())
        made = hashlib.sha1(  # noqa: S324 - as the profile says
            base64.b64decode(nonce) + created.encode() + self.password.encode()
        )
        moment = datetime.fromisoformat(created)
        return (
            user == self.user
            and base64.b64encode(made.digest()).decode() == digest
            and abs((moment - self.now()).total_seconds()) < PATIENCE
        )

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.ahead)

    def time(self) -> str:
        now = self.now()
        return (
            "<tds:GetSystemDateAndTimeResponse><tds:SystemDateAndTime><tt:DateTimeType>NTP</tt:DateTimeType>"
            "<tt:DaylightSavings>false</tt:DaylightSavings><tt:UTCDateTime><tt:Time>"
            f"<tt:Hour>{now.hour}</tt:Hour><tt:Minute>{now.minute}</tt:Minute><tt:Second>{now.second}</tt:Second>"
            f"</tt:Time><tt:Date><tt:Year>{now.year}</tt:Year><tt:Month>{now.month}</tt:Month>"
            f"<tt:Day>{now.day}</tt:Day></tt:Date></tt:UTCDateTime></tds:SystemDateAndTime>"
            "</tds:GetSystemDateAndTimeResponse>"
        )

    def information(self) -> str:
        members = "".join(f"<tds:{key}>{escape(value)}</tds:{key}>" for key, value in self.identity.items())
        return f"<tds:GetDeviceInformationResponse>{members}</tds:GetDeviceInformationResponse>"

    @property
    def media_address(self) -> str:
        return self.media or self.url.replace("device_service", "media")

    def services(self) -> str:
        pairs = {
            "http://www.onvif.org/ver10/device/wsdl": self.url,
            "http://www.onvif.org/ver10/media/wsdl": self.media_address,
        }
        members = "".join(
            f"<tds:Service><tds:Namespace>{space}</tds:Namespace><tds:XAddr>{escape(address)}</tds:XAddr>"
            "<tds:Version><tt:Major>2</tt:Major><tt:Minor>4</tt:Minor></tds:Version></tds:Service>"
            for space, address in pairs.items()
        )
        return f"<tds:GetServicesResponse>{members}</tds:GetServicesResponse>"

    def capabilities(self) -> str:
        return (
            "<tds:GetCapabilitiesResponse><tds:Capabilities><tt:Media>"
            f"<tt:XAddr>{escape(self.media_address)}</tt:XAddr><tt:StreamingCapabilities/></tt:Media>"
            "</tds:Capabilities></tds:GetCapabilitiesResponse>"
        )

    def profiles(self) -> str:
        members = "".join(_profile(stream) for stream in self.streams)
        return f"<trt:GetProfilesResponse>{members}</trt:GetProfilesResponse>"

    def stream(self, body: str) -> tuple[int, bytes]:
        token = re.search(r"<(?:\w+:)?ProfileToken>([^<]+)<", body)
        for stream in self.streams:
            if token and stream.token == token[1]:
                return 200, envelope(
                    f"<trt:GetStreamUriResponse><trt:MediaUri><tt:Uri>{escape(stream.uri)}</tt:Uri>"
                    "<tt:InvalidAfterConnect>false</tt:InvalidAfterConnect>"
                    "<tt:InvalidAfterReboot>false</tt:InvalidAfterReboot><tt:Timeout>PT60S</tt:Timeout>"
                    "</trt:MediaUri></trt:GetStreamUriResponse>"
                )
        return 400, fault("Sender", "InvalidArgVal", "no such profile")


def _profile(stream: Stream) -> str:
    width, height = stream.size
    return (
        f'<trt:Profiles token="{escape(stream.token)}" fixed="true"><tt:Name>{escape(stream.name)}</tt:Name>'
        f'<tt:VideoSourceConfiguration token="VSC"><tt:Name>v</tt:Name><tt:UseCount>1</tt:UseCount>'
        f"<tt:SourceToken>{escape(stream.source)}</tt:SourceToken>"
        '<tt:Bounds x="0" y="0" width="1920" height="1080"/></tt:VideoSourceConfiguration>'
        '<tt:VideoEncoderConfiguration token="VEC"><tt:Name>e</tt:Name><tt:UseCount>1</tt:UseCount>'
        f"<tt:Encoding>{stream.codec}</tt:Encoding><tt:Resolution><tt:Width>{width}</tt:Width>"
        f"<tt:Height>{height}</tt:Height></tt:Resolution><tt:Quality>4</tt:Quality><tt:RateControl>"
        f"<tt:FrameRateLimit>{stream.fps}</tt:FrameRateLimit><tt:EncodingInterval>1</tt:EncodingInterval>"
        "<tt:BitrateLimit>4096</tt:BitrateLimit></tt:RateControl>"
        f"<tt:H264><tt:GovLength>{stream.gov}</tt:GovLength><tt:H264Profile>High</tt:H264Profile></tt:H264>"
        "<tt:Multicast><tt:Address><tt:Type>IPv4</tt:Type></tt:Address><tt:Port>0</tt:Port><tt:TTL>1</tt:TTL>"
        "<tt:AutoStart>false</tt:AutoStart></tt:Multicast><tt:SessionTimeout>PT60S</tt:SessionTimeout>"
        "</tt:VideoEncoderConfiguration></trt:Profiles>"
    )


def envelope(body: str) -> bytes:
    return (
        f"<?xml version='1.0' encoding='UTF-8'?><s:Envelope {SPACES}><s:Body>{body}</s:Body></s:Envelope>"
    ).encode()


def fault(code: str, subcode: str, words: str) -> bytes:
    return envelope(
        f"<s:Fault><s:Code><s:Value>s:{code}</s:Value><s:Subcode><s:Value>ter:{subcode}</s:Value></s:Subcode>"
        f'</s:Code><s:Reason><s:Text xml:lang="en">{escape(words)}</s:Text></s:Reason></s:Fault>'
    )


def _ear() -> socket.socket:
    """Return a socket that hears what is sent to the group on the loopback interface, beside others."""
    ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    ear.bind((GROUP, PORT))
    member = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(LOOPBACK))
    ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    ear.settimeout(0.2)
    return ear


def multicast_works() -> bool:
    """Tell whether a datagram to the group arrives on the loopback interface of this machine."""
    try:
        with _ear() as ear, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as voice:
            voice.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
            word = f"are you there {time.time_ns()}".encode()
            voice.sendto(word, (GROUP, PORT))
            return any(ear.recv(100) == word for _ in range(50))
    except OSError:
        return False

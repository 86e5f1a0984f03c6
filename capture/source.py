"""Where a camera's video comes from: one text, read once, and redacted everywhere but on request.

A password may be written as it is, odd characters and all, or percent-encoded: ``%`` and two hex
digits are read as an escape (write ``%25`` for a percent sign before two hex digits). ffmpeg gets
it encoded. Where an ``@`` and one of ``/ ? #`` leave two ways to read a URL, it is refused: the
wrong reading would send the password to the wrong host.
"""

import base64
import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from capture.errors import UsageError
from capture.redaction import MASK, redact

__all__ = ["MASK", "Login", "Pattern", "Source", "SourceKind", "WireType", "parse_source", "redact"]

# ffmpeg's RTSP client keeps user and password in 128 bytes and cuts what is longer without a word
# (libavformat/rtsp.c, `auth[128]`), so they are encoded as little as possible, and a longer one is
# refused here rather than by the camera.
_RTSP_LOGIN_MAX_BYTES = 127
# What ends user and password early, or is read as an escape. A colon ends the user only.
_ENCODED_IN_PASSWORD = frozenset("%/?#@\\ ")
_ENCODED_IN_USER = _ENCODED_IN_PASSWORD | {":"}
# ffmpeg sends the path as it stands; these would break the request line.
_ENCODED_IN_PATH = frozenset(' "<>')

_MAX_LENGTH = 4096
_DEFAULT_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_EXAMPLES = "rtsp://user:password@host/path, https://host/path, webcam:0, a file, or test:1280x720@25"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20}):(//)?")
_HOST_PORT = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?)"
    r"(?::(?P<port>[0-9]{1,5}))?(?=[/?#]|\Z)"
)
_SLASHLESS = frozenset({*_DEFAULT_PORTS, "rtmp", "rtmps", "srt", "udp", "rtp", "tcp", "v4l2"})
_NO_SCHEME = re.compile(r"[^/]+:.*@[A-Za-z0-9_\[]")
_DEVICE = re.compile(r"/dev/[\w./:+-]+", re.ASCII)
_PATTERN = re.compile(
    r"test(?::(?:(?P<width>[0-9]{1,5})x(?P<height>[0-9]{1,5}))?(?:@(?P<fps>[0-9]{1,3}(?:\.[0-9]+)?))?"
    r"(?:,(?P<seconds>[0-9]{1,7}(?:\.[0-9]+)?)s)?)?"
)

# Keys whose value is a secret, or names an account: in queries, and in the paths of cameras that
# take `/user=admin_password=xx_channel=1`.
_KEY = (
    r"(?:(?:[a-z0-9]*(?:pass|pwd|psw|secret|token|cred|auth|signature|api_?key|access_?key)[a-z0-9]*"
    r"|(?<![a-z0-9])(?:pw|key|sig))"
    r"|(?P<account>[a-z0-9]*(?:user|usr|login|account)[a-z0-9]*))="
)
# Strictly, a value ends at any delimiter; that is what identity is made from. Widely, it ends where
# the next key begins: a password may hold delimiters, and hiding too much does no harm.
_STRICT = re.compile(rf"({_KEY})(?P<value>[^&;?#/]*?)(?=_[a-z][a-z0-9]*=|[&;?#/]|\Z)", re.IGNORECASE)
_WIDE = re.compile(rf"({_KEY})(?P<value>.*?)(?=[_&;?#/][a-z][a-z0-9]*=|\Z)", re.IGNORECASE)

WireType = Literal["rtsp", "webcam", "file", "test"]


class SourceKind(StrEnum):
    RTSP = "rtsp"
    HTTP = "http"
    WEBCAM = "webcam"
    FILE = "file"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Pattern:
    """The moving test pattern: pixels, frames per second, seconds (None: endless)."""

    width: int = 1280
    height: int = 720
    fps: float = 25.0
    seconds: float | None = None

    def __str__(self) -> str:
        end = "" if self.seconds is None else f",{self.seconds:g}s"
        return f"test:{self.width}x{self.height}@{self.fps:g}{end}"


@dataclass(frozen=True, slots=True, repr=False)
class Login:
    """User and password, decoded, and the text they were given as."""

    user: str
    password: str
    given: str = field(compare=False)

    @property
    def encoded(self) -> str:
        """User and password as ffmpeg decodes them to exactly these."""
        user = _percent(self.user, _ENCODED_IN_USER)
        colon = ":" if ":" in self.given else ""
        return user + colon + _percent(self.password, _ENCODED_IN_PASSWORD)

    def forms(self) -> Iterator[str]:
        """Yield every text in which the secret could turn up; `redact` knows their spellings."""
        secret = self.password if ":" in self.given else self.user
        yield from (secret, _quote(secret), self.given.partition(":")[2])
        if ":" in self.given:
            yield f"{self.user}:{secret}"
        plain = f"{self.user}:{self.password}".encode("utf-8", "surrogateescape")
        yield base64.b64encode(plain).decode()

    def __repr__(self) -> str:
        return f"Login({MASK})"


@dataclass(frozen=True, slots=True, repr=False)
class Source:
    """One source. `str` and `repr` hold no secret; `reveal` is the text with all its secrets."""

    kind: SourceKind
    _head: str  # URL: scheme and "://". Otherwise everything.
    _login: Login | None = None
    _host: str = ""  # with its port
    _rest: str = ""  # path, query, fragment
    pattern: Pattern | None = None

    def reveal(self) -> str:
        """Return the real URL, path or device: only for ffmpeg, never for people or files."""
        login = f"{self._login.encoded}@" if self._login else ""
        return f"{self._head}{login}{self._host}{self._rest}"

    def without_login(self) -> "Source":
        """Return this source without user and password; what secrets its path or query holds stay."""
        return replace(self, _login=None)

    def with_login(self, user: str, password: str | None) -> "Source":
        """Return this source with a login, taken as it is: nothing in it is read as an escape.

        Raises UsageError, without a secret in it, when this source has no place for one, or has one.
        """
        if not self._host:
            raise UsageError(
                f"a {self.kind} source takes no user and no password; expected them with rtsp://, rtsps://, "
                "http:// or https:// alone: leave them out"
            )
        if self._login is not None:
            raise UsageError(
                "a login stands in the URL, and beside it; expected it once: "
                "leave it out of the URL, or leave out user and password"
            )
        if not user and password is None:
            raise UsageError("the user is empty; expected a name, or neither user nor password")
        secret = "" if password is None else ":" + _percent(password, _ENCODED_IN_PASSWORD)
        return replace(self, _login=_login(self.scheme, _percent(user, _ENCODED_IN_USER) + secret))

    def secrets(self) -> tuple[str, ...]:
        """Return every form in which a secret of this source could turn up in a log."""
        found = set(self._login.forms()) if self._login else set()
        for pattern in (_STRICT, _WIDE):
            values = [m["value"] for m in pattern.finditer(self._rest) if m["account"] is None]
            found.update(values, map(unquote, values))
        return tuple(sorted(found - {""}, key=lambda text: (-len(text), text)))

    def camera_id(self) -> str:
        """Return an id that stays the same when user, password or secret parameters change."""
        if self.kind is SourceKind.TEST:
            return "test"
        if self.kind is SourceKind.WEBCAM:
            device = self.device
            return f"webcam-{device}" if device.isdigit() else _id("webcam", Path(device).name, device)
        if self.kind is SourceKind.FILE:
            return _id("file", self.path.stem, str(self.path))
        host, port = self._host_and_port()
        path = _STRICT.sub(rf"\g<1>{MASK}", self._rest)
        return _id(self.kind, host, f"{host}:{port}{path or '/'}")

    @property
    def path(self) -> Path:
        """The absolute path of a file source."""
        if self.kind is not SourceKind.FILE:
            raise ValueError(f"a {self.kind} source has no path")
        return Path(self._head)

    @property
    def device(self) -> str:
        """The device of a webcam: an index ("0") or a path under /dev."""
        if self.kind is not SourceKind.WEBCAM:
            raise ValueError(f"a {self.kind} source has no device")
        return self._head.removeprefix("webcam:")

    @property
    def scheme(self) -> str:
        """The scheme of a network source (rtsp, rtsps, http, https); empty for the others."""
        return self._head.removesuffix("://") if self._host else ""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of a network source; an IPv6 host in brackets."""
        return self._host_and_port()

    @property
    def is_finite(self) -> bool:
        """Whether the source has an end of its own."""
        return self.kind is SourceKind.FILE or (self.pattern is not None and self.pattern.seconds is not None)

    @property
    def wire_type(self) -> WireType:
        """The ``source_type`` of the wire, which knows four: a network camera is "rtsp"."""
        match self.kind:
            case SourceKind.RTSP | SourceKind.HTTP:
                return "rtsp"
            case SourceKind.WEBCAM:
                return "webcam"
            case SourceKind.FILE:
                return "file"
            case SourceKind.TEST:
                return "test"

    def _host_and_port(self) -> tuple[str, int]:
        match = _HOST_PORT.match(self._host)
        if match is None:
            raise ValueError(f"a {self.kind} source has no host")
        return match["host"].lower(), int(match["port"] or _DEFAULT_PORTS[self.scheme])

    def __str__(self) -> str:
        login = f"{MASK}@" if self._login else ""
        rest = _WIDE.sub(rf"\g<1>{MASK}", self._rest)
        text = f"{self._head}{login}{self._host}{rest}"
        # A path may hold bytes that are no UTF-8; what people read must always be printable.
        return text.encode("utf-8", "backslashreplace").decode()

    def __repr__(self) -> str:
        return f"Source({str(self)!r})"


def parse_source(text: str) -> Source:
    """Read a source; UsageError, without a secret in it, for anything that cannot be meant."""
    text = text.strip(" \t")
    _refuse_control_characters(text)
    if len(text) > _MAX_LENGTH:
        raise UsageError(f"the source has {len(text)} characters; expected {_MAX_LENGTH} at most")
    if not text:
        raise UsageError(f"the source is empty; expected one of: {_EXAMPLES}")
    match = _SCHEME.match(text)
    scheme = match[1].lower() if match else ""
    if match and match[2] and scheme in _DEFAULT_PORTS:
        return _network(scheme, text[match.end() :])
    if scheme == "test" or text == "test":
        return _test(text)
    if scheme == "webcam" or re.fullmatch(r"[0-9]{1,3}|/dev/video[0-9]+", text):
        return _webcam(text.partition(":")[2] if scheme == "webcam" else text)
    if scheme == "file":
        return _file_url(text[len("file:") :])
    if match and (match[2] or scheme in _SLASHLESS):
        raise UsageError(f"the source starts with {match[0]!r}; expected one of: {_EXAMPLES}")
    return _file(text)


def _refuse_control_characters(text: str, *, what: str = "the source") -> None:
    if any(unicodedata.category(char) in {"Cc", "Zl", "Zp"} for char in text):
        raise UsageError(
            f"{what} holds a line break or another control character; expected one line of "
            "plain text: check what was pasted"
        )
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise UsageError(f"{what} is no valid Unicode text; write it anew") from None


def _network(scheme: str, text: str) -> Source:
    given, host, rest = _split(scheme, text)
    login = _login(scheme, given)
    kind = SourceKind.RTSP if scheme in {"rtsp", "rtsps"} else SourceKind.HTTP
    return Source(kind, f"{scheme}://", login, host, _percent(rest, _ENCODED_IN_PATH, ascii_only=True))


def _split(scheme: str, text: str) -> tuple[str, str, str]:
    """Cut what follows ``scheme://`` into login, host with port, and the rest.

    By the book the login ends at the last ``@`` before the first of ``/ ? #``. A password with one
    of these in it ends at a later ``@``. Of several readings the one whose host looks like a real
    one (a dot, an IPv6 address, localhost) is taken if it is the only one.
    """
    readings = list(_readings(text))
    strong = [reading for reading in readings if _is_strong(reading[1])]
    if len(strong) == 1 or len(readings) == 1:
        return (strong or readings)[0]
    if not readings:
        raise UsageError(
            f"the {scheme} source has no host that can be read; expected {scheme}://user:password@host"
            ":port/path, with an ASCII host name or an address, and IPv6 addresses in brackets"
        )
    raise UsageError(
        f"the {scheme} source can be read in more than one way because of its '@'; expected one "
        "'@', between password and host: write %40 for '@', %2F for '/', %3F for '?' and %23 for "
        "'#' in the password, and %40 for '@' in the path"
    )


def _readings(text: str) -> Iterator[tuple[str, str, str]]:
    authority = re.split(r"[/?#]", text, maxsplit=1)[0]
    starts = [authority.rfind("@") + 1]
    starts += [i + 1 for i in range(len(authority), len(text)) if text[i] == "@"]
    for number, start in enumerate(starts):
        login = text[: max(start - 1, 0)]
        match = _HOST_PORT.match(text, start)
        if match is None or int(match["port"] or 1) not in range(1, 65536):
            continue
        # An "@" in a path is no end of a login unless a password could stand before it.
        if number == 0 or ":" in login:
            yield login, match[0], text[match.end() :]


def _is_strong(host_port: str) -> bool:
    match = _HOST_PORT.match(host_port)
    host = match["host"].lower() if match else ""
    return "." in host or host.startswith("[") or host == "localhost"


def _login(scheme: str, given: str) -> Login | None:
    if not given:
        return None
    user, _, password = given.partition(":")
    login = Login(_unquote(user), _unquote(password), given)
    _refuse_control_characters(login.user + login.password, what="the login")
    size = len(login.encoded.encode("utf-8", "surrogateescape"))
    if scheme in {"rtsp", "rtsps"} and size > _RTSP_LOGIN_MAX_BYTES:
        raise UsageError(
            f"user and password take {size} bytes; expected {_RTSP_LOGIN_MAX_BYTES} at most, which "
            "is what ffmpeg's RTSP client keeps: set a shorter password in the camera"
        )
    return login


def _test(text: str) -> Source:
    match = _PATTERN.fullmatch(text.lower())
    pattern = _pattern(match) if match else None
    if pattern is None:
        raise UsageError(
            f"the source is {text!r}; expected a pattern like test:640x360@25,30s (size, frames "
            "per second, length; each may be left out) with an even size from 16x16 to 7680x4320 "
            "and 1 to 240 frames per second"
        )
    return Source(SourceKind.TEST, str(pattern), pattern=pattern)


def _pattern(match: re.Match[str]) -> Pattern | None:
    default = Pattern()
    pattern = Pattern(
        width=int(match["width"] or default.width),
        height=int(match["height"] or default.height),
        fps=float(match["fps"] or default.fps),
        seconds=float(match["seconds"]) if match["seconds"] else None,
    )
    fits = (
        pattern.width in range(16, 7681, 2)
        and pattern.height in range(16, 4321, 2)
        and 1 <= pattern.fps <= 240  # noqa: PLR2004 - the message above says it
        and pattern.seconds != 0
    )
    return pattern if fits else None


def _webcam(device: str) -> Source:
    index = re.fullmatch(r"(?:/dev/video)?([0-9]{1,3})", device)
    if index:
        device = str(int(index[1]))
    elif not _DEVICE.fullmatch(device) or ".." in device:
        raise UsageError(
            "the webcam is neither a number nor a device; expected webcam:0 or webcam:/dev/video0"
        )
    return Source(SourceKind.WEBCAM, f"webcam:{device}")


def _file_url(rest: str) -> Source:
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in {"", "localhost"}:
            raise UsageError(
                "the file URL names another host; expected file:///absolute/path (three slashes)"
            )
        rest = slash + path
    path = _unquote(rest)
    _refuse_control_characters(path)
    return _file(path, is_url=True)


def _file(path: str, *, is_url: bool = False) -> Source:
    if not path:
        raise UsageError("the file source has no path; expected file:/absolute/path or a path")
    if not is_url and _NO_SCHEME.match(path) and path[0] not in "./~":
        raise UsageError(
            "the source looks like a URL that lost its beginning; expected rtsp:// or http:// in "
            "front of it, or ./ in front of it if it is a file"
        )
    try:
        absolute = Path(path).expanduser().absolute()
    except RuntimeError:
        raise UsageError("the home directory in the source is unknown; write the path out") from None
    return Source(SourceKind.FILE, str(absolute))


def _percent(text: str, reserved: frozenset[str], *, ascii_only: bool = False) -> str:
    def encode(char: str) -> str:
        # A lone surrogate stands for a byte that is no UTF-8: it must arrive as that byte.
        if char in reserved or "\udc80" <= char <= "\udcff" or (ascii_only and not char.isascii()):
            return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))
        return char

    return "".join(map(encode, text))


def _unquote(text: str) -> str:
    return unquote(text, errors="surrogateescape")


def _quote(text: str) -> str:
    return quote(text, safe="", errors="surrogateescape")


def _id(kind: str, name: str, identity: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:40].strip("-.") or "x"
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{kind}-{slug}-{digest}"

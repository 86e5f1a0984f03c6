"""What was discovered, as tables to be pasted into relay.toml. Pure.

Everything that comes from a device is quoted so that it can neither end its string nor its comment; an
address that is not the device's own, or that needs a look for another reason, comes as a comment.
"""

import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from capture.discover import Device, Profile, clean, main_profiles
from capture.errors import UsageError
from capture.segment import is_camera_id
from capture.source import Source, SourceKind, parse_source
from capture.words import seconds_text

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_LONGEST_PART = 24  # characters; two of these, a serial number and a count are within a camera id's 64
_SERIAL_TAIL = 6
_SAME_SECONDS = 2.0  # a device tells whole seconds


@dataclass(frozen=True)
class LoginLines:
    """How the tables refer to the login: the user, and the reference to the password as TOML.

    With `is_certain` these lines are in force, without they are a comment to be filled in.
    """

    user: str = "admin"
    password: str = '{ env = "CAMERA_PASSWORD" }'  # noqa: S105 - a reference
    is_certain: bool = False

    def lines(self) -> Iterator[str]:
        mark = "" if self.is_certain else "# "
        yield f"{mark}user = {quoted(self.user)}"
        other = "" if self.is_certain else '  # or { file = "/etc/relay/camera.password" }'
        yield f"{mark}password = {self.password}{other}"


def quoted(text: str) -> str:
    """Return a TOML basic string: whatever does not show as itself is escaped."""
    return '"' + "".join(map(_quoted_char, text)) + '"'


def _quoted_char(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    # TOML has no surrogates: nothing that was valid text holds one.
    if unicodedata.category(char) == "Cs":
        return "?"
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"  # noqa: PLR2004 - as TOML has them


def tables(device: Device, *, every: bool, login: LoginLines, taken: set[str]) -> Iterator[str]:
    """Yield the lines for one device; ids that were given are added to `taken`."""
    yield f"# {_introduction(device)}"
    for note in device.notes:
        yield f"# NOTE: {clean(note)}"
    if device.trouble:
        yield f"# {clean(device.trouble)}"
    chosen = device.profiles if every else main_profiles(device.profiles)
    for profile in chosen:
        yield ""
        yield from _table(device, profile, login, taken, several=len(chosen) > 1)


def _introduction(device: Device) -> str:
    kind = " ".join(filter(None, (device.maker, device.model))) or device.name or "a device"
    firmware = f", firmware {device.firmware}" if device.firmware else ""
    return clean(f"{kind}{firmware}, at {device.host}{_clock_words(device.clock_offset)}", 400)


def _clock_words(offset: float | None) -> str:
    if offset is None:
        return ""
    if abs(offset) <= _SAME_SECONDS:
        return ", its clock agrees"
    return f", its clock is {seconds_text(abs(offset))} {'ahead' if offset > 0 else 'behind'}"


def _table(
    device: Device, profile: Profile, login: LoginLines, taken: set[str], *, several: bool
) -> Iterator[str]:
    facts = _facts(profile)
    try:
        source, caution = _source(profile, device.host)
    except UsageError as error:
        yield f"# {facts}: {clean(error)}"
        return
    mark = "# " if caution else ""
    if caution:
        yield f"# CAUTION: {caution}"
    yield f"{mark}[cameras.{_camera_id(device, profile, taken, several=several)}]"
    yield f"{mark}name = {quoted(_name(device, profile, several=several))}"
    yield f"{mark}source = {quoted(source)}"
    yield from (f"{mark}{line}" for line in login.lines())
    yield f"# {facts}"


def _source(profile: Profile, host: str) -> tuple[str, str]:
    """Return a stream's address without a login, and what to look at before it is used ("": nothing).

    Raises UsageError, with the reason, for what is no network stream: a device could name a file of ours.
    """
    if profile.trouble or not profile.uri:
        raise UsageError(profile.trouble or "it gave no address for this stream")
    try:
        source = parse_source(profile.uri)
    except UsageError:
        raise UsageError(f"its address cannot be read: {clean(_no_login(profile.uri))}") from None
    if source.kind not in {SourceKind.RTSP, SourceKind.HTTP}:
        raise UsageError("its address is none of a network stream")
    source = source.without_login()
    text = str(source)
    if source.secrets():
        return text, "the device put a login into the address; it stands as *** here: put yours in"
    if _bare(source) != host.strip("[]").lower():
        return text, f"this address is not the device's ({clean(host)}): use it only if you know why"
    return text, ""


def _bare(source: Source) -> str:
    return source.address[0].strip("[]")


def _no_login(uri: str) -> str:
    return re.sub(r"//.*@", "//***@", uri)


def _facts(profile: Profile) -> str:
    parts = [profile.codec or "unknown codec"]
    if profile.width and profile.height:
        parts[0] += f" {profile.width}x{profile.height}"
    if profile.fps:
        parts.append(f"{profile.fps:g} fps")
    if profile.key_every:
        every = f" ({profile.key_every / profile.fps:.1f} s)" if profile.fps else ""
        parts.append(f"a key frame every {profile.key_every} frames{every}")
    if profile.kbps:
        parts.append(f"{profile.kbps} kbit/s at most")
    return clean(f"{', '.join(parts)}; profile {profile.name or profile.token}", 400)


def _name(device: Device, profile: Profile, *, several: bool) -> str:
    name = device.name or " ".join(filter(None, (device.maker, device.model))) or device.host
    return clean(f"{name}, {profile.name or profile.token}" if several else name) or "camera"


def _camera_id(device: Device, profile: Profile, taken: set[str], *, several: bool) -> str:
    """Return an id that stays the same as long as name and serial number do."""
    serial = _slug(device.serial).replace("-", "")[-_SERIAL_TAIL:] or _slug(device.host)
    parts = [_slug(device.name or device.model)[:_LONGEST_PART], serial[:15]]
    if several:
        parts.append(_slug(profile.name or profile.token)[: _LONGEST_PART - 10])
    found = _unique("-".join(filter(None, (part.strip("-") for part in parts))) or "camera", taken)
    taken.add(found)
    return found


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def _unique(base: str, taken: Collection[str]) -> str:
    base = base if is_camera_id(base) else "camera"
    candidates = (base if number == 1 else f"{base}-{number}" for number in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)


def without_doubles(devices: list[Device]) -> list[Device]:
    """Return the devices, one that answered at several addresses only once, with a note of the others."""
    found: dict[tuple[str, str], Device] = {}
    for device in devices:
        key = (device.model, device.serial) if device.serial else (device.host, device.address)
        known = found.get(key)
        if known is None or known.trouble:
            found[key] = device
        else:
            note = f"the same serial number answers at {device.host}"
            found[key] = replace(known, notes=(*known.notes, note))
    return list(found.values())

"""What devices say about themselves when they are discovered; nothing of it is trusted.

A device is somebody else's computer: its words are cut, made printable, and quoted where they are written.
"""

import unicodedata
from dataclasses import dataclass, field

LONGEST_TEXT = 200
DISCOVER_EXTRA = "relay-capture[discover]"


def clean(value: object, longest: int = LONGEST_TEXT) -> str:
    """Return a device's word as one short printable line; "" for nothing."""
    if value is None:
        return ""
    words = " ".join(str(value)[: longest * 4].split())
    shown = (char for char in words if unicodedata.category(char)[0] != "C" and char.isprintable())
    return "".join(shown).strip()[:longest].strip()


@dataclass(frozen=True)
class Answer:
    """A device that answered a probe: who sent the answer, and where it says that it can be asked.

    `address` is what to ask; "" when all addresses it named are another host's, which stand in `elsewhere`.
    """

    sender: str
    endpoint: str
    address: str
    name: str = ""
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """One stream of a device. `source` is the camera's picture it is made from: an NVR has several."""

    token: str
    name: str = ""
    source: str = ""
    codec: str = ""
    width: int = 0
    height: int = 0
    fps: float = 0.0
    key_every: int = 0
    kbps: int = 0
    uri: str = ""
    trouble: str = ""


@dataclass(frozen=True)
class Device:
    """What one device told. `clock_offset` is how many seconds its clock is ahead of ours."""

    host: str
    address: str
    name: str = ""
    maker: str = ""
    model: str = ""
    serial: str = ""
    firmware: str = ""
    clock_offset: float | None = None
    profiles: tuple[Profile, ...] = ()
    trouble: str = ""
    notes: tuple[str, ...] = field(default=())


def main_profiles(profiles: tuple[Profile, ...]) -> tuple[Profile, ...]:
    """Return the largest stream of each picture, in the order of the device."""
    best: dict[str, Profile] = {}
    for profile in profiles:
        known = best.get(profile.source)
        if known is None or profile.width * profile.height > known.width * known.height:
            best[profile.source] = profile
    return tuple(profile for profile in profiles if profile in best.values())

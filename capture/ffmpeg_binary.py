"""Which ffmpeg to use: the one that was set, the system's if it is good enough, or the packaged."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from capture.errors import ConfigError
from capture.settings import child_environment

Origin = Literal["setting", "system", "imageio-ffmpeg"]

_MIN_MAJOR = 6
_TIMEOUT_S = 45.0  # the first start of a large program from a slow card, while a machine boots
_VERSION = re.compile(r"ffmpeg version (\S+)")
_RELEASE = re.compile(r"n?([0-9]{1,3})(?:\.|-|\Z)")
# A build from git has no number: N-109468-gd39b34123d, git-2026-01-01-abc, 2026-01-01-git-abc.
_GIT_BUILD = re.compile(r"N-[0-9]+-g|git-|[0-9]{4}-[0-9]{2}-[0-9]{2}-git-")
_NEEDED = {"demuxer": ("concat", "rtsp"), "muxer": ("segment", "mpegts")}


@dataclass(frozen=True, slots=True)
class FfmpegBinary:
    """An ffmpeg that can do what is asked of it."""

    path: str
    version: str
    origin: Origin


def find_ffmpeg(explicit: str | None = None, *, hidden: Collection[str] = ()) -> FfmpegBinary:
    """Return the ffmpeg to use; ConfigError, with advice, if there is none.

    `explicit` is the setting: a path or a name. Nothing else is tried when it is set. The `hidden` variables
    hold secrets: it must not inherit them.
    """
    if explicit:
        return _set(explicit, hidden)
    found = _system(hidden) or _packaged(hidden)
    if found is None:
        raise ConfigError(
            f"no usable ffmpeg found; expected version {_MIN_MAJOR} or newer with libx264: "
            "install ffmpeg, or `pip install imageio-ffmpeg`, or set RELAY_FFMPEG to its path"
        )
    return found


def shortcoming(version_text: str, formats_text: str) -> str | None:
    """Tell what ffmpeg lacks, from its ``-version`` and ``-formats``; None if it is good enough."""
    version = parse_version(version_text)
    if version is None:
        return "it is no ffmpeg"
    release = _RELEASE.match(version)
    if not _GIT_BUILD.match(version) and (release is None or int(release[1]) < _MIN_MAJOR):
        return f"its version is {version}, and {_MIN_MAJOR} or newer is needed"
    if "--enable-libx264" not in version_text:
        return "it was built without libx264"
    missing = _missing_formats(formats_text)
    return f"it was built without {', '.join(missing)}" if missing else None


def parse_version(version_text: str) -> str | None:
    """Return the version from the output of ``ffmpeg -version``."""
    match = _VERSION.match(version_text)
    return match[1] if match else None


def _missing_formats(formats_text: str) -> list[str]:
    # Lines like " DE  mpegts          MPEG-TS": D can read it, E can write it.
    known: dict[str, set[str]] = {"demuxer": set(), "muxer": set()}
    for flags, names in re.findall(r"^ ([D ][E ])[ d]* ([\w,]+) ", formats_text, re.MULTILINE):
        known["demuxer"].update(names.split(",") if "D" in flags else ())
        known["muxer"].update(names.split(",") if "E" in flags else ())
    return [
        f"the {name} {kind}" for kind, names in _NEEDED.items() for name in names if name not in known[kind]
    ]


def _set(explicit: str, hidden: Collection[str]) -> FfmpegBinary:
    path = shutil.which(explicit)
    found = _try(path, "setting", hidden) if path else "no such program"
    if isinstance(found, FfmpegBinary):
        return found
    raise ConfigError(
        f"the ffmpeg that is set, {explicit}, cannot be used: {found}; set RELAY_FFMPEG to "
        "another, or leave it out to use the system's or the packaged one"
    )


def _system(hidden: Collection[str]) -> FfmpegBinary | None:
    path = shutil.which("ffmpeg")
    found = _try(path, "system", hidden) if path else None
    return found if isinstance(found, FfmpegBinary) else None


def _packaged(hidden: Collection[str]) -> FfmpegBinary | None:
    path = os.environ.get("IMAGEIO_FFMPEG_EXE") or _packaged_path()
    found = _try(path, "imageio-ffmpeg", hidden) if path else None
    return found if isinstance(found, FfmpegBinary) else None


def _packaged_path() -> str | None:
    """Return the wheel's binary. Asked for it, the package would run it, with all of our environment."""
    spec = importlib.util.find_spec("imageio_ffmpeg")
    if spec is None or spec.origin is None:
        return None
    return next(map(str, sorted(Path(spec.origin).with_name("binaries").glob("ffmpeg-*"))), None)


def _try(path: str, origin: Origin, hidden: Collection[str]) -> FfmpegBinary | str:
    """Return the binary, or what is wrong with it."""
    try:
        version_text, formats_text = (_run(path, flag, hidden) for flag in ("-version", "-formats"))
    except (OSError, subprocess.SubprocessError) as error:
        return f"it does not run ({type(error).__name__})"
    problem = shortcoming(version_text, formats_text)
    return problem or FfmpegBinary(path, parse_version(version_text) or "", origin)


def _run(path: str, flag: str, hidden: Collection[str]) -> str:
    done = subprocess.run(
        [path, "-hide_banner", flag],
        env=child_environment(hidden),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=_TIMEOUT_S,
        check=True,
    )
    return done.stdout.decode("utf-8", "replace")

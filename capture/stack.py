"""`up` on one machine: broker, worker, beat and Flower as supervised children with one stop order."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from capture.broker import EmbeddedBroker
from capture.errors import ConfigError, RelayError
from capture.handoff import BACKLOG, LIVE
from capture.process import Child, Stream, describe_exit
from capture.pulse import DIRECTORY_VARIABLE, PULSE_SECONDS, STUCK_SECONDS, age_of, pulse_path
from capture.settings import ENV_PREFIX, FLOWER_PREFIX, Settings, child_environment
from capture.supervision import Ladder, State

WORKER_GRACE_SECONDS = 1.5
RENEW_SECONDS = 10.0
OTHER_GRACE_SECONDS = 0.5
IDLE_GRACE_SECONDS = 0.2
BROKER_RESTART_SECONDS = 2.0
# Which segment, and what became of it: without arguments and texts the lines look all the same.
FLOWER_COLUMNS = "name,args,state,result,exception,retries,received,runtime"
TOKEN_FILES = "RELAY_INGEST__TOKEN_FILES"  # noqa: S105 - a name

log = structlog.get_logger()


class Service:
    """One child that is started again when it ends."""

    def __init__(self, name: str, start: Callable[[], Child], *, pulses: Path | None = None) -> None:
        """`pulses` is the directory in which the child shows its pulse, if it does."""
        self.name = name
        self._pulses = pulses
        self.state = State.STOPPED
        self.restarts = 0
        self._start = start
        self._child: Child | None = None
        self._ladder = Ladder()
        self._began = 0.0
        self._again_at = 0.0
        self._look_at = 0.0
        self._kill_at: float | None = None  # while it is being renewed

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def start(self) -> None:
        self._began = time.monotonic()
        self._child = self._start()
        self._kill_at = None
        self.state = State.RUNNING

    def check(self) -> None:
        """Start it again if it ended, after a while that grows."""
        if self.state is State.BACKOFF and time.monotonic() >= self._again_at:
            self.restarts += 1
            try:
                self.start()
            except (OSError, RelayError) as error:
                self._child = None
                self._again_at = time.monotonic() + self._ladder.delay_after(0.0)
                log.error("service_not_started", service=self.name, reason=str(error))
                return
        if self.state is not State.RUNNING or self._child is None:
            return
        code = self._child.poll()
        if code is None:
            self._end_if_late(self._child)
            self._end_if_stuck(self._child)
            return
        self._child.close()
        if self._kill_at is not None:
            log.info("service_renewed", service=self.name)
            self.state, self._again_at = State.BACKOFF, time.monotonic()
            return
        wait = self._ladder.delay_after(time.monotonic() - self._began)
        self._again_at = time.monotonic() + wait
        self.state = State.BACKOFF
        log.warning("service_ended", service=self.name, reason=describe_exit(code), again_in=wait)

    def _end_if_late(self, child: Child) -> None:
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._kill_at = math.inf
            child.kill_group()

    def _end_if_stuck(self, child: Child) -> None:
        """Kill it when its loop stands still: it would not listen to anything else."""
        now = time.monotonic()
        if self._pulses is None or now < self._look_at:
            return
        stood_still = now - self._look_at > PULSE_SECONDS  # so did we: a paused machine needs time for a beat
        self._look_at = now + PULSE_SECONDS
        if stood_still:
            return
        age = age_of(pulse_path(self._pulses, self.name, child.pid))
        if age is not None and age > STUCK_SECONDS:
            log.error("service_stuck", service=self.name, seconds=round(age), then="it is started anew")
            child.kill_group()

    def renew(self) -> None:
        """Have it end after what it has in hand, or be killed, and start it with what `start` gives it then.

        Returns at once; `check` does the rest.
        """
        if self._child is not None and self.state is State.RUNNING and self._kill_at is None:
            self._kill_at = time.monotonic() + RENEW_SECONDS
            self._child.terminate(signal.SIGTERM)

    def ask_to_stop(self) -> None:
        if self._child is not None and self.state is State.RUNNING:
            self._child.terminate(signal.SIGTERM)
        self.state = State.STOPPING

    def stop(self, grace: float) -> None:
        """End it: ask, wait, kill with all its children."""
        if self._child is not None:
            self._child.stop(grace)
            self._child.close()
            self._child = None
        self.state = State.STOPPED


class Stack:
    """The children of `up`. Start and check them from one thread, the one that lives longest."""

    def __init__(
        self,
        settings: Settings,
        runtime_dir: Path,
        *,
        concurrency: int,
        embedded_broker: bool,
        flower_port: int | None = None,
        as_json: bool = False,
        verbose: bool = False,
        stderr: Stream | int = Stream.INHERIT,
        remake: Callable[[], bool] = lambda: False,
    ) -> None:
        """`remake` makes `runtime_dir` again where somebody removed it, and tells whether that was so."""
        self._remake = remake
        self._runtime_dir = runtime_dir
        self._stderr = stderr
        self._verbose = verbose
        self._broker = (
            EmbeddedBroker(runtime_dir, hidden=settings.secret_variables()) if embedded_broker else None
        )
        self._environment = {
            **_environment(settings, self._broker.url if self._broker else None, as_json),
            # Celery's process pool makes a directory for temporary files and leaves it when it is killed.
            "TMPDIR": str(runtime_dir),
            DIRECTORY_VARIABLE: str(runtime_dir),
        }
        self._services = {"worker": self._celery("worker", *_worker_options(concurrency, verbose))}
        self._services["beat"] = self._celery("beat", f"--loglevel={_level(verbose)}")
        if flower_port is not None:
            self._services["flower"] = self._celery("flower", *_flower_options(flower_port))
        self._broker_ladder = Ladder()
        self._broker_began = 0.0
        self._broker_again_at: float | None = None
        self._broker_heard_at = 0.0
        self._look_at = 0.0
        self._directory_trouble: str | None = None

    def settings_for_agent(self, settings: Settings) -> Settings:
        """Return the settings with the broker that this stack runs."""
        if self._broker is None:
            return settings
        url = type(settings.broker.url)(self._broker.url)
        return settings.model_copy(update={"broker": settings.broker.model_copy(update={"url": url})})

    @property
    def services(self) -> Mapping[str, Service]:
        return self._services

    @property
    def pids(self) -> dict[str, int]:
        """Return the process ids of what runs now."""
        found = {name: service.pid for name, service in self._services.items()}
        if self._broker is not None:
            found["broker"] = self._broker.pid
        return {name: pid for name, pid in found.items() if pid is not None}

    def use_token_files(self, settings: Settings) -> None:
        """Give the worker the cameras' token files as they are now; it is renewed if they changed."""
        files = settings.worker_environment()[TOKEN_FILES]
        if files == self._environment[TOKEN_FILES]:
            return
        self._environment[TOKEN_FILES] = files
        self._services["worker"].renew()

    def start(self) -> None:
        """Start everything; only the broker is waited for, a tenth of a second."""
        if self._broker is not None:
            self._broker_began = time.monotonic()
            self._broker.start()
        for service in self._services.values():
            service.start()

    def check(self) -> None:
        """Restart what ended, or hangs. Call it several times a second."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look(now, stood_still=now - self._look_at > PULSE_SECONDS)
            self._look_at = time.monotonic() + PULSE_SECONDS
        self._check_broker()
        for service in self._services.values():
            service.check()

    def _look(self, now: float, *, stood_still: bool) -> None:
        """See to what does not end by itself: a directory that a cleaner took, a broker that hangs."""
        self._see_to_directory()
        if self._broker is None or self._broker_again_at is not None:
            return
        if stood_still or self._broker.answers():
            self._broker_heard_at = now
        elif now - self._broker_heard_at > STUCK_SECONDS:
            seconds = round(now - self._broker_heard_at)
            log.error("service_stuck", service="broker", seconds=seconds, then="it is started anew")
            self._broker_heard_at = now
            self._broker.kill()

    def _see_to_directory(self) -> None:
        try:
            is_remade, self._directory_trouble = self._remake(), None
        except OSError as error:
            if error.strerror != self._directory_trouble:
                self._directory_trouble = error.strerror
                log.error("runtime_directory_gone", path=str(self._runtime_dir), reason=error.strerror)
            return
        if is_remade:
            log.warning("runtime_directory_remade", path=str(self._runtime_dir))

    def _check_broker(self) -> None:
        if self._broker is None:
            return
        now = time.monotonic()
        if self._broker_again_at is None:
            code = self._broker.poll()
            if code is None:
                return
            # The first restart comes at once: the spool waits for it, and so do all the others.
            wait = self._broker_ladder.delay_after(now - self._broker_began)
            self._broker_again_at = now + (wait if self._broker_ladder.failures > 1 else 0.0)
            log.warning("service_ended", service="broker", reason=describe_exit(code))
        if now >= self._broker_again_at:
            self._broker_began = now
            try:
                self._broker.start(timeout=BROKER_RESTART_SECONDS)
            except (ConfigError, OSError) as error:
                self._broker_again_at = now + self._broker_ladder.delay_after(0.0)
                log.error("broker_not_started", reason=str(error))
                return
            self._broker_again_at = None
            self._broker_heard_at = time.monotonic()
            log.info("service_started", service="broker")

    def ask_to_stop(self) -> None:
        """Ask all but the broker; returns at once."""
        for service in self._services.values():
            service.ask_to_stop()

    def stop(self, *, idle: bool = False) -> None:
        """Stop all, the broker last; at most a few seconds, and at once when the worker is `idle`.

        The worker is asked first and killed soon: what it has in hand is still in the spool.
        """
        self.ask_to_stop()
        until = time.monotonic() + (IDLE_GRACE_SECONDS if idle else WORKER_GRACE_SECONDS)
        for service in self._services.values():
            service.stop(max(0.0, until - time.monotonic()))
        if self._broker is not None and self._broker.pid is not None:
            self._broker.stop(grace=OTHER_GRACE_SECONDS)

    def _celery(self, what: str, *options: str) -> Service:
        # -P and a working directory of our own: a tasks.py where the operator stands must not be ours.
        # Not by `celery`, which imports a shell and Flower into whatever it starts.
        program = ["-m", "tasks.celery_command", str(self._runtime_dir)]
        if what == "flower":
            program = ["-m", "celery", "--quiet", "--workdir", str(self._runtime_dir), "-A", "tasks"]
        argv = [sys.executable, "-P", *program, what, *options]

        def start() -> Child:
            return Child(
                argv, env=environment_for(what, self._environment), stdout=Stream.NULL, stderr=self._stderr
            )

        return Service(what, start, pulses=self._runtime_dir)


def _environment(settings: Settings, broker_url: str | None, as_json: bool) -> dict[str, str]:  # noqa: FBT001
    """Return the children's environment: the worker's settings and no camera's source."""
    extra = {"RELAY_LOG_JSON": "1"} if as_json else {}
    if broker_url is not None:
        extra["RELAY_BROKER__URL"] = broker_url
    return {**child_environment(settings.secret_variables()), **settings.worker_environment(), **extra}


def environment_for(
    what: str, common: Mapping[str, str], ours: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment of one part: the cloud's key goes to the worker, Flower's login to Flower."""
    flower = {key: value for key, value in ours.items() if key.startswith(FLOWER_PREFIX)}
    not_its = () if what == "worker" else (f"{ENV_PREFIX}INGEST__TOKEN",)
    found = {key: value for key, value in common.items() if key not in not_its}
    return {**found, **flower} if what == "flower" else found


def _level(verbose: bool) -> str:  # noqa: FBT001
    return "DEBUG" if verbose else "INFO"


def _worker_options(concurrency: int, verbose: bool) -> Sequence[str]:  # noqa: FBT001
    return (
        *("-Q", f"{LIVE},{BACKLOG}", "-c", str(concurrency), "-n", "relay@%h"),
        # Nobody listens to other workers here; each of these only costs messages.
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        f"--loglevel={_level(verbose)}",
    )


def _flower_options(port: int) -> Sequence[str]:
    # Open to whoever may log in to this machine, and to nobody else; it shows, and does not steer.
    return (f"--port={port}", "--address=127.0.0.1", "--read_only=True", f"--tasks_columns={FLOWER_COLUMNS}")

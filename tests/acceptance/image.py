"""What `docker build` would do with docker/Dockerfile, done by bubblewrap: no engine is needed.

The build stage runs as it is written, as a user who is not root, on this machine's Python instead of the base
image's. What the base image brings, and what the last stage does as root, is not covered.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
TOOLS = ("bwrap", "nsenter", "tini")
USER = "10001"
BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BUILD_SECONDS = 600


def require_tools() -> None:
    """Skip where a container cannot be played; in CI that is a failure."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    lacking = f"{', '.join(missing)} (Debian: bubblewrap, util-linux, tini)" if missing else ""
    if not lacking and os.getuid() != 0:
        lacking = "root, who may enter a namespace"
    if lacking and os.environ.get("CI"):
        pytest.fail(f"containers cannot be played without {lacking}")
    if lacking:
        pytest.skip(f"needs {lacking}")


# --- files ------------------------------------------------------------------------------------------


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with what follows them, continued lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.strip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    pairs = [line.strip().partition(" ") for line in joined if line.strip()]
    return [(word, rest.strip()) for word, _, rest in pairs]


def stages(dockerfile: Path) -> list[list[tuple[str, str]]]:
    """Return the instructions of each stage, without the `FROM`."""
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions(dockerfile):
        if word == "FROM":
            found.append([])
        elif found:
            found[-1].append((word, rest))
    return found


# --- images -----------------------------------------------------------------------------------------


@dataclass
class Image:
    """What the Dockerfile makes: /opt/relay, the environment and how a container starts."""

    relay: Path
    environment: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)


def build(folder: Path) -> None:
    """Run the build stage of our Dockerfile into a folder, as a user who is not root."""
    first, _ = stages(DOCKER / "Dockerfile")
    sources, relay = folder / "src", folder / "relay"
    for made in (sources, relay):
        made.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
    for word, rest in first:
        match word:
            case "ENV":
                environment |= _variables(rest, environment)
            case "COPY":
                _copy(rest, sources)
            case "RUN":
                _run(rest, sources, relay, environment)
            case "WORKDIR":
                assert rest == "/src"
            case _:
                pytest.fail(f"the build stage has an instruction that is not played: {word}")


def read_image(folder: Path) -> Image:
    """Return what was built in a folder, with what the last stage says of it."""
    _, last = stages(DOCKER / "Dockerfile")
    image = Image(folder / "relay", {"PATH": BASE_PATH, "HOME": "/home/relay"})
    for word, rest in last:
        match word:
            case "ENV":
                image.environment |= _variables(rest, image.environment)
            case "ENTRYPOINT":
                image.entrypoint = json.loads(rest)
            case "HEALTHCHECK":
                image.healthcheck = json.loads(rest.partition("CMD ")[2])
            case "COPY":
                assert rest == "--from=build /opt/relay /opt/relay"
            case "USER":
                assert rest == f"{USER}:{USER}"
    return image


def _variables(text: str, known: Mapping[str, str]) -> dict[str, str]:
    pairs = (word.partition("=") for word in shlex.split(text))
    return {name: value.replace("${PATH}", known["PATH"]) for name, _, value in pairs}


def _copy(rest: str, workdir: Path) -> None:
    """Copy what .dockerignore lets through; the caches below it stay behind."""
    let_through = (ROOT / ".dockerignore").read_text().split()
    *names, target = rest.split()
    for name in names:
        assert f"!{name}" in let_through, f"{name} is copied, and .dockerignore holds it back"
        source = ROOT / name
        goal = workdir / target
        if source.is_dir():
            shutil.copytree(source, goal, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            continue
        file = goal / source.name if target.endswith("/") else goal
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, file)


def _run(command: str, sources: Path, relay: Path, environment: Mapping[str, str]) -> None:
    python = shlex.quote(sys._base_executable)  # type: ignore[attr-defined]
    script = f'set -e\npython() {{ {python} "$@"; }}\n{command}'
    binds = [*_host(), "--bind", str(sources), "/src", "--bind", str(relay), "/opt/relay"]
    jail = ["bwrap", "--unshare-user", "--uid", USER, "--gid", USER, "--die-with-parent", *binds]
    done = subprocess.run(
        [*jail, "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev", "--chdir", "/src", "sh", "-c", script],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=BUILD_SECONDS,
    )
    assert done.returncode == 0, f"RUN {command}\n{done.stdout[-4000:]}"


def _host() -> Iterator[str]:
    """Yield what shows this machine's files, unwritable, and leaves /opt/relay free."""
    special = {"proc", "dev", "tmp", "opt", "src", "spool"}
    paths = [path for path in Path("/").iterdir() if path.name not in special]
    opt = Path("/opt")
    for path in [*paths, *(path for path in (opt.iterdir() if opt.is_dir() else ()) if path.name != "relay")]:
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))

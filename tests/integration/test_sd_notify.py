"""What a service manager hears on its socket, and when nothing is said."""

import os
import socket

import pytest

from capture.sd_notify import Notifier


class Manager:
    """A socket as systemd gives one."""

    def __init__(self, address):
        self.variables = {"NOTIFY_SOCKET": address, "WATCHDOG_PID": str(os.getpid())}
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.socket.setblocking(False)

    def heard(self):
        """Return the datagram that is here: what is said on this machine is here at once."""
        return self.socket.recv(4096).decode()

    def hears_nothing(self):
        try:
            self.heard()
        except BlockingIOError:
            return True
        return False


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    found = Manager(
        f"@relay-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "n")[-100:]
    )
    yield found
    found.socket.close()


def test_it_says_ready_alive_and_stopping(manager):
    notifier = Notifier(manager.variables)
    notifier.ready()
    assert manager.heard() == "READY=1"
    notifier.alive()
    assert manager.heard() == "WATCHDOG=1"
    notifier.stopping()
    assert manager.heard() == "STOPPING=1"


def test_a_reload_carries_the_moment_in_microseconds(manager):
    Notifier(manager.variables).reloading()
    first, second = manager.heard().splitlines()
    assert first == "RELOADING=1"
    assert second.startswith("MONOTONIC_USEC=")
    assert int(second.partition("=")[2]) > 0


def test_a_child_of_the_service_keeps_silent(manager):
    Notifier(manager.variables | {"WATCHDOG_PID": "1"}).ready()
    assert manager.hears_nothing()


def test_without_a_watchdog_it_speaks_all_the_same(manager):
    Notifier({"NOTIFY_SOCKET": manager.variables["NOTIFY_SOCKET"]}).ready()
    assert manager.heard() == "READY=1"


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1", "/nowhere/at/all", "@"])
def test_where_nobody_listens_nothing_happens(address):
    Notifier({"NOTIFY_SOCKET": address}).ready()
    Notifier({}).ready()


def test_a_manager_that_does_not_read_holds_up_nothing(manager):
    notifier = Notifier(manager.variables)
    for _ in range(2000):  # more than a socket holds
        notifier.alive()
    assert manager.heard() == "WATCHDOG=1"

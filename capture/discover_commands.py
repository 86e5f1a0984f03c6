"""The command `discover`: finds ONVIF cameras, and prints tables for relay.toml."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capture.errors import EXIT_DONE, EXIT_SOURCE, ConfigError, UsageError

if TYPE_CHECKING:
    from capture.discover import Answer
    from capture.discover_soap import Login
    from capture.discover_table import LoginLines

_LARGEST_PASSWORD = 4096
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::([0-9]{1,5}))?")


@dataclass(frozen=True)
class _Given:
    """The login as it was given, by reference where there is one."""

    user: str | None
    password_file: Path | None
    password_env: str | None

    def login(self) -> "Login | None":
        from capture.discover_soap import Login  # noqa: PLC0415

        if self.user is None:
            if self.password_file or self.password_env:
                raise UsageError("a password is given and no user; expected both: give --user")
            return None
        return Login(self.user, self._password())

    def _password(self) -> str:
        if self.password_file and self.password_env:
            raise UsageError("--password-file and --password-env are both given; expected one of them")
        if self.password_env:
            if not _VARIABLE.fullmatch(self.password_env) or self.password_env not in os.environ:
                raise UsageError(
                    "--password-env: there is no such variable; expected the name of a variable that holds "
                    "the password, not the password"
                )
            return os.environ[self.password_env]
        if self.password_file:
            return _from_file(self.password_file)
        if not sys.stdin.isatty():
            raise UsageError(
                "no password is given and nobody can be asked; expected --password-file or --password-env"
            )
        return str(click.prompt("Password of the cameras", hide_input=True, err=True))

    def lines(self) -> "LoginLines":
        from capture.discover_table import LoginLines, quoted  # noqa: PLC0415

        if self.user is None:
            return LoginLines()
        if self.password_env:
            return LoginLines(self.user, f"{{ env = {quoted(self.password_env)} }}", is_certain=True)
        if self.password_file:
            path = quoted(str(self.password_file.absolute()))
            return LoginLines(self.user, f"{{ file = {path} }}", is_certain=True)
        return LoginLines(self.user)


def _from_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_PASSWORD + 1).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(
            f"cannot read the password from {path}: {why}; expected a file with the password on one line"
        ) from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text or "\n" in text or len(text) > _LARGEST_PASSWORD:
        raise ConfigError(f"{path} holds no password; expected a file with the password on one line")
    return text


@click.command()
@click.option(
    "--timeout",
    type=click.FloatRange(0.5, 60),
    default=4.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for answers.",
)
@click.option(
    "--interface", "interfaces", multiple=True, metavar="NAME|ADDRESS", help="Ask by this one; repeatable."
)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Ask this device, and nobody else; repeatable.",
)
@click.option("--user", metavar="USER", help="User for the cameras' ONVIF service.")
@click.option(
    "--password-file", metavar="FILE", type=click.Path(path_type=Path), help="A file with the password."
)
@click.option("--password-env", metavar="NAME", help="A variable with the password.")
@click.option("--all-profiles", is_flag=True, help="Every stream of a camera, not the largest alone.")
def discover(
    *,
    timeout: float,
    interfaces: tuple[str, ...],
    hosts: tuple[str, ...],
    user: str | None,
    password_file: Path | None,
    password_env: str | None,
    all_profiles: bool,
) -> int:
    """Find ONVIF cameras, and print their [cameras.…] tables; exit with 66 if there is none.

    Asks the network by WS-Discovery, then each device that answers for its streams. Without --user most
    devices tell only what they are. With --user the login goes, as a digest, to every device that answers:
    on a network that strangers share, name the devices with --host. Needs `pip install
    'relay-capture[discover]'`.
    """
    _require_library()
    from capture.log import configure_logging  # noqa: PLC0415

    given = _Given(user, password_file, password_env)
    login = given.login()
    configure_logging(secrets=[login.password] if login else [])
    from capture.discover_onvif import ask_devices  # noqa: PLC0415
    from capture.discover_table import tables, without_doubles  # noqa: PLC0415

    answers = [_named(host) for host in hosts] if hosts else _probed(timeout, interfaces)
    askable = [answer for answer in answers if answer.address]
    for answer in answers:
        if not answer.address:
            named = ", ".join(answer.elsewhere) or "nothing that can be asked"
            click.echo(f"# {answer.sender} answered, and named {named}: it was not asked")
    devices = without_doubles(ask_devices(askable, login))
    taken: set[str] = set()
    for device in devices:
        click.echo("")
        for line in tables(device, every=all_profiles, login=given.lines(), taken=taken):
            click.echo(line)
    streams = sum(bool(device.profiles) for device in devices)
    click.echo(f"{len(answers)} answered, {streams} told of streams", err=True)
    return EXIT_DONE if streams else EXIT_SOURCE


def _probed(timeout: float, interfaces: tuple[str, ...]) -> "list[Answer]":
    from capture.discover_probe import probe  # noqa: PLC0415

    click.echo(f"asking for {timeout:g} s who is there …", err=True)
    answers = probe(timeout, interfaces)
    if not answers:
        click.echo(
            "nobody answered; check that the cameras are on this network, with ONVIF and discovery switched "
            "on, and that no firewall drops UDP port 3702; or name one with --host",
            err=True,
        )
    return answers


def _named(host: str) -> "Answer":
    from capture.discover import Answer  # noqa: PLC0415
    from capture.discover_onvif import DEVICE_PATH  # noqa: PLC0415

    match = _HOST.fullmatch(host)
    if match is None or int(match[2] or 80) not in range(1, 65536):
        raise UsageError("--host: expected a name or an address, and perhaps a port: 192.0.2.10:8080")
    return Answer(match[1].strip("[]"), "", f"http://{match[1]}:{match[2] or 80}{DEVICE_PATH}")


def _require_library() -> None:
    from importlib.util import find_spec  # noqa: PLC0415

    if any(find_spec(name) is None for name in ("onvif", "zeep", "lxml", "httpx")):
        raise ConfigError(
            "the library for ONVIF is not installed: capture does not need it; "
            "expected it for this command; run: pip install 'relay-capture[discover]'"
        )

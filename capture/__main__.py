"""The command `relay-capture`: hides secrets from the process list before anything else, then the CLI.

A token or a camera's URL given on the command line would stand in the process list for as long as the agent
runs. So the program starts itself once more with those words masked, and hands them over in an unnamed file
that nobody else can open. This costs one start of the interpreter, and only when there is something to hide.
"""

import json
import os
import re
import sys
import tempfile

FD_VARIABLE = "RELAY_ARGV_FD"
MASK = "***"
_ALWAYS = {"--token", "-t", "--user", "--password"}  # the last is no flag, and somebody will type it
_SECRET_FLAGS = _ALWAYS | {"--source", "-s", "--broker"}
_CLUSTER = re.compile(r"(-[^-ts]*[ts])(.*)", re.DOTALL)
_LOGIN = re.compile(r"://.*@", re.DOTALL)  # in an address that lost its flag
_HARMLESS = re.compile(r"(?![a-z][a-z0-9+.-]*://)(?!.*@).*", re.IGNORECASE | re.DOTALL)


def masked(arguments: list[str]) -> list[str]:
    """Return the arguments with the values of secret flags masked."""
    found = []
    hide_next = ""
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if hide_next:
            found.append(_mask(hide_next, argument))
            hide_next = ""
        elif argument in _SECRET_FLAGS:
            found.append(argument)
            hide_next = argument
        elif equals and flag in _SECRET_FLAGS:
            found.append(f"{flag}={_mask(flag, value)}")
        elif cluster := _CLUSTER.fullmatch(argument):  # "-tVALUE", and "-vt VALUE"
            flag = "-" + cluster[1][-1]
            found.append(cluster[1] + (_mask(flag, cluster[2]) if cluster[2] else ""))
            hide_next = "" if cluster[2] else flag
        else:
            found.append(_LOGIN.sub(f"://{MASK}@", argument))
    return found


def _mask(flag: str, value: str) -> str:
    """Mask a token always, and an address when it could hold a password."""
    if flag not in _ALWAYS and _HARMLESS.fullmatch(value):
        return value
    return MASK


def _start_again_masked(arguments: list[str]) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(arguments).encode())
        file.seek(0)
        os.set_inheritable(file.fileno(), True)
        environment = {**os.environ, FD_VARIABLE: str(file.fileno())}
        command = [*sys.orig_argv[: len(sys.orig_argv) - len(arguments)], *masked(arguments)]
        os.execve(sys.executable, command, environment)


def _given() -> list[str] | None:
    """Return the arguments that our first start handed over, if it did."""
    descriptor = os.environ.pop(FD_VARIABLE, None)
    if descriptor is None or not descriptor.isdecimal():
        return None
    try:
        with os.fdopen(int(descriptor), "rb") as file:
            arguments = json.load(file)
    except (OSError, ValueError):
        return None
    return [str(argument) for argument in arguments]


def main() -> None:
    """Run the command."""
    arguments = _given()
    if arguments is None:
        arguments = sys.argv[1:]
        if masked(arguments) != arguments:
            _start_again_masked(arguments)
    from capture.cli import main as run  # noqa: PLC0415 - nothing is imported before the secrets are hidden

    run(arguments)


if __name__ == "__main__":
    main()

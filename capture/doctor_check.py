"""One result of the doctor, and what its parts share: failures in words, and a limit for what may hang."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from capture.errors import EXIT_CONFIG, RelayError

Verdict = Literal["ok", "warn", "fail"]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Check:
    """One result: what was tried, what was found, and what to do; the exit code that a failure asks for."""

    verdict: Verdict
    what: str
    found: str
    fix: str | None = None
    exit_code: int = EXIT_CONFIG


def failed(what: str, error: RelayError, code: int = EXIT_CONFIG) -> Check:
    """Return a failure from a message of ours, whose last part says what to do."""
    found, _, fix = str(error).rpartition("; ")
    return Check("fail", what, found or fix, fix if found else None, code)


def exit_code(checks: list[Check]) -> int:
    """Return 0, or what fits the first failure."""
    return next((check.exit_code for check in checks if check.verdict == "fail"), 0)


class HungError(Exception):
    """What was asked for did not come in time; it may come yet, and nobody waits for it."""


def within(seconds: float, function: Callable[[], _T]) -> _T:
    """Return what a function returns, or raise what it raises; HungError when it takes longer.

    For calls that no timeout of their own can end: a name that is looked up, a server's mount that is gone.
    """
    result: list[_T] = []
    trouble: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            trouble.append(error)

    # A daemon: what hangs for ever must not keep the program from its end.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if trouble:
        raise trouble[0]
    if not result:
        raise HungError
    return result[0]

"""What can go wrong in a way a person should read about, and the exit code of each.

::

    RelayError              1   (never raised itself)
    ├── UsageError          2   the command line is wrong
    ├── SourceError        66   the source cannot be opened
    ├── SpoolFullError     75   no room in the spool: try again later
    ├── OwedError          75   stopped with segments still owed
    ├── RefusedError       77   the cloud refuses the token
    └── ConfigError        78   the configuration, or this machine, is not fit to start with

A message says what was found, what was expected, and what to do. It never holds a secret.
"""

from typing import ClassVar

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_SOURCE = 66
EXIT_STUCK = 70  # no error of these: a process that hangs ends itself
EXIT_OWED = 75
EXIT_REFUSED = 77
EXIT_CONFIG = 78


class RelayError(Exception):
    """Trouble that ends a command with one message and one exit code."""

    exit_code: ClassVar[int] = 1


class UsageError(RelayError):
    """A flag has a value that cannot be meant."""

    exit_code = EXIT_USAGE


class SourceError(RelayError):
    """The source cannot be opened, or holds no video."""

    exit_code = EXIT_SOURCE


class SpoolFullError(RelayError):
    """There is no room to write to the spool."""

    exit_code = EXIT_OWED


class OwedError(RelayError):
    """The command ended with segments that the cloud has not confirmed."""

    exit_code = EXIT_OWED


class RefusedError(RelayError):
    """The cloud answered 401 or 403."""

    exit_code = EXIT_REFUSED


class ConfigError(RelayError):
    """A setting is missing or wrong, or the machine lacks something."""

    exit_code = EXIT_CONFIG

"""Celery's own `worker` and `beat`, without its other commands.

    python -m tasks.celery_command DIRECTORY worker|beat OPTION…

`celery` itself imports all its commands and Flower before it looks which one is meant: a shell, a web server
and their libraries, which take 0.2 s of each start and 10 MiB of each process for as long as it runs. For
those who type it `celery -A tasks worker` does the same as this.
"""

import importlib
import os
import sys

from celery.bin.base import CLIContext

from tasks import app

COMMANDS = ("worker", "beat")


def main(arguments: list[str]) -> None:
    """Run a command in a directory, which is where beat keeps its schedule; ends the process."""
    directory, name, *options = arguments
    if name not in COMMANDS:
        sys.exit(f"found {name!r}; expected one of {', '.join(COMMANDS)}")
    os.chdir(directory)
    command = getattr(importlib.import_module(f"celery.bin.{name}"), name)
    context = CLIContext(app=app, no_color=False, workdir=directory, quiet=True)
    command.main(options, prog_name=f"celery {name}", obj=context)


if __name__ == "__main__":
    main(sys.argv[1:])

"""`config check` and `config init`: relay.toml, looked at and begun."""

import json
import os
from pathlib import Path

import click

from capture.errors import EXIT_CONFIG, EXIT_DONE, ConfigError, UsageError


@click.group()
def config() -> None:
    """Look at relay.toml, or write a first one."""


@config.command()
@click.option(
    "--config",
    "-c",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The file to look at.  [default: what RELAY_CONFIG names]",
)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def check(path: Path | None, *, as_json: bool) -> int:
    """Name all that is wrong, or say what the file comes to; exit with 78 if anything is wrong.

    Starts nothing, asks nobody, and shows no secret. Variables count as they are set here.
    """
    from capture.config_check import check_config, report_lines  # noqa: PLC0415
    from capture.log import printable  # noqa: PLC0415

    if path is None and not os.environ.get("RELAY_CONFIG"):
        raise UsageError("no file is given; expected a relay.toml: give --config FILE, or set RELAY_CONFIG")
    report = check_config(path or Path(os.environ["RELAY_CONFIG"]), os.environ)
    for line in [json.dumps(report.as_json())] if as_json else report_lines(report):
        click.echo(printable(line).replace("\n", " "))
    return EXIT_DONE if report.is_good else EXIT_CONFIG


@config.command()
@click.argument("path", metavar="[FILE]", type=click.Path(path_type=Path), default=Path("relay.toml"))
def init(path: Path) -> int:
    """Write an example with every key and its meaning; the default FILE is relay.toml."""
    from capture.config_example import EXAMPLE  # noqa: PLC0415

    try:
        # For its owner alone from the first byte on: passwords will stand in it.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} is there already; it was left as it is: give another name") from None
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}; expected a place for a new file: give another name"
        ) from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(EXAMPLE)
    click.echo(f"wrote {path}, readable for its owner alone. Next:")
    click.echo("  1. write the cloud's address, the key, and your cameras into it")
    click.echo(f"  2. relay-capture config check -c {path}")
    click.echo(f"  3. relay-capture doctor -c {path}")
    click.echo(f"  4. relay-capture up -c {path}")
    return EXIT_DONE

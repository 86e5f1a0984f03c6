"""The commands people type. Heavy modules are imported inside the command that needs them."""

import io
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from capture import __version__
from capture.config_commands import config
from capture.discover_commands import discover
from capture.doctor_commands import doctor
from capture.errors import RelayError, UsageError
from capture.operate import COMMANDS
from capture.redaction import redact

_F = TypeVar("_F", bound=Callable[..., Any])

_CAPTURE_OPTIONS = [
    click.option("--source", "-s", help="rtsp://…, http://…, a file, webcam:0, or test:"),
    click.option("--cloud", metavar="URL", help="Base URL of the cloud."),
    click.option(
        "--camera-id",
        help="How the cloud calls this camera; worked out from the source if not given.",
    ),
    click.option("--token", "-t", help="The key for the cloud; better: RELAY_TOKEN or --token-file."),
    click.option("--token-file", metavar="FILE", help="A file with the key; read again when it changes."),
    click.option("--segment-duration", metavar="SECONDS", help="Length of a segment.  [default: 10]"),
    click.option("--fps", metavar="N", help="Transcode to N frames per second."),
    click.option("--resolution", "-r", metavar="WxH", help="Transcode to this size."),
    click.option("--spool", metavar="DIR", help="Where segments wait.  [default: ./spool]"),
    click.option("--broker", metavar="URL", help="Redis or Valkey; `up` brings its own if not given."),
    click.option("--config", "-c", metavar="FILE", type=click.Path(path_type=Path), help="relay.toml"),
    click.option("--no-realtime", is_flag=True, help="Read a file as fast as it goes."),
    click.option(
        "--drain-timeout",
        metavar="SECONDS",
        help="How long a stop waits for uploads.  [default: 10]",
    ),
    click.option(
        "--on-refused",
        metavar="stop|hold",
        help="When the cloud refuses the token: stop (exit 77), or hold and go on capturing.",
    ),
    click.option(
        "--web",
        is_flag=False,
        flag_value="8090",
        metavar="[PORT|HOST:PORT]",
        help="A page with all cameras, on this machine only unless a host is given.  [port: 8090]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Events as NDJSON on standard error."),
    click.option("--verbose", "-v", is_flag=True, help="Say more."),
]


def _with(options: list[Callable[[Any], Any]]) -> Callable[[_F], _F]:
    def decorate(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="relay-capture")
def cli() -> None:
    """Get camera video to the cloud, and lose nothing on the way."""


def main(arguments: list[str]) -> NoReturn:
    """Run the CLI; every expected trouble is one message and its exit code."""
    try:
        code = cli.main(arguments, prog_name="relay-capture", standalone_mode=False)
    except RelayError as error:
        click.echo(f"relay-capture: {redact(str(error), ())}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        words = io.StringIO()
        error.show(words)
        click.echo(_without_arguments(words.getvalue()), err=True, nl=False)
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _without_arguments(message: str) -> str:
    """Return click's words without an argument that nobody expected: a URL or a key that lost its flag."""
    return redact(re.sub(r"(unexpected extra arguments?) \(.*\)", r"\1", message, flags=re.DOTALL), ())


def _load(options: dict[str, Any]) -> Any:  # noqa: ANN401 - Settings, imported late
    from capture.settings import load_settings  # noqa: PLC0415

    flags = {
        "--cloud": options["cloud"],
        "--token": options["token"],
        "--token-file": options["token_file"],
        "--on-refused": options["on_refused"],
        "--spool": options["spool"],
        "--broker": options["broker"],
        "--web": options["web"],
        "--segment-duration": options["segment_duration"],
        "--fps": options["fps"],
        "--resolution": options["resolution"],
        "--drain-timeout": options["drain_timeout"],
    }
    return load_settings(
        flags,
        config=options["config"],
        source=options["source"],
        camera_id=options["camera_id"],
        realtime=False if options["no_realtime"] else None,
        tolerate_bad_cameras=True,
    )


@cli.command()
@_with(_CAPTURE_OPTIONS)
def run(**options: Any) -> int:  # noqa: ANN401 - click's
    """Capture, and leave the uploading to workers elsewhere."""
    from capture.commands import run_agent  # noqa: PLC0415

    return run_agent(partial(_load, options), as_json=options["as_json"], verbose=options["verbose"])


@cli.command()
@_with(_CAPTURE_OPTIONS)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    default=3,
    show_default=True,
    help="Uploads at once.",
)
@click.option(
    "--flower",
    is_flag=False,
    flag_value=5555,
    type=click.IntRange(1, 65535),
    metavar="[PORT]",
    help="Show workers and tasks in a browser, on this machine only.  [port: 5555]",
)
def up(concurrency: int, flower: int | None, **options: Any) -> int:  # noqa: ANN401 - click's
    """Everything on one machine: broker, worker, beat and capture."""
    from capture.commands import run_everything  # noqa: PLC0415

    return run_everything(
        partial(_load, options),
        concurrency=concurrency,
        flower_port=flower,
        as_json=options["as_json"],
        verbose=options["verbose"],
    )


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    "-p",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="0: any free one.",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("sink"),
    show_default=True,
    help="Where segments are stored.",
)
@click.option("--token", "-t", envvar="RELAY_TOKEN", help="Only take segments with this key.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="FAULT",
    help="Play a fault, like 503@10+8: from second 10 for 8 seconds. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON line for each request.")
def sink(
    host: str,
    port: int,
    directory: Path,
    token: str | None,
    faults: tuple[str, ...],
    *,
    as_json: bool,
) -> int:
    """Run a local ingest: stores, checks every digest, plays faults."""
    from capture.commands import run_sink  # noqa: PLC0415

    return run_sink(host=host, port=port, directory=directory, token=token, faults=faults, as_json=as_json)


@cli.command()
@click.option(
    "--seconds",
    type=click.IntRange(10, 3600),
    default=30,
    show_default=True,
    help="How much video to capture.",
)
@click.option("--outage", metavar="START+SECONDS", help="When the cloud is out, and for how long.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep spool, ingest and log there, for a look.",
)
@click.option("--plain", is_flag=True, help="Lines instead of a display, also on a terminal.")
def demo(seconds: int, outage: str | None, keep: Path | None, *, plain: bool) -> int:
    """See it work, without a camera or a cloud: a test pattern, an outage, every frame counted."""
    from capture.demo import run_demo  # noqa: PLC0415

    return run_demo(seconds=seconds, outage=outage, keep=keep, plain=plain)


for _command in (*COMMANDS, doctor, discover, config):
    cli.add_command(_command)

__all__ = ["UsageError", "cli", "main"]

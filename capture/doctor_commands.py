"""The command `doctor`, and its lines for people and machines."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from capture.doctor import Check


@click.command()
@click.option("--source", "-s", help="rtsp://…, http://…, a file, webcam:0, or test:")
@click.option("--cloud", metavar="URL", help="Base URL of the cloud.")
@click.option("--camera-id", help="How the cloud calls this camera.")
@click.option("--token", "-t", help="The key for the cloud; better: RELAY_TOKEN or --token-file.")
@click.option("--token-file", metavar="FILE", help="A file with the key.")
@click.option("--segment-duration", metavar="SECONDS", help="Length of a segment.  [default: 10]")
@click.option("--fps", metavar="N", help="Transcode to N frames per second.")
@click.option("--resolution", "-r", metavar="WxH", help="Transcode to this size.")
@click.option("--spool", metavar="DIR", help="Where segments wait.  [default: ./spool]")
@click.option(
    "--broker", metavar="URL", help="Redis or Valkey; without one, the one that `up` brings is tried."
)
@click.option("--config", "-c", metavar="FILE", type=click.Path(path_type=Path), help="relay.toml")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
# Flags of `up` that change nothing here, so that its command line can be tried with the first word changed.
@click.option("--drain-timeout", hidden=True)
@click.option("--on-refused", hidden=True)
@click.option("--concurrency", hidden=True)
@click.option("--flower", is_flag=False, flag_value="", hidden=True)
@click.option("--web", is_flag=False, flag_value="8090", hidden=True)
@click.option("--no-realtime", is_flag=True, hidden=True)
@click.option("--verbose", "-v", is_flag=True, hidden=True)
def doctor(
    source: str | None,
    camera_id: str | None,
    config: Path | None,
    *,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - click's
) -> int:
    """Check ffmpeg, cameras, spool, broker, ingest, token, clock and uplink; say what to do.

    Looks at each camera for a few seconds, 15 at most. Takes the flags of `up`. Sends no video and registers
    no camera. With --json a line for each check: {"verdict": "ok|warn|fail", "what", "found", "fix",
    "exit_code"}.
    """
    from capture.doctor import examine, exit_code  # noqa: PLC0415
    from capture.settings import FLAGS, load_settings  # noqa: PLC0415

    flags = {flag: options.get(flag.removeprefix("--").replace("-", "_")) for flag in FLAGS}
    settings = load_settings(
        flags, config=config, source=source, camera_id=camera_id, tolerate_bad_cameras=True
    )
    checks = []
    for check in examine(settings):
        checks.append(check)
        for line in [json.dumps(asdict(check))] if as_json else _lines(check):
            click.echo(line)
    if as_json:
        return exit_code(checks)
    bad = [sum(check.verdict == verdict for check in checks) for verdict in ("fail", "warn")]
    click.echo("{} failed, {} to look at, {} in all".format(*bad, len(checks)))
    return exit_code(checks)


def _lines(check: "Check") -> Iterator[str]:
    yield f"{check.verdict:<5} {_plain(check.what)}: {_plain(check.found)}"
    if check.fix:
        yield f"      fix: {_plain(check.fix)}"


def _plain(text: str) -> str:
    """Return text that cannot move a terminal's cursor: some of it comes from cameras and servers."""
    from capture.log import printable  # noqa: PLC0415 - the log is half of what `--help` took

    return printable(text).replace("\n", " ")

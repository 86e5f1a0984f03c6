"""The commands for whoever looks after a relay: status, audit, requeue, health."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from capture.errors import EXIT_DONE, ConfigError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from capture.audit import CameraReport
    from capture.pulse import Pulse
    from capture.settings import Settings
    from capture.spool import Spool
    from capture.status import Status

EXIT_UNACCOUNTED = 1
EXIT_UNHEALTHY = 1
_SHOWN_GAPS = 10
_PIPE_WIDTH = 500
_SHOWN_FINDINGS = 20

_F = TypeVar("_F", bound=Callable[..., Any])


def _options(*options: Callable[[Any], Any]) -> Callable[[_F], _F]:
    def decorate(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_SPOOL = click.option("--spool", metavar="DIR", help="Where segments wait.  [default: ./spool]")
_CAMERA = click.option("--camera", metavar="ID", help="Only this camera.")
_BROKER = click.option("--broker", metavar="URL", help="Redis or Valkey; the one that `up` runs is found.")
_CONFIG = click.option("--config", "-c", metavar="FILE", type=click.Path(path_type=Path), help="relay.toml")
_JSON = click.option("--json", "as_json", is_flag=True, help="For machines.")
_TOKEN = click.option("--token", "-t", help="The key for the cloud; better: RELAY_TOKEN or --token-file.")
_TOKEN_FILE = click.option("--token-file", metavar="FILE", help="A file with the key.")


def _settings(config: Path | None, **flags: str | None) -> "Settings":
    from capture.settings import load_settings  # noqa: PLC0415

    return load_settings(
        {f"--{name.replace('_', '-')}": value for name, value in flags.items()},
        config=config,
        tolerate_bad_cameras=True,
    )


@contextmanager
def _spool_of(settings: "Settings") -> Iterator["Spool"]:
    """Open the spool; what cannot be read in it is a configuration error with its path."""
    from capture.spool import Spool  # noqa: PLC0415

    try:
        yield Spool.open(settings.spool.path)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(
            f"cannot use {error.filename or settings.spool.path}: {error.strerror}; expected a spool that "
            "this user may read and write; run this as the user that runs the relay"
        ) from None


def _require_camera(spool: "Spool", camera: str | None) -> None:
    from capture.audit_spool import cameras  # noqa: PLC0415

    known = cameras(spool)
    if camera is not None and camera not in known:
        names = ", ".join(known) or "none yet"
        raise UsageError(f"--camera: found {camera[:80]!r}; expected a camera of this spool: {names}")


# --- audit -----------------------------------------------------------------------------------------


@click.command()
@click.option("--digests", is_flag=True, help="Also read each segment that is here, and compare its content.")
@_options(_SPOOL, _CAMERA, _CONFIG, _JSON)
def audit(spool: str | None, camera: str | None, config: Path | None, *, digests: bool, as_json: bool) -> int:
    """Prove that no segment is unaccounted for; exit with 1 if one is."""
    from capture import audit as core  # noqa: PLC0415
    from capture.audit_spool import audit_spool, cameras  # noqa: PLC0415

    with _spool_of(_settings(config, spool=spool)) as opened:
        _require_camera(opened, camera)
        chosen = [camera] if camera else cameras(opened)
        reports = [audit_spool(opened, each, digests=digests) for each in chosen]
    if as_json:
        click.echo(json.dumps(core.as_json(reports, opened.root)))
    else:
        for line in _audit_lines(reports, opened.root):
            click.echo(line)
    return EXIT_UNACCOUNTED if any(report.faults for report in reports) else EXIT_DONE


def _audit_lines(reports: list["CameraReport"], root: Path) -> Iterator[str]:
    from capture.words import many  # noqa: PLC0415

    if not reports:
        yield f"{root}: nothing was ever captured into this spool"
        return
    for report in reports:
        yield from _camera_lines(report)
    faults = many(sum(report.faults for report in reports), "fault")
    segments = many(sum(report.segments for report in reports), "segment")
    yield (
        f"NOT everything is accounted for: {faults} among {segments} in {root}"
        if any(report.faults for report in reports)
        else f"everything is accounted for: {segments} in {root}"
    )


def _camera_lines(report: "CameraReport") -> Iterator[str]:
    from capture.audit import FAULTS  # noqa: PLC0415
    from capture.words import many, seconds_text  # noqa: PLC0415

    lost = f" + {report.unaccounted} UNACCOUNTED FOR" if report.unaccounted else ""
    yield (
        f"{report.camera}: {many(report.segments, 'segment')} in {many(report.sessions, 'session')} = "
        f"{report.delivered} delivered + {report.owed} owed + {report.rejected} rejected + "
        f"{report.dropped} dropped{lost}"
    )
    ordered = sorted(report.findings, key=lambda finding: finding.kind not in FAULTS)
    for finding in ordered[:_SHOWN_FINDINGS]:
        yield f"  {'FAULT' if finding.kind in FAULTS else 'note'} {finding.kind}: {finding.text}"
    if (more := sum(report.counts.values()) - min(len(ordered), _SHOWN_FINDINGS)) > 0:
        yield f"  and {more} more: see --json"
    if report.gap_count:
        yield f"  {many(report.gap_count, 'gap')}, {seconds_text(report.gap_seconds)} in all; the last ones:"
    for gap in report.gaps[-_SHOWN_GAPS:]:
        yield f"  gap {gap.start} to {gap.end}, {seconds_text(gap.seconds)}: {_plain(gap.cause)}"


def _plain(text: str) -> str:
    """Return text that cannot move a terminal's cursor: a journal line may come from anywhere."""
    from capture.log import printable  # noqa: PLC0415

    return printable(text).replace("\n", " ")


# --- requeue ---------------------------------------------------------------------------------------


@click.command()
@click.option("--rejected", is_flag=True, help="Send again what the cloud would not take.")
@_options(_CAMERA, _SPOOL, _BROKER, _TOKEN, _TOKEN_FILE, _CONFIG)
def requeue(camera: str | None, config: Path | None, *, rejected: bool, **flags: str | None) -> int:
    """Send again after a refused token, or with --rejected what the cloud would not take.

    Without --rejected a token that the cloud refused may knock again, and everything that is owed goes
    out. With it the segments in rejected/ are owed again.
    """
    from capture.broker_note import with_broker_of  # noqa: PLC0415
    from capture.handoff import RECOVER, Message, publish_once  # noqa: PLC0415
    from capture.requeue import forgive, held_back  # noqa: PLC0415
    from capture.upkeep import requeue_rejected  # noqa: PLC0415
    from capture.words import many  # noqa: PLC0415

    settings = _settings(config, **flags)
    with _spool_of(settings) as opened:
        _require_camera(opened, camera)
        if rejected:
            click.echo(f"made {many(requeue_rejected(opened, camera), 'rejected segment')} owed again")
            if held_back(opened, settings, camera):
                click.echo(
                    "but the token is refused: `relay-capture requeue` without --rejected lets it try again"
                )
        else:
            tokens, sessions = forgive(opened, settings, camera)
            click.echo(
                f"let {many(tokens, 'refused token')} try again; cleared {many(sessions, 'note')} in sessions"
            )
        owed = opened.owed_count({camera} if camera else None)
        click.echo(f"owed: {many(owed, 'segment')}")
        settings = with_broker_of(opened, settings)
    # As after an outage: what is owed anew has no message, however young it is.
    trouble = publish_once(settings, Message(RECOVER, (True, True)))
    if trouble is None:
        click.echo("asked the workers to send at once")
    else:
        click.echo(
            f"the broker cannot be reached ({trouble}); recover sends them within seconds of its return"
        )
    return EXIT_DONE


# --- status ----------------------------------------------------------------------------------------


@click.command()
@click.option(
    "--watch",
    is_flag=False,
    flag_value=2.0,
    type=click.FloatRange(0.2, 3600),
    metavar="[SECONDS]",
    help="Look again and again.  [seconds: 2]",
)
@_options(_SPOOL, _BROKER, _TOKEN_FILE, _CONFIG, _JSON)
def status(
    spool: str | None,
    broker: str | None,
    token_file: str | None,
    config: Path | None,
    watch: float | None,
    *,
    as_json: bool,
) -> int:
    """Show cameras, what is owed, the broker and the ingest, without asking the cloud."""
    from capture.status import read_status  # noqa: PLC0415
    from capture.status_journal import Journals  # noqa: PLC0415

    settings = _settings(config, spool=spool, broker=broker, token_file=token_file)
    journals = Journals()
    with _spool_of(settings) as opened:
        if watch is not None:
            _watch(lambda: read_status(opened, settings, journals), watch, as_json=as_json)
        elif as_json:
            click.echo(json.dumps(read_status(opened, settings).as_json()))
        else:
            _print(read_status(opened, settings))
    return EXIT_DONE


def _print(found: "Status") -> None:
    from rich.console import Console  # noqa: PLC0415

    from capture.status_view import view  # noqa: PLC0415

    # Into a pipe nothing is wrapped: whoever reads it looks for lines.
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(view(found))


def _watch(look: Callable[[], "Status"], seconds: float, *, as_json: bool) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    from capture.status import watch  # noqa: PLC0415
    from capture.status_view import view  # noqa: PLC0415

    console = Console()
    if as_json or not console.is_terminal:
        show = (lambda: click.echo(json.dumps(look().as_json()))) if as_json else (lambda: _print(look()))
        watch(show, seconds)
        return
    with Live(console=console, auto_refresh=False) as live:

        def update() -> None:
            shown: RenderableType = view(look())
            live.update(shown, refresh=True)

        watch(update, seconds)


# --- health ----------------------------------------------------------------------------------------


_ANY = "any"
_STARTED_BY = {
    "agent": "start `up` or `run`",
    "worker": "start `up`, or celery -A tasks worker",
    "beat": "start `up`, or celery -A tasks beat",
    _ANY: "start `up` or `run`, or a worker or beat",
}


@click.command()
@click.argument("role", required=False, type=click.Choice([*_STARTED_BY]))
@_options(_SPOOL, _CONFIG)
def health(role: str | None, spool: str | None, config: Path | None) -> int:
    """Tell whether what runs on this machine lives; exit with 1 if not.

    With agent, worker or beat only those are asked for, and at least one has to be there; with any,
    whatever there is. Without, at least one worker has to be there, and nothing may hang.

    For health checks of containers: asks neither the broker nor the cloud, and is no trouble of theirs.
    """
    found = [pulse for pulse in _pulses(spool, config) if role in (None, _ANY, pulse.what)]
    for pulse in found:
        stuck = "STUCK: " if pulse.is_stuck else ""
        click.echo(f"{stuck}{pulse.what} {pulse.pid}: last seen alive {pulse.age:.0f} s ago")
    wanted = role or "worker"
    is_there = any(wanted in (_ANY, pulse.what) for pulse in found)
    if not is_there:
        what = "agent, worker or beat" if wanted == _ANY else wanted
        click.echo(f"no {what} runs on this machine; expected one; {_STARTED_BY[wanted]}")
    return EXIT_DONE if is_there and not any(pulse.is_stuck for pulse in found) else EXIT_UNHEALTHY


def _pulses(spool: str | None, config: Path | None) -> list["Pulse"]:
    """Return the pulses of this machine: where the environment says, else the spool's and those of `up`."""
    import os  # noqa: PLC0415

    from capture.pulse import DIRECTORY_VARIABLE, pulse_directory, pulses  # noqa: PLC0415

    if os.environ.get(DIRECTORY_VARIABLE):
        return list(pulses(pulse_directory(Path())))
    from capture.broker_note import runtime_directory  # noqa: PLC0415 - a health check comes every few seconds

    with _spool_of(_settings(config, spool=spool)) as opened:
        places = {opened.state, runtime_directory(opened) or opened.state}
        return [pulse for place in sorted(places) for pulse in pulses(place)]


COMMANDS = (status, audit, requeue, health)

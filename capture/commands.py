"""What the commands do, apart from reading their flags."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

import structlog

from capture.agent import Agent, plan_cameras
from capture.broker import RuntimeDir, ping
from capture.broker_note import note_broker
from capture.errors import EXIT_DONE
from capture.ffmpeg import find_ffmpeg
from capture.log import configure_logging
from capture.probe import require_video
from capture.reload import Reloader
from capture.runner import StopSignals, live
from capture.settings import Settings, require_cloud
from capture.sink import FaultPlan, Sink, SinkEvent
from capture.spool import Spool
from capture.stack import Stack

Load = Callable[[], Settings]

log = structlog.get_logger()


def _prepare(settings: Settings, *, as_json: bool, verbose: bool) -> tuple[Spool, str]:
    """Check what has to be there, before anything is made; return the spool and ffmpeg's path."""
    configure_logging(secrets=settings.secrets(), as_json=as_json, verbose=verbose)
    require_cloud(settings)
    plans = plan_cameras(settings)
    ffmpeg = find_ffmpeg(
        str(settings.ffmpeg) if settings.ffmpeg else None, hidden=settings.secret_variables()
    )
    if len(plans) == 1:  # among many, one bad source is that camera's trouble alone
        require_video(ffmpeg.path, plans[0].source, hidden=plans[0].hidden)
    tell_trouble(settings)
    return Spool.open(settings.spool.path, create=settings.spool.create), ffmpeg.path


@contextmanager
def _page(agent: Agent, spool: Spool, ffmpeg: str) -> Iterator[Callable[[], None]]:
    """Serve the page and the metrics, if they are wanted; gives what the main loop calls each time round."""
    listen = agent.settings.web.listen
    if listen is None:
        yield lambda: None
        return
    # Megabytes that an agent without a page saves.
    from capture.metrics import AgentMetrics  # noqa: PLC0415
    from capture.web import web_page  # noqa: PLC0415

    with (
        closing(AgentMetrics(agent, spool)) as metrics,
        web_page(agent, spool, ffmpeg, listen=listen, pages={"/metrics": metrics.scrape}) as beat,
    ):
        yield beat


def tell_trouble(settings: Settings) -> None:
    """Log what is wrong with the settings, and keeps nothing or one camera alone from running."""
    for warning in settings.warnings:
        log.warning("secret_readable_by_others", advice=warning)
    for camera, problems in settings.faulty_cameras.items():
        log.error("camera_misconfigured", camera=camera, problems=list(problems), then="the others run")


def _reloader(settings: Settings, load: Load, *, as_json: bool, verbose: bool) -> Reloader:
    """Return what reads the settings anew; the log masks the old secrets and the new ones from then on."""
    secrets = set(settings.secrets())

    def learn(new: Settings) -> None:
        secrets.update(new.secrets())
        configure_logging(secrets=secrets, as_json=as_json, verbose=verbose)

    return Reloader(settings, load, learn=learn)


def run_agent(load: Load, *, as_json: bool = False, verbose: bool = False) -> int:
    """`run`: the capture agent alone. `load` reads the settings, now and at each reload."""
    signals = StopSignals()
    signals.listen_for_reload()
    settings = load()
    spool, ffmpeg = _prepare(settings, as_json=as_json, verbose=verbose)
    signals.install()
    reloader = _reloader(settings, load, as_json=as_json, verbose=verbose)
    agent = Agent(settings, spool, ffmpeg)
    with _page(agent, spool, ffmpeg) as on_tick:
        return live(agent, None, settings, spool, signals, on_tick=on_tick, reloader=reloader)


def run_everything(
    load: Load,
    *,
    concurrency: int,
    flower_port: int | None = None,
    as_json: bool = False,
    verbose: bool = False,
) -> int:
    """`up`: broker, worker, beat, agent, and Flower if wanted. `load` reads the settings."""
    signals = StopSignals()
    signals.listen_for_reload()
    settings = load()
    own_broker = "url" not in settings.broker.model_fields_set
    if not own_broker:
        ping(settings.broker.url.get_secret_value())
    spool, ffmpeg = _prepare(settings, as_json=as_json, verbose=verbose)
    signals.install()
    reloader = _reloader(settings, load, as_json=as_json, verbose=verbose)
    with RuntimeDir() as runtime:
        stack = Stack(
            settings,
            runtime.path,
            concurrency=concurrency,
            embedded_broker=own_broker,
            flower_port=flower_port,
            as_json=as_json,
            verbose=verbose,
            remake=runtime.remake,
        )
        settings = stack.settings_for_agent(settings)
        if own_broker:
            note_broker(spool, settings.broker.url.get_secret_value())
        agent = Agent(settings, spool, ffmpeg)
        with _page(agent, spool, ffmpeg) as on_tick:
            return live(agent, stack, settings, spool, signals, on_tick=on_tick, reloader=reloader)


def run_sink(
    *,
    host: str,
    port: int,
    directory: Path,
    token: str | None,
    faults: Sequence[str],
    as_json: bool,
) -> int:
    """`sink`: a local ingest until a signal comes."""

    def show(event: SinkEvent) -> None:
        if as_json:
            print(json.dumps(asdict(event), default=str), flush=True)  # noqa: T201 - the command's output
        else:
            print(_sink_line(event), flush=True)  # noqa: T201 - the command's output

    signals = StopSignals()
    signals.install()
    configure_logging(secrets=[token] if token else [], as_json=as_json)
    with Sink(
        directory, token=token, host=host, port=port, faults=FaultPlan.parse(faults), on_event=show
    ) as server:
        print(f"sink listens on {server.url}, stores in {directory}", file=sys.stderr, flush=True)  # noqa: T201
        while not signals.wait(1.0):
            pass
    return EXIT_DONE


def _sink_line(event: SinkEvent) -> str:
    where = " ".join(str(part) for part in (event.camera, event.session, event.sequence) if part)
    words = f"{event.method} {event.status or 'no answer'} {event.outcome} {where} {event.bytes} bytes"
    return f"{words} {event.fault or ''} {event.detail or ''}".rstrip()

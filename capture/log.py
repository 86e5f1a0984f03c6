"""Logs: one line per state change, for people on a console or as NDJSON; never a secret in either.

An event has a static name, and its data in fields.
"""

import logging
import re
import sys
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from capture.source import redact

_QUIET = {
    # A line for every task and every request is noise at one segment a second; bugs are still logged.
    "celery.app.trace": logging.ERROR,
    "celery.worker.strategy": logging.WARNING,
    "celery.worker.consumer.consumer": logging.WARNING,
    "celery.beat": logging.WARNING,
    # While no worker answers: four lines for each look at a page, which says the same.
    "flower.inspector": logging.ERROR,
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "kombu": logging.WARNING,
}


def configure_logging(
    *,
    secrets: Iterable[str] = (),
    as_json: bool | None = None,
    verbose: bool = False,
    stream: TextIO | None = None,
) -> None:
    """Send our events and the standard library's to `stream` (default: standard error)."""
    stream = stream or sys.stderr
    json_lines = _wants_json() if as_json is None else as_json
    mask = _masker(tuple(secret for secret in secrets if secret))
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if json_lines
        else structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=20)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, mask, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, root.level))
    if verbose:
        logging.getLogger("celery.app.trace").setLevel(logging.INFO)
    _log_crashes()


def _log_crashes() -> None:
    """Have tracebacks of bugs go through the mask: Python's own would print whatever an exception holds."""

    def crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            structlog.get_logger().critical("crashed", exc_info=(kind, error, trace))

    def thread_crashed(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            crashed(args.exc_type, args.exc_value, args.exc_traceback)

    def lost(args: "sys.UnraisableHookArgs") -> None:
        if args.exc_value is not None:
            crashed(args.exc_type, args.exc_value, args.exc_traceback)

    sys.excepthook, threading.excepthook, sys.unraisablehook = crashed, thread_crashed, lost


def _wants_json() -> bool:
    import os  # noqa: PLC0415

    return os.environ.get("RELAY_LOG_JSON") == "1"


def _masker(secrets: tuple[str, ...]) -> Processor:
    def mask(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {key: _masked(value, secrets) for key, value in event.items()}

    return mask


def _masked(value: Any, secrets: tuple[str, ...]) -> Any:  # noqa: ANN401 - whatever was logged
    if isinstance(value, str):
        return printable(redact(value, secrets))
    if isinstance(value, dict):
        return {key: _masked(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item, secrets) for item in value]
    return value


def printable(text: str) -> str:
    """Return text without what could move a terminal's cursor; line ends stay."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "?", text)

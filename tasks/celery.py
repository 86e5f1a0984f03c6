"""The Celery app, and the base of every task."""

import sys
import warnings
from typing import Any

import click
import structlog
from celery import Celery, Task
from celery.exceptions import CPendingDeprecationWarning, Ignore, Reject, Retry, SecurityWarning
from celery.signals import celeryd_after_setup, import_modules, setup_logging

from capture.errors import ConfigError, RelayError
from capture.handoff import configure
from capture.log import configure_logging
from capture.settings import Settings, load_settings
from capture.source import redact
from tasks import kombu_guard, metrics, pulse, watched
from tasks.seldom import Seldom

LONGEST_COUNTDOWN = 60.0
UNFIT_SECONDS = 600.0

log = structlog.get_logger()


def _settings() -> Settings:
    try:
        return load_settings(for_worker=True)
    except ConfigError as error:
        # Celery would print a traceback of its own loader around this.
        print(f"relay-capture: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(error.exit_code) from None


# It warns that a worker run by root would unpickle as root; ours reads JSON alone.
warnings.filterwarnings("ignore", category=SecurityWarning)
kombu_guard.install()
settings = _settings()
app = Celery("relay-capture")
configure(app, settings)
pulse.install(app, settings)
metrics.install(app, settings)
watched.install(app)


@celeryd_after_setup.connect
def _spare_the_lecture(**_: Any) -> None:  # noqa: ANN401 - Celery's signature
    """At every lost connection Celery explains a setting that celeryconfig.py sets on purpose.

    Only here, because Celery's own set-up shows all warnings again.
    """
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)


@setup_logging.connect
def _log_our_way(**_: Any) -> None:  # noqa: ANN401 - Celery's signature
    configure_logging(secrets=settings.secrets())


@import_modules.connect
def _flower_logs_our_way(**_: Any) -> None:  # noqa: ANN401 - Celery's signature
    """Flower sets up a format of its own and asks nobody; this comes after that, before its first line."""
    context = click.get_current_context(silent=True)
    if context is not None and context.info_name == "flower":
        configure_logging(secrets=settings.secrets())


# A trouble of this machine is told when it begins, and now and then while it lasts.
_unfit = Seldom(UNFIT_SECONDS)


def tell_unfit(error: RelayError) -> None:
    """Say that this machine is not fit to send: no spool, no token."""
    _unfit("worker_unfit", reason=str(error))


class TransientError(Exception):
    """An attempt that is worth another. `retry_after` in seconds, if the cloud said so."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class RefusedByCloudError(Exception):
    """401 or 403: says what a person has to do."""


class RejectedByCloudError(Exception):
    """The cloud will never take this segment: says why."""


class BugError(Exception):
    """What became of an exception whose words held a secret: Celery shows those in log, events and Flower."""


class RelayTask(Task):  # type: ignore[type-arg] # generic in the stubs alone
    """A task whose retries cannot be lost, and which honours ``Retry-After``.

    Retries back off exponentially with full jitter. The exceptions in `throws` are outcomes, not bugs:
    they make the task fail with their words, and without a traceback in the log.
    """

    throws = (TransientError, RefusedByCloudError, RejectedByCloudError, RelayError)
    autoretry_for = (TransientError,)
    retry_backoff = 1
    retry_backoff_max = 30
    retry_jitter = True
    max_retries = settings.ingest.tries - 1

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - Celery's signature
        """Run; whatever it fails with holds no secret."""
        try:
            return self.run(*args, **kwargs)
        except (*self.throws, Retry, Reject, Ignore):
            raise
        except Exception as error:
            words = str(error)
            shown = redact(words, settings.secrets())
            if shown == words:
                raise
            # `from None`: the one that it replaces would be printed above it.
            raise BugError(f"{type(error).__name__}: {shown}").with_traceback(error.__traceback__) from None

    def on_failure(self, exc: BaseException, *_args: Any) -> None:  # noqa: ANN401 - Celery's signature
        """Say seldom, not at every tick, that this machine is not fit: no spool, no token."""
        if isinstance(exc, RelayError):
            tell_unfit(exc)

    def retry(self, *args: Any, exc: Exception | None = None, **options: Any) -> Retry:  # noqa: ANN401 - Celery's signature
        """Publish the task again; if the broker cannot take it, leave the first message with the broker.

        Celery drops the message when the second one cannot be published.
        """
        if shown := self.request.get("argsrepr"):
            options.setdefault("argsrepr", shown)
        asked = getattr(exc, "retry_after", None)
        if asked is not None:
            options["countdown"] = min(max(options.get("countdown") or 0, asked), LONGEST_COUNTDOWN)
        try:
            return super().retry(*args, exc=exc, **options)  # type: ignore[misc]
        except Reject as reject:
            raise Reject(str(reject), requeue=True) from exc

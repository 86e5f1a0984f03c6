"""The doctor: tries each thing that a capture needs, and says what to do about what does not work.

It sends no video, registers no camera, and leaves nothing behind in the spool.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

from capture.broker import EmbeddedBroker, RuntimeDir, ping, shown_url
from capture.doctor_check import Check, exit_code, failed
from capture.doctor_ingest import examine_ingest, examine_uplink, total_sent
from capture.doctor_source import Seen, examine_sources
from capture.doctor_spool import examine_spool
from capture.errors import ConfigError
from capture.settings import Settings, read_token
from capture.source import redact

__all__ = ["Check", "examine", "exit_code"]


def examine(settings: Settings) -> Iterator[Check]:
    """Yield the results as they come, without a secret in any."""
    secrets = _secrets(settings)
    for check in _examine(settings):
        fix = None if check.fix is None else redact(check.fix, secrets)
        yield replace(check, found=redact(check.found, secrets), fix=fix)


def _examine(settings: Settings) -> Iterator[Check]:
    for warning in settings.warnings:
        found, _, fix = warning.rpartition(": ")
        yield Check("warn", "secrets", found or fix, fix)
    seen: list[Seen] = []
    yield from examine_sources(settings, seen)
    yield from examine_spool(settings, total_sent(seen))
    is_given = "url" in settings.broker.model_fields_set
    yield _given_broker(settings) if is_given else _embedded_broker(settings)
    yield from examine_ingest(settings)
    yield from examine_uplink(settings, seen)


def _secrets(settings: Settings) -> list[str]:
    secrets = list(settings.secrets())
    for camera in (None, *settings.ingest.token_files):
        try:
            secrets.append(read_token(settings.ingest, camera))
        except ConfigError:  # told where tokens are tried
            continue
    return secrets


# --- broker ----------------------------------------------------------------------------------------


def _given_broker(settings: Settings) -> Check:
    url = settings.broker.url.get_secret_value()
    try:
        ping(url)
    except ConfigError as error:
        return failed("broker", error)
    return Check("ok", "broker", f"{shown_url(url)} answers")


def _embedded_broker(settings: Settings) -> Check:
    try:
        with RuntimeDir() as runtime:
            broker = EmbeddedBroker(runtime.path, hidden=settings.secret_variables())
            began = time.monotonic()
            broker.start()
            took = time.monotonic() - began
            broker.stop()
    except ConfigError as error:
        return failed("broker", error)
    return Check("ok", "broker", f"embedded: valkey-server found; it answers after {took * 1000:.0f} ms")

"""Settings: flags > ``RELAY_*`` environment > ``relay.toml`` > defaults, and every problem at once.

Each value keeps where it came from, so that a message can name the flag, variable or key to mend, and so
that a wrong flag is a usage error (2) while a wrong file or variable is a configuration error (78).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from capture.errors import ConfigError
from capture.settings_layers import (
    ENV_SHORT,
    FLAGS,
    camera_layer,
    camera_variables,
    child_environment,
    drop_what_is_no_table,
    environment_layer,
    file_layer,
    flag_layer,
    given,
    unflatten,
)
from capture.settings_models import (
    ENV_PREFIX,
    FLOWER_PREFIX,
    BrokerSettings,
    CameraDefaults,
    CameraSettings,
    IngestSettings,
    Settings,
    SpoolSettings,
    WebSettings,
)
from capture.settings_problems import Key, Layer, Problem, Value, as_error, problems_of
from capture.settings_secrets import readable_by_others, resolve
from capture.settings_values import EXAMPLE_CLOUD, check_token

__all__ = [
    "ENV_PREFIX",
    "ENV_SHORT",
    "EXAMPLE_CLOUD",
    "FLAGS",
    "FLOWER_PREFIX",
    "BrokerSettings",
    "CameraDefaults",
    "CameraSettings",
    "IngestSettings",
    "Reading",
    "Settings",
    "SpoolSettings",
    "WebSettings",
    "check_token",
    "child_environment",
    "load_settings",
    "read_settings",
    "read_token",
    "require_cloud",
    "token_trouble",
]


@dataclass(frozen=True)
class Reading:
    """What reading the settings came to: good settings or none, all problems, and where values come from.

    With problems of single cameras alone, `settings` are those of the others.
    """

    settings: Settings | None
    problems: Sequence[Problem]
    origins: Mapping[Key, Value]


def load_settings(
    flags: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
    source: str | None = None,
    camera_id: str | None = None,
    realtime: bool | None = None,
    tolerate_bad_cameras: bool = False,
    for_worker: bool = False,
) -> Settings:
    """Read all layers and check them.

    `flags` maps a flag's name to its value (None = not given). A `source` given on the command line
    replaces the cameras of the file: one camera, as typed. With `tolerate_bad_cameras` a camera whose table
    is wrong is left out and stands in `faulty_cameras`, as long as another one is good. `for_worker` takes
    nothing from the cameras' tables but their token files: a worker needs no source and no password.
    Raises UsageError when a flag is wrong, ConfigError otherwise; the message lists every problem.
    """
    reading = read_settings(
        flags,
        environ=environ,
        config=config,
        source=source,
        camera_id=camera_id,
        realtime=realtime,
        for_worker=for_worker,
    )
    settings = reading.settings
    if settings is None:
        raise as_error(reading.problems)
    is_any_good = any(camera.enabled for camera in settings.cameras.values())
    if reading.problems and not (tolerate_bad_cameras and is_any_good):
        raise as_error(reading.problems)
    return settings


def read_settings(
    flags: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
    source: str | None = None,
    camera_id: str | None = None,
    realtime: bool | None = None,
    for_worker: bool = False,
) -> Reading:
    """Read all layers and return all that is to be said about them; the arguments are `load_settings`'.

    Raises ConfigError when the file cannot be read at all, UsageError or ConfigError for a wrong source or
    id of the command line.
    """
    environ = os.environ if environ is None else environ
    flags = flags or {}
    config = config or (Path(environ["RELAY_CONFIG"]) if environ.get("RELAY_CONFIG") else None)
    layer = file_layer(config) if config else {}
    only = given(source, "--source", environ, "RELAY_SOURCE")
    if only is not None or for_worker:
        layer = {key: value for key, value in layer.items() if key[0] != "cameras"}
    layer |= environment_layer(environ) | flag_layer(flags)
    if only is not None and not for_worker:
        named = given(camera_id, "--camera-id", environ, "RELAY_CAMERA_ID")
        layer |= camera_layer(only, named, realtime=realtime)
    problems = drop_what_is_no_table(layer)
    references = resolve(layer, environ)
    problems += references.problems
    if only is None and not for_worker:
        problems += camera_variables(environ, references.variables)
    _forget_weaker_token(layer, flags, environ)
    settings, problems = _validated(layer, problems)
    if settings is not None:
        settings = settings.noting(
            faulty_cameras=_by_camera(problems),
            secret_variables=frozenset(references.variables),
            warnings=tuple(readable_by_others(config, layer, references)),
        )
    return Reading(settings, problems, layer)


def _validated(layer: Layer, problems: list[Problem]) -> tuple[Settings | None, list[Problem]]:
    """Return the settings and all problems; with problems of single cameras alone, those of the others."""
    settings, found = _validate(layer)
    blamed = {problem.key for problem in problems}
    problems = [*problems, *(problem for problem in found if problem.key not in blamed)]
    faulty = {problem.camera for problem in problems}
    if None in faulty:
        return None, problems
    if faulty:
        good = {key: value for key, value in layer.items() if key[0] != "cameras" or key[1] not in faulty}
        settings, _ = _validate(good)
    return settings, problems


def _by_camera(problems: Sequence[Problem]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for problem in problems:
        if problem.camera is not None:
            found[problem.camera] = (*found.get(problem.camera, ()), str(problem))
    return found


def _validate(layer: Layer) -> tuple[Settings | None, list[Problem]]:
    try:
        return Settings.model_validate(unflatten(layer)), []
    except ValidationError as error:
        return None, problems_of(error, layer)


def _forget_weaker_token(layer: Layer, flags: Mapping[str, object], environ: Mapping[str, str]) -> None:
    """Let a stronger layer's token beat a weaker layer's token file, and the other way round."""
    keys = (("ingest", "token"), ("ingest", "token_file"))
    if not all(key in layer for key in keys):
        return

    def strength(key: Key) -> int:
        where = layer[key].where
        return 2 if where in flags else 1 if where in environ else 0

    token, token_file = (strength(key) for key in keys)
    if token != token_file:
        del layer[keys[0] if token < token_file else keys[1]]


def require_cloud(settings: Settings) -> str:
    """Return the cloud's URL; ConfigError unless it is set, and a token for one camera at least."""
    if settings.ingest.url is None:
        raise ConfigError(
            f"no cloud is set; expected its base URL, like {EXAMPLE_CLOUD}; "
            "give --cloud, or set RELAY_CLOUD, or ingest.url in relay.toml"
        )
    enabled = [camera for camera, each in settings.cameras.items() if each.enabled]
    trouble = [error for camera in enabled if (error := token_trouble(settings.ingest, camera))]
    if trouble and len(trouble) == len(enabled):
        raise ConfigError(trouble[0])
    if not enabled:
        read_token(settings.ingest)
    return settings.ingest.url


def token_trouble(ingest: IngestSettings, camera: str | None) -> str | None:
    """Return why a camera has no token at present; None if it has one."""
    try:
        read_token(ingest, camera)
    except ConfigError as error:
        return str(error)
    return None


def read_token(ingest: IngestSettings, camera: str | None = None) -> str:
    """Return the token as it stands now, a camera's own if it has one; a file is read anew at each call.

    Raises ConfigError when there is none, or it cannot be a token. The message never shows it.
    """
    own = ingest.token_files.get(camera) if camera is not None else None
    if own is not None:
        return _read_token_file(own)
    if ingest.token is not None:
        return ingest.token.get_secret_value()
    if ingest.token_file is None:
        raise ConfigError(
            "no token is set; expected the key the cloud issued; set RELAY_TOKEN, "
            "or put it in a file and give --token-file"
        )
    return _read_token_file(ingest.token_file)


def _read_token_file(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return check_token(file.read(8192))
    except OSError as error:
        raise ConfigError(
            f"cannot read the token file {path}: {error.strerror}; "
            "expected a file with the token on one line; check the path and who may read it"
        ) from None
    except ValueError as error:
        raise ConfigError(f"token file {path}: {error}") from None

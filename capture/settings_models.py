"""Everything that can be set, section by section, with its defaults.

Where the values come from is the business of `capture.settings`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from capture.errors import RelayError
from capture.settings_values import (
    Audio,
    BrokerUrl,
    CameraId,
    CameraName,
    CloudUrl,
    FilePath,
    Fps,
    Listen,
    MaxRate,
    OnRefused,
    Resolution,
    Seconds,
    SegmentSeconds,
    SourceText,
    SuccessCode,
    Token,
    comma_list,
    seconds,
)
from capture.source import Source, parse_source

ENV_PREFIX = "RELAY_"
FLOWER_PREFIX = "FLOWER_"  # of Flower's own settings: its login is one of them


def _json_table(value: object) -> object:
    """Read the text of a JSON object, as a variable holds it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError('expected a JSON object: {"gate": "/etc/relay/gate.token"}') from None


class _Section(BaseModel):
    # What is wrong may be a secret: no message of pydantic's own may quote it.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False, hide_input_in_errors=True)


class IngestSettings(_Section):
    """The cloud, and how an upload is tried."""

    url: CloudUrl | None = None
    token: Token | None = None
    token_file: FilePath | None = None
    token_files: Annotated[dict[CameraId, FilePath], BeforeValidator(_json_table)] = {}
    success: Annotated[list[SuccessCode], BeforeValidator(comma_list), Field(min_length=1)] = [204]
    on_refused: OnRefused = "stop"
    attempt_seconds: Annotated[Seconds, Field(ge=1, le=600)] = 30.0
    slowest_uplink: Annotated[ByteSize, Field(ge=1000)] = ByteSize(64_000)
    max_rate: MaxRate | None = None
    tries: Annotated[int, Field(ge=1, le=10)] = 4
    ca_file: FilePath | None = None
    hold_probe_every: Annotated[Seconds, Field(ge=1)] = 30.0


class SpoolSettings(_Section):
    """Where segments wait, and for how long what is left stays."""

    path: FilePath = Path("spool")
    create: bool = True
    sweep_after: Annotated[Seconds, Field(ge=60)] = 3600.0
    keep_rejected: Annotated[Seconds, Field(ge=60)] = 7 * 86400.0
    keep_journal: Annotated[Seconds, Field(ge=2 * 86400)] = 365 * 86400.0
    recover_after: Annotated[Seconds, Field(ge=1)] = 15.0
    max_bytes: Annotated[ByteSize, Field(ge=1_000_000)] | None = None
    min_free: ByteSize | None = None
    retention: Annotated[Seconds, Field(ge=60)] | None = None


class BrokerSettings(_Section):
    """The Redis or Valkey server that carries the messages."""

    url: BrokerUrl = SecretStr("redis://127.0.0.1:6379/0")
    key_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:{}-]*$", max_length=64)] = ""


class WebSettings(_Section):
    """Where the agent serves its page and metrics, and a worker its metrics: HOST:PORT; None is off."""

    listen: Listen | None = None
    worker_listen: Listen | None = None


class CameraDefaults(_Section):
    """What a camera does unless its own table says otherwise."""

    segment_seconds: SegmentSeconds = 10.0
    fps: Fps | None = None
    resolution: Resolution | None = None
    audio: Audio = "off"
    realtime: bool = True


class CameraSettings(_Section):
    """One camera. What is None comes from ``[defaults]``, the token from ``[ingest]``.

    `user` and `password` are taken as they are, whatever is in them: no URL, no encoding.
    """

    source: SourceText
    user: str | None = Field(default=None, repr=False)  # as little to be shown as in a URL
    password: SecretStr | None = None
    name: CameraName | None = None
    segment_seconds: SegmentSeconds | None = None
    fps: Fps | None = None
    resolution: Resolution | None = None
    audio: Audio | None = None
    realtime: bool | None = None
    token_file: FilePath | None = None
    enabled: bool = True

    @field_validator("user")
    @classmethod
    def _user_fits(cls, user: str | None, info: ValidationInfo) -> str | None:
        if user is not None:
            _require_login(info.data, user, None)
        return user

    @field_validator("password")
    @classmethod
    def _password_fits(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if password is None or "user" not in info.data:
            return password
        if info.data["user"] is None:
            raise ValueError('stands alone; expected user beside it (user = "" if the camera has none)')
        _require_login(info.data, info.data["user"], password.get_secret_value())
        return password

    def parsed_source(self) -> Source:
        source = parse_source(self.source.get_secret_value())
        if self.user is None:
            return source
        return source.with_login(self.user, self.password.get_secret_value() if self.password else None)

    def over(self, defaults: CameraDefaults) -> CameraDefaults:
        """Return the defaults with this camera's own values over them."""
        own = {key: value for key in CameraDefaults.model_fields if (value := getattr(self, key)) is not None}
        return defaults.model_copy(update=own)


def _require_login(data: Mapping[str, Any], user: str, password: str | None) -> None:
    """Raise ValueError where the source, if that is good itself, cannot take this login."""
    if "source" in data:
        try:
            parse_source(data["source"].get_secret_value()).with_login(user, password)
        except RelayError as error:
            raise ValueError(str(error)) from None


class Settings(_Section):
    """Everything that can be set, and what was found out while it was read."""

    ingest: IngestSettings = IngestSettings()
    spool: SpoolSettings = SpoolSettings()
    broker: BrokerSettings = BrokerSettings()
    web: WebSettings = WebSettings()
    defaults: CameraDefaults = CameraDefaults()
    cameras: dict[CameraId, CameraSettings] = {}
    drain_timeout: Annotated[float, BeforeValidator(seconds), Field(ge=0, le=3600)] = 10.0
    ffmpeg: FilePath | None = None

    _faulty_cameras: Mapping[str, tuple[str, ...]] = PrivateAttr(default_factory=dict)
    _secret_variables: frozenset[str] = PrivateAttr(default=frozenset())
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @property
    def faulty_cameras(self) -> Mapping[str, tuple[str, ...]]:
        """The cameras that were left out because their tables are wrong, with what is wrong in each."""
        return self._faulty_cameras

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to look at, though it keeps nothing from running: secrets that other users may read."""
        return self._warnings

    def secret_variables(self) -> frozenset[str]:
        """Return the names of environment variables that hold secrets by reference: no child needs them."""
        return self._secret_variables

    def noting(
        self,
        *,
        faulty_cameras: Mapping[str, tuple[str, ...]],
        secret_variables: frozenset[str],
        warnings: tuple[str, ...],
    ) -> "Settings":
        """Return the same settings with what was found out while they were read."""
        found = self.model_copy()
        found._faulty_cameras = dict(faulty_cameras)  # noqa: SLF001 - a copy of our own
        found._secret_variables = secret_variables  # noqa: SLF001
        found._warnings = warnings  # noqa: SLF001
        return found

    def secrets(self) -> tuple[str, ...]:
        """Return every string that must never be printed; what is in token files as it is now."""
        found = [self.ingest.token.get_secret_value()] if self.ingest.token else []
        files = {self.ingest.token_file, *self.ingest.token_files.values()} - {None}
        found += [token for file in files if file is not None and (token := _token_in(file))]
        for camera in self.cameras.values():
            found += camera.parsed_source().secrets()
        password = urlsplit(self.broker.url.get_secret_value()).password
        return tuple([*found, password, unquote(password)] if password else found)

    def worker_environment(self) -> dict[str, str]:
        """Return the variables that give a worker these settings; no camera source is among them."""
        found = {}
        for section in ("ingest", "spool", "broker", "web"):
            model: BaseModel = getattr(self, section)
            for key, value in model:
                if value is not None:
                    found[f"{ENV_PREFIX}{section}__{key}".upper()] = _as_text(value)
        return found


def _token_in(file: Path) -> str:
    """Return what is in a token file; nothing if it cannot be read, which others tell."""
    try:
        with file.open("rb") as opened:
            return opened.read(8192).decode("utf-8", "surrogateescape").strip()
    except OSError:
        return ""


def _as_text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    if isinstance(value, dict):
        return json.dumps({key: _as_text(item) for key, item in value.items()})
    return str(value)

"""What is to be said about a configuration: all problems, what to look at, and a summary without secrets."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from capture.errors import ConfigError
from capture.settings import Reading, Settings, read_settings, token_trouble
from capture.settings_problems import Key, Problem, Value, shown_key
from capture.settings_secrets import is_secret

_REPLACES_CAMERAS = "RELAY_SOURCE"


@dataclass(frozen=True)
class Finding:
    """Something to mend. `file` is None where it stands in a variable; `found` where it may be a secret."""

    file: str | None
    key: str
    found: str | None
    expected: str
    text: str


@dataclass(frozen=True)
class CameraLine:
    """A camera in one line: where from (redacted), how, and whether at all."""

    id: str
    source: str
    segment_seconds: float
    video: str
    audio: str
    enabled: bool
    token: str


@dataclass(frozen=True)
class Report:
    """All of it. Its JSON is this, field by field; fields are added, never renamed."""

    file: str
    problems: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()
    cameras: tuple[CameraLine, ...] = ()
    values: Mapping[str, Mapping[str, str]] | None = None

    @property
    def is_good(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        return {"format": 1, "ok": self.is_good, **asdict(self)}


def check_config(path: Path, environ: Mapping[str, str]) -> Report:
    """Read a configuration as `run` would, with the variables of this place; nothing else is touched."""
    without_source = {name: value for name, value in environ.items() if name != _REPLACES_CAMERAS}
    try:
        reading = read_settings(environ=without_source, config=path)
    except ConfigError as error:  # it cannot be read at all
        text = str(error)
        return Report(str(path), (Finding(str(path), "", None, text, text),))
    problems = [_finding(problem) for problem in reading.problems]
    settings = reading.settings
    if settings is None:
        return Report(str(path), tuple(problems))
    problems += _token_findings(settings, reading)
    return Report(
        str(path),
        tuple(problems),
        tuple(_warnings(settings, environ)),
        tuple(_camera_lines(settings)),
        _values(reading),
    )


def _finding(problem: Problem) -> Finding:
    return Finding(problem.file, shown_key(problem.key), problem.found, problem.expected, str(problem))


def _token_findings(settings: Settings, reading: Reading) -> Iterator[Finding]:
    """Say which token files that were named hold no token."""
    named: list[tuple[Key, str | None]] = [(("ingest", "token_file"), None)]
    named += [(("ingest", "token_files", camera), camera) for camera in settings.ingest.token_files]
    for key, camera in named:
        is_used = key in reading.origins and (camera is not None or settings.ingest.token is None)
        if is_used and (trouble := token_trouble(settings.ingest, camera)):
            origin = reading.origins[key]
            yield Finding(origin.file, shown_key(key), None, trouble, f"{origin.where}: {trouble}")


def _warnings(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    yield from settings.warnings
    if environ.get(_REPLACES_CAMERAS):
        yield f"{_REPLACES_CAMERAS} is set here: run and up would capture that, and no camera of the file"
    if not settings.cameras and not settings.faulty_cameras:
        yield "no camera is set here; expected a [cameras.<id>] table, or --source where the agent starts"
    elif not any(camera.enabled for camera in settings.cameras.values()):
        yield "no camera is enabled; expected one at least: run and up would not start"
    if settings.ingest.url is None:
        yield "ingest.url is not set here; it may come from the environment of the agent: RELAY_CLOUD"
    yield from _without_token(settings)
    yield from _twins(settings)


def _without_token(settings: Settings) -> Iterator[str]:
    ingest = settings.ingest
    if ingest.token is None and ingest.token_file is None:
        without = [camera for camera in settings.cameras if camera not in ingest.token_files]
        if without or not settings.cameras:
            yield (
                "ingest.token and ingest.token_file are not set here; one may come from the environment of "
                "agent and workers: RELAY_TOKEN, RELAY_TOKEN_FILE"
            )
    elif ingest.token is not None and ingest.token_file is not None:
        yield "ingest.token and ingest.token_file are both set; the token counts, and the file is not read"


def _twins(settings: Settings) -> Iterator[str]:
    by_source: dict[str, list[str]] = {}
    by_spelling: dict[str, list[str]] = {}
    for camera, each in settings.cameras.items():
        by_spelling.setdefault(camera.lower(), []).append(camera)
        source = each.parsed_source()
        if each.enabled and source.pattern is None:  # as many test patterns as anybody likes
            by_source.setdefault(source.camera_id(), []).append(camera)
    for cameras in by_source.values():
        if len(cameras) > 1:
            yield f"{_listed(cameras)} have the same source: it is captured, and sent, once for each"
    for cameras in by_spelling.values():
        if len(cameras) > 1:
            yield f"{_listed(cameras)} differ in upper and lower case alone: easily taken for each other"


def _listed(cameras: list[str]) -> str:
    return "cameras " + ", ".join(cameras[:-1]) + f" and {cameras[-1]}"


def _camera_lines(settings: Settings) -> Iterator[CameraLine]:
    for camera, each in settings.cameras.items():
        values = each.over(settings.defaults)
        size = "x".join(map(str, values.resolution)) if values.resolution else ""
        changed = " ".join(part for part in (size, f"{values.fps:g} fps" if values.fps else "") if part)
        own = settings.ingest.token_files.get(camera)
        yield CameraLine(
            camera,
            str(each.parsed_source()),
            values.segment_seconds,
            f"transcode to {changed}" if changed else "copy",
            values.audio,
            each.enabled,
            str(own) if own else "that of [ingest]",
        )


def _values(reading: Reading) -> dict[str, dict[str, str]]:
    """Return what is set outside the cameras' tables, and where; secrets only as such."""
    return {
        shown_key(key): {"value": _shown(key, value), "from": value.where}
        for key, value in sorted(reading.origins.items())
        if key[0] != "cameras" and value.value != {}
    }


def _shown(key: tuple[str, ...], value: Value) -> str:
    return "(not shown)" if is_secret(key) else str(value.value)


def report_lines(report: Report) -> Iterator[str]:
    """Yield the report for people."""
    for finding in report.problems:
        yield f"wrong    {finding.text}"
    for warning in report.warnings:
        yield f"look at  {warning}"
    for key, value in (report.values or {}).items():
        yield f"set      {key} = {value['value']}  ({value['from']})"
    for camera in report.cameras:
        is_left_out = "" if camera.enabled else ", left out (enabled = false)"
        yield (
            f"camera   {camera.id}: {camera.source}, segments of {camera.segment_seconds:g} s, "
            f"{camera.video}, audio {camera.audio}, token: {camera.token}{is_left_out}"
        )
    counts = f"{len(report.problems)} wrong, {len(report.warnings)} to look at, {len(report.cameras)} cameras"
    yield f"{report.file}: {'ok' if report.is_good else 'NOT ok'}: {counts}"

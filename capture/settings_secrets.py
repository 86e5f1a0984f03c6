"""Secrets by reference: ``{ file = "/run/secrets/x" }`` or ``{ env = "NAME" }`` where a secret can stand."""

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from capture.errors import RelayError
from capture.settings_problems import Key, Layer, Problem, Value, shown_key
from capture.source import parse_source

LARGEST_SECRET = 8192  # bytes
_CAMERA_SECRETS = {"source", "password"}
_SECRETS = {("ingest", "token"), ("broker", "url")}
_REFERENCE = 'a text, or { file = "PATH" }, or { env = "NAME" }'


def is_secret(key: Key) -> bool:
    """Tell whether a secret can stand here, so that it can be given by reference."""
    return key in _SECRETS or (len(key) == 3 and key[0] == "cameras" and key[2] in _CAMERA_SECRETS)  # noqa: PLR2004


@dataclass
class References:
    """What the references of a file led to."""

    problems: list[Problem] = field(default_factory=list)
    variables: set[str] = field(default_factory=set)
    files: set[Path] = field(default_factory=set)
    keys: set[Key] = field(default_factory=set)


def resolve(layer: Layer, environ: Mapping[str, str]) -> References:
    """Put secrets in the place of their references; what cannot be found is taken out, with a problem.

    A token in a file becomes a token file: that is read again whenever it is needed.
    """
    found = References()
    for key, value in list(layer.items()):
        if is_secret(key) and isinstance(value.value, Mapping):
            del layer[key]
            found.keys.add(key)
            try:
                layer.update(_resolved(key, value, environ, found))
            except _BadReferenceError as error:
                where = value.where
                found.problems.append(Problem(key, where, error.expected, error.found, value.file))
    return found


class _BadReferenceError(Exception):
    def __init__(self, found: str | None, expected: str) -> None:
        super().__init__()
        self.found = found
        self.expected = expected


def _resolved(key: Key, value: Value, environ: Mapping[str, str], found: References) -> Layer:
    kind, target = _reference(value.value)
    if kind == "env":
        found.variables.add(target)
        return {key: replace(value, value=_from_variable(target, environ))}
    path = Path(value.file or "").absolute().parent / target
    if key == ("ingest", "token"):
        return {("ingest", "token_file"): replace(value, value=str(path))}
    found.files.add(path)
    return {key: replace(value, value=_from_file(path))}


def _reference(value: object) -> tuple[str, str]:
    if isinstance(value, Mapping) and len(value) == 1:
        ((kind, target),) = value.items()
        if kind in {"file", "env"} and isinstance(target, str) and target and "\0" not in target:
            return kind, target
    raise _BadReferenceError("a table that is no reference", f"expected {_REFERENCE}")


def _from_variable(name: str, environ: Mapping[str, str]) -> str:
    if name not in environ:
        raise _BadReferenceError(
            f"a reference to the variable {shown_key([name])}, which is not set",
            "expected the secret in it; set it where relay-capture is started",
        )
    return _one_line(environ[name], f"the variable {shown_key([name])}")


def _from_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_SECRET + 1)
    except OSError as error:
        raise _BadReferenceError(
            f"a reference to the file {path}, which cannot be read: {error.strerror}",
            "expected a file with the secret on one line; check the path and who may read it",
        ) from None
    if len(content) > LARGEST_SECRET:
        raise _BadReferenceError(
            f"more than {LARGEST_SECRET} bytes in the file {path}", "expected the secret on one line"
        )
    try:
        return _one_line(content.decode("utf-8-sig"), f"the file {path}")
    except UnicodeDecodeError:
        raise _BadReferenceError(
            f"the file {path}, which is no UTF-8 text", "expected the secret on one line; save it as UTF-8"
        ) from None


def _one_line(text: str, what: str) -> str:
    """Return the text without the one line end behind it; blanks can belong to a password."""
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise _BadReferenceError(f"nothing in {what}", "expected the secret on one line")
    if "\n" in text or "\r" in text:
        raise _BadReferenceError(f"several lines in {what}", "expected the secret alone, on one line")
    return text


# --- who else may read them ------------------------------------------------------------------------


def readable_by_others(config: Path | None, layer: Layer, references: References) -> Iterator[str]:
    """Yield a warning for each file with a secret in it that every user of this machine may read."""
    paths = set(references.files)
    paths |= {
        Path(str(value.value))
        for key, value in layer.items()
        if key == ("ingest", "token_file") or key[:2] == ("ingest", "token_files")
    }
    if config is not None and any(_holds_secret(key, value, references) for key, value in layer.items()):
        paths.add(config)
    for path in sorted(paths):
        if _is_open_to_all(path):
            yield (
                f"{path} holds a secret and every user may read it; expected it to be its owner's alone: "
                f"chmod o-r {path}"
            )


def _holds_secret(key: Key, value: Value, references: References) -> bool:
    """Tell whether a secret stands in the file itself; what cannot be read could be one."""
    if value.file is None or not isinstance(value.value, str) or not is_secret(key) or key in references.keys:
        return False
    try:
        if key[-1] == "source":
            return bool(parse_source(value.value).secrets())
        return key[-1] != "url" or bool(urlsplit(value.value).password)
    except (RelayError, ValueError):
        return True


def _is_open_to_all(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except (OSError, ValueError):
        return False

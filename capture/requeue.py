"""Sending again by hand: what a refused token held back."""

from pathlib import Path

from capture.errors import ConfigError
from capture.gate import Gate
from capture.settings import Settings, read_token
from capture.spool import REFUSED_FILE, Spool


def held_back(spool: Spool, settings: Settings) -> bool:
    """Tell whether the token is refused; without one, whether any is."""
    try:
        return Gate(spool, settings.ingest).refusal(read_token(settings.ingest)) is not None
    except ConfigError:
        return any(_refusals(spool))


def forgive(spool: Spool, settings: Settings, camera: str | None = None) -> tuple[int, int]:
    """Let the token knock again; every refused one where none is set. Returns how many, and sessions cleared.

    A token that is forgiven without need costs one attempt.
    """
    before = len(_refusals(spool))
    try:
        Gate(spool, settings.ingest).forgive(read_token(settings.ingest))
    except ConfigError:
        for path in _refusals(spool):
            path.unlink(missing_ok=True)
    cleared = 0
    for session in spool.sessions(camera):
        note = spool.session_path(session) / REFUSED_FILE
        if note.exists():
            note.unlink(missing_ok=True)
            cleared += 1
    return before - len(_refusals(spool)), cleared


def _refusals(spool: Spool) -> list[Path]:
    return list(spool.state.glob("refused-*.json"))

"""Sending again by hand: what a refused token held back."""

import contextlib
from pathlib import Path

from capture.errors import ConfigError
from capture.gate import Gate
from capture.settings import Settings, read_token
from capture.spool import REFUSED_FILE, Spool


def held_back(spool: Spool, settings: Settings, camera: str | None = None) -> bool:
    """Tell whether a token is refused, of one camera or of any; without one, whether any ever was."""
    tokens = _tokens(settings, camera)
    gate = Gate(spool, settings.ingest)
    return any(gate.refusal(token) is not None for token in tokens) if tokens else bool(_refusals(spool))


def forgive(spool: Spool, settings: Settings, camera: str | None = None) -> tuple[int, int]:
    """Let the tokens knock again, or that of one camera; every refused one where none is set.

    Returns how many, and sessions cleared. A token that is forgiven without need costs one attempt.
    """
    before = len(_refusals(spool))
    tokens = _tokens(settings, camera)
    for token in tokens:
        Gate(spool, settings.ingest).forgive(token)
    for path in _refusals(spool) if not tokens else ():
        path.unlink(missing_ok=True)
    cleared = 0
    for session in spool.sessions(camera):
        note = spool.session_path(session) / REFUSED_FILE
        if note.exists():
            note.unlink(missing_ok=True)
            cleared += 1
    return before - len(_refusals(spool)), cleared


def _tokens(settings: Settings, camera: str | None) -> set[str]:
    """Return the tokens that can be read: of one camera, or of all."""
    found = set()
    for each in (None, *settings.ingest.token_files) if camera is None else (camera,):
        with contextlib.suppress(ConfigError):
            found.add(read_token(settings.ingest, each))
    return found


def _refusals(spool: Spool) -> list[Path]:
    return list(spool.state.glob("refused-*.json"))

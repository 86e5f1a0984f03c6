"""Whose token is good: one round's view of all tokens. A refused one holds back its own cameras alone."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from capture.errors import ConfigError
from tasks.celery import tell_unfit

if TYPE_CHECKING:
    from tasks.worker import Worker


class Standing(StrEnum):
    """What is known about a token."""

    GOOD = "good"
    REFUSED = "refused"
    MISSING = "missing"  # there is none, or it cannot be read


class Tokens:
    """The tokens of all cameras, each read at most once."""

    def __init__(self, worker: "Worker") -> None:
        """Raise ConfigError where no camera has a token of its own, and there is none for all of them."""
        self._worker = worker
        self._own = worker.settings.ingest.token_files
        self._read: dict[Path | None, tuple[Standing, str]] = {}
        self._trouble: dict[Path | None, ConfigError] = {}
        if not self._own:
            worker.token()

    @property
    def differ(self) -> bool:
        """Whether one camera may be held back while others are not."""
        return bool(self._own)

    def is_good(self, camera: str) -> bool:
        """Tell whether nothing holds this camera's uploads back; say so when it has no token."""
        standing, _ = self._look(camera)
        if standing is Standing.MISSING:
            tell_unfit(self._trouble[self._own.get(camera)])
        return standing is Standing.GOOD

    def may_knock(self, camera: str) -> bool:
        """Tell whether an attempt of this camera would go out now, if nobody else is at it."""
        standing, token = self._look(camera)
        return standing is not Standing.MISSING and self._worker.gate.is_due(token)

    def is_held_and_due(self, camera: str) -> bool:
        """Tell whether this camera's token is refused, and may be tried again now."""
        return self._look(camera)[0] is Standing.REFUSED and self.may_knock(camera)

    def any_good(self) -> bool:
        return any(self._look(camera)[0] is Standing.GOOD for camera in (None, *self._own))

    def all_stopped(self) -> bool:
        """Tell whether every token is refused, and none may be tried again by itself."""
        stops = self._worker.settings.ingest.on_refused == "stop"
        return stops and not self.any_good()

    def any_may_knock(self) -> bool:
        for camera in (None, *self._own):
            standing, token = self._look(camera)
            if standing is not Standing.MISSING and self._worker.gate.is_due(token):
                return True
        return False

    def _look(self, camera: str | None) -> tuple[Standing, str]:
        file = self._own.get(camera) if camera is not None else None
        if file not in self._read:
            self._read[file] = self._ask(camera)
        return self._read[file]

    def _ask(self, camera: str | None) -> tuple[Standing, str]:
        try:
            token = self._worker.token(camera)
        except ConfigError as error:
            self._trouble[self._own.get(camera) if camera is not None else None] = error
            return Standing.MISSING, ""
        is_refused = self._worker.gate.refusal(token) is not None
        return (Standing.REFUSED if is_refused else Standing.GOOD), token

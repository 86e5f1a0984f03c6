"""SIGHUP: take over what changed in relay.toml, while everything that did not change goes on."""

from collections.abc import Callable, Iterator

import structlog
from pydantic import BaseModel

from capture.agent import Agent
from capture.errors import RelayError
from capture.settings import Settings
from capture.stack import Stack

# What may change under a running agent; anything else needs a restart.
_TOKEN_FILES = "ingest.token_files"  # noqa: S105 - a key
_TAKEN_OVER = {"cameras", "defaults", _TOKEN_FILES}
_AS_IT_WAS = "everything goes on as it was"
_ELSEWHERE = "restart the workers: they read at their start where each camera's token is"

log = structlog.get_logger()


def need_restart(old: Settings, new: Settings) -> list[str]:
    """Return the keys that changed and are not taken over while the agent runs."""
    return [key for key in _changed(old, new, "") if key not in _TAKEN_OVER]


def _changed(old: BaseModel, new: BaseModel, prefix: str) -> Iterator[str]:
    for key in type(old).model_fields:
        before, after, dotted = getattr(old, key), getattr(new, key), f"{prefix}{key}"
        if isinstance(before, BaseModel) and isinstance(after, BaseModel) and dotted not in _TAKEN_OVER:
            yield from _changed(before, after, f"{dotted}.")
        elif before != after:
            yield dotted


class Reloader:
    """Reads the settings anew when asked to."""

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings] | None = None,
        *,
        learn: Callable[[Settings], None] = lambda _settings: None,
    ) -> None:
        """`load` reads the settings as at the start; None where they cannot change.

        `learn` has the log mask the secrets of new settings, too, before anything is said about them.
        """
        self._settings = settings
        self._load = load
        self._learn = learn
        self._warned = set(settings.warnings)

    def reload(self, agent: Agent, stack: Stack | None) -> None:
        """Take over what changed; whatever is wrong with it, everything goes on as it was."""
        if self._load is None:
            log.warning("reload_ignored", reason="there are no settings to read anew")
            return
        try:
            new = self._load()
            self._learn(new)
            self._take_over(new, agent, stack)
        except RelayError as error:
            log.error("reload_failed", reason=str(error), then=_AS_IT_WAS)
        except OSError as error:
            log.error("reload_failed", reason=error.strerror or str(error), then=_AS_IT_WAS)
        except Exception:
            log.exception("reload_failed", then=_AS_IT_WAS)

    def _take_over(self, new: Settings, agent: Agent, stack: Stack | None) -> None:
        old_files, running = agent.settings.ingest.token_files, set(agent.cameras)
        found = agent.reload(new)
        for warning in new.warnings:
            if warning not in self._warned:
                log.warning("secret_readable_by_others", advice=warning)
        self._warned = set(new.warnings)
        for camera, problems in new.faulty_cameras.items():
            then = "it goes on as it was" if camera in running else "the others run"
            log.error("camera_misconfigured", camera=camera, problems=list(problems), then=then)
        if keys := need_restart(self._settings, new):
            log.warning("settings_need_restart", keys=keys, then="the old ones stay in force until then")
        if stack is not None:
            stack.use_token_files(agent.settings)
        elif old_files != agent.settings.ingest.token_files:
            log.warning("settings_need_restart", keys=[_TOKEN_FILES], then=_ELSEWHERE)
        log.info(
            "settings_reloaded",
            added=list(found.added),
            removed=list(found.removed),
            changed=list(found.changed),
            unchanged=len(found.unchanged),
        )

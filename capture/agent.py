"""The capture agent: all cameras of this machine, and the handoff of what they close."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import structlog

from capture.budget import Budget
from capture.camera import Camera, CameraPlan, CameraStatus
from capture.clock import Clock
from capture.errors import ConfigError, RelayError
from capture.ffmpeg import CaptureOptions
from capture.fleet import Changes, Fleet
from capture.gate import Gate
from capture.handoff import (
    END_SESSION,
    RECOVER,
    REGISTER_CAMERA,
    Message,
    Publisher,
    publisher_app,
    upload_message,
)
from capture.segment import SessionName
from capture.session import Owed
from capture.settings import Settings, read_token
from capture.spool import REJECTED, Spool
from capture.upkeep import ENDED_NOTE, REGISTERED_NOTE, is_over, is_told

_PUBLISH_SECONDS = 1.0
_OTHERS_GO_ON = "its segments stay owed; the other cameras go on"

log = structlog.get_logger()


def plan_cameras(settings: Settings) -> list[CameraPlan]:
    """Return what the settings say is to be captured. Raises ConfigError when that is nothing."""
    plans = []
    for camera_id, camera in settings.cameras.items():
        if not camera.enabled:
            continue
        values = camera.over(settings.defaults)
        options = CaptureOptions(
            segment_seconds=values.segment_seconds,
            fps=values.fps,
            resolution=values.resolution,
            audio=values.audio,
            realtime=values.realtime,
        )
        name, hidden = camera.name or camera_id, settings.secret_variables()
        plans.append(CameraPlan(camera_id, name, camera.parsed_source(), options, hidden))
    if not plans:
        raise ConfigError(
            "no camera is set; expected at least one; give --source (a file, rtsp://…, http://…, "
            "webcam:0 or test:), or a [cameras.<id>] table in relay.toml"
        )
    return plans


def _token_files(before: Settings, after: Settings) -> dict[str, Path]:
    """Return the token files from now on; a camera that is gone may owe segments, and keeps its own."""
    gone = before.ingest.token_files.keys() - after.cameras.keys()
    return {each: before.ingest.token_files[each] for each in gone} | after.ingest.token_files


class Agent:
    """Runs the cameras. Nothing here waits for the network."""

    def __init__(self, settings: Settings, spool: Spool, ffmpeg: str, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._spool = spool
        self._publisher = Publisher(publisher_app(settings))
        self._gate = Gate(spool, settings.ingest)
        self._sessions: list[SessionName] = []
        self._told_refused: set[str] = set()
        self._budget = Budget(spool, settings.spool, cameras=len(settings.cameras))
        self._ffmpeg = ffmpeg
        self._clock = clock
        self._fleet = Fleet(plan_cameras(settings), self._camera, clock=clock)

    def _camera(self, plan: CameraPlan, away: str) -> Camera:
        return Camera(
            plan,
            spool=self._spool,
            ffmpeg=self._ffmpeg,
            on_owed=self._owed,
            on_session=self._session,
            away=away,
            clock=self._clock,
        )

    @property
    def cameras(self) -> Mapping[str, Camera]:
        """The cameras that are to run now, by id."""
        return self._fleet.cameras

    def start(self) -> None:
        """Start all cameras. A start is a new try for a token that was refused before."""
        self._forgive(self.cameras)
        self._publisher.start()
        self._budget.start()
        self._fleet.attend()
        self._publisher.send(Message(RECOVER, ()))

    def attend(self) -> None:
        """Go on starting cameras. Call it several times a second, from one thread."""
        self._fleet.attend()

    def reload(self, settings: Settings) -> Changes:
        """Take over cameras, defaults and the cameras' token files; nothing else changes while we run.

        Only cameras whose settings differ are started anew. One whose table is wrong goes on as it was.
        Raises ConfigError when no camera would be left.
        """
        before = self._settings
        ingest = before.ingest.model_copy(update={"token_files": _token_files(before, settings)})
        after = before.model_copy(
            update={"cameras": settings.cameras, "defaults": settings.defaults, "ingest": ingest}
        ).noting(
            faulty_cameras=settings.faulty_cameras,
            secret_variables=before.secret_variables() | settings.secret_variables(),
            warnings=settings.warnings,
        )
        plans = {plan.id: plan for plan in plan_cameras(after)}
        kept = {each: self.cameras[each].plan for each in settings.faulty_cameras if each in self.cameras}
        tables = {each: before.cameras[each] for each in kept}
        self._settings = after.model_copy(update={"cameras": after.cameras | tables})
        self._gate = Gate(self._spool, ingest)
        self._budget.expect(len(plans | kept))
        found = self._fleet.exchange((plans | kept).values())
        files, old_files = ingest.token_files, before.ingest.token_files
        self._forgive([each for each in self.cameras if files.get(each) != old_files.get(each)])
        self._fleet.attend()
        return found

    @property
    def settings(self) -> Settings:
        """The settings as they are in force."""
        return self._settings

    def _forgive(self, cameras: Iterable[str]) -> None:
        for camera in cameras:
            try:
                self._gate.forgive(read_token(self._settings.ingest, camera))
            except (ConfigError, OSError) as error:
                log.error("camera_token_unusable", camera=camera, reason=str(error), then=_OTHERS_GO_ON)

    def stop(self) -> None:
        """Let every ffmpeg finish its segment; at most a few seconds."""
        self._fleet.stop()

    def close(self, timeout: float = _PUBLISH_SECONDS) -> None:
        """Let the publisher finish, for at most `timeout` seconds."""
        self._budget.stop()
        self._publisher.close(timeout)

    def is_running(self) -> bool:
        return self._fleet.is_running()

    def is_steady(self) -> bool:
        """Tell whether `attend` has nothing to do soon."""
        return self._fleet.is_steady()

    def statuses(self) -> list[CameraStatus]:
        return [camera.status() for camera in self.cameras.values()]

    def errors(self) -> list[RelayError]:
        """Return why cameras failed for good."""
        return [status.error for status in self.statuses() if status.error is not None]

    def refusal(self) -> str | None:
        """Return the advice when the cloud refuses all cameras that go on, and that ends us; None otherwise.

        A camera that is refused with a token of its own, while others are not, is told in the log.
        """
        if self._settings.ingest.on_refused != "stop":
            return None
        try:
            if not self._gate.refuses_anybody():
                return None
            notes = {camera: self._refusal_of(camera) for camera in self._going_on()}
        except OSError:  # the spool is away: others say so
            return None
        refused = {camera: str(note.get("advice")) for camera, note in notes.items() if note is not None}
        if len(refused) == len(notes):
            return next(iter(refused.values()), None)
        for camera in sorted(refused.keys() - self._told_refused):
            log.error("camera_refused", camera=camera, advice=refused[camera], then=_OTHERS_GO_ON)
        self._told_refused = set(refused)
        return None

    def _refusal_of(self, camera: str) -> dict[str, Any] | None:
        try:
            return self._gate.refusal(read_token(self._settings.ingest, camera))
        except ConfigError:
            return None

    def _going_on(self) -> list[str]:
        """Return the cameras that capture or still owe; all of them when none does."""
        alive = {camera for camera, each in self.cameras.items() if each.is_alive()}
        if len(alive) == len(self.cameras):
            return list(alive)
        owing = {name.camera for name in self._spool.sessions() if self._spool.has_segments(name)}
        return [camera for camera in self.cameras if camera in alive | owing] or list(self.cameras)

    def owed(self) -> int:
        """Return how many segments of these cameras the cloud has not confirmed."""
        return self._spool.owed_count(self._ours())

    def _ours(self) -> set[str]:
        """The cameras of this run, also those that are gone: what they owe is still to be sent."""
        return set(self._fleet.known)

    def _owes(self) -> bool:
        """Tell whether anything is owed; stops at the first, where counting very many takes its time."""
        ours = self._ours()
        return any(name.camera in ours and self._spool.has_segments(name) for name in self._spool.sessions())

    def left_open(self) -> int:
        """Return how many segments of this run could not be closed; they are salvaged later."""
        return sum(len(self._spool.open_segments(name)) for name in self._sessions)

    def rejected(self) -> int:
        """Return how many segments of this run the cloud would not take."""
        return sum(len(self._spool.segments(name, REJECTED)) for name in self._sessions)

    def is_settled(self) -> bool:
        """Tell whether nothing is owed, and the cloud knows that the sessions of this run are over."""
        if self.is_running() or self._owes():
            return False
        return all(
            (self._spool.session_path(name) / ENDED_NOTE).exists() or not is_over(self._spool, name)
            for name in self._sessions
        )

    def remind(self) -> None:
        """Have what is still owed or untold sent: a stop does not wait for beat's next tick."""
        self._publisher.send(Message(RECOVER, (True,)))
        for name in self._sessions:
            if not is_told(self._spool, name, REGISTERED_NOTE):
                self._publisher.send(Message(REGISTER_CAMERA, (str(name),)))
            elif is_over(self._spool, name):
                self._publisher.send(Message(END_SESSION, (str(name),)))

    def _owed(self, session: SessionName, owed: Owed) -> None:
        self._budget.add(owed.size)
        self._publisher.send(upload_message(self._settings.ingest, session, owed.segment, owed.size))

    def _session(self, session: SessionName, what: Literal["started", "ended"]) -> None:
        if what == "started":
            self._sessions.append(session)
        task = REGISTER_CAMERA if what == "started" else END_SESSION
        self._publisher.send(Message(task, (str(session),)))

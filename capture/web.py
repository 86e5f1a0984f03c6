"""The agent's page: which path is answered by what, and how often the disk is looked at for it.

Nothing here runs unless somebody asks. What touches the disk runs in threads of its own, one for facts and
one for pictures, so that a spool that hangs stops neither the server nor the capture.
"""

import asyncio
import base64
import hashlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from capture import __version__
from capture.agent import Agent
from capture.errors import RelayError
from capture.segment import rfc3339
from capture.sink_http import Answer
from capture.snapshot import Picture, Pictures
from capture.spool import Spool
from capture.status import read_broker, read_ingest, read_status
from capture.status_journal import Journals
from capture.web_health import Heartbeat, Readiness, check_loop, readiness
from capture.web_look import PATIENCE_SECONDS, Glance, Worker
from capture.web_server import STRICT_POLICY, Handler, WebServer, answer
from capture.web_status import Facts, status_json, without_secrets

JSON: Final = "application/json"
PAGE: Final = Path(__file__).with_name("web_page.html")
FRESH_SECONDS: Final = 1.5
RENDERED_SECONDS: Final = 0.5  # how many ask in that time makes no difference
READY_SECONDS: Final = 5.0
Render = Callable[[], tuple[str, bytes]]  # gives a content type and a body
ALWAYS: Final = frozenset({"/healthz"})  # a crowd of readers is no reason to restart the agent


class Site:
    """What is answered. `routes` is the table that the server takes."""

    def __init__(
        self,
        agent: Agent,
        spool: Spool,
        ffmpeg: str,
        heartbeat: Heartbeat,
        pages: Mapping[str, Render] = MappingProxyType({}),
    ) -> None:
        self._agent = agent
        self._spool = spool
        self._heartbeat = heartbeat
        self._begun = spool.clock.now()
        self._journals = Journals()
        self._pictures = Pictures(spool, ffmpeg, hidden=agent.settings.secret_variables())
        self._disk, self._camera_room = Worker("web facts"), Worker("web pictures")
        self._pages_room = Worker("web pages")
        self._facts = Glance(self._disk, self._read_facts, fresh=FRESH_SECONDS)
        self._readiness = Glance(self._disk, self._read_readiness, fresh=READY_SECONDS)
        self._looking: dict[str, asyncio.Future[Picture | None]] = {}
        self._rendered = (b"", 0.0)
        page = PAGE.read_text(encoding="utf-8")
        self._page, self._policy = page.encode(), page_policy(page)
        self.routes: Mapping[str, Handler] = {
            "/": self._show_page,
            "/api/status": self._show_status,
            "/picture/": self._show_picture,
            "/healthz": self._show_health,
            "/readyz": self._show_readiness,
            **{path: self._rendered_by(render) for path, render in pages.items()},
        }

    def close(self) -> None:
        self._pictures.close()
        self._disk.close()
        self._camera_room.close()
        self._pages_room.close()

    async def _show_page(self, _rest: str) -> Answer:
        return answer(
            self._page, "text/html; charset=utf-8", headers={"Content-Security-Policy": self._policy}
        )

    async def _show_status(self, _rest: str) -> Answer:
        facts = await self._facts.get() or Facts(trouble="the spool is being read; that takes long")
        body, rendered_at = self._rendered
        if time.monotonic() - rendered_at > RENDERED_SECONDS:
            body = json.dumps(self._status(facts)).encode()
            self._rendered = body, time.monotonic()
        return answer(body, JSON)

    async def _show_picture(self, name: str) -> Answer:
        camera = name.removesuffix(".jpg")
        if camera == name or camera not in self._agent.cameras:
            return Answer.text(404, "there is no such camera")
        picture = await self._picture(camera)
        if picture is None:
            return Answer(204)
        age = max(0.0, time.monotonic() - picture.taken_at)
        return answer(picture.jpeg, "image/jpeg", headers={"X-Picture-Age": f"{age:.1f}"})

    async def _picture(self, camera: str) -> Picture | None:
        """Return the newest picture, or the last one where that takes too long; many askers, one look."""
        looking = self._looking.get(camera)
        if looking is None:
            looking = self._camera_room.run(lambda: self._pictures.latest(camera))
            self._looking[camera] = looking
            looking.add_done_callback(lambda _: self._looking.pop(camera, None))
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await asyncio.shield(looking)
        except TimeoutError:
            return self._pictures.known(camera)

    async def _show_health(self, _rest: str) -> Answer:
        check = check_loop(self._heartbeat)
        body = {"alive": check.ok, "found": check.found}
        return answer(json.dumps(body), JSON, status=200 if check.ok else 503)

    async def _show_readiness(self, _rest: str) -> Answer:
        found = await self._readiness.get()
        if found is None:
            body: object = {"ready": False, "checks": [], "found": "the spool does not answer in time"}
        else:
            body = without_secrets(found.as_json(), self._agent.settings.secrets())
        ready = found is not None and found.is_ready and self._heartbeat.is_alive()
        return answer(json.dumps(body), JSON, status=200 if ready else 503)

    def _rendered_by(self, render: Render) -> Handler:
        async def show(_rest: str) -> Answer:
            content_type, body = await self._pages_room.run(render)
            return answer(body, content_type)

        return show

    # --- what these threads read ---

    def _read_facts(self) -> Facts:
        begun = time.monotonic()
        try:
            self._spool.check_mounted()
            return Facts(read_status(self._spool, self._agent.settings, self._journals), read_at=begun)
        except (OSError, RelayError) as error:
            words = (error.strerror if isinstance(error, OSError) else None) or str(error)
            return Facts(trouble=f"the spool cannot be read: {words}", read_at=begun)

    def _read_readiness(self) -> Readiness:
        settings = self._agent.settings
        return readiness(
            self._heartbeat,
            self._spool,
            self._agent.statuses(),
            broker=read_broker(self._spool, settings),
            ingest=read_ingest(self._spool, settings),
        )

    def _status(self, facts: Facts) -> dict[str, Any]:
        now = self._spool.clock.now()
        found = status_json(
            self._agent.statuses(),
            {camera: each.plan.name for camera, each in list(self._agent.cameras.items())},
            facts,
            faulty=self._agent.settings.faulty_cameras,
            secrets=self._agent.settings.secrets(),
        )
        agent = {
            "version": __version__,
            "host": socket.gethostname(),
            "started": rfc3339(self._begun),
            "alive": self._heartbeat.is_alive(),
        }
        return {"format": 1, "agent": agent, **found, "time": rfc3339(now)}


def page_policy(page: str) -> str:
    """Return a Content-Security-Policy that lets this page's own style and script run, and nothing else."""
    hashes = {
        tag: f"'sha256-{base64.b64encode(hashlib.sha256(found.encode()).digest()).decode()}'"
        for tag in ("style", "script")
        for found in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    }
    allowed = f"style-src {hashes['style']}; script-src {hashes['script']}"
    return f"{STRICT_POLICY}; {allowed}; connect-src 'self'; img-src blob: data:"


@contextmanager
def web_page(
    agent: Agent,
    spool: Spool,
    ffmpeg: str,
    *,
    listen: str,
    pages: Mapping[str, Render] = MappingProxyType({}),
) -> Iterator[Callable[[], None]]:
    """Serve the page at HOST:PORT while the agent lives; give what the main loop calls each time round.

    `pages` are further paths and what renders them, in a thread of theirs. Raises ConfigError when the
    address cannot be had.
    """
    heartbeat = Heartbeat()
    site = Site(agent, spool, ffmpeg, heartbeat, pages)
    server = WebServer(listen, site.routes, always=ALWAYS)
    server.start()
    try:
        yield heartbeat.beat
    finally:
        server.close()
        site.close()

"""The cameras as fixtures, known to all tests."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio_ffmpeg
import pytest

from tests.cameras.addresses import DeadIp, OddPort
from tests.cameras.http import HttpCamera
from tests.cameras.recording import Logged, Recording, logs
from tests.cameras.rtsp import CameraMaker, RtspCamera, is_required, missing


def cannot(message: str) -> None:
    """Skip on a laptop, fail where the project is checked."""
    if is_required():
        pytest.fail(message)
    pytest.skip(message)


def require_rtsp_camera() -> None:
    if lack := missing():
        cannot(f"no RTSP camera can run here: {lack}")


@pytest.fixture
def rtsp_camera() -> Iterator[CameraMaker]:
    """Starts RTSP cameras, with the options of `rtsp_server.OPTIONS`."""
    require_rtsp_camera()
    cameras: list[RtspCamera] = []

    def start(**options: object) -> RtspCamera:
        cameras.append(RtspCamera(**options))
        return cameras[-1]

    yield start
    for camera in cameras:
        camera.close()


@pytest.fixture
def http_camera() -> Iterator[Callable[..., HttpCamera]]:
    """Starts cameras that stream over HTTP."""
    cameras: list[HttpCamera] = []

    def start(form: str = "mpegts", **options: object) -> HttpCamera:
        cameras.append(HttpCamera(imageio_ffmpeg.get_ffmpeg_exe(), form, **options))
        return cameras[-1]

    yield start
    for camera in cameras:
        camera.close()


@pytest.fixture
def entries() -> Iterator[list[Logged]]:
    """What is logged, in order."""
    with logs() as found:
        yield found


@pytest.fixture
def record(tmp_path: Path, entries: list[Logged]) -> Iterator[Callable[..., Recording]]:
    """Starts captures, each into a spool of its own, with segments of one second."""
    recordings: list[Recording] = []

    def start(url: str, **options: object) -> Recording:
        name = f"cam{len(recordings) + 1}"
        recordings.append(Recording(tmp_path / name, url, entries, name, options=options))
        return recordings[-1]

    yield start
    for recording in recordings:
        recording.stop()


@pytest.fixture
def dead_ip() -> Iterator[DeadIp]:
    """Is a host that answers no SYN."""
    if sys.platform != "linux":
        pytest.skip("only Linux drops connections beyond a full backlog")
    with DeadIp() as host:
        yield host


@pytest.fixture
def odd_port() -> Iterator[Callable[[str], OddPort]]:
    """Opens ports that behave oddly."""
    ports: list[OddPort] = []

    def start(behaviour: str, **options: object) -> OddPort:
        ports.append(OddPort(behaviour, **options))
        return ports[-1]

    yield start
    for port in ports:
        port.close()

"""The installed command with real RTSP cameras that ask for a login; one of them is lost and comes back."""

import base64
import json
import signal

import psutil
import pytest

from tests.cameras.recording import picture_numbers

TOKEN = "made-up-token"
LOOP = 100  # pictures of a camera of the tests, then their numbers begin anew
# The runs of letters and digits in them survive any escaping, so that they are what is searched for.
PASSWORDS = {"gate": "Gq7vKp2/ü @gate?#%41", "yard": 'y"ard:\\&Wz4tRb9='}
SECRETS = ["Gq7vKp2", "Wz4tRb9", base64.b64encode(f"admin:{PASSWORDS['yard']}".encode()).decode()]


@pytest.fixture
def cameras(rtsp_camera):
    return {
        name: rtsp_camera(auth=auth, user="admin", password=PASSWORDS[name])
        for name, auth in [("gate", "digest"), ("yard", "basic")]
    }


@pytest.fixture
def config(cameras, sink, spool, tmp_path):
    tables = [f"[cameras.{name}]\nsource = {json.dumps(camera.url)}\n" for name, camera in cameras.items()]
    path = tmp_path / "relay.toml"
    path.write_text(
        f'[ingest]\nurl = "{sink.url}"\n[spool]\npath = "{spool.path}"\n[defaults]\nsegment_seconds = 1\n'
        + "".join(tables)
    )
    path.chmod(0o600)
    return path


def shown(relay, spool):
    """Yield what another user, or who reads what it wrote, could see."""
    for process in relay.processes():
        try:
            yield " ".join(process.cmdline())
            yield " ".join(map("=".join, process.environ().items()))
        except psutil.Error:
            continue
    yield relay.log
    for path in spool.path.rglob("*.json*"):
        yield path.read_text()


def closed(spool, name):
    lines = [line for kind in ("closed", "recovered") for line in spool.journal(kind)]
    return [line for line in lines if f"-{name}-" in line["session"]]


def test_one_camera_is_lost_and_comes_back_the_other_loses_no_frame_and_no_password_is_shown(
    start, cameras, config, *, sink, spool, events, ffmpeg
):
    relay = start("up", "--config", config, "--verbose", env={"RELAY_TOKEN": TOKEN})
    for name in cameras:
        relay.wait_for(lambda name=name: len(closed(spool, name)) >= 2, f"two segments of {name}")
    everything = list(shown(relay, spool))
    cameras["gate"].kill()
    relay.wait_for(lambda: "capture_interrupted" in relay.log, "noticed")
    cameras["gate"].restart()
    before = len(closed(spool, "gate"))
    relay.wait_for(lambda: len(closed(spool, "gate")) >= before + 2, "two more segments of gate")
    everything += shown(relay, spool)
    relay.signal(signal.SIGTERM)
    assert relay.exit_code() == 0
    everything += [*shown(relay, spool), json.dumps([str(event) for event in events])]

    (gap,) = spool.journal("gap")
    assert gap["cause"]
    assert gap["seconds"] > 0
    yard = sorted((r.session, r.sequence, r.path) for r in sink.receipts() if r.camera == "yard")
    numbers = picture_numbers(ffmpeg, [path for _, _, path in yard])
    assert len(numbers) > 10
    assert numbers == [(numbers[0] + place) % LOOP for place in range(len(numbers))]
    assert not [(secret, text[:500]) for text in everything for secret in SECRETS if secret in text]

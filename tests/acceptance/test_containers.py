"""The image and the compose files, played without Docker: see image.py and pod.py for what that covers."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from capture.pulse import STUCK_SECONDS
from tests.acceptance.image import DOCKER
from tests.acceptance.pod import Container, Pod, compose

TOKEN = "container-token"
CLOUD = dict([(DOCKER / "demo.env").read_text().splitlines()[-1].split("=")])


@pytest.fixture
def pod(image, tmp_path):
    with Pod(image, tmp_path) as pod:
        yield pod


def secrets_of(folder: Path, **contents: str) -> Path:
    folder.mkdir()
    for name, content in contents.items():
        path = folder / name
        path.write_text(content)
        path.chmod(0o400)
    return folder


def stored(folder: Path, camera: str) -> list[Path]:
    """Return what a sink has stored of a camera."""
    return [path for path in folder.rglob("*.ts") if camera in path.relative_to(folder).parts]


def seconds(duration: str) -> float:
    """Read what Compose makes of a duration: 20s, 1m30s."""
    found = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    return 60 * int(found[1] or 0) + int(found[2] or 0)


def owed(spool: Path) -> list[Path]:
    return [*spool.glob("relay-segments-*/*.ts"), *spool.glob("relay-segments-*/open/*.ts")]


# Lets the pulse of a process that stands still grow old without the wait.
AGE = f"""
import pathlib
for path in pathlib.Path("/tmp").glob("*.pulse"):
    path.write_text("%020.3f\\n" % (float(path.read_text()) - {STUCK_SECONDS + 1}))
"""

ASK_FLOWER = """
import base64, json, sys, urllib.error, urllib.request
request = urllib.request.Request("http://127.0.0.1:5555/api/workers?refresh=1")
if sys.argv[1:]:
    request.add_header("Authorization", "Basic " + base64.b64encode(sys.argv[1].encode()).decode())
try:
    print(json.dumps(sorted(json.load(urllib.request.urlopen(request, timeout=20)))))
except urllib.error.HTTPError as error:
    print(error.code)
"""


def workers_in(flower: Container, *auth: str) -> list[str] | int:
    """Return the workers that Flower knows, or the status with which it turns us away."""
    return json.loads(flower.run(["python", "-c", ASK_FLOWER, *auth]).stdout or "null")


@pytest.mark.timeout(300)
def test_one_host_captures_delivers_tells_who_hangs_and_stops_in_order(pod, tmp_path):
    file = compose("compose.yaml", CLOUD)
    services = file["services"]
    config = '[cameras.gate]\nsource = "test:320x180@25"\nsegment_seconds = 1\n'
    auth = "operator:made-up-password"
    secrets = secrets_of(tmp_path / "secrets", relay_token=TOKEN, relay_toml=config, flower_auth=auth)
    volumes = tmp_path / "volumes"
    pod.name_services("valkey", "sink")
    # The agent before all others: it waits for nobody.
    order = ["agent", "worker", "beat", "flower", "sink", "demo-camera", "valkey"]
    running = {
        name: pod.start(services[name], f"box-{name}", secrets=secrets, volumes=volumes) for name in order
    }

    spool, sink = volumes / "spool", volumes / "sink"
    for camera in ("gate", "demo"):
        pod.wait_for(lambda camera=camera: len(stored(sink, camera)) > 2, f"segments of {camera} arrive")
    checked = [name for name in order if name != "valkey"]  # the wheel of the tests brings no valkey-cli
    for name in checked:
        pod.wait_for(lambda name=name: pod.is_healthy(running[name], services[name]), f"{name} is healthy")

    assert workers_in(running["flower"]) == 401
    pod.wait_for(lambda: workers_in(running["flower"], auth) == ["relay@box-worker"], "Flower")

    for secret in (TOKEN, "made-up-password"):
        for container in running.values():
            assert secret not in container.log
            assert secret not in container.run(["cat", "/proc/1/cmdline", "/proc/2/cmdline"]).stdout

    watched = ["agent", "worker", "beat"]
    for name in watched:
        running[name].main().suspend()
        running[name].run(["python", "-c", AGE])
        assert not pod.is_healthy(running[name], services[name]), f"{name} hangs and is called healthy"
        assert "STUCK" in running[name].run(["relay-capture", "health", "any"]).stdout
        running[name].main().resume()
        pod.wait_for(lambda name=name: pod.is_healthy(running[name], services[name]), f"{name} is well again")

    waits_for = {name: set(service.get("depends_on", {})) for name, service in services.items()}
    assert {"worker", "valkey"} <= waits_for["agent"]
    assert "valkey" in waits_for["worker"]
    for name in ("demo-camera", "agent", "flower", "beat", "worker", "sink", "valkey"):
        pod.forget(running[name])
        limit = seconds(services[name].get("stop_grace_period", "10s"))
        code, _ = running[name].stop(limit)
        assert code == 0, f"{name} ended with {code}: {running[name].log[-2000:]}"
    assert owed(spool) == []
    files = spool.glob("journal/*/*.jsonl")
    journals = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    closed = {(line["session"], line["segment"]) for line in journals if line["event"] == "closed"}
    delivered = {(line["session"], line["segment"]) for line in journals if line["event"] == "delivered"}
    assert closed
    assert closed == delivered
    assert len([*stored(sink, "gate"), *stored(sink, "demo")]) == len(closed)


@pytest.fixture
def certificate(tmp_path):
    """A key and a certificate for the name `broker`, which is its own authority."""
    key, cert = tmp_path / "broker.key", tmp_path / "broker.crt"
    names = ["-subj", "/CN=broker", "-addext", "subjectAltName=DNS:broker"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [*made, *names, "-days", "2", "-keyout", key, "-out", cert], check=True, capture_output=True
    )
    return key, cert


# The wheel's Valkey has no TLS: this stands before it, in its container.
TLS_DOOR = """
import asyncio, ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/run/secrets/valkey_cert", "/run/secrets/valkey_key")
async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
async def serve(reader, writer):
    try:
        inner = await asyncio.open_connection("127.0.0.1", 6380)
    except OSError:
        writer.close()
        return
    await asyncio.gather(pump(reader, inner[1]), pump(inner[0], writer))
async def main():
    async with await asyncio.start_server(serve, "0.0.0.0", 6379, ssl=context) as server:
        await server.serve_forever()
asyncio.run(main())
"""
PASSWORD = "made-up-broker-password"
URL = f"rediss://:{PASSWORD}@broker:6379/0?ssl_cert_reqs=required&ssl_ca_certs=/run/secrets/broker_ca"
ASK_BROKER = f"""
import json, redis
client = redis.Redis(port=6380, password="{PASSWORD}", decode_responses=True)
print(json.dumps([sorted(client.keys("*")), client.llen("north:live"), client.llen("south:live")]))
"""


class Hosts:
    """North and south: each with a spool, a cloud, an agent, a worker and a beat of its own."""

    NAMES = ("north", "south")

    def __init__(self, pod: Pod, folder: Path, cert: str) -> None:
        self.pod = pod
        self.folder = folder
        sink = compose("compose.yaml", CLOUD)["services"]["sink"]
        self.services, self.secrets = {}, {}
        for name, port in zip(self.NAMES, ("8081", "8082"), strict=True):
            variables = {"QUEUES": name, "SPOOL_DEVICE": "/srv/relay", "SPOOL_CREATE": "true"}
            cloud = {"RELAY_CLOUD": f"http://{name}-cloud:{port}"}
            self.services[name] = compose("compose.site.yaml", variables | cloud)["services"]
            own = [port if word == "8080" else word for word in sink["command"]]
            self.services[name]["sink"] = {**sink, "command": own}
            camera = f'[cameras.{name}]\nsource = "test:320x180@25"\nsegment_seconds = 1\n'
            config = f'[broker]\nurl = "{URL}"\n{camera}'
            self.secrets[name] = secrets_of(
                folder / f"{name}-secrets",
                relay_token=TOKEN,
                relay_toml=config,
                broker_ca=cert,
                flower_auth="operator:made-up-password",
            )

    def start(self, name: str, what: str) -> Container:
        return self.pod.start(
            self.services[name][what],
            f"{name}-{what}",
            secrets=self.secrets[name],
            volumes=self.folder / f"{name}-volumes",
        )

    def delivered(self, name: str) -> int:
        return len(stored(self.folder / f"{name}-volumes/sink", name))

    def strays(self) -> list[Path]:
        """Return what one host's cloud has of the other host."""
        north, south = (self.folder / f"{name}-volumes/sink" for name in self.NAMES)
        return [*stored(north, "south"), *stored(south, "north")]


@pytest.mark.timeout(300)
def test_hosts_with_spools_of_their_own_share_a_broker_and_no_message(pod, tmp_path, certificate):
    key, cert = (path.read_text() for path in certificate)
    pod.name_services("broker", "north-cloud", "south-cloud")
    hosts = Hosts(pod, tmp_path, cert)
    conf = f"port 6380\nbind 127.0.0.1\nrequirepass {PASSWORD}\n"
    secrets = secrets_of(tmp_path / "broker", valkey_conf=conf, valkey_cert=cert, valkey_key=key)
    broker = hosts.services["north"]["broker"]
    pod.start(broker, "broker", secrets=secrets, volumes=tmp_path)
    door = {**broker, "build": {}, "command": ["python", "-c", TLS_DOOR]}
    ask = pod.start(door, "door", secrets=secrets, volumes=tmp_path)

    parts = ("sink", "agent", "worker", "beat")
    running = {(name, what): hosts.start(name, what) for what in parts for name in hosts.NAMES}
    flower = hosts.start("north", "flower")
    for name in hosts.NAMES:
        pod.wait_for(lambda name=name: hosts.delivered(name) > 2, f"segments of {name} arrive")
    auth = "operator:made-up-password"
    pod.wait_for(lambda: workers_in(flower, auth) == ["relay@north-worker"], "Flower knows its own worker")

    pod.forget(running["north", "worker"])
    assert running["north", "worker"].stop(seconds("1m30s"))[0] == 0
    stopped_at, south = hosts.delivered("north"), hosts.delivered("south")

    def lengths() -> tuple[int, int]:
        keys, *found = json.loads(ask.run(["python", "-c", ASK_BROKER]).stdout)
        assert all(name.startswith(("north:", "south:")) for name in keys), keys
        return tuple(found)

    pod.wait_for(lambda: lengths()[0] > 3 and hosts.delivered("south") > south + 3, "messages of north wait")
    assert hosts.delivered("north") == stopped_at
    hosts.start("north", "worker")
    pod.wait_for(lambda: hosts.delivered("north") > stopped_at + 3, "its own worker takes them")
    assert hosts.strays() == []
    for container in running.values():
        assert "message_refused" not in container.log
        assert PASSWORD not in container.log

"""The Dockerfile and the compose files, as their own tools read them; what is promised of each service."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from capture.camera import STOP_GRACE_SECONDS
from capture.outcome import attempt_seconds
from capture.settings import Settings
from tests.acceptance.image import DOCKER, instructions, stages
from tests.acceptance.pod import compose

VARIABLES = {"RELAY_CLOUD": "https://cloud.example.com", "QUEUES": "north", "SPOOL_DEVICE": "/srv/relay"}
FILES = ("compose.yaml", "compose.site.yaml")
TYPICAL_BYTES = 3 * 1024 * 1024  # ten seconds of 2.5 Mbit/s
LOADED = {name: compose(name, VARIABLES)["services"] for name in FILES}
SERVICES = [(name, service) for name, services in LOADED.items() for service in sorted(services)]
ONE_HOST, SITES = (LOADED[name] for name in FILES)


@pytest.fixture
def service(request):
    name, service = request.param
    return LOADED[name][service]


def each(*, ours: bool = False, names: tuple[str, ...] = ()):
    """Give the test each service; only those of our image, or of these names."""
    chosen = [
        (name, service)
        for name, service in SERVICES
        if (not names or service in names) and not (ours and service in {"valkey", "broker"})
    ]
    ids = [f"{name}:{service}" for name, service in chosen]
    return pytest.mark.parametrize("service", chosen, indirect=True, ids=ids)


def seconds(duration: str) -> float:
    found = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    return 60 * int(found[1] or 0) + int(found[2] or 0)


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout


def test_both_stages_are_built_from_the_same_exact_version():
    found = instructions(DOCKER / "Dockerfile")
    [base] = [rest for word, rest in found if word == "ARG"]
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", base)
    assert [rest for word, rest in found if word == "FROM"] == ["${BASE} AS build", "${BASE}"]


def test_the_image_runs_as_a_user_and_installs_no_compiler():
    build, final = stages(DOCKER / "Dockerfile")
    assert ("USER", "10001:10001") in final
    everything = " ".join(rest for _, rest in build + final)
    assert not re.search(r"\b(gcc|g\+\+|build-essential|make)\b", everything)
    [locked] = [rest for word, rest in build if "--require-hashes" in rest]
    assert "--only-binary=:all:" in locked


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_lacks_a_variable_says_which(name):
    for missing in VARIABLES:
        if missing == "RELAY_CLOUD" or name == "compose.site.yaml":
            rest = {key: value for key, value in VARIABLES.items() if key != missing}
            with pytest.raises(AssertionError, match=missing):
                compose(name, rest)


@each()
def test_every_service_is_confined_and_its_log_bounded(service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert service.get("user", "10001") != "0"
    assert service["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}


@each()
def test_every_service_comes_back_after_a_reboot_and_has_a_health_check(service):
    assert service["restart"] == "unless-stopped"
    check = service["healthcheck"]
    assert seconds(check["timeout"]) < seconds(check["interval"])
    role = {"run": "agent", "worker": "worker", "beat": "beat"}
    words = service["command"]
    wanted = [role[word] for word in words if word in role and words[0] in {"relay-capture", "celery"}]
    if wanted:
        assert check["test"] == ["CMD", "relay-capture", "health", *wanted]


@each()
def test_nothing_stands_in_the_way_of_more_of_them(service):
    assert "container_name" not in service
    assert "hostname" not in service


@each(names=("worker",))
def test_workers_can_be_many(service):
    assert not service.get("ports")
    assert "relay@%h" in service["command"]
    assert service["command"][service["command"].index("-Q") + 1] == "live,backlog"


@each()
def test_what_is_open_is_open_to_this_machine_alone(service):
    for port in service.get("ports", []):
        assert port["host_ip"] == "127.0.0.1"


@each(ours=True)
def test_secrets_are_files(service):
    values = " ".join(str(value) for value in service.get("environment", {}).values())
    assert "RELAY_TOKEN" not in service.get("environment", {})
    assert not re.search(r"rediss?://[^/]*@", values)
    for secret in service.get("secrets", []):
        assert secret["target"] == f"/run/secrets/{secret['source']}"


@each(names=("agent", "demo-camera"))
def test_an_agent_never_ends_for_a_refused_token_and_has_time_to_drain(service):
    assert service["environment"]["RELAY_ON_REFUSED"] == "hold"
    assert seconds(service["stop_grace_period"]) >= STOP_GRACE_SECONDS + Settings().drain_timeout + 5


@each(names=("worker",))
def test_a_worker_has_time_for_the_upload_in_hand(service):
    assert seconds(service["stop_grace_period"]) >= attempt_seconds(Settings().ingest, TYPICAL_BYTES)


def test_the_agent_is_stopped_first():
    assert set(ONE_HOST["agent"]["depends_on"]) == {"valkey", "worker"}
    assert set(ONE_HOST["worker"]["depends_on"]) == {"valkey"}
    # Capture waits for nobody.
    assert {each["condition"] for each in ONE_HOST["agent"]["depends_on"].values()} == {"service_started"}


def test_without_a_profile_the_host_records_and_nothing_else():
    always = {name for name, service in ONE_HOST.items() if not service.get("profiles")}
    assert always == {"valkey", "agent", "worker", "beat"}


def test_hosts_of_one_file_have_queues_of_their_own():
    for name in ("agent", "worker", "beat", "flower"):
        assert SITES[name]["environment"]["RELAY_BROKER__KEY_PREFIX"] == "north:"

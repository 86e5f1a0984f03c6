"""Pure parts of the page: who may ask, what is told, which frame is shown, and what ready means."""

import dataclasses
import json
import re
from dataclasses import replace

import pytest

from capture.camera import CameraStatus as Live
from capture.errors import ConfigError, SourceError, UsageError
from capture.mpegts import PACKET
from capture.settings import load_settings
from capture.sink_http import parse_head
from capture.snapshot import last_key_frame, picture_command
from capture.status import BrokerStatus, CameraStatus, IngestStatus, Status
from capture.supervision import State
from capture.web import PAGE, page_policy
from capture.web_health import STILL_SECONDS, Heartbeat, check_cameras, readiness
from capture.web_server import _refusal, is_own_name
from capture.web_status import Facts, status_json

HOSTILE = "<img src=x onerror=alert(1)>"
SECRET = "hunter22"
UP = BrokerStatus("redis://127.0.0.1:6379/0", reachable=True)


# --- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "listen"),
    [
        ("8090", "127.0.0.1:8090"),
        ("0", "127.0.0.1:0"),
        (" 0.0.0.0:80 ", "0.0.0.0:80"),
        ("[::1]:8090", "[::1]:8090"),
        ("relay.local:1", "relay.local:1"),
    ],
)
def test_the_page_is_on_loopback_unless_a_host_is_given(given, listen):
    assert load_settings(environ={"RELAY_WEB": given}).web.listen == listen
    assert load_settings({"--web": given}, environ={}).web.listen == listen


def test_a_number_in_the_file_is_a_port(tmp_path):
    (tmp_path / "relay.toml").write_text("[web]\nlisten = 8091\nworker_listen = 8092\n")

    web = load_settings(environ={}, config=tmp_path / "relay.toml").web

    assert (web.listen, web.worker_listen) == ("127.0.0.1:8091", "127.0.0.1:8092")
    assert load_settings(environ={}).web.listen is None


@pytest.mark.parametrize(
    "given", ["", "x", "65536", "host:", "a b:80", "::1:80", "http://x:80", "-1", "true"]
)
def test_a_wrong_address_is_named(given):
    with pytest.raises(ConfigError, match=r"RELAY_WEB__LISTEN.*PORT or HOST:PORT"):
        load_settings(environ={"RELAY_WEB__LISTEN": given})
    with pytest.raises(UsageError):
        load_settings({"--web": given}, environ={})


# --- who may ask ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "bound", "is_own"),
    [
        ("localhost", "127.0.0.1", True),
        ("LOCALHOST:8090", "127.0.0.1", True),
        ("127.0.0.1:9", "127.0.0.1", True),
        ("127.0.0.2", "127.0.0.1", True),
        ("[::1]:8090", "[::1]", True),
        ("", "127.0.0.1", False),
        ("evil.example.com", "127.0.0.1", False),
        ("localhost.example.com", "127.0.0.1", False),
        ("127.0.0.1.example.com", "127.0.0.1", False),
        ("192.0.2.7", "127.0.0.1", False),
        ("relay", "127.0.0.1", False),
        ("localhost, evil.example.com", "127.0.0.1", False),
        ("localhost:8090:8090", "127.0.0.1", False),
        ("user@localhost", "127.0.0.1", False),
        ("192.0.2.7:8090", "0.0.0.0", True),
        ("relay", "0.0.0.0", True),
        ("relay.local", "0.0.0.0", True),
        ("relay.example.com", "relay.example.com", True),
        ("evil.example.com", "0.0.0.0", False),
        ("evil.example.com", "[::]", False),
    ],
)
def test_only_names_that_no_stranger_can_point_here_are_ours(host, bound, is_own):
    assert is_own_name(host, bound) is is_own


@pytest.mark.parametrize(
    ("request_line", "fields", "status"),
    [
        ("GET / HTTP/1.1", {}, None),
        ("HEAD / HTTP/1.1", {}, None),
        ("POST / HTTP/1.1", {}, 405),
        ("DELETE / HTTP/1.1", {}, 405),
        ("GET / HTTP/1.1", {"Host": "evil.example.com"}, 421),
        ("GET / HTTP/1.0", {"Host": None}, 421),
        ("GET / HTTP/1.1", {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, None),
        ("GET / HTTP/1.1", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, None),
        ("GET / HTTP/1.1", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
    ],
)
def test_what_is_refused_before_it_is_looked_at(request_line, fields, status):
    fields = {"Host": "localhost", **fields}
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    refused = _refusal(parse_head("\r\n".join([request_line, *lines, ""]).encode()), "127.0.0.1")

    assert (refused.status if refused else None) == status


# --- the page itself --------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_from_elsewhere_and_builds_no_markup_from_text():
    page = PAGE.read_text()

    assert re.findall(r"""(?:src|href)=["'](?!data:|/api/status)""", page) == []
    assert set(re.findall(r"https?://[^\"'\s]+", page)) <= {"http://www.w3.org/2000/svg"}
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(", "style="):
        assert way not in page


def test_the_policy_allows_its_own_style_and_script_and_no_other():
    policy = page_policy("<style>a</style><script>b</script>")

    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "style-src 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='" in policy
    assert "script-src 'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0='" in policy
    assert "unsafe" not in page_policy(PAGE.read_text())


# --- what is told -----------------------------------------------------------------------------------


def live(camera, state=State.RUNNING, **fields):
    unknown = {field.name: None for field in dataclasses.fields(Live)}
    return Live(**unknown | {"id": camera, "state": state, "restarts": 0} | fields)


def facts(*cameras, **fields):
    status = Status(
        *("2026-06-01T12:00:00.000Z", "/spool", 10, 20, 0, 0, 0, 0.0, None, None),
        broker=UP,
        ingest=IngestStatus("ok"),
        cameras=cameras,
    )
    return Facts(replace(status, **fields), read_at=100.0)


def test_what_the_agent_knows_of_a_camera_stands_over_what_the_spool_tells():
    known = CameraStatus("gate", configured=True, state="recording", newest_segment_age=9.0, owed=3)

    found = status_json(
        [live("gate", State.BACKOFF, restarts=4, last_segment_at=95.0)],
        {"gate": HOSTILE},
        facts(known),
        now=102.0,
    )

    (camera,) = found["cameras"]
    assert (camera["name"], camera["words"], camera["restarts"]) == (HOSTILE, "retrying", 4)
    assert (camera["owed"], camera["newest_segment_age"]) == (3, 7.0)
    assert found["facts_age"] == 2.0


def test_ages_grow_while_the_facts_are_not_read_again():
    known = CameraStatus("gate", configured=True, state="recording", newest_segment_age=9.0)

    found = status_json([live("gate")], {}, facts(known), now=105.0)

    assert found["cameras"][0]["newest_segment_age"] == 14.0


def test_cameras_of_nobody_are_told_only_while_they_matter():
    others = [
        CameraStatus("past", configured=False, state="ended"),
        CameraStatus("owing", configured=False, state="interrupted", owed=1, words="interrupted"),
        CameraStatus("off", configured=True, state="never ran", words="switched off"),
        CameraStatus("elsewhere", configured=False, state="recording", words="no video"),
    ]

    found = status_json([live("gate")], {}, facts(*others), now=100.0)

    assert [(camera["id"], camera["words"], camera["runs_here"]) for camera in found["cameras"]] == [
        ("gate", "recording", True),
        ("owing", "interrupted", False),
        ("off", "switched off", False),
        ("elsewhere", "no video", False),
    ]


def test_a_camera_that_is_set_up_wrongly_is_told_with_what_is_wrong_until_it_runs():
    faulty = {"yard": ("cameras.yard.fps: expected a number", "cameras.yard.sauce: no such setting")}

    found = status_json([live("gate")], {}, facts(), now=100.0, faulty=faulty)["cameras"]

    assert [(camera["id"], camera["words"]) for camera in found] == [
        ("gate", "recording"),
        ("yard", "misconfigured"),
    ]
    assert found[1]["trouble"] == "; ".join(faulty["yard"])
    assert len(status_json([live("yard")], {}, facts(), now=100.0, faulty=faulty)["cameras"]) == 1


def test_cameras_are_told_even_when_the_spool_cannot_be_read():
    found = status_json([live("gate")], {}, Facts(trouble="gone"), now=1.0)

    assert found["trouble"] == "gone"
    assert found["cameras"][0]["words"] == "recording"
    assert "broker" not in found


def test_facts_that_are_not_read_anew_any_more_are_called_old():
    known = CameraStatus("gate", configured=True, state="recording")

    assert status_json([live("gate")], {}, facts(known), now=200.0)["trouble"] is None
    assert "was so 5 min ago" in status_json([live("gate")], {}, facts(known), now=400.0)["trouble"]


def test_no_secret_is_told_even_where_somebody_put_one_into_a_text():
    url = f"rtsp://user:{SECRET}@192.0.2.1/s"
    known = CameraStatus("gate", configured=True, state="recording")
    found = status_json(
        [live("gate", State.FATAL, error=SourceError(f"cannot capture {url}"))],
        {},
        facts(
            known,
            broker=BrokerStatus("redis://x", reachable=False, reason=f"no {SECRET}"),
            ingest=IngestStatus("down", reason=f"token {SECRET}"),
        ),
        now=100.0,
        secrets=[SECRET],
    )

    assert SECRET not in json.dumps(found)
    assert found["cameras"][0]["trouble"] == "cannot capture rtsp://***@192.0.2.1/s"


# --- alive and ready --------------------------------------------------------------------------------


def test_a_main_loop_that_stands_still_is_not_alive(clock):
    heartbeat = Heartbeat(clock)
    clock.step(STILL_SECONDS - 1)
    assert heartbeat.is_alive()
    clock.step(2)
    assert not heartbeat.is_alive()
    heartbeat.beat()
    assert heartbeat.is_alive()


def ready(spool, *states, broker=UP, ingest=IngestStatus("ok")):  # noqa: B008 - frozen
    cameras = [live(f"c{number}", state) for number, state in enumerate(states)]
    return readiness(Heartbeat(), spool, cameras, broker=broker, ingest=ingest)


def test_ready_is_who_captures_into_a_spool_that_is_there(spool):
    assert ready(spool, State.RUNNING, State.BACKOFF).is_ready
    assert not ready(spool, State.STARTING, State.BACKOFF).is_ready
    (spool.root / ".relay-spool").unlink()
    found = ready(spool, State.RUNNING)
    assert not found.is_ready
    assert [check["name"] for check in found.as_json()["checks"] if not check["ok"]] == ["spool"]


def test_an_outage_is_told_and_leaves_us_ready_but_a_refused_token_does_not(spool):
    silent = BrokerStatus("redis://x", reachable=False, reason="silent")
    found = ready(spool, State.RUNNING, broker=silent, ingest=IngestStatus("down", reason="HTTP 503"))

    assert found.is_ready
    assert {check.name for check in found.checks if not check.ok} == {"broker", "ingest"}
    assert not ready(spool, State.RUNNING, ingest=IngestStatus("refused")).is_ready


def test_cameras_that_are_down_are_named():
    assert check_cameras([live("a"), live("b", State.BACKOFF)]).found == "1 of 2 cameras captured; b backoff"


# --- pictures ---------------------------------------------------------------------------------------

TABLE = b"\x47\x40\x00\x10" + b"\0" * 184


def packet(pid=0x100, *, start=False, key=False, stream_id=0xE0, fill=0):
    flags = (0x40 if start else 0) | pid >> 8
    body = b"\0\0\1" + bytes([stream_id]) if start else b""
    head = bytes([0x47, flags, pid & 0xFF, 0x30, 1, 0x40 if key else 0])
    return (head + body).ljust(PACKET, bytes([fill]))


def test_the_last_whole_key_frame_is_cut_out_with_the_tables_before_it():
    early = packet(start=True, key=True, fill=1)
    frame = packet(start=True, key=True, fill=2) + packet(fill=3)
    sound = packet(0x101, start=True, key=True, stream_id=0xC0)
    stream = TABLE + early + packet(start=True) + frame[:PACKET] + sound + frame[PACKET:] + packet(start=True)

    found = last_key_frame(stream, stream)

    assert found.data == TABLE + frame
    assert found.offset == 3 * PACKET


def test_a_key_frame_that_is_still_being_written_is_not_shown():
    whole = packet(start=True, key=True, fill=1)
    stream = TABLE + whole + packet(start=True) + packet(start=True, key=True, fill=2) + packet()

    assert last_key_frame(stream, stream).data == TABLE + whole


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        TABLE,
        TABLE + packet(start=True, key=True),
        TABLE + packet(start=True) + packet(start=True),
        TABLE + packet(0x101, start=True, key=True, stream_id=0xC0) * 2,
        b"\0" * PACKET * 3,
        b"\x47" + b"\xff" * 187,
    ],
)
def test_no_picture_is_made_of_what_holds_no_whole_key_frame(stream):
    assert last_key_frame(stream, stream) is None


def test_the_picture_command_reads_one_frame_from_an_open_file_and_nothing_else():
    argv = picture_command("ffmpeg", 9)

    assert argv[argv.index("-i") + 1] == "pipe:9"
    assert argv[argv.index("-protocol_whitelist") + 1] == "pipe"
    assert argv[argv.index("-frames:v") + 1] == "1"

"""What is made of devices' words: answers to a probe, and tables that can be pasted. No network."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.discover import Device, Profile, clean, main_profiles
from capture.discover_probe import MOST_DEVICES, host_of, probe_message, read_answers
from capture.discover_table import LoginLines, quoted, tables, without_doubles
from capture.segment import is_camera_id
from capture.settings import load_settings

HOST = "192.0.2.10"
URI = "rtsp://192.0.2.10:554/stream1"
ENVELOPE = """\
<?xml version="1.0" encoding="utf-8"?>{prolog}
<SOAP-ENV:Envelope xmlns:SOAP-ENV="http://www.w3.org/2003/05/soap-envelope"
 xmlns:wsa="http://schemas.xmlsoap.org/ws/2004/08/addressing"
 xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery">
<SOAP-ENV:Header><wsa:MessageID>uuid:2</wsa:MessageID><wsa:RelatesTo>
 uuid:1</wsa:RelatesTo></SOAP-ENV:Header><SOAP-ENV:Body><d:ProbeMatches>{matches}</d:ProbeMatches>
</SOAP-ENV:Body></SOAP-ENV:Envelope>"""
MATCH = """\
<d:ProbeMatch><wsa:EndpointReference><wsa:Address>urn:uuid:1419d68a</wsa:Address></wsa:EndpointReference>
<d:Types>dn:NetworkVideoTransmitter</d:Types>
<d:Scopes>onvif://www.onvif.org/type/video_encoder onvif://www.onvif.org/name/North%20gate</d:Scopes>
<d:XAddrs>{addresses}</d:XAddrs></d:ProbeMatch>"""


def datagram(addresses, *, prolog="", count=1):
    return ENVELOPE.format(prolog=prolog, matches=MATCH.format(addresses=addresses) * count).encode()


def answers(data, asked=("uuid:1",)):
    return read_answers(data, HOST, asked)


# --- answers to a probe ----------------------------------------------------------------------------


def test_an_answer_names_the_device_and_where_it_can_be_asked():
    [answer] = answers(datagram("https://192.0.2.10/a http://192.0.2.10:8080/onvif http://169.254.1.1/onvif"))

    assert (answer.sender, answer.name, answer.endpoint) == (HOST, "North gate", "urn:uuid:1419d68a")
    assert answer.address == "http://192.0.2.10:8080/onvif"
    assert answer.elsewhere == ("https://192.0.2.10/a", "http://169.254.1.1/onvif")[1:]


@pytest.mark.parametrize(
    "address",
    ["http://198.51.100.7/onvif", "http://192.0.2.10@198.51.100.7/", "file:///etc/passwd", "http://[::1", ""],
)
def test_an_address_of_somebody_else_is_told_and_never_asked(address):
    [answer] = answers(datagram(address))

    assert answer.address == ""
    assert answer.elsewhere == ((address,) if address else ())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\xff",
        b"<a><b></a>",
        b"<html/>",
        datagram("http://192.0.2.10/", prolog='<!DOCTYPE x [<!ENTITY a "b">]>'),
        datagram("http://192.0.2.10/", prolog='<!DOCTYPE x SYSTEM "http://192.0.2.66/x.dtd">'),
        datagram("http://192.0.2.10/").decode().replace("utf-8", "utf-16").encode("utf-16"),
        b"<a>" * 10_000,
    ],
    ids=["empty", "bytes", "broken", "other", "entities", "dtd", "utf-16", "deep"],
)
def test_what_is_no_answer_is_passed_over(data):
    found = answers(data)

    assert [answer.name for answer in found] in ([], ["North gate"])
    assert found == [] or b"DOCTYPE" not in data


def test_an_answer_to_somebody_elses_question_is_passed_over():
    assert answers(datagram("http://192.0.2.10/"), asked=["uuid:3"]) == []


def test_a_datagram_full_of_devices_is_bounded():
    assert len(answers(datagram("", count=MOST_DEVICES + 50))) == MOST_DEVICES


def test_the_question_is_well_formed_and_carries_its_own_id():
    message = probe_message("uuid:77", ("http://www.onvif.org/ver10/network/wsdl", "NetworkVideoTransmitter"))

    assert b"<a:MessageID>uuid:77</a:MessageID>" in message
    assert read_answers(message, HOST, ["uuid:77"]) == []


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("http://192.0.2.10:80/x", HOST),
        ("https://[2001:db8::1]/x", "2001:db8::1"),
        ("ftp://192.0.2.10/x", ""),
        ("http://u:p@192.0.2.10/x", ""),
        ("http://192.0.2.10:99999/", ""),
        ("nonsense", ""),
    ],
)
def test_the_host_of_an_address(address, host):
    assert host_of(address) == host


# --- tables ----------------------------------------------------------------------------------------


def a_device(*profiles, **other):
    facts = {"name": "North gate", "maker": "ACME", "model": "IPC-A12", "serial": "4F:9C:21:7E", **other}
    return Device(HOST, f"http://{HOST}/onvif", profiles=profiles or (Profile("p1", uri=URI),), **facts)


def text_of(*devices, every=False, login=None):
    taken = set()
    lines = [
        line
        for device in devices
        for line in tables(device, every=every, login=login or LoginLines(), taken=taken)
    ]
    assert all("\n" not in line and line.isprintable() for line in lines)
    return "\n".join(lines)


def cameras(*devices, **options):
    """Return the cameras of the text, as relay.toml's reader takes them."""
    return tomllib.loads(text_of(*devices, **options)).get("cameras", {})


def test_a_table_has_a_name_a_source_and_the_facts_beside_it():
    profile = Profile("p1", "Main", "VS1", "H264", 1920, 1080, 25.0, 50, 4096, URI)

    assert text_of(a_device(profile, firmware="1.2", clock_offset=-90.0)).splitlines() == [
        "# ACME IPC-A12, firmware 1.2, at 192.0.2.10, its clock is 1 min 30 s behind",
        "",
        "[cameras.north-gate-9c217e]",
        'name = "North gate"',
        'source = "rtsp://192.0.2.10:554/stream1"',
        '# user = "admin"',
        '# password = { env = "CAMERA_PASSWORD" }  # or { file = "/etc/relay/camera.password" }',
        "# H264 1920x1080, 25 fps, a key frame every 50 frames (2.0 s), 4096 kbit/s at most; profile Main",
    ]


def test_a_login_that_was_given_by_reference_is_in_force_and_the_file_is_read_by_the_relay(tmp_path):
    (tmp_path / "pw").write_text("s3cret")
    login = LoginLines('o"brien', f"{{ file = {quoted(str(tmp_path / 'pw'))} }}", is_certain=True)
    (tmp_path / "relay.toml").write_text(text_of(a_device(), login=login))

    [camera] = load_settings(environ={}, config=tmp_path / "relay.toml").cameras.values()

    assert camera.parsed_source().reveal() == 'rtsp://o"brien:s3cret@192.0.2.10:554/stream1'


def test_the_largest_stream_of_each_picture_is_the_main_one():
    profiles = (
        Profile("a", source="1", width=640, height=360),
        Profile("b", source="1", width=1920, height=1080),
        Profile("c", source="1", width=1920, height=1080),
        Profile("d", source="2", width=320, height=180),
    )

    assert [profile.token for profile in main_profiles(profiles)] == ["b", "d"]


def test_ids_are_told_apart_and_stay_the_same():
    one = a_device(Profile("p1", "Main", uri=URI), Profile("p2", "Main", uri=URI))

    assert list(cameras(one, one, every=True)) == [
        "north-gate-9c217e-main",
        "north-gate-9c217e-main-2",
        "north-gate-9c217e-main-3",
        "north-gate-9c217e-main-4",
    ]


@pytest.mark.parametrize(
    ("uri", "source", "said"),
    [
        ("rtsp://admin:s3cret@192.0.2.10/x", "rtsp://192.0.2.10/x", ""),
        ("RTSP://192.0.2.10:8554/x?a=b", "rtsp://192.0.2.10:8554/x?a=b", ""),
        ("http://192.0.2.10/mjpg", "http://192.0.2.10/mjpg", ""),
        ("rtsp://198.51.100.7/x", None, "this address is not the device's"),
        ("rtsp://192.0.2.10/user=admin_password=s3cret_channel=1", None, "it stands as ***"),
        ("rtsp://192.0.2.10/x\nfile = 1", None, "cannot be read"),
        ("rtsp://a:s3cret@[nohost/x", None, "cannot be read"),
        ("/etc/passwd", None, "none of a network stream"),
        ("file:///etc/passwd", None, "none of a network stream"),
        ("test:640x360@25", None, "none of a network stream"),
        ("webcam:0", None, "none of a network stream"),
        ("", None, "it gave no address"),
    ],
)
def test_only_an_address_of_the_device_itself_comes_without_a_comment_and_never_a_login(uri, source, said):
    device = a_device(Profile("p1", uri=uri))

    assert [camera["source"] for camera in cameras(device).values()] == ([source] if source else [])
    assert said in text_of(device)
    assert "s3cret" not in text_of(device)


def test_a_device_that_tells_nothing_is_a_comment_with_its_reason():
    device = Device(HOST, "", trouble="it wants a login\n[cameras.evil]")

    assert cameras(device) == {}
    assert "# it wants a login [cameras.evil]" in text_of(device)


hostile = st.text(max_size=300) | st.sampled_from(
    ['"', '"""', "\\", "x\n[cameras.evil]", "\x1b[2J", "\u202e", "'''", "#", "\x00", "é", "\U0001f4f9"]
)


@given(
    words=st.tuples(*[hostile] * 5),
    profile=st.tuples(*[hostile] * 4),
    uri=hostile | st.just(URI),
    offset=st.none() | st.floats(-1e9, 1e9),
)
def test_no_word_of_a_device_gets_out_of_its_string_or_comment(words, profile, uri, offset):
    """Each as it comes from a device: cleaned where it is read, and quoted where it is written."""
    name, maker, model, serial, firmware = map(clean, words)
    token, label, source, codec = map(clean, profile)
    stream = Profile(token, label, source, codec, 10, 10, 5.0, 5, 5, uri)
    device = Device(HOST, "", name, maker, model, serial, firmware, offset, (stream,))

    found = cameras(device)

    assert len(found) <= 1
    for camera_id, camera in found.items():
        assert is_camera_id(camera_id)
        assert camera_id != "evil"
        assert set(camera) == {"name", "source"}
        assert load_settings(environ={}, source=camera["source"])


@given(st.text())
def test_a_quoted_string_reads_as_itself(text):
    assert tomllib.loads(f"x = {quoted(text)}") == {"x": text}


def test_a_device_that_answers_at_two_addresses_stands_once_with_a_note():
    first, second = a_device(), a_device()
    found = without_doubles([first, second, a_device(serial=""), a_device(serial="")])

    assert len(found) == 2
    assert "# NOTE: the same serial number answers at 192.0.2.10" in text_of(*found)

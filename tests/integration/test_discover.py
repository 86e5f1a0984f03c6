"""discover against ONVIF devices on the loopback interface: WS-Discovery by multicast, SOAP over HTTP."""

import os
import pty
import subprocess
import sys
import threading
import tomllib

import psutil
import pytest

from capture.discover import Answer
from capture.discover_onvif import ask_devices
from capture.discover_probe import probe
from capture.discover_soap import MOST_BYTES, Login
from capture.errors import ConfigError, UsageError
from capture.settings import load_settings
from tests.cameras.addresses import OddPort
from tests.cameras.rtsp import is_required
from tests.onvif_device import SPACES, OnvifDevice, Stream, envelope, multicast_works

PASSWORD = "p@ss: w'o\"r\\d/%?#&<ü€>="
LOGIN = Login("admin", PASSWORD)


@pytest.fixture
def device():
    """Makes devices, each on an address of its own."""
    made = []

    def make(*streams, **options):
        address = options.pop("address", f"127.0.{os.getpid() % 250}.{10 + len(made)}")
        made.append(OnvifDevice(*streams, address=address, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def multicast():
    if not multicast_works():
        if is_required():
            pytest.fail("no multicast on the loopback interface")
        pytest.skip("no multicast on the loopback interface")


def ask(*devices, login=LOGIN):
    answers = [Answer(each.address, "", each.url) for each in devices]
    return ask_devices(answers, login)


def run(*arguments, **environ):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "capture", "discover", *map(str, arguments)],
        env=clean | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


# --- as typed --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("multicast")
def test_cameras_are_found_asked_and_printed_as_tables_that_load(device, tmp_path):
    good = device(user="admin", password=PASSWORD, serial="AA:01", name="North gate", ahead=390)
    uri = f"rtsp://admin:{'x' * 8}@{good.address}:554/live"
    good.streams = (
        Stream("s", "rtsp://192.0.2.99/elsewhere", name="Sub", size=(640, 360)),
        Stream("m", uri, name="Main"),
    )
    other = device(user="admin", password="another", serial="BB:02", name="Yard")
    liar = device(serial="CC:03", name="Liar", named=good.url)
    (tmp_path / "pw").write_text(PASSWORD + "\n")

    code, out, err = run(
        *("--timeout", 1.5, "--interface", "lo", "--user", "admin", "--password-file", tmp_path / "pw")
    )

    assert code == 0, err
    (tmp_path / "relay.toml").write_text(out)
    settings = load_settings(environ={}, config=tmp_path / "relay.toml")
    camera = settings.cameras["north-gate-aa01"]
    assert camera.parsed_source().address == (good.address, 554)
    assert PASSWORD in camera.parsed_source().secrets()
    assert f"at {good.address}, its clock is 6 min" in out
    assert "H264 1920x1080, 25 fps, a key frame every 50 frames (2.0 s), 4096 kbit/s at most" in out
    assert f"at {other.address}" in out
    assert "# it refuses user or password" in out
    assert f"# {liar.address} answered, and named {good.url}: it was not asked" in out
    assert liar.calls == []
    assert not {word for word in (PASSWORD, "x" * 8, "another") if word in out + err}


@pytest.mark.usefixtures("multicast")
def test_every_interface_is_asked_and_two_questions_make_one_answer(device):
    found = device()

    own = [answer for answer in probe(1.0) if answer.sender == found.address]

    assert [(answer.address, answer.name) for answer in own] == [(found.url, "Front door")]


def test_a_device_that_is_named_is_asked_without_a_probe(device):
    found = device(is_found=False)

    code, out, _ = run("--host", f"{found.address}:{found.port}", "--all-profiles")

    assert code == 0
    assert f'source = "rtsp://{found.address}:554/stream1"' in out
    assert '# password = { env = "CAMERA_PASSWORD" }' in out


def test_nobody_there_ends_with_66_and_says_what_to_look_at():
    with OddPort("closes") as port:
        code, out, err = run("--host", f"127.0.0.1:{port.port}")

    assert code == 66
    assert "cannot be reached" in out
    assert "1 answered, 0 told of streams" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--user", "admin"], "expected --password-file or --password-env"),
        (["--password-env", "HOME"], "give --user"),
        (["--user", "a", "--password-env", "s3cret-itself"], "not the password"),
        (["--user", "a", "--password-env", "HOME", "--password-file", "x"], "expected one of them"),
        (["--host", "http://192.0.2.1/"], "--host: expected a name or an address"),
        (["--interface", "none0"], "--interface: found 'none0'; expected one of "),
        (["--interface", "192.0.2.250"], "expected an IPv4 address of this machine"),
        (["--password", "s3cret-itself"], "No such option"),
    ],
)
def test_misuse_is_a_usage_error_that_shows_no_password(arguments, words):
    code, out, err = run("--timeout", 0.5, *arguments)

    assert (code, out) == (2, "")
    assert words in err
    assert "s3cret" not in err


def test_a_password_file_that_is_none_is_a_configuration_error(tmp_path):
    (tmp_path / "pw").write_text("two\nlines")

    assert run("--user", "a", "--password-file", tmp_path / "pw")[0] == 78
    assert run("--user", "a", "--password-file", tmp_path / "nothing")[0] == 78


def test_a_password_that_is_typed_shows_nowhere(device):
    found = device(is_found=False, user="admin", password="typed-s3cret")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "capture", "discover", "--user", "admin"]
    command += ["--host", f"{found.address}:{found.port}"]
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # without a terminal to open past its standard input
    ) as child:
        os.close(theirs)
        watchdog = threading.Timer(60, child.kill)
        watchdog.start()
        prompt = child.stderr.read(len("Password"))
        line = " ".join(psutil.Process(child.pid).cmdline())
        os.write(ours, b"typed-s3cret\n")
        out, err = child.communicate()
        watchdog.cancel()
    os.close(ours)

    assert prompt == b"Password"
    assert child.returncode == 0, err
    assert b'# user = "admin"' in out
    assert "admin" not in line
    assert b"typed-s3cret" not in out + err


def test_without_the_library_it_says_what_to_install():
    code = "import sys; sys.modules['onvif'] = None; from capture.cli import main; main(['discover'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 78
    assert "pip install 'relay-capture[discover]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_other_command_needs_the_library():
    code = "import sys, capture.cli, capture.doctor, capture.agent, capture.operate\n"
    code += "raise SystemExit(bool({'onvif', 'zeep', 'lxml', 'aiohttp'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- logins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("login", ["token", "http"])
@pytest.mark.parametrize("ahead", [0.0, -7200.0])
def test_a_login_of_any_characters_gets_in_also_where_the_devices_clock_is_off(device, login, ahead):
    found = device(user="admin", password=PASSWORD, login=login, ahead=ahead)

    [told] = ask(found)

    assert told.trouble == ""
    assert [profile.uri for profile in told.profiles] == [found.streams[0].uri]
    assert told.clock_offset == pytest.approx(ahead, abs=30)


def test_a_device_that_wants_a_login_says_so_and_is_sent_none(device):
    found = device(user="admin", password=PASSWORD)

    [told] = ask(found, login=None)

    assert told.trouble.startswith("it wants a login: give --user")


def test_a_login_goes_to_nobody_but_the_device_that_was_asked(device):
    """By its media address, and by a redirect."""
    thief = device(is_found=False, serial="thief")
    found = device(user="admin", password=PASSWORD, media=thief.url, has_services=False)
    [told] = ask(found)
    assert [profile.uri for profile in told.profiles] == [found.streams[0].uri]
    found.location = thief.url
    [told] = ask(found)
    assert "cannot be read" in told.trouble
    assert thief.calls == []


# --- devices that are not what they should be ------------------------------------------------------

BOMB = (
    '<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 16}">' for n in range(8))
    + f"]><s:Envelope {SPACES}><s:Body><tds:GetDeviceInformationResponse>"
    "<tds:Manufacturer>&i;</tds:Manufacturer><tds:Model/><tds:FirmwareVersion/><tds:SerialNumber/><tds:HardwareId/></tds:GetDeviceInformationResponse>"
    "</s:Body></s:Envelope>"
).encode()
FILE = BOMB.replace(BOMB[BOMB.index(b"[") : BOMB.index(b"]>")], b'[<!ENTITY i SYSTEM "file:///etc/hostname">')


@pytest.mark.parametrize(
    "answer",
    [
        BOMB,
        BOMB.replace(b"<tds:Model/>", b'<tds:Model x="&i;"/>'),
        FILE,
        b"",
        b"\x00\xff" * 100,
        b"<html><body>It works</body></html>",
        envelope("<tds:Other/>"),
        envelope("<tds:GetDeviceInformationResponse/>"),
        b"<a>" * 300_000,
    ],
    ids=["bomb", "attribute-bomb", "file", "empty", "bytes", "page", "other", "hollow", "deep"],
)
def test_an_answer_that_is_none_costs_its_device_and_no_other(device, answer):
    odd, good = device(is_found=False, serial="odd"), device(is_found=False, serial="good")
    odd.answers["GetDeviceInformation"] = answer
    before = psutil.Process().memory_info().rss

    told = ask(odd, good)

    assert [each.host for each in told] == [odd.address, good.address]
    assert told[0].trouble or not told[0].maker
    assert (told[1].trouble, told[1].serial, len(told[1].profiles)) == ("", "good", 1)
    assert psutil.Process().memory_info().rss - before < 200_000_000


@pytest.mark.parametrize("what", ["a DTD of its own", "more than there is room for"])
def test_an_answer_that_would_be_good_is_refused_for(device, what):
    found = device(is_found=False)
    good = envelope(found.information())
    found.answers["GetDeviceInformation"] = (
        good.replace(b"?>", b'?><!DOCTYPE b SYSTEM "http://127.0.0.1/b.dtd">', 1)
        if what == "a DTD of its own"
        else good + b" " * MOST_BYTES
    )

    [told] = ask(found)

    assert told.trouble.startswith("GetDeviceInformation: its answer cannot be read")


def test_a_device_that_answers_a_byte_at_a_time_has_its_deadline(device, monkeypatch):
    monkeypatch.setattr("capture.discover_onvif.DEVICE_SECONDS", 1.0)
    good = device(is_found=False)
    with OddPort("trickle") as slow, OddPort("silent") as silent:
        answers = [
            Answer("127.0.0.1", "", f"http://127.0.0.1:{port.port}/onvif") for port in (slow, silent)
        ] + [Answer(good.address, "", good.url)]
        told = ask_devices(answers, None)

    assert all(each.trouble for each in told[:2])
    assert told[2].host == good.address


def test_profiles_without_video_or_token_are_passed_over(device):
    found = device(is_found=False)
    found.answers["GetProfiles"] = envelope(
        '<trt:GetProfilesResponse><trt:Profiles token="x"><tt:Name>sound</tt:Name></trt:Profiles>'
        "<trt:Profiles><tt:Name>none</tt:Name></trt:Profiles></trt:GetProfilesResponse>"
    )

    [told] = ask(found, login=None)

    assert told.trouble == "it has no stream"


def test_what_a_device_calls_itself_cannot_write_into_the_configuration(device):
    evil = 'x"]\n[ingest]\nurl = "http://192.0.2.66/"\x1b[2J'
    found = device(
        is_found=False, maker=evil.replace("\x1b", ""), model=evil.replace("\x1b", ""), serial='"\n[x]'
    )
    found.streams = (
        Stream("main", f"rtsp://{found.address}/a", name='"\n[broker]\nurl="redis://192.0.2.66"'),
    )

    code, out, _ = run("--host", f"{found.address}:{found.port}", "--all-profiles")

    assert code == 0
    assert set(tomllib.loads(out)) == {"cameras"}
    assert len(tomllib.loads(out)["cameras"]) == 1


def test_where_no_datagram_can_be_sent_a_configuration_error_says_so(monkeypatch):
    monkeypatch.setattr("capture.discover_probe._sockets", lambda _: [])

    with pytest.raises(ConfigError, match="no network interface; expected a network; give --interface, or"):
        probe(0.1)


def test_an_interface_that_is_not_here_is_a_usage_error():
    with pytest.raises(UsageError):
        probe(0.1, ["192.0.2.250"])

"""What the commands say about input that is wrong holds no secret, wherever it was put by mistake.

The commands run in this process: each says a line or two and ends.
"""

import json
import os

import pytest

from capture.__main__ import masked
from capture.cli import main
from tests.acceptance.secret_search import Maker, Search

SEED = int(os.environ.get("SECRETS_SEED") or int.from_bytes(os.urandom(4)))
MAKER = Maker(SEED)
PASSWORD, TOKEN = MAKER.password("password"), MAKER.token("token")
PLAIN = MAKER.plain_password("plain")
URL = f"rtsp://{PASSWORD.login}@192.0.2.1/live"
RAW = f"rtsp://admin:{PLAIN.text}@192.0.2.1/live"
HALF = PASSWORD.marks[0] + "/" + PASSWORD.marks[1]
PW, KEY, ADDRESS = (json.dumps(text, ensure_ascii=False) for text in (PASSWORD.text, TOKEN.text, URL))
CAMERA = '[cameras.gate]\nsource = "rtsp://192.0.2.1/x"\nuser = "admin"\n'

LINES = {
    "a URL without its flag": ["up", URL],
    "a URL for a command": [URL],
    "a raw URL without its flag": ["run", RAW],
    "two URLs": ["up", "--source", URL, RAW],
    "a key without its flag": ["up", TOKEN.text],
    "a URL for a camera's id": ["up", "--source", "test:", "--camera-id", URL],
    "a URL for a length": ["up", "--source", URL, "--segment-duration", URL],
    "a URL for a cloud": ["up", "--source", URL, "--cloud", URL],
    "a key in the cloud's URL": ["up", "--source", "test:", "--cloud", f"https://u:{PASSWORD.marks[0]}@h/"],
    "a key of two words": ["up", "--source", "test:", "--token", f"{TOKEN.text} {TOKEN.text}"],
    "a scheme with a slip": ["up", "--source", URL.replace("rtsp", "rstp")],
    "a host that is none": ["up", "--source", f"rtsp://{PASSWORD.login}@-/x"],
    "a URL that lost its beginning": ["up", "--source", URL.removeprefix("rtsp://")],
    "a URL with a line break": ["up", "--source", URL + "\n"],
    "an ambiguous URL": ["up", "--source", f"rtsp://u:{PASSWORD.marks[0]}/@b.c@d.e/x"],
    "a login too long": ["up", "--source", f"rtsp://u:{PASSWORD.marks[0] * 20}@192.0.2.1/x"],
    "a broker with a raw slash": ["up", "--source", "test:", "--broker", f"redis://:{HALF}@127.0.0.1:1/0"],
    "run and a broker with a raw slash": ["run", "--source", "test:", "--broker", f"redis://:{HALF}@h:1/0"],
    "a broker with a raw hash": ["up", "--broker", f"redis://:{PASSWORD.marks[0]}#@127.0.0.1:1/0"],
    "a broker that is away": [
        "up",
        "--source",
        "test:",
        "--broker",
        f"redis://{PASSWORD.login}@127.0.0.1:1/0",
    ],
    "a broker with another scheme": ["up", "--source", "test:", "--broker", f"amqp://{PASSWORD.login}@h/0"],
    "a configuration that is no file": ["up", "--config", URL],
    "a spool that is a URL": ["status", "--spool", f"/proc/{URL}"],
}
FILES = {
    "a password where a number goes": f"{CAMERA}fps = {PW}\n",
    "a URL where a number goes": f"[spool]\nmax_bytes = {ADDRESS}\n",
    "a key by another name": f"{CAMERA}passwrod = {PW}\n[ingest]\ntokn = {KEY}\n",
    "a table in quotes": f"[cameras.{ADDRESS}]\nsource = {ADDRESS}\n",
    "a line that does not end": f'{CAMERA}password = "{PASSWORD.marks[0]}\n',
    "an escape that is none": f'{CAMERA}password = "{PASSWORD.marks[0]}\\q"\n',
    "a password without quotes": f"{CAMERA}password = {PASSWORD.marks[0]}\n",
    "a password twice": f"{CAMERA}password = {PW}\npassword = {PW}\n",
    "a list of passwords": f"{CAMERA}password = [{PW}]\n",
    "a reference to a variable that is a password": f"{CAMERA}password = {{ env = {PW}, file = 1 }}\n",
    "a login twice": f"[cameras.gate]\nsource = {ADDRESS}\nuser = 'admin'\npassword = {PW}\n",
    "a key that is no key": f'[ingest]\ntoken = "{TOKEN.marks[0]} ä"\n{CAMERA}',
    "a URL for the cloud": f"[ingest]\nurl = {ADDRESS}\n{CAMERA}",
    "a broker with a raw slash": f'[broker]\nurl = "redis://:{HALF}@127.0.0.1:6379/0"\n{CAMERA}',
    "a broker that is a list": f"[broker]\nurl = [{PW}]\n{CAMERA}",
    "a secret where a table goes": f"cameras = {PW}\ningest = {KEY}\n",
    "two cameras alike": f"[cameras.a]\nsource = {ADDRESS}\n[cameras.b]\nsource = {ADDRESS}\n",
    "all of it right": f"{CAMERA}password = {PW}\n[ingest]\nurl = 'https://h.example'\ntoken = {KEY}\n",
}


@pytest.fixture
def say(capsys, monkeypatch, tmp_path, kept_logging):
    """Runs a command and returns all that it said."""
    for name in [name for name in os.environ if name.startswith("RELAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert out + err
        return ended.value.code, out + err

    return run


def assert_clean(text):
    search = Search(MAKER)
    search.look("words", "", text)
    assert not search.findings, f"SECRETS_SEED={SEED}\n{text}"


@pytest.mark.parametrize("case", LINES)
def test_a_command_line_that_is_wrong_is_told_without_its_secrets(say, case):
    code, said = say(*LINES[case])
    assert code in {2, 66, 78}
    assert_clean(said)


@pytest.mark.parametrize("case", [case for case in LINES if "://" in str(LINES[case])])
def test_a_login_in_a_url_leaves_the_process_list_wherever_it_stands(case):
    # What is not in a URL, or in no flag's value, cannot be told from a camera's name.
    words = [word for word in LINES[case] if word not in {HALF, TOKEN.text}]
    shown = masked(words)
    if case != "a key in the cloud's URL":
        assert_clean(" ".join(shown))


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("words", [("config", "check"), ("config", "check", "--json"), ("up", "--config")])
def test_a_file_that_is_wrong_is_told_without_its_secrets(say, tmp_path, case, words):
    path = tmp_path / "relay.toml"
    path.write_text(FILES[case], "utf-8")
    path.chmod(0o600)
    if case == "all of it right" and words[0] == "up":
        pytest.skip("it would run")
    code, said = say(*words, path)
    assert code in {0, 2, 78}
    assert_clean(said)

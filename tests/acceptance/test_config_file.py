"""`up` with a relay.toml: one camera's wrong table, refused token or absent address is its own trouble."""

import signal

import psutil

from tests.acceptance.conftest import TOKEN

PASSWORD = "pä55@/word#"
TROUBLES = """
[defaults]
segment_seconds = 1
[cameras.good]
source = "test:320x180@25"
[cameras.wrong]
source = "test:"
fps = "many"
[cameras.own]
source = "test:320x180@25"
token_file = "own.token"
[cameras.net]
source = "http://127.0.0.1:1/x"
user = "u"
password = { env = "NET_PASSWORD" }
"""


def environments(relay):
    """Return what stands in the environments of all that the command started."""
    found = []
    for process in relay.descendants():
        try:
            found.append("\n".join(f"{name}={value}" for name, value in process.environ().items()))
            found.append(" ".join(process.cmdline()))
        except psutil.NoSuchProcess:
            continue
    return found


def test_each_camera_keeps_its_trouble_to_itself_and_a_referenced_password_reaches_no_child(
    start, sink, spool, tmp_path
):
    config = tmp_path / "relay.toml"
    config.write_text(TROUBLES)
    (tmp_path / "own.token").write_text("not-the-right-one\n")
    settings = {"RELAY_CLOUD": sink.url, "RELAY_TOKEN": TOKEN, "RELAY_SPOOL": str(spool.path)}
    relay = start("up", "--json", "-c", config, env={**settings, "NET_PASSWORD": PASSWORD})

    relay.wait_for(lambda: "camera_refused" in relay.log, "the refused camera is told")
    before = len(sink.receipts())
    relay.wait_for(lambda: len(sink.receipts()) >= before + 3, "the others go on")
    relay.wait_for(lambda: '"camera": "net"' in relay.log, "the camera with the password was tried")
    seen = environments(relay)

    assert relay.poll() is None
    assert {receipt.camera for receipt in sink.receipts()} == {"good"}
    assert relay.log.count('"event": "camera_misconfigured"') == 1
    assert relay.log.count('"event": "camera_refused"') == 1
    assert len(seen) >= 8
    assert not [text for text in seen if "NET_PASSWORD" in text or PASSWORD in text]
    relay.signal(signal.SIGTERM)
    assert relay.exit_code() == 77, relay.tail()
    assert "own.token" in relay.log
    assert PASSWORD not in relay.log
    owing = {path.parent.name.split("-")[2] for path in spool.owed()}
    assert owing == {"own"}


def test_a_new_token_in_a_cameras_file_sends_what_it_owes_without_a_restart(start, sink, spool, tmp_path):
    config = tmp_path / "relay.toml"
    config.write_text(TROUBLES.split("[cameras.net]", maxsplit=1)[0])
    (tmp_path / "own.token").write_text("not-the-right-one\n")
    settings = {"RELAY_CLOUD": sink.url, "RELAY_TOKEN": TOKEN, "RELAY_SPOOL": str(spool.path)}
    relay = start("up", "-c", config, env=settings)
    relay.wait_for(lambda: "camera_refused" in relay.log, "the refused camera is told")
    held = {path.name for path in spool.owed()}

    (tmp_path / "own.token").write_text(f"{TOKEN}\n")

    relay.wait_for(lambda: not held & {path.name for path in spool.owed()}, "what was held back is sent")
    relay.signal(signal.SIGTERM)
    assert relay.exit_code() == 0, relay.tail()
    assert {receipt.camera for receipt in sink.receipts()} == {"good", "own"}


def test_with_all_cameras_wrong_the_command_ends_with_all_their_problems(start, tmp_path):
    config = tmp_path / "relay.toml"
    config.write_text('[cameras.a]\nfps = 1\n[cameras.b]\nsource = "htp://x"\n')
    relay = start("up", "-c", config)
    assert relay.exit_code() == 78
    assert "cameras.a.source" in relay.log
    assert "cameras.b.source" in relay.log

"""SIGHUP on the running command: only what changed is started anew."""

import os
import signal
import subprocess
import time

from tests.acceptance.conftest import COMMAND, DEADLINE, TOKEN


def steady(clip):
    return f'[defaults]\nsegment_seconds = 1\n[cameras.steady]\nsource = "{clip.path}"\n'


def other(name, **keys):
    lines = [f"{key} = {value}" for key, value in keys.items()]
    return "\n".join([f"[cameras.{name}]", 'source = "test:160x90@5"', *lines, ""])


def test_unchanged_cameras_lose_no_frame_while_others_come_change_and_go(start, sink, spool, clip, decode):
    config = spool.path.with_name("relay.toml")
    config.write_text(steady(clip) + other("a"))
    settings = {"RELAY_CLOUD": sink.url, "RELAY_TOKEN": TOKEN, "RELAY_SPOOL": str(spool.path)}
    relay = start("up", "--json", "-c", config, env=settings)

    def said(event):
        return relay.log.count(f'"event": "{event}"')

    def reload(text, event):
        before = said(event)
        config.write_text(text)
        relay.signal(signal.SIGHUP)
        relay.wait_for(lambda: said(event) > before, f"{event} is told")

    def cameras():
        return {receipt.camera for receipt in sink.receipts()}

    relay.wait_for(lambda: cameras() == {"steady", "a"}, "both deliver")
    reload(steady(clip) + other("a", segment_seconds=2) + other("b"), "settings_reloaded")
    relay.wait_for(lambda: "b" in cameras(), "the new camera delivers")
    relay.wait_for(lambda: said("session_started") == 4, "the changed one captures anew")
    reload(steady(clip) + "[cameras.b\n", "reload_failed")
    reload(steady(clip) + other("b", fps='"many"') + other("c"), "camera_misconfigured")
    assert '"then": "it goes on as it was"' in relay.log
    relay.wait_for(lambda: "c" in cameras(), "the next new camera delivers")
    reload(steady(clip) + "[spool]\nretention = 3600\n", "settings_need_restart")
    assert relay.exit_code() == 0, relay.tail()

    own = sorted(
        (each for each in sink.receipts() if each.camera == "steady"), key=lambda each: each.sequence
    )
    assert len({receipt.session for receipt in own}) == 1
    assert decode(*(receipt.path for receipt in own)).frames == clip.frames
    assert spool.owed() == []
    ended = [event for event in relay.log.splitlines() if '"event": "session_ended"' in event]
    assert len(ended) == said("session_started") == 5


def test_a_changed_token_file_reaches_the_worker(start, sink, spool, tmp_path):
    config = tmp_path / "relay.toml"
    (tmp_path / "wrong").write_text("not-the-right-one\n")
    (tmp_path / "right").write_text(f"{TOKEN}\n")
    text = other("own", segment_seconds=1, token_file='"wrong"') + other("a", segment_seconds=1)
    config.write_text(text)
    settings = {"RELAY_CLOUD": sink.url, "RELAY_TOKEN": TOKEN, "RELAY_SPOOL": str(spool.path)}
    relay = start("up", "--json", "-c", config, env=settings)
    relay.wait_for(lambda: '"event": "camera_refused"' in relay.log, "the wrong token is refused")
    config.write_text(text.replace("wrong", "right"))
    relay.signal(signal.SIGHUP)
    relay.wait_for(
        lambda: "own" in {receipt.camera for receipt in sink.receipts()}, "the right one is taken up"
    )
    relay.wait_for(lambda: '"event": "service_renewed"' in relay.log, "the worker is another one")
    relay.signal()
    assert relay.exit_code() in {0, 75}, relay.tail()
    assert '"event": "service_ended"' not in relay.log  # it was not killed, nor was that a failure


def test_what_runs_in_a_terminal_ends_cleanly_when_that_is_gone(spool, tmp_path):
    variables = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RELAY_")},
        "RELAY_CLOUD": "http://127.0.0.1:9",
        "RELAY_TOKEN": TOKEN,
        "RELAY_BROKER": "redis://127.0.0.1:9",
    }
    what = ["--source", "test:64x36@5", "--camera-id", "gate", "--spool", spool.path]
    command = [COMMAND, "run", "--json", "--drain-timeout", "0", *what]
    ours, theirs = os.openpty()
    log = tmp_path / "relay.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=variables, stdin=theirs, stdout=file, stderr=file)
    try:
        wait_for(process, lambda: "capture_running" in log.read_text())
        process.send_signal(signal.SIGHUP)
        wait_for(process, lambda: "settings_reloaded" in log.read_text())
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        assert process.wait(DEADLINE) == 75, log.read_text()
    finally:
        process.kill()
        process.wait()
        os.close(theirs)
    assert '"reason": "SIGHUP"' in log.read_text()
    assert spool.open() == []
    assert '"ended_at": "' in (spool.sessions()[0] / "session.json").read_text()


def wait_for(process, condition):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_sink_that_has_nothing_to_read_again_ends_with_sighup(start):
    sink = start("sink", "--port", "0")
    sink.wait_for(lambda: "sink listens on" in sink.log, "it listens")
    sink.signal(signal.SIGHUP)
    assert sink.exit_code() == -signal.SIGHUP

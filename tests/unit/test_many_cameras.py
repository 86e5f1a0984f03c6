"""Which cameras a reload touches, and what it cannot take over."""

from pathlib import Path

import pytest

from capture.agent import plan_cameras
from capture.fleet import Changes, changes
from capture.reload import need_restart
from capture.settings import load_settings

BASE = '[ingest]\nurl = "http://a"\n[defaults]\nsegment_seconds = 2\n'


def settings(tmp_path: Path, text: str):
    path = tmp_path / "relay.toml"
    path.write_text(BASE + text)
    return load_settings(config=path, environ={}, tolerate_bad_cameras=True)


def plans(tmp_path, text):
    return {plan.id: plan for plan in plan_cameras(settings(tmp_path, text))}


GATE = '[cameras.gate]\nsource = "rtsp://h/1"\n'
DOOR = '[cameras.door]\nsource = "rtsp://h/2"\n'


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (GATE, GATE, Changes((), (), (), ("gate",))),
        (GATE, GATE + DOOR, Changes(("door",), (), (), ("gate",))),
        (GATE + DOOR, DOOR, Changes((), ("gate",), (), ("door",))),
        (GATE, GATE.replace("/1", "/3"), Changes((), (), ("gate",), ())),
        (GATE, GATE.replace("//h", "//u:p@h"), Changes((), (), ("gate",), ())),
        (GATE, GATE + 'name = "Gate"\n', Changes((), (), ("gate",), ())),
        (GATE, GATE + "segment_seconds = 2.0\n", Changes((), (), (), ("gate",))),
        (GATE, GATE + "fps = 5\n", Changes((), (), ("gate",), ())),
        (GATE + DOOR, GATE + DOOR + "enabled = false\n", Changes((), ("door",), (), ("gate",))),
    ],
)
def test_only_cameras_whose_settings_differ_are_touched(tmp_path, old, new, found):
    assert changes(plans(tmp_path, old), plans(tmp_path, new)) == found


@pytest.mark.parametrize(
    ("added", "keys"),
    [
        ("", []),
        ("[spool]\nretention = 600\n", ["spool.retention"]),
        ("[broker]\nkey_prefix = 'x'\n", ["broker.key_prefix"]),
        (DOOR, []),
        (DOOR + 'token_file = "x"\n', []),
    ],
)
def test_what_a_reload_cannot_take_over_is_named(tmp_path, added, keys):
    assert need_restart(settings(tmp_path, GATE), settings(tmp_path, GATE + added)) == keys

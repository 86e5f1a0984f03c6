"""The tasks with made-up arguments on a spool full of traps: nothing is touched, and nothing raised."""

import contextlib
import itertools
import os
from pathlib import Path

import pytest
from celery import Celery
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import tasks.recover
import tasks.register
import tasks.upload
import tasks.worker
from capture.broker import EmbeddedBroker, RuntimeDir
from capture.claim import HostileNameError, claim, parse_names, parse_session
from capture.handoff import configure
from capture.segment import SegmentName, SessionName
from capture.session import lock_session
from capture.settings import load_settings
from capture.sink import Sink
from capture.spool import Spool
from tasks.recover import recover
from tasks.register import end_session, register_camera
from tasks.sweep import sweep
from tasks.upload import upload_batch, upload_segment

TOKEN = "made-up-token"
SEGMENT = "0000000{}_20260601T120000.000Z_2000.ts"
SESSION = "relay-segments-{}-20260601T120000Z-aaaaaaaa"
MISSING = SESSION.format("away")
# What a look may make or renew.
HELD = {".lock", ".telling.lock", "recover.lock", "salvage.lock", "rejected.lock", "recover.json"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A spool of traps, beside a directory that nobody may touch, with a broker and an ingest that work."""
    base = tmp_path_factory.mktemp("hostile")
    spool = Spool.open(base / "spool", create=True)
    plant(spool.root, base / "canary")
    alive = lock_session(spool.root / SESSION.format("traps"))
    with (
        RuntimeDir(tmp_path_factory.mktemp("r")) as directory,
        Sink(base / "sink", token=TOKEN) as sink,
        pytest.MonkeyPatch.context() as patch,
    ):
        server = EmbeddedBroker(directory.path)
        server.start()
        found = load_settings(
            environ={
                "RELAY_CLOUD": sink.url,
                "RELAY_TOKEN": TOKEN,
                "RELAY_SPOOL": str(spool.root),
                "RELAY_BROKER": server.url,
            }
        )
        app = Celery("hostile", set_as_current=False)
        configure(app, found)
        patch.setattr(tasks.worker, "settings", found)
        patch.setattr(tasks.worker, "_this_process", tasks.worker._PerProcess())
        for module in (tasks.recover, tasks.upload, tasks.worker):
            patch.setattr(module, "app", app)
        yield base, sink
        app.close()
        server.stop()
        os.close(alive)


def plant(root: Path, canary: Path) -> None:
    (canary / "session" / "open").mkdir(parents=True)
    for name in (SEGMENT.format(1), "session.json", "secret", "open/00000001.ts"):
        (canary / "session" / name).write_text('{"camera": "canary", "host": "elsewhere"}')
    (root / SESSION.format("linked")).symlink_to(canary / "session")
    (root / SESSION.format("file")).write_text("no directory")
    (root / SESSION.format("loop")).symlink_to(SESSION.format("loop"))
    directory = root / SESSION.format("traps")
    directory.mkdir()
    (directory / "session.json").write_text('{"format": 1, "ended_at": null}')
    (directory / ".registered.json").write_text("{}")
    (directory / SEGMENT.format(1)).symlink_to(canary / "session" / "secret")
    os.mkfifo(directory / SEGMENT.format(2))
    (directory / SEGMENT.format(3)).mkdir()
    (directory / SEGMENT.format(4)).symlink_to("/dev/zero")
    (directory / SEGMENT.format(5)).symlink_to(SEGMENT.format(5))
    (directory / SEGMENT.format(6)).symlink_to("nowhere")


def snapshot(base: Path) -> dict[str, tuple[object, ...]]:
    found = {}
    for path in sorted(itertools.chain((base / "canary").rglob("*"), (base / "spool").rglob("*"))):
        if path.name in HELD or path.match(".state/lane*.lock"):
            continue
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        time = None if path.is_dir() and not path.is_symlink() else status.st_mtime_ns
        found[str(path)] = (status.st_mode, time, status.st_nlink, content)
    return found


sessions = st.sampled_from([SESSION.format(kind) for kind in ("linked", "file", "loop", "traps", "away")])
segments = st.integers(1, 9).map(SEGMENT.format)
PATHS = [
    *("..", ".", "", "/", "/etc/passwd", "../canary/session/secret", "a\0b", "\ud800", "con", "~", "$HOME"),
    "relay-segments-../x-20260601T120000Z-aaaaaaaa",
    SESSION.format("traps") + "/..",
    SEGMENT.format(1) + "\n",
    SEGMENT.format("\uff11"),
    *("session.json", ".lock", "x" * 1_000_000),
]
paths = st.sampled_from(PATHS)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=40),
    st.text(st.characters(categories=["Cs", "Cf", "Cc", "Nd"]), max_size=20),
    paths,
    sessions,
    segments,
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.one_of(sessions, segments, paths, trees)
pairs = st.lists(names, min_size=1, max_size=3)
MANY = settings(deadline=None, max_examples=400, suppress_health_check=[*HealthCheck])


@MANY
@given(names, names)
def test_names_parse_to_what_they_say_or_are_refused(session, segment):
    for parse, given_names in ((parse_names, (session, segment)), (parse_session, (session,))):
        found, refusal = None, ""
        try:
            found = parse(*given_names)
        except HostileNameError as error:
            refusal = str(error)
        assert len(refusal) < 400
        assert refusal.isascii()
        read = found if isinstance(found, tuple) else (found,)
        assert refusal or tuple(map(str, read)) == given_names


@MANY
@given(sessions, segments)
def test_no_claim_leads_out_of_the_spool(place, session, segment):
    base, _ = place
    spool = Spool.open(base / "spool")
    before = snapshot(base)
    with contextlib.suppress(HostileNameError):
        assert claim(spool, SessionName.parse(session), SegmentName.parse(segment)) is None
    assert snapshot(base) == before


@MANY
@example(SESSION.format("linked"), SEGMENT.format(1), [])
@given(names, names, st.lists(st.one_of(pairs, names), max_size=5))
def test_no_argument_touches_a_file_or_raises(place, session, segment, batch):
    base, sink = place
    before = snapshot(base)
    answers = [
        upload_segment(session, segment),
        upload_batch(batch),
        upload_batch([[session, segment]]),
        upload_batch(session),
        register_camera(session),
        end_session(session),
    ]
    assert all(isinstance(answer, str) for answer in answers)
    assert snapshot(base) == before
    assert not sink.counters.requests


@MANY
@given(trees)
def test_recover_and_sweep_take_any_argument_and_leave_the_traps_alone(place, going):
    base, sink = place
    before = snapshot(base)
    recover(going)
    sweep()
    after = snapshot(base)
    (base / "spool" / ".state" / "going").unlink(missing_ok=True)
    assert {path: found for path, found in after.items() if not path.endswith("/going")} == before
    assert not sink.counters.requests


def test_a_hard_link_is_sent_as_what_it_is_and_its_other_name_keeps_its_content(place):
    """Backups make hard links of segments, so one is a segment like any other."""
    base, sink = place
    secret = base / "canary" / "session" / "secret"
    content = secret.read_bytes()
    link = base / "spool" / SESSION.format("traps") / SEGMENT.format(7)
    link.hardlink_to(secret)
    try:
        upload_segment(SESSION.format("traps"), SEGMENT.format(7))
        assert secret.read_bytes() == content
        assert len(sink.receipts()) == 1
        assert not link.exists()
    finally:
        link.unlink(missing_ok=True)

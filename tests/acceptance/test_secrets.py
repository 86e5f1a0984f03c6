"""Passwords, tokens and the broker's password are found nowhere but where they were configured."""

import os
import re
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial

import imageio_ffmpeg
import pytest

from tests.acceptance import secret_places as places
from tests.acceptance import secret_worlds as worlds
from tests.acceptance.secret_search import Maker, Search
from tests.cameras.rtsp import is_required, missing

SOMETHING = 1000  # bytes
# What these answer depends on the moment, or is an error.
ODD_PAGES = {
    "/tasks/datatable?draw=1&start=0&length=100",
    "/nowhere",
    "/readyz",
    "/picture/inline",
    "/picture/wrong",
}
SEED = int(os.environ.get("SECRETS_SEED") or int.from_bytes(os.urandom(4)))

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.timeout(300),
]


@contextmanager
def no_core_files():
    """Have nobody who aborts leave an image of its memory."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.fixture
def ground(tmp_path):
    """Is where all of it happens, with the search that watches it."""
    with ExitStack() as stack, no_core_files():
        maker = Maker(SEED)
        ground = worlds.Ground(maker, Search(maker), tmp_path, imageio_ffmpeg.get_ffmpeg_exe(), stack)
        yield ground
        left = ground.close()
    assert not left, left


def run_all(ground):
    """Run everything side by side, because each mostly waits, and search all that it leaves."""
    many = worlds.ManyCameras(ground, with_rtsp=is_required() or not missing())
    parts = worlds.Parts(ground)
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(run) for run in (many.run, parts.run, partial(worlds.run_into_bugs, ground))]
    bugs = [run.result() for run in runs][-1]
    ground.look_at_what_is_left()
    return many, parts, bugs


# One test, because all of it is one run that takes its time.
def test_secrets_are_found_nowhere(ground):
    with ground.scanner as scanner:
        many, parts, bugs = run_all(ground)
    search = ground.search
    assert not search.findings, f"SECRETS_SEED={SEED}\n{search.report()}"

    # The search has been everywhere, and there was something to be found.
    expected = {places.COMMAND_LINES, places.ENVIRONMENTS, places.BROKER, places.MONITOR, places.PAGES}
    expected |= {worlds.LOGS, worlds.OUTPUTS, worlds.REQUESTS, worlds.SPOOLS}
    assert not {kind for kind in expected if search.looked[kind] < SOMETHING}, search.looked
    assert {"command", "worker", "beat", "flower", "ffmpeg", "valkey"} <= scanner.roles
    for statuses in (*many.statuses.values(), parts.statuses):
        assert {status for page, status in statuses.items() if page not in ODD_PAGES} == {200}
    check_troubles(ground, many)
    check_parts(ground, parts)
    check_bugs(bugs)


def check_troubles(ground, many):
    """Every fault was met, and told with masks where a secret stood."""
    log = many.up.log
    quoted = re.findall(r"HTTP (?:400|401|503): the key [^a-z]*\*\*\*[^a-z]* is not good", log)
    assert len(quoted) >= 4
    assert "HTTP error 400 *** or" in log  # a camera's words, as ffmpeg repeats them
    assert "x?token=***" in log  # cut by ffmpeg within the secret
    assert re.search(r"Impossible to open '(http|rtsp)://\*\*\*@", log)
    assert many.exit_code in {75, 77}
    verdicts = {line["what"]: line["verdict"] for line in many.doctor}
    assert verdicts["source inline"] == verdicts["token"] == "ok"
    assert verdicts["source wrong"] == verdicts["source echoed"] == "fail"
    (note,) = list(many.spool.glob("*/refused.json"))[:1]
    assert "***" in note.read_text()
    registered = [content for what, content in many.cloud.requests if what == "POST /api/cameras"]
    assert any(b'"source_url": ""' in content for content in registered)
    assert ground.search.looked["typed command line"] >= 0


def check_parts(ground, parts):
    log = parts.parts["worker"].log
    assert "a bug that says ***" in log
    assert "Traceback" in log
    assert parts.keys >= 5
    assert parts.exit_codes["run"] in {0, 75}
    assert "Fatal Python error: Aborted" in parts.up.log
    before, after = parts.camera_ids()
    assert before == after
    assert len(before) == 1


def check_bugs(bugs):
    for words in ("camera", "publisher", "thread", "command"):
        assert re.search(rf"a bug in (a|the) {words}: \*\*\*", bugs.log), bugs.log
    assert bugs.exit_code() == 1

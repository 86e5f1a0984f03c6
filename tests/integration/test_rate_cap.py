"""The bandwidth cap on real uploads by several processes."""

import multiprocessing
import time
from datetime import datetime

import pytest

from capture.claim import claim
from capture.ingest import Ingest
from capture.limiter import Limiter
from capture.outcome import Kind
from capture.settings import IngestSettings
from capture.sink import Sink
from capture.spool import Spool
from capture.timetable import parse_timetable
from tests.conftest import PACKET, add_segment, start_session

RATE = "16Mbit"
BYTES_PER_SECOND = 2_000_000
SIZE = 1_500_000


def send(url, root, session, segment, is_live):
    spool = Spool.open(root)
    settings = IngestSettings(url=url, max_rate=RATE)
    began = time.monotonic()
    with claim(spool, session, segment) as found:
        ingest = Ingest(settings, limit=Limiter(spool.state, parse_timetable(RATE)))
        outcome, _ = ingest.send_segment(found, "T", is_live=is_live)
        ingest.close()
    return outcome.kind, began, time.monotonic()


def warm_up(_number):
    time.sleep(0.05)


@pytest.fixture
def pool():
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(warm_up, range(32))  # all have their modules by then
        yield pool


def test_all_processes_together_keep_the_rate_and_new_video_is_done_first(tmp_path, spool, pool):
    with Sink(tmp_path / "sink", token="T") as sink, start_session(spool) as session:
        owed = [add_segment(session, number, PACKET * (SIZE // 188)) for number in range(1, 5)]
        jobs = [
            pool.apply_async(send, (sink.url, spool.root, session.name, each.segment, each is owed[-1]))
            for each in owed
        ]
        results = [job.get(60) for job in jobs]
    assert [kind for kind, _, _ in results] == [Kind.OK] * 4
    began = min(begin for _, begin, _ in results)
    ended = [at - began for _, _, at in results]
    # Never faster than the rate, apart from the first piece; a loaded machine may be slower.
    assert max(ended) > 4 * SIZE / BYTES_PER_SECOND * 0.95
    assert max(ended) < 4 * SIZE / BYTES_PER_SECOND * 3
    assert ended[-1] < min(ended[:-1])


def test_the_time_of_day_decides(spool):
    table = parse_timetable("08:00-18:00 64kbit")
    day = Limiter(spool.state, table, local_time=lambda: datetime(2026, 1, 1, 12))  # noqa: DTZ001 - local
    night = Limiter(spool.state, table, local_time=lambda: datetime(2026, 1, 1, 20))  # noqa: DTZ001 - local
    assert day.piece() == 4096 < night.piece()
    assert day.wait(80_000, is_live=True, until=time.monotonic() + 5)
    assert not day.wait(80_000, is_live=True, until=time.monotonic() + 0.2)
    assert night.wait(80_000, is_live=True, until=time.monotonic() + 0.2)

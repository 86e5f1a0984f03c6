"""A very large spool costs a look at its names, and no more."""

import time

import pytest

from capture.recovery import Shortlist
from tests.conftest import start_session


def owe(spool, count):
    for camera in range(4):
        session = start_session(spool, f"cam{camera}")
        for number in range(count // 4):
            (session.path / f"{number:08d}_20260601T120000.000Z_2000.ts").touch()


def picking(spool):
    began = time.process_time()
    picked = Shortlist(spool).pick(4, older_than=0.0)
    return time.process_time() - began, picked


@pytest.mark.parametrize("count", [40_000])
def test_a_round_of_recovery_grows_no_faster_than_the_spool(tmp_path, spool, count):
    owe(spool, 4_000)
    small = min(picking(spool)[0] for _ in range(3))
    owe(spool, count)
    large, picked = picking(spool)
    assert [p.debt.session.camera for p in picked] == ["cam0", "cam1", "cam2", "cam3"]
    # eleven times as many names, with room for noise and for the small one's fixed part
    assert large < 40 * small + 0.5

"""What the outage and soak benchmarks make of what they saw."""

import argparse

import pytest

from benchmarks import outage_report, soak_report
from benchmarks.outage import CountingPlan, fault
from benchmarks.outage_report import Found
from benchmarks.processes import Usage, cpu_between, total_memory
from benchmarks.soak_report import Moment, series_of

MIB = 1024 * 1024
OPTIONS = argparse.Namespace(most_requests=30.0, cameras=2, segment=2.0, current_within=10.0)


def found(how: str = "503", **fields: object) -> Found:
    given = {
        "samples": [],
        "heads": [],
        "events": [],
        "failures": [],
        "refusals": [],
        "down_at": 1000.0,
        "up_at": 1120.0,
    }
    return Found(how, OPTIONS, **{**given, **fields})


# --- the outage ------------------------------------------------------------------------------------


def test_only_requests_of_the_outage_count_and_by_the_minute():
    heads = [990.0, *(1000.0 + n for n in range(5)), *(1070.0 + n for n in range(40)), 1121.0]
    assert found(heads=heads).requests() == [5, 40]


def test_a_storm_fails_and_a_trickle_passes():
    assert outage_report._trickle(found(heads=[1001.0 + n for n in range(31)]))[1] is False
    assert outage_report._trickle(found(heads=[1001.0 + n for n in range(30)]))[1] is True


def test_a_closed_port_is_judged_by_the_kernel_only_where_the_machine_is_quiet():
    failures = [(1001.0, 10), (1070.0, 12)]
    assert found("refuse", failures=failures).requests() == [10, 12]
    verdicts = [
        outage_report._trickle(found("refuse", failures=failures, refusals=refusals))[1]
        for refusals in ([(1001.0, 10), (1070.0, 12)], [(1001.0, 500)], [])
    ]
    assert verdicts == [True, None, None]


def test_a_storm_at_a_closed_port_fails_whoever_counts_it():
    for refusals in ([], [(1001.0, 200)]):
        assert (
            outage_report._trickle(found("refuse", failures=[(1001.0, 200)], refusals=refusals))[1] is False
        )


def sample(at: float, messages: int) -> outage_report.Sample:
    return outage_report.Sample(at, {"live": messages, "unacked": 0}, {}, [])


def test_messages_may_wait_for_one_deadline_and_not_longer():
    waits = [sample(1000.0 + n, 35 if n < 30 else 2) for n in range(120)]
    assert outage_report._no_pile(found("hang", samples=waits))[1]
    assert not outage_report._no_pile(found("hang", samples=[sample(1000.0 + n, 35) for n in range(120)]))[1]
    assert not outage_report._no_pile(found("hang", samples=[sample(1000.0 + n, n) for n in range(100)]))[1]


CAMERAS = ["cam0", "cam1"]


def test_live_is_current_when_every_camera_is():
    ends = [(100.0, "cam0", 99.0), (101.0, "cam1", 95.0), (102.0, "cam1", 101.5)]
    assert not outage_report.is_current(ends, CAMERAS, 101.0, limit=4.0)
    assert outage_report.is_current(ends, CAMERAS, 102.0, limit=4.0)
    assert outage_report.seconds_until_current(ends, CAMERAS, 98.0, limit=4.0) == pytest.approx(4.0)


def test_old_segments_that_arrive_late_do_not_make_live_current():
    ends = [(100.0 + n, camera, 50.0 + n) for n in range(20) for camera in CAMERAS]
    assert outage_report.seconds_until_current(ends, CAMERAS, 100.0, limit=4.0) is None


def test_new_video_counts_from_the_return_and_for_the_slowest_camera():
    ends = [(101.0, "cam0", 99.0), (102.0, "cam0", 100.5), (107.0, "cam1", 106.0)]
    assert outage_report.seconds_until_all_new(ends, CAMERAS, 100.0) == pytest.approx(7.0)
    assert outage_report.seconds_until_all_new(ends[:2], CAMERAS, 100.0) is None


def test_every_request_is_counted_also_the_ones_that_no_fault_plays_on():
    plan = CountingPlan()
    plan.begin()
    plan.take("POST", route="ingest", camera="cam0", sequence=1)
    plan.add(fault("503"))
    assert plan.take("POST", route="cameras") is not None
    assert len(plan.heads) == 2


@pytest.mark.parametrize("how", ["refuse", "reset", "503", "hang"])
def test_only_a_refusal_closes_the_door(how):
    assert fault(how).closes_the_door is (how == "refuse")
    assert fault(how).fits("GET", route="cameras", camera=None, sequence=None)


# --- the soak --------------------------------------------------------------------------------------


def usage(pid: int = 7, rss: float = 50.0, fds: int = 10, cpu: float = 0.0, pss: int | None = None) -> Usage:
    return Usage(pid, "worker", cpu, int(rss * MIB), pss, fds, 3)


def moments(minutes: int, use) -> list[Moment]:
    empty = {"broker_bytes": None, "messages": None, "state_files": 0, "sessions": 0, "journal_bytes": 0}
    return [
        Moment(seconds=60.0 * m, usage=[use(m)], owed=0, stored=60 * m, **empty) for m in range(minutes + 1)
    ]


def only_series(minutes: int, use, warm_up: float = 600.0) -> soak_report.Series:
    (series,) = series_of(moments(minutes, use), warm_up=warm_up)
    return series


def test_a_leak_is_found():
    assert only_series(60, lambda m: usage(rss=50 + 0.1 * m)).is_flat() is False  # 6 MiB an hour


def test_what_grows_in_the_warm_up_alone_is_flat():
    assert only_series(60, lambda m: usage(rss=50 + min(m, 10))).is_flat() is True


def test_a_little_growth_is_allowed_and_more_for_large_processes():
    assert only_series(60, lambda m: usage(rss=20 + m / 60)).is_flat() is True
    assert only_series(60, lambda m: usage(rss=200 + 8 * m / 60)).is_flat() is True
    assert only_series(60, lambda m: usage(rss=20 + 8 * m / 60)).is_flat() is False


def test_one_descriptor_an_hour_is_one_too_many_and_a_moment_is_none():
    assert only_series(60, lambda m: usage(fds=10 + (m > 40))).is_flat() is False
    assert only_series(60, lambda m: usage(fds=10 + (m % 10 == 0))).is_flat() is True


def test_a_short_series_is_not_judged():
    assert only_series(15, lambda m: usage(rss=50 + m), warm_up=0.0).is_flat() is None


def test_a_process_that_was_started_again_has_a_series_of_its_own():
    found = series_of(
        moments(60, lambda m: usage(pid=7 if m < 30 else 8, rss=90 if m < 30 else 40)), warm_up=0.0
    )
    assert [(each.pid, len(each.points)) for each in found] == [(7, 30), (8, 31)]
    assert all(each.growth(lambda one: one.rss) == 0 for each in found)


def test_cpu_is_that_of_those_who_lived_and_of_the_newly_born():
    before = {1: usage(1, cpu=5.0), 2: usage(2, cpu=9.0)}
    after = {1: usage(1, cpu=6.0), 3: usage(3, cpu=0.5)}
    assert cpu_between(before, after) == pytest.approx(1.5)


def test_shared_pages_count_once_where_they_can_be_told():
    assert total_memory([usage(rss=50, pss=10 * MIB), usage(rss=50)]) == 60 * MIB

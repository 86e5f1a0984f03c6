"""What `scripts/bench` makes of the figures: verdicts, tables, and their place in the page."""

import math
from pathlib import Path

import pytest

from benchmarks import bench, bench_report, costs
from benchmarks.bench_targets import MET, MISSED, TARGETS, UNKNOWN, Target, verdict, verdicts

ROOT = Path(__file__).parents[2]
PLACE = {
    "cpu": "a processor",
    "cpus_usable": 2,
    "platform": "Linux",
    "python": "3.11.7",
    "commit": "abc",
    "at": "2026-06-01T12:00:00+00:00",
    "load": [0.1, 0.2, 0.3],
}


def target(limit: float, **others) -> Target:
    return Target("some", "what it is", limit, lambda data: data["seconds"], " s", **others)


@pytest.mark.parametrize(
    ("seconds", "others", "word"),
    [
        ([1.0, 2.0, 9.0], {}, MET),
        ([1.0, 2.1, 2.2], {}, MISSED),
        ([1.0, 2.0, 9.0], {"judge_worst": True}, MISSED),
        ([1.0, 2.0, 9.0], {"at_least": True}, MET),
        ([1.0, 1.9, 9.0], {"at_least": True}, MISSED),
        ([1.9, 2.0, 9.0], {"at_least": True, "judge_worst": True}, MISSED),
    ],
)
def test_a_target_is_judged_by_the_median_or_by_the_worst(seconds, others, word):
    assert verdict(target(2.0, **others), {"some": {"seconds": seconds}}).word == word


@pytest.mark.parametrize(
    "results",
    [
        {},
        {"some": {}},
        {"some": {"seconds": []}},
        {"some": {"seconds": [1.0, None]}},
        {"some": {"seconds": [1.0, math.nan]}},
        {"some": {"seconds": None}},
        {"other": {"seconds": [1.0]}},
    ],
)
def test_what_was_not_measured_is_never_met(results):
    found = verdict(target(2.0), results)
    assert (found.word, found.values) == (UNKNOWN, [])


def test_a_verdict_shows_median_spread_and_how_often():
    shown = verdict(target(2.0), {"some": {"seconds": [1.0, 3.0, 1.5]}}).measured
    assert shown == "1.50 s (1.00 to 3.00), n = 3"


RESULTS = {
    "upload_path": {
        "environment": PLACE,
        "sizes": {
            "1572864": {
                "relay, live": [{"cpu_ms": 3.0, "rate": 50}],
                "relay, backlog": [{"cpu_ms": 2.0, "rate": 90}],
                "httpx": [{"cpu_ms": 2.0, "rate": 100}],
            }
        },
        "close_to_confirmed_ms": {"p50": 5.0, "p99": 61.0},
    },
    "wan_outage": {
        "environment": PLACE,
        "drains": [
            # 900 bytes at 100 less 10 a second are 10 s at best
            {"owed_bytes": 900, "rate": 100, "live_bytes": 125, "seconds": 12.5, "beside": [3], "normal": [2]}
        ],
    },
    "rate_cap": {"environment": PLACE, "caps": [{"shares": [1.0, 0.94]}]},
    "many_cameras": {
        "environment": PLACE,
        "added_to_bare": {"1 x 10 s": [3.0], "50 x 10 s": [0.05]},
        "agent_to_bare": {"1 x 10 s": [0.9], "50 x 10 s": [0.2]},
        "samples": [
            {"kind": "up", "cameras": 80, "pss": {"agent": 50e6}},
            {"kind": "bare", "cameras": 80, "pss": {}},
        ],
    },
    "scale": {
        "environment": PLACE,
        "runs": [
            {"cameras": cameras, "asked": cameras / 10, "delivered": cameras / 10.5, "worker_ms": cost}
            | {"publisher_ms": 0.5, "broker_ms": 0.5, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0}
            for cameras, cost in ((100, 3.0), (1000, 3.4))
        ],
    },
    "owed": {
        "environment": PLACE,
        "owed": [
            {"owed": owed, "cpu_ms": cost, "ms": 1.0} for owed, cost in ((10, 4), (1000, 2), (100_000, 3))
        ],
    },
    "recover_scale": {
        "environment": PLACE,
        "runs": [{"owed": 1000, "listing": [0.1], "further": [0.001]}],
    },
    "startup_backlog": {
        "environment": PLACE,
        "start": {"owed": 100_000, "captures": 1.0, "confirmed": 2.0},
        "peak_bytes": {"beat": 70 * 1024**2},
    },
    "start_up": {
        "environment": PLACE,
        "commands": {"python -c pass": [0.02], "--help": [0.05]},
        "up": {"1": [{"spool": 0.3, "confirmed": 1.5, "segment": 1.0, "ahead": 0.1, "beyond": 0.6}]},
    },
    "costs": {
        "environment": PLACE,
        "file_system": "ext4",
        "sizes": {
            "65536": [
                {
                    "wall": dict.fromkeys([*costs.PARTS, *costs.WHOLE, "httpx"], 0.001),
                    "cpu": {},
                }
            ]
        },
    },
}


def test_every_target_finds_its_figure_where_the_benchmarks_write_it():
    expected = [
        *((MET, 1.5), (MET, 0.9), (MET, 5.0), (MISSED, 61.0)),  # upload path
        *((MISSED, 80.0), (MET, 1.5)),  # WAN
        (MISSED, 6.0),  # cap: the worst of its windows
        *((MET, 5.0), (MISSED, 20.0), (MET, 50.0)),  # cameras
        *((MET, 95.24), (MET, 1.1)),  # scale
        *((MISSED, 1.5), (MET, 0.75)),  # owed
        *((MET, 0.05), (MET, 0.6)),  # start
    ]
    found = [(each.word, each.target.judged(each.values)) for each in verdicts(RESULTS)]
    assert [word for word, _ in found] == [word for word, _ in expected]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-3)


def test_fewer_than_a_thousand_cameras_do_not_meet_the_target_of_a_thousand():
    runs = {**RESULTS, "scale": {**RESULTS["scale"], "runs": RESULTS["scale"]["runs"][:1]}}
    words = {each.target.what: each.word for each in verdicts(runs) if each.target.run == "scale"}
    assert set(words.values()) == {UNKNOWN}


def test_every_target_belongs_to_a_run_and_every_run_to_a_module():
    runs = {run.name for run in bench.RUNS}
    assert {target.run for target in TARGETS} <= runs
    assert [run.module for run in bench.RUNS if not (ROOT / f"benchmarks/{run.module}.py").exists()] == []


# --- tables ---


def shown(results, failed=None) -> str:
    return bench_report.tables(results, dict.fromkeys(results, "python -m it"), failed or {})


def test_the_tables_hold_every_target_and_say_where_it_was_measured():
    text = shown(RESULTS)
    for each in TARGETS:
        assert each.what in text
    assert "On a processor, 2 CPUs, Linux, Python 3.11.7, commit abc: " in text
    assert "| 1.00 (1.00 to 1.00) = 100 % |" in text
    assert text.count("| missed |") == 5


def test_results_of_different_commits_are_told_apart():
    other = {**RESULTS["owed"], "environment": {**PLACE, "commit": "def"}}
    text = shown({**RESULTS, "owed": other})
    assert "commit def: `owed` 2026-06-01 12:00 UTC, load 0.3." in text


def test_a_run_that_failed_is_told_with_its_reason_and_the_rest_is_shown():
    text = shown({"owed": RESULTS["owed"]}, {"costs": "it ended with 1: no room"})
    assert "- `costs` gave no figures: it ended with 1: no room" in text
    assert "### Many owed segments" in text


def test_every_row_of_a_table_has_as_many_cells_also_with_a_bar_in_one():
    rows = bench_report.markdown(["a", "b"], [["x|y", 1]]).splitlines()
    assert rows == ["| a | b |", "| --- | --- |", "| x\\|y | 1 |"]


def test_the_tables_take_the_place_of_the_old_ones_and_of_nothing_else():
    old = f"# Page\n\n{bench_report.BEGIN}\nold\n{bench_report.END}\n\nafter\n"
    new = bench_report.page(old, "new")
    assert new == old.replace("old", "new")
    assert bench_report.page(new, "new") == new


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        bench_report.BEGIN,
        f"{bench_report.END} {bench_report.BEGIN}",
        f"{bench_report.BEGIN} {bench_report.END} {bench_report.END}",
    ],
)
def test_a_page_without_a_place_for_the_tables_is_left_alone(text):
    with pytest.raises(ValueError, match="no place for the tables"):
        bench_report.page(text, "new")


def test_what_a_run_printed_stands_as_it_is():
    shown = bench_report.tables({}, {}, {}, {"wan": "rtt | share\n80 | 53 %\n"})
    assert "### wan\n\n```text\nrtt | share\n80 | 53 %\n```" in shown


def test_the_page_has_a_place_for_the_tables():
    text = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert "\nnew\n" in bench_report.page(text, "new")


# --- which ---


def test_quick_leaves_out_what_is_too_long_and_all_else_runs():
    quick = {run.name for run in bench.chosen(None, is_quick=True)}
    full = {run.name for run in bench.chosen(None, is_quick=False)}
    assert full - quick == {"live_first"}
    assert full == {run.name for run in bench.RUNS}


def test_only_some_or_none_are_chosen():
    assert [run.name for run in bench.chosen("owed,costs", is_quick=True)] == ["costs", "owed"]
    assert bench.chosen("none", is_quick=True) == []
    with pytest.raises(ValueError, match="found 'cost'; expected some of start_up, costs"):
        bench.chosen("costs,cost", is_quick=True)


def test_a_missed_target_or_a_failed_run_is_an_error_and_one_that_was_left_out_is_none():
    good = {"start_up": RESULTS["start_up"]}
    assert bench.exit_code(good, {}) == 0
    assert bench.exit_code(good, {"owed": "it ended with 1"}) == 1
    assert bench.exit_code({"rate_cap": RESULTS["rate_cap"]}, {}) == 1
    assert bench.exit_code({"start_up": {"environment": PLACE}}, {}) == 1  # it ran, and wrote no such figure

"""The arithmetic of the benchmarks."""

import json
import math
import random
from pathlib import Path

import pytest

from benchmarks import figures, live_first_report
from benchmarks.ingest import Arrival
from benchmarks.line import parse_rate


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.95, 95), (0.99, 99), (0.991, 100), (1.0, 100)]
)
def test_a_percentile_is_one_of_the_values(share, expected):
    assert figures.percentile(random.Random(1).sample(range(1, 101), 100), share) == expected


def test_a_segment_that_never_arrived_counts_in_the_percentiles():
    waits = [10.0] * 94 + [math.inf] * 6
    assert figures.summary(waits) == {
        "n": 100,
        "p50": 10.0,
        "p95": math.inf,
        "p99": math.inf,
        "max": math.inf,
    }


def test_a_trend_is_not_bent_by_one_odd_sample():
    points = [(float(t), 100.0 + 0.5 * t) for t in range(60)]
    points[30] = (30.0, 10_000.0)
    assert figures.slope(points) == pytest.approx(0.5)


def test_a_trend_over_very_many_samples_is_that_of_them_all():
    assert figures.slope([(float(t), 3.0 * t) for t in range(10_000)]) == pytest.approx(3.0)


@pytest.mark.parametrize("points", [[], [(1.0, 5.0)], [(1.0, 5.0), (1.0, 7.0)]])
def test_a_trend_of_too_few_samples_is_none(points):
    assert figures.slope(points) == 0.0


def test_first_and_last_quarter_are_compared_by_their_medians():
    assert figures.quarters([1, 9, 1, 1, 5, 5, 5, 5, 7, 7, 7, 99]) == (1, 7)
    assert figures.quarters([4]) == (4, 4)


def test_requests_that_follow_each_other_are_not_at_once():
    assert figures.most_at_once([(0, 1), (1, 2), (2, 3)]) == 1
    assert figures.most_at_once([(0, 3), (1, 2), (1.5, 4), (5, 6)]) == 3
    assert figures.most_at_once([]) == 0


def test_an_order_shows_how_many_older_ones_each_overtook():
    assert figures.overtaken([1, 2, 3, 4]) == [0, 0, 0, 0]
    assert figures.overtaken([3, 1, 2, 4]) == [2, 0, 0, 0]
    assert figures.overtaken([4, 3, 2, 1]) == [3, 2, 1, 0]


def test_moments_are_counted_by_the_minute():
    assert figures.per_minute([0.5, 59.9, 60.0, 125.0, 500.0], 0.0, 130.0) == [2, 2]
    assert figures.per_minute([1.0, 2.0], 0.0, 20.0) == [2]


def test_a_table_is_aligned():
    assert (
        figures.table(["name", "n"], [["a", 1], ["longer", 123]]) == "name      n\na         1\nlonger  123"
    )


def test_a_histogram_counts_every_value_also_the_ones_that_never_came():
    text = figures.histogram({"quiet": [10.0, 11.0, 12.0], "busy": [15.0, 250.0, math.inf]})
    counted = [int(line.split(" ms ")[1].split()[0]) for line in text.splitlines() if " ms " in line]
    assert sum(counted) == 6
    assert "10 to 20 ms      3" in text


def test_figures_are_written_as_json_that_others_can_read(tmp_path):
    figures.write_figures(tmp_path / "out.json", {"waits": [1.5, math.inf], "p": {"x": math.nan}})
    assert json.loads((tmp_path / "out.json").read_text()) == {"waits": [1.5, None], "p": {"x": None}}


def test_the_environment_names_what_the_figures_depend_on():
    found = figures.environment()
    assert found["cpus"] > 0
    assert "celery" in found["packages"]
    assert str(found["python"]) in figures.environment_lines()


@pytest.mark.parametrize(("text", "bytes_per_second"), [("20Mbit", 2_500_000), ("512kbit", 64_000), ("0", 0)])
def test_a_rate_is_read(text, bytes_per_second):
    assert parse_rate(text) == bytes_per_second


def test_cameras_that_take_turns_stay_one_apart():
    assert live_first_report.turns("abcabcabc", "abc", 10) == [1, 1, 0, 1, 1, 0, 1, 1, 0]
    assert live_first_report.turns("aaabbb", "ab", 10) == [1, 2, 3, 2, 1, 0]


def test_turns_end_when_the_first_camera_owes_nothing_more():
    assert live_first_report.turns("ababbb", "ab", 3) == [1, 0, 1, 0]


def arrival(camera: str, session: str, sequence: int) -> Arrival:
    return Arrival(camera, session, sequence, 1000, 0.0)


def test_order_counts_within_a_camera_and_across_its_sessions():
    came = [
        arrival("a", "2", 1),
        arrival("b", "1", 1),
        arrival("a", "1", 1),
        arrival("a", "1", 2),
        arrival("b", "1", 2),
    ]
    assert sorted(live_first_report.overtaking(came)) == [0, 0, 0, 0, 2]


def test_the_backlog_is_measured_by_what_live_leaves_of_the_line():
    figures_of_it = {
        "seconds": 10.0,
        "live_bytes": 400,
        "drained_bytes": 300,
        "owed_before": 9,
        "owed_after": 1,
    }
    phase = live_first_report.Phase(backlog=True, waits=[1.0], overtaking=[], apart=[], **figures_of_it)
    assert phase.share(100.0) == pytest.approx(0.5)


@pytest.mark.parametrize(("text", "size"), [("64KiB", 65_536), ("1.5MiB", 1_572_864)])
def test_a_size_is_read(text, size):
    assert figures.parse_size(text) == size


def test_a_size_without_its_unit_is_refused():
    with pytest.raises(ValueError, match="expected a size like"):
        figures.parse_size("1500")


def test_the_file_system_of_a_path_is_that_of_its_mount():
    assert figures.file_system(Path("/proc/self")) == "proc"
    assert figures.file_system(Path("/")) not in {"", "unknown"}

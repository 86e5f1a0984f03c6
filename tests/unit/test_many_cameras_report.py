"""What the benchmark of many cameras makes of its samples."""

import pytest

from benchmarks.figures import MIB
from benchmarks.many_cameras_report import BARE, OURS, Report, Sample


def pair(cameras, segment, *, bare, ffmpeg, agent, seconds=10.0):
    """Return a bare run and ours; CPU in percent of a core for each camera."""
    cpu = {
        name: value / 100 * seconds * cameras for name, value in {"ffmpeg": ffmpeg, "agent": agent}.items()
    }
    memory = {"ffmpeg": MIB, "agent": 50 * MIB, "uploads": MIB}
    return [
        Sample(BARE, cameras, segment, seconds, {"ffmpeg": bare / 100 * seconds * cameras}, {"ffmpeg": MIB}),
        Sample(OURS, cameras, segment, seconds, {**cpu, "uploads": 0.1}, memory),
    ]


def test_what_we_add_is_the_agent_and_what_our_ffmpegs_take_more_than_bare_ones(capsys):
    report = Report(pair(50, 10.0, bare=0.4, ffmpeg=0.41, agent=0.02))
    assert report.added((10.0, 50), "agent", "ffmpeg") == [pytest.approx(0.075)]
    assert report.added((10.0, 50), "agent") == [pytest.approx(0.05)]
    assert report.show() == 0
    line = (
        "PASS  agent and what its ffmpegs take more, at most 10% of bare ones, 50 x 10 s: 7.5% (7.5% to 7.5%)"
    )
    assert line in capsys.readouterr().out


def test_the_median_of_the_runs_decides_and_the_spread_is_shown(capsys):
    runs = [pair(50, 10.0, bare=0.4, ffmpeg=0.4, agent=agent) for agent in (0.02, 0.044, 0.048)]
    assert Report([sample for run in runs for sample in run]).show() == 1
    found = capsys.readouterr().out
    assert "FAIL  agent and what its ffmpegs take more" in found
    assert "50 x 10 s: 11.0% (5.0% to 12.0%), of it the agent 11.0%" in found


def test_two_lengths_split_the_agent_into_each_second_and_each_segment():
    # 0.2 ms a second and 4 ms a segment: 2.2 ms a second at 2 s, 0.6 ms at 10 s.
    samples = pair(50, 2.0, bare=0.4, ffmpeg=0.4, agent=0.22) + pair(
        50, 10.0, bare=0.4, ffmpeg=0.4, agent=0.06
    )
    assert Report(samples).split(50) == (pytest.approx(0.2), pytest.approx(4.0))
    assert Report(samples[:2]).split(50) is None


def test_a_bare_run_in_which_nothing_was_counted_is_no_success(capsys):
    assert Report(pair(1, 10.0, bare=0.0, ffmpeg=0.4, agent=0.1)).show() == 1
    assert "inf" in capsys.readouterr().out

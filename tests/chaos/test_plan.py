"""What a storm will do follows from its seed, and from nothing else."""

import pytest

from tests.chaos.plan import CLOCK, LAYOUTS, PARTS, draw, kinds, layout_of
from tests.chaos.run import stepped_lines


def test_the_same_seed_gives_the_same_list():
    assert draw(7, 300, clock=True) == draw(7, 300, clock=True)


def test_another_seed_gives_another_list():
    assert draw(7, 300, clock=True) != draw(8, 300, clock=True)


def test_a_longer_storm_begins_like_a_shorter_one():
    short = draw(3, 60, clock=True)
    assert draw(3, 600, clock=True)[: len(short)] == short


@pytest.mark.parametrize("seed", range(20))
def test_a_minute_sees_every_kind_of_fault(seed):
    assert {strike.kind for strike in draw(seed, 66, clock=True)} == set(kinds(clock=True))


def test_strikes_come_one_after_the_other_and_within_the_time():
    moments = [strike.at for strike in draw(5, 120, clock=True)]
    assert moments == sorted(moments)
    assert 0 < moments[0] < moments[-1] < 120


def test_without_a_clock_that_can_be_stepped_that_fault_is_left_out():
    assert CLOCK not in {strike.kind for strike in draw(1, 300, clock=False)}


def test_every_part_is_killed_and_frozen():
    assert {f"kill {part}" for part in PARTS} | {f"freeze {part}" for part in PARTS} <= set(
        kinds(clock=False)
    )


def test_a_strike_says_what_it_does():
    words = {str(strike) for strike in draw(1, 120, clock=True)}
    assert any("step clock by +3600 s for" in text for text in words)
    assert any(text.endswith("kill agent") for text in words)


def test_seeds_reach_both_layouts():
    assert {layout_of(seed) for seed in range(10)} == set(LAYOUTS)


def test_lines_that_a_crash_tore_do_not_count_as_written_on_a_stepped_clock(tmp_path):
    (tmp_path / "journal" / "door").mkdir(parents=True)
    lines = '{"t": "2001-01-01T00:00:00.000Z", "event": "closed"}\n{"t": "20'
    (tmp_path / "journal" / "door" / "2001-01-01.jsonl").write_text(lines)
    assert stepped_lines(tmp_path, beyond=3600) == 1

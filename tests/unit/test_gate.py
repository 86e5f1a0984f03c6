"""The gate: breaker, probes, refused tokens."""

import random

import pytest

from capture.gate import (
    FAILURES_TO_OPEN,
    PATIENT_PROBE_EVERY,
    PROBE_ANSWER_SECONDS,
    SLOWEST_PROBE_SECONDS,
    Change,
    Gate,
    Verdict,
    probe_answer_seconds,
    probe_delay,
)
from capture.outcome import Kind, Outcome
from capture.settings import IngestSettings
from capture.spool import Spool

DOWN = Outcome(Kind.TRANSIENT, 503, "HTTP 503")
GOOD = Outcome(Kind.OK, 204, "HTTP 204")
REFUSED = Outcome(Kind.FATAL, 401, "HTTP 401")
LATER = Outcome(Kind.TRANSIENT, 429, "HTTP 429", retry_after=60.0)


@pytest.fixture
def spool(tmp_path, clock):
    return Spool.open(tmp_path / "spool", create=True, clock=clock)


def make_gate(spool, **ingest):
    return Gate(spool, IngestSettings(**ingest), dice=random.Random(1))


def verdict(gate, token="T"):
    with gate.admit(token) as admission:
        return admission.verdict


def shut(gate):
    for _ in range(FAILURES_TO_OPEN):
        assert verdict(gate) is Verdict.GO
        gate.report(DOWN, "T")


def test_a_few_failures_in_a_row_stop_the_attempts(spool):
    gate = make_gate(spool)
    shut(gate)
    assert verdict(gate) is Verdict.DOWN
    assert gate.is_open()


def test_only_the_failure_that_shuts_the_gate_says_so(spool):
    gate = make_gate(spool)
    changes = [gate.report(DOWN, "T") for _ in range(5)]
    assert changes == [Change.NONE, Change.NONE, Change.DOWN, Change.NONE, Change.NONE]


def test_two_attempts_that_used_up_their_time_are_enough(spool):
    gate = make_gate(spool)
    slow = Outcome(Kind.TRANSIENT, 0, "no answer", timed_out=True)
    assert [gate.report(slow, "T") for _ in range(2)] == [Change.NONE, Change.DOWN]


def test_failures_that_a_success_interrupts_do_not_count(spool):
    gate = make_gate(spool)
    for _ in range(5):
        gate.report(DOWN, "T")
        gate.report(DOWN, "T")
        gate.report(GOOD, "T")
    assert verdict(gate) is Verdict.GO


def test_one_probe_at_a_time_goes_out_and_the_first_success_opens_the_way_for_all(spool, clock):
    gate, other = make_gate(spool), make_gate(spool)
    shut(gate)
    clock.step(SLOWEST_PROBE_SECONDS)
    with gate.admit("T") as probe:
        assert probe.verdict is Verdict.PROBE
        assert verdict(other) is Verdict.DOWN
        assert gate.report(GOOD, "T") is Change.UP
    assert verdict(other) is Verdict.GO
    assert other.report(GOOD, "T") is Change.NONE


def test_a_probe_that_fails_is_followed_by_a_later_one(spool, clock):
    gate = make_gate(spool)
    shut(gate)
    sent = 0
    for _ in range(600):
        clock.step(1)
        with gate.admit("T") as admission:
            if admission.may_try:
                sent += 1
                gate.report(DOWN, "T")
    assert 100 <= sent <= 250


def test_a_prober_that_died_does_not_block_the_next(spool, clock):
    gate = make_gate(spool)
    shut(gate)
    clock.step(SLOWEST_PROBE_SECONDS)
    admission = gate.admit("T")
    assert verdict(gate) is Verdict.DOWN
    with admission:
        pass
    assert verdict(gate) is Verdict.PROBE


def test_a_clock_that_was_set_back_does_not_shut_the_gate_for_long(spool, clock):
    gate = make_gate(spool)
    shut(gate)
    clock.step(-86400)
    assert verdict(gate) is Verdict.PROBE


def test_when_the_cloud_says_for_how_long_nobody_knocks_until_then(spool, clock):
    gate = make_gate(spool)
    gate.report(LATER, "T")
    assert verdict(gate) is Verdict.DOWN
    clock.step(59)
    assert verdict(gate) is Verdict.DOWN
    clock.step(2)
    assert verdict(gate) is Verdict.PROBE


def test_a_success_that_began_before_does_not_shorten_what_the_cloud_asked_for(spool, clock):
    """Uploads overlap: the answer to an earlier one comes after that to a later one."""
    gate = make_gate(spool)
    gate.report(LATER, "T", is_probe=False)
    assert gate.report(GOOD, "T", is_probe=False) is Change.NONE
    assert verdict(gate) is Verdict.DOWN
    clock.step(61)
    assert gate.report(GOOD, "T", is_probe=False) is Change.UP


def test_a_success_that_began_before_does_not_forgive_a_refused_token(spool):
    gate = make_gate(spool)
    gate.report(REFUSED, "T", is_probe=False)
    assert gate.report(GOOD, "T", is_probe=False) is Change.NONE
    assert verdict(gate, "T") is Verdict.REFUSED


def test_stray_failures_among_successes_do_not_shut_the_gate(spool):
    gate = make_gate(spool)
    for _ in range(5):
        gate.report(DOWN, "T", is_probe=False)
        gate.report(GOOD, "T", is_probe=False)
    assert verdict(gate) is Verdict.GO


def test_many_that_fail_at_once_count_as_no_probe(spool):
    gate = make_gate(spool)
    for _ in range(8):
        gate.report(DOWN, "T", is_probe=False)
    assert gate.outage()["probes"] == 0


def test_a_refused_token_stops_every_upload_with_it_and_no_other(spool):
    gate = make_gate(spool)
    gate.report(REFUSED, "old")
    assert verdict(gate, "old") is Verdict.REFUSED
    assert verdict(gate, "new") is Verdict.GO
    assert "401" in gate.refusal("old")["advice"]
    assert gate.refusal("new") is None
    gate.forgive("old")
    assert verdict(gate, "old") is Verdict.GO


def test_on_hold_a_refused_token_is_probed_now_and_then(spool, clock):
    gate = make_gate(spool, on_refused="hold", hold_probe_every=30.0)
    gate.report(REFUSED, "T")
    assert verdict(gate) is Verdict.REFUSED
    clock.step(31)
    with gate.admit("T") as admission:
        assert admission.verdict is Verdict.PROBE
        assert gate.report(GOOD, "T") is Change.UP
    assert verdict(gate) is Verdict.GO


def test_a_captive_portals_page_does_not_clear_a_refusal(spool):
    gate = make_gate(spool)
    gate.report(REFUSED, "T")
    gate.report(Outcome(Kind.REJECTED, 200, "HTTP 200"), "T")
    assert verdict(gate) is Verdict.REFUSED


def test_no_file_of_the_gate_holds_the_token(spool):
    gate = make_gate(spool)
    gate.report(REFUSED, "s3cret-token")
    shut(gate)
    for path in spool.root.rglob("*"):
        assert "s3cret" not in path.name
        assert not path.is_file() or b"s3cret" not in path.read_bytes()


def test_a_damaged_state_file_opens_the_way(spool):
    gate = make_gate(spool)
    shut(gate)
    (spool.state / "breaker.json").write_text('{"failures": "many", "probe_at": [] }')
    assert verdict(gate) is Verdict.GO


@pytest.mark.parametrize("probes", [0, 1, 5, 50, 10_000])
def test_probes_come_at_growing_jittered_bounded_intervals(probes):
    low, high = probe_delay(probes, 0.0), probe_delay(probes, 1.0)
    assert 0.5 <= low < high <= SLOWEST_PROBE_SECONDS


def test_most_probes_are_impatient_and_some_are_not():
    waits = [probe_answer_seconds(n) for n in range(12)]
    assert waits.count(None) == 2
    assert set(waits) == {None, PROBE_ANSWER_SECONDS}


def test_a_slow_cloud_can_end_a_hold_too(spool, clock):
    gate = make_gate(spool, on_refused="hold")
    gate.report(REFUSED, "T")
    answers = []
    for _ in range(FAILURES_TO_OPEN + PATIENT_PROBE_EVERY):
        clock.step(31)
        with gate.admit("T") as probe:
            assert probe.may_try
            answers.append(probe.answer_seconds)
        gate.report(DOWN, "T")
    assert None in answers


def test_a_refusal_is_an_answer_and_ends_an_outage(spool):
    gate = make_gate(spool)
    shut(gate)
    assert gate.report(REFUSED, "T") is Change.UP
    assert not gate.is_open()

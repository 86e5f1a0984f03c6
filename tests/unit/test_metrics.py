"""What is counted, under which words, and how it is shown: pure."""

import dataclasses
import math
import random
from dataclasses import replace

import pytest

from capture.camera import CameraStatus as Live
from capture.errors import RelayError
from capture.ffmpeg_output import _CAUSES, FailureKind
from capture.journal import Event
from capture.metrics_agent import Facts, Moment, agent_rows
from capture.metrics_catalogue import (
    AGENT,
    CAMERA_STATE,
    CAPTURED,
    CAPTURED_BYTES,
    CONFIRM_SECONDS,
    DROPPED,
    DROPPED_BYTES,
    FULL_IN,
    GAP_CAUSES,
    GAP_SECONDS,
    GAPS,
    INGEST_STATE,
    LAST_SEGMENT,
    OLDEST_OWED,
    OWED,
    READABLE,
    RESTARTS,
)
from capture.metrics_causes import CAUSES, cause_label
from capture.metrics_journal import JournalCounter
from capture.metrics_text import CameraNames, Counts, render
from capture.status import BrokerStatus, CameraStatus, IngestStatus, Status
from capture.supervision import State, Watchdog

SECRET = "rtsp://user:hunter22@192.0.2.10/"

# --- causes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "cause"), sorted({(kind, cause) for kind, _, cause in _CAUSES}))
def test_every_cause_that_ffmpeg_is_given_has_its_word(kind, cause):
    word = cause_label(cause)
    assert word in CAUSES
    assert word == str(kind).replace(" ", "_") or cause_label(cause) in {
        str(other).replace(" ", "_") for other, _, text in _CAUSES if text == cause
    }


@pytest.mark.parametrize(
    ("cause", "word"),
    [
        ("the agent was not running", "agent_not_running"),
        ("its settings changed", "settings_changed"),
        ("the session's directory was removed", "session_removed"),
        ("the source ended", "source_ended"),
        ("ffmpeg was killed by SIGKILL", "ffmpeg_ended"),
        ("ffmpeg does not run", "ffmpeg_frozen"),
        ("a bug of this program (KeyError); its log has more", "bug"),
        ("No space left on device", "disk_full"),
        ("the spool's marker /x has vanished or changed", "spool_unusable"),
        ("no new frame; then: nothing listens at host and port", "no_new_frame"),
        (SECRET, "other"),
        ("", "other"),
        (None, "other"),
        (17, "other"),
    ],
)
def test_a_cause_in_the_journal_becomes_one_of_a_few_words(cause, word):
    assert cause_label(cause) == word


def test_what_the_watchdog_says_has_its_words():
    dark, stalled = Watchdog(0.0), Watchdog(0.0)
    stalled.see(1, 1.0)
    said = [next(filter(None, map(dog.complaint, map(float, range(1, 200))))) for dog in (dark, stalled)]
    assert list(map(cause_label, said)) == ["no_first_frame", "no_new_frame"]


def test_there_is_a_word_for_every_kind_of_failure_and_no_word_twice():
    assert {str(kind).replace(" ", "_") for kind in FailureKind} <= set(CAUSES)
    assert len(CAUSES) == len(set(CAUSES)) < 50


# --- counting --------------------------------------------------------------------------------------


def test_journal_lines_become_counts():
    counts = Counts()
    tell = JournalCounter(counts)
    tell("gate", Event.CLOSED, [{"bytes": 100}])
    tell("gate", Event.RECOVERED, [{"bytes": 10}])
    tell("gate", Event.DROPPED, [{"bytes": 7}, {}])
    tell("gate", Event.GAP, [{"seconds": 12.5, "cause": "no new frame"}])
    tell("gate", Event.GAP, [{"seconds": 1, "cause": SECRET}])
    tell("yard", Event.REQUEUED, [{}])

    assert counts.of(CAPTURED) == {("gate",): 1}
    assert counts.of(CAPTURED_BYTES) == {("gate",): 110}
    assert counts.of(DROPPED) == {("gate",): 2}
    assert counts.of(DROPPED_BYTES) == {("gate",): 7}
    assert counts.of(GAPS) == {("gate",): 2}
    assert counts.of(GAP_SECONDS) == {("gate",): 13.5}
    assert counts.of(GAP_CAUSES) == {("gate", "no_new_frame"): 1, ("gate", "other"): 1}


@pytest.mark.parametrize("amount", [0.0, -1.0, math.nan])
def test_a_counter_never_falls(amount):
    counts = Counts()
    counts.add(GAPS, ("gate",), 2)
    counts.add(GAPS, ("gate",), amount)
    assert counts.of(GAPS) == {("gate",): 2}


def test_a_journal_tells_its_observer_of_what_was_written_and_of_nothing_else(spool):
    told = []
    spool.journal.observer = lambda *line: told.append(line)
    spool.journal.append("gate", Event.GAP, seconds=3)
    with pytest.raises(OSError, match=r".*"):
        spool.journal.append("no/such/place", Event.GAP)
    assert told == [("gate", Event.GAP, [{"seconds": 3}])]


def test_a_value_falls_into_the_bucket_that_prometheus_means():
    # "le" is less or equal.
    assert CONFIRM_SECONDS.bucket(0.005) == "0.005"
    assert CONFIRM_SECONDS.bucket(0.0051) == "0.01"
    assert CONFIRM_SECONDS.bucket(1e9) == "+Inf"


def test_a_histogram_adds_up_and_a_clock_that_was_set_back_is_no_negative_age():
    counts = Counts()
    for seconds in (-5.0, 0.004, 0.2, 1e9):
        counts.observe(CONFIRM_SECONDS, ("live",), seconds)
    text = render([(CONFIRM_SECONDS, counts.of(CONFIRM_SECONDS))]).decode()
    name = CONFIRM_SECONDS.name
    assert f'{name}_bucket{{le="0.005",queue="live"}} 2.0' in text
    assert f'{name}_bucket{{le="0.25",queue="live"}} 3.0' in text
    assert f'{name}_bucket{{le="604800.0",queue="live"}} 3.0' in text
    assert f'{name}_bucket{{le="+Inf",queue="live"}} 4.0' in text
    assert f'{name}_count{{queue="live"}} 4.0' in text
    assert f'{name}_sum{{queue="live"}} 1.000000000204e+09' in text


def test_the_number_of_camera_labels_is_bounded_and_a_label_stays_what_it_is():
    names = CameraNames(most=3)
    assert [names(camera) for camera in ("a", "b", "c", "d", "e", "a")] == [
        "a",
        "b",
        "c",
        "other",
        "other",
        "a",
    ]


# --- the agent -------------------------------------------------------------------------------------


def live(camera="gate", **fields):
    known = {"id": camera, "state": State.RUNNING, "segments": 5, "frames": 250, "restarts": 2}
    known |= {"last_segment_at": 990.0, **fields}
    return Live(**{each.name: known.get(each.name) for each in dataclasses.fields(Live)})


def status(*cameras, **fields):
    start = Status(
        time="2026-06-01T12:00:00.000Z",
        spool="/spool",
        free_bytes=10,
        total_bytes=20,
        owed=0,
        owed_bytes=0,
        rejected=0,
        drain_seconds=None,
        full_in_seconds=None,
        full_in_seconds_without_uploads=60.0,
        broker=BrokerStatus(SECRET, reachable=True, queues={"live": 3, "unacked": 1}, reason=SECRET),
        ingest=IngestStatus("down", None, SECRET, SECRET, 7, 11.0),
        cameras=cameras,
    )
    return replace(start, **fields)


def moment(*cameras, facts=None, **fields):
    start = Moment(
        cameras, {"enabled": 1, "disabled": 0, "faulty": 0}, facts, is_readable=True, wall=1.75e9, now=1000.0
    )
    return replace(start, **fields)


def facts(*cameras, looked_at=995.0, **fields):
    return Facts(status(*cameras, **fields), {"owed": 1, "rejected": 2, "open": 3}, looked_at)


def rows(found, counts=None):
    return dict(agent_rows(found, counts or Counts()))


def owing(camera, **fields):
    start = CameraStatus(
        camera, configured=True, state="recording", owed=4, owed_bytes=400, oldest_owed_age=60.0
    )
    return replace(start, **fields)


def test_with_facts_every_metric_of_the_agent_is_there_and_each_once():
    found = [metric for metric, _ in agent_rows(moment(live(), facts=facts(owing("gate"))), Counts())]
    assert sorted(metric.name for metric in found) == sorted(metric.name for metric in AGENT)


def test_before_the_first_look_there_is_what_is_known():
    found = rows(moment(live()))
    assert found[RESTARTS] == {("gate",): 2}
    assert OWED not in found
    assert READABLE not in found


def test_a_spool_that_could_never_be_read_shows():
    assert rows(moment(live(), is_readable=False))[READABLE] == {(): 0}


def test_a_camera_is_in_one_state():
    found = rows(moment(live(state=State.BACKOFF)))[CAMERA_STATE]
    assert sum(found.values()) == 1
    assert found["gate", "backoff"] == 1
    assert len(found) == len(State)


def test_a_counter_of_a_camera_begins_at_zero():
    counts = Counts()
    counts.add(CAPTURED, ("gate",), 3)
    found = rows(moment(live("gate"), live("yard")), counts)
    assert found[CAPTURED] == {("gate",): 3, ("yard",): 0}
    assert found[GAPS] == {("gate",): 0, ("yard",): 0}


def test_ages_grow_while_nobody_looks():
    found = rows(moment(live(last_segment_at=970.0), facts=facts(owing("gate"))))
    assert found[LAST_SEGMENT] == {("gate",): 30.0}
    assert found[OLDEST_OWED] == {("gate",): 65.0}


def test_the_newest_segment_of_an_earlier_run_counts_until_there_is_a_newer():
    seen = facts(owing("gate", newest_segment_age=100.0))
    assert rows(moment(live(last_segment_at=None), facts=seen))[LAST_SEGMENT] == {("gate",): 105.0}
    assert rows(moment(live(last_segment_at=None)))[LAST_SEGMENT] == {}


def test_what_never_comes_is_infinite():
    assert rows(moment(facts=facts()))[FULL_IN] == {("as_now",): math.inf, ("none",): 60.0}


def test_the_breaker_and_a_refused_token_are_states_of_the_ingest():
    found = rows(moment(facts=facts()))[INGEST_STATE]
    assert {state for (state,), value in found.items() if value} == {"down"}


def test_cameras_that_are_over_and_owe_nothing_are_not_shown():
    over = CameraStatus("old", configured=False, state="ended")
    assert rows(moment(facts=facts(over, owing("gate"))))[OWED] == {("gate",): 4}


def test_cameras_above_the_cap_are_added_up_and_their_oldest_debt_counts():
    names = CameraNames(most=1)
    seen = facts(owing("a"), owing("b", oldest_owed_age=5.0), owing("c", oldest_owed_age=500.0))
    found = rows(moment(facts=seen, names=names))
    assert found[OWED] == {("a",): 4, ("other",): 8}
    assert found[OLDEST_OWED] == {("a",): 65.0, ("other",): 505.0}


def full_scrape():
    counts = Counts()
    tell = JournalCounter(counts)
    cameras = [f"camera-{number}" for number in range(20)]
    for camera in cameras:
        for event in Event:
            tell(camera, event, [{"bytes": 5, "seconds": 1.5, "cause": SECRET, "segment": SECRET}])
    running = [live(camera, error=RelayError(SECRET), state=random.choice(list(State))) for camera in cameras]
    return render(agent_rows(moment(*running, facts=facts(*map(owing, cameras))), counts))


def test_a_scrape_holds_no_text_that_somebody_else_wrote():
    text = full_scrape().decode()
    assert not [word for word in ("hunter22", "rtsp", "192.0.2.10", "/spool") if word in text]

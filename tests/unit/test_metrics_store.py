"""Counts in files: added up over processes, also over those that are gone, whatever a file holds."""

import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from capture.metrics_catalogue import ATTEMPTS, CONFIRM_SECONDS, WORKER, HeldBack
from capture.metrics_text import MOST_CAMERAS, render
from capture.outcome import Kind, Outcome
from tasks import metrics_store
from tasks.metrics import Meter, NoMeter, _Metering, upload_outcome, worker_rows
from tasks.metrics_store import RECORD, FileCounts, Store, read_counts

OK = ("gate", "ok")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def attempts(store):
    return store.totals([ATTEMPTS])[ATTEMPTS]


def test_the_counts_of_all_processes_are_added_up(store, tmp_path):
    writers = [FileCounts(tmp_path), FileCounts(tmp_path)]
    for writer in writers:
        writer.add(ATTEMPTS, OK)
        writer.add(ATTEMPTS, OK, 2)
    writers[0].add(ATTEMPTS, ("yard", "ok"), 5)
    assert attempts(store) == {OK: 6, ("yard", "ok"): 5}
    for writer in writers:
        writer.close()


def test_what_a_process_that_is_gone_counted_stays_and_its_file_goes(store, tmp_path):
    for _ in range(50):
        gone = FileCounts(tmp_path)
        gone.add(ATTEMPTS, OK)
        gone.close()
        store.tidy()
        assert list(tmp_path.iterdir()) == []
    alive = FileCounts(tmp_path)
    alive.add(ATTEMPTS, OK, 3)
    store.tidy()
    assert len(list(tmp_path.iterdir())) == 1
    assert [attempts(store), attempts(store)] == [{OK: 53}, {OK: 53}]
    alive.close()


def test_what_a_process_left_that_was_killed_while_it_began_goes_later(store, tmp_path):
    left = tmp_path / "17-x.new"
    left.touch()
    store.tidy()
    assert left.exists()
    os.utime(left, (0, 0))
    store.tidy()
    assert not left.exists()


def test_a_full_disk_costs_numbers_for_a_while_and_nothing_else(store, tmp_path, monkeypatch):
    writer = FileCounts(tmp_path)
    writer.add(ATTEMPTS, OK)

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(metrics_store.os, "pwrite", full)
        writer.add(ATTEMPTS, OK)
        writer.add(ATTEMPTS, ("yard", "ok"))
    assert attempts(store) == {OK: 1}
    writer.add(ATTEMPTS, OK)
    writer.add(ATTEMPTS, ("yard", "ok"))
    assert attempts(store) == {OK: 3, ("yard", "ok"): 2}
    writer.close()


def test_a_file_does_not_grow_without_end(store, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_store, "MOST_RECORDS", 3)
    writer = FileCounts(tmp_path)
    for number in range(10):
        writer.add(ATTEMPTS, (f"camera-{number}", "ok"))
    assert next(tmp_path.iterdir()).stat().st_size == 3 * RECORD
    assert len(attempts(store)) == 3
    writer.close()


def test_cameras_above_the_cap_share_a_label_and_no_count_is_lost(store, tmp_path):
    writers = [FileCounts(tmp_path), FileCounts(tmp_path)]
    for number in range(MOST_CAMERAS):
        for side, writer in enumerate(writers):
            writer.add(ATTEMPTS, (f"camera-{side}-{number}", "ok"))
    found = attempts(store)
    assert len(found) == MOST_CAMERAS + 1
    assert sum(found.values()) == 2 * MOST_CAMERAS
    assert found["other", "ok"] == MOST_CAMERAS
    for writer in writers:
        writer.close()


@given(st.binary(max_size=3 * RECORD))
@settings(max_examples=50, deadline=None)
def test_any_file_can_be_read(data):
    for (name, labels), value in read_counts(data):
        assert isinstance(name, str)
        assert all(isinstance(label, str) for label in labels)
        assert isinstance(value, float)


def test_half_a_record_is_none():
    assert list(read_counts(bytes(RECORD) + b"x")) == []


def test_a_link_in_the_place_of_a_file_is_not_followed(store, tmp_path):
    (tmp_path / "1-x.counts").symlink_to("/etc/passwd")
    assert attempts(store) == {}


# --- what is measured ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (Outcome(Kind.OK, 204, ""), "ok"),
        (Outcome(Kind.TRANSIENT, 503, ""), "transient"),
        (Outcome(Kind.TRANSIENT, 0, "", timed_out=True), "deadline"),
        (Outcome(Kind.REJECTED, 422, ""), "rejected"),
        (Outcome(Kind.FATAL, 401, ""), "fatal"),
    ],
)
def test_every_outcome_has_its_word(outcome, word):
    assert upload_outcome(outcome) == word


def test_every_metric_of_a_worker_is_there_before_anything_happened(store):
    found = list(worker_rows(store, processes=2, wall=1.75e9))
    assert sorted(metric.name for metric, _ in found) == sorted(metric.name for metric in WORKER)
    text = render(found)
    assert b'relay_capture_close_to_confirmed_seconds_count{queue="backlog"} 0.0' in text
    for reason in HeldBack:
        assert f'relay_capture_upload_held_back_total{{reason="{reason}"}} 0.0'.encode() in text


def test_a_camera_that_was_seen_begins_at_zero_everywhere(store, tmp_path):
    writer = FileCounts(tmp_path)
    writer.add(ATTEMPTS, OK)
    text = render(worker_rows(store, processes=1, wall=0.0)).decode()
    assert 'relay_capture_rejected_segments_total{camera="gate"} 0.0' in text
    assert 'relay_capture_upload_attempts_total{camera="gate",outcome="fatal"} 0.0' in text
    assert 'relay_capture_upload_attempts_total{camera="gate",outcome="ok"} 1.0' in text
    writer.close()


def test_off_nothing_is_counted_and_the_meter_is_made_anew_in_another_process(tmp_path, monkeypatch):
    metering = _Metering()
    assert type(metering.meter()) is NoMeter
    metering.switch(tmp_path)
    first = metering.meter()
    assert isinstance(first, Meter)
    assert metering.meter() is first
    monkeypatch.setattr("tasks.metrics.os.getpid", lambda: 1)
    assert metering.meter() is not first
    metering.switch(None)
    assert type(metering.meter()) is NoMeter


def test_a_directory_that_is_gone_costs_the_counts_alone(tmp_path):
    metering = _Metering()
    metering.switch(tmp_path / "gone")
    assert type(metering.meter()) is NoMeter
    metering.meter().message_refused()


def test_every_hook_of_the_meter_is_an_empty_method_when_off():
    hooks = {name for name in vars(Meter) if not name.startswith("_")}
    assert hooks == {name for name in vars(NoMeter) if not name.startswith("_")}


def test_flowers_own_metrics_are_left_alone():
    # Flower serves the library's global registry; and its multi-process mode would change all of it.
    assert b"relay_capture" not in generate_latest()
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ


def test_the_longest_name_with_the_longest_labels_fits_a_record(tmp_path):
    writer = FileCounts(tmp_path)
    for metric in WORKER:
        writer.add(metric, tuple("x" * 64 for _ in metric.labels))
    writer.observe(CONFIRM_SECONDS, ("x" * 64,), 1.0)
    writer.close()

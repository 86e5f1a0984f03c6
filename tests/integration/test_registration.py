"""Registration as a worker does it, against the real sink: its payload, and a cloud that says no."""

import json
import os

import pytest
from structlog.testing import capture_logs

from capture.session import Session
from capture.sink import Fault
from capture.source import parse_source
from capture.spool import REFUSED_FILE
from capture.upkeep import REGISTERED_NOTE, rejected_registrations
from tasks.celery import RefusedByCloudError
from tasks.recover import recover
from tasks.register import register_camera
from tasks.upload import upload_segment
from tasks.worker import NOT_MOUNTED, this_worker
from tests.conftest import add_segment
from tests.integration.conftest import TOKEN

pytestmark = pytest.mark.usefixtures("in_worker")

PAGE = b"<!doctype html>\n<title>Sorry</title>"


@pytest.fixture
def session(spool):
    with Session.start(
        spool,
        "gate",
        display_name="North gate",
        source=parse_source("rtsp://admin:s3cret@192.0.2.9/live"),
        segment_seconds=10,
    ) as session:
        yield session


def answer(sink, status, body=b"", *, kind="application/json", count=None):
    headers = (("Content-Type", kind),)
    sink.faults.add(Fault("status", path="cameras", status=status, body=body, headers=headers, count=count))


def register(session):
    with capture_logs() as logged:
        register_camera(str(session.name))
    return [each for each in logged if each["event"] == "registration_rejected"]


def note(session):
    return json.loads((session.path / REGISTERED_NOTE).read_text())


def make_old(session):
    os.utime(session.path / REGISTERED_NOTE, (0, 0))


def test_the_payload_is_the_contracts_with_the_name_of_the_configuration_and_no_address(session, sink):
    assert register(session) == []
    assert sink.cameras == {
        "gate": {
            "id": "gate",
            "name": "North gate",
            "source_url": "",
            "metadata": {
                "managed_by": "relay-capture",
                "ingest_transport": "http_mpegts",
                "source_type": "rtsp",
            },
        }
    }


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ((400, b'{"error": "quota"}', "application/json"), 'HTTP 400: {"error": "quota"}'),
        ((404, b"", "text/plain"), "HTTP 404"),
        ((422, b"name:\r\n  too long", "text/plain"), "HTTP 422: name: too long"),
        ((400, PAGE, "text/html"), "HTTP 400: <!doctype html> <title>Sorry</title>"),
        ((200, PAGE, "Text/HTML; charset=utf-8"), "HTTP 200: <!doctype html> <title>Sorry</title>"),
        ((400, b"\x1b[31mred\x07\x00 \xff\xe2\x80\xae", "text/plain"), "HTTP 400: [31mred \ufffd"),
        ((400, b"your key " + TOKEN.encode(), "text/plain"), "HTTP 400: your key ***"),
        ((400, b"x" * 100_000, "text/plain"), "HTTP 400: " + "x" * 200),
    ],
)
def test_a_rejection_is_reported_in_the_servers_words_and_capture_goes_on(session, sink, spool, said, words):
    status, body, kind = said
    answer(sink, status, body, kind=kind)
    [event] = register(session)
    assert event["reason"] == words
    assert event["log_level"] == "error"
    assert event["then"] == "capture goes on; tried again in 10 minutes"
    assert (note(session)["answer"], note(session)["rejected"]) == (words, True)
    assert rejected_registrations(spool)["gate"]["answer"] == words

    owed = add_segment(session, 1)
    upload_segment(str(session.name), str(owed.segment))
    assert [receipt.sequence for receipt in sink.receipts()] == [1]


def test_a_camera_that_is_known_already_is_told_of_and_not_tried_again(session, sink, spool):
    answer(sink, 409, b"exists")
    [event] = register(session)
    assert (event["reason"], event["log_level"]) == ("HTTP 409: exists", "warning")
    make_old(session)
    assert register_camera(str(session.name)) == "the cloud knows"
    assert rejected_registrations(spool) == {}


def test_a_rejection_is_tried_again_by_recover_and_logged_again_only_with_other_words(session, sink, broker):
    for body in (b"quota", b"quota", b"maintenance"):
        answer(sink, 400, body, count=1)
    assert len(register(session)) == 1
    assert register_camera(str(session.name)) == "the cloud knows"  # or will not hear of it yet
    make_old(session)
    assert register(session) == []
    make_old(session)
    assert [event["reason"] for event in register(session)] == ["HTTP 400: maintenance"]
    make_old(session)
    recover()
    assert broker.llen("live") == 1
    assert register(session) == []
    assert sink.cameras.keys() == {"gate"}
    assert note(session)["rejected"] is False


def test_a_spool_that_goes_while_the_cloud_is_told_is_no_failure(session, sink, spool, monkeypatch):
    client = type(this_worker().ingest)
    original = client.register

    def tell(self, *request):
        outcome = original(self, *request)
        spool.root.rename(spool.root.with_name("unmounted"))
        return outcome

    try:
        with monkeypatch.context() as patch:
            patch.setattr(client, "register", tell)
            assert register_camera(str(session.name)) == NOT_MOUNTED
    finally:
        spool.root.with_name("unmounted").rename(spool.root)
    assert register(session) == []
    assert "gate" in sink.cameras


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_no_mere_rejection(session, sink, status):
    answer(sink, status)
    with pytest.raises(RefusedByCloudError):
        register_camera(str(session.name))
    assert (session.path / REFUSED_FILE).exists()
    assert not (session.path / REGISTERED_NOTE).exists()

"""docs/openapi.yaml says what the sink does, what the relay sends, and what it makes of each answer."""

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema_rs import is_valid
from schemathesis import Case, GenerationMode
from schemathesis.checks import (
    load_all_checks,
    negative_data_rejection,
    positive_data_acceptance,
)

from capture.claim import Claim, claim
from capture.ingest import Ingest
from capture.outcome import classify
from capture.settings import IngestSettings
from capture.sink import Sink
from capture.spool import Spool
from tasks.register import registration
from tests.conftest import add_segment, start_session

TOKEN = "the-key"
EXAMPLES = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
)
PACKETS = st.integers(1, 20).map(lambda count: (b"\x47" + bytes(187)) * count)

load_all_checks()
schemathesis.openapi.media_type("video/mp2t", PACKETS)
SCHEMA = schemathesis.openapi.from_path(Path(__file__).parents[2] / "docs/openapi.yaml")
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations()}
SEGMENT = "POST /api/stream/ingest/{camera_id}"
_sessions = itertools.count(1)


@pytest.fixture(scope="module")
def sink(tmp_path_factory) -> Iterator[Sink]:
    with Sink(tmp_path_factory.mktemp("sink"), token=TOKEN) as server:
        yield server


def call(case: Case, sink: Sink, *, without: list) -> int:
    """Send a case and have schemathesis check the answer; return its status."""
    case.headers["X-API-Key"] = TOKEN
    answer = case.call_and_validate(base_url=sink.url, excluded_checks=without)
    return answer.status_code


def made_consistent(case: Case) -> None:
    """Give a segment a key of its own and the digest that it has: no schema says how they hang together."""
    body = bytes(case.body)
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    case.headers["Content-Digest"] = f"sha-256=:{digest}:"
    case.headers["Idempotency-Key"] = f"session-{next(_sessions)}/1"


@pytest.mark.parametrize("label", OPERATIONS)
def test_the_sink_takes_what_the_document_allows(sink, label):
    @EXAMPLES
    @given(case=OPERATIONS[label].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def check(case: Case) -> None:
        if label == SEGMENT:
            made_consistent(case)
        status = call(case, sink, without=[negative_data_rejection])
        assert status in {200, 201, 204} or (status == 404 and case.method == "DELETE")

    check()


@pytest.mark.parametrize("label", [label for label in OPERATIONS if not label.startswith("GET")])
def test_the_sink_refuses_what_the_document_does_not_allow(sink, label):
    @EXAMPLES
    @given(case=OPERATIONS[label].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def check(case: Case) -> None:
        call(case, sink, without=[positive_data_acceptance])

    check()


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "no id"},
        {"id": "a/b"},
        {"id": "a" * 65},
        {"id": "never", "name": 7},
        {"id": "never", "source_url": None},
        {"id": "never", "metadata": []},
        {"id": "never", "metadata": {"managed_by": 1}},
        {"id": "never", "metadata": {"ingest_transport": {}}},
        {"id": "never", "metadata": {"source_type": "http"}},
        {"id": "never", "metadata": {"source_type": ["rtsp"]}},
    ],
)
def test_each_rule_of_a_registration_is_the_documents_and_the_sinks(sink, wrong):
    components = SCHEMA.raw_schema["components"]
    assert not is_valid({**components["schemas"]["Camera"], "components": components}, wrong)
    answer = httpx.post(f"{sink.url}/api/cameras", headers={"X-API-Key": TOKEN}, json=wrong)
    assert answer.status_code == 400
    assert wrong.get("id") not in sink.cameras


def test_what_no_schema_can_say_of_a_segment_is_refused_too(sink):
    def send(body: bytes, **headers: str) -> int:
        url = f"{sink.url}/api/stream/ingest/strict"
        return httpx.post(url, headers={"X-API-Key": TOKEN, **headers}, content=body).status_code

    nothing = base64.b64encode(hashlib.sha256(b"").digest()).decode()
    assert send(b"", **{"Content-Digest": f"sha-256=:{nothing}:", "Idempotency-Key": "s/1"}) == 400
    assert send(b"G" * 188, **{"Content-Digest": f"sha-256=:{nothing}:", "Idempotency-Key": "s/1"}) == 400
    assert send(b"G" * 188, **{"Idempotency-Key": "s/1"}) == 204
    assert send(b"G" * 188, **{"Idempotency-Key": "s/1"}) == 409
    assert send(b"H" * 188, **{"Idempotency-Key": "s/1"}) == 422


@pytest.mark.parametrize("path", SCHEMA.raw_schema["paths"])
def test_another_method_is_405_and_says_which_there_are(sink, path):
    allowed = {method.upper() for method in SCHEMA.raw_schema["paths"][path]} - {"PARAMETERS"}
    for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "POST"):
        answer = httpx.request(method, sink.url + path.format(camera_id="gate"), headers={"X-API-Key": "x"})
        assert (answer.status_code == 405) == (method not in allowed), method
        if answer.status_code == 405:
            assert set(answer.headers["allow"].split(", ")) - {"HEAD"} == allowed


@pytest.mark.parametrize("label", OPERATIONS)
def test_without_the_key_nothing_is_done(sink, label):
    before = (sink.counters.outcome("stored"), len(sink.cameras), len(sink.ended))
    strategy = OPERATIONS[label].as_strategy(generation_mode=GenerationMode.POSITIVE)

    @settings(EXAMPLES, max_examples=10)
    @given(case=strategy, key=st.none() | st.text("abcdef-", max_size=30))
    def check(case: Case, key: str | None) -> None:
        if label == SEGMENT:
            made_consistent(case)
        case.headers.pop("X-API-Key", None)
        if key is not None:
            case.headers["X-API-Key"] = key
        answer = case.call(base_url=sink.url)
        assert answer.status_code == 401
        case.validate_response(answer, excluded_checks=[positive_data_acceptance, negative_data_rejection])

    check()
    assert (sink.counters.outcome("stored"), len(sink.cameras), len(sink.ended)) == before


# --- the relay's side ---


@contextmanager
def recording() -> Iterator[tuple[str, list]]:
    """Serve on a free port; give its URL, and a list of method, path, headers and body of each request."""
    seen: list = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()


@pytest.fixture
def claimed(tmp_path) -> Iterator[Claim]:
    spool = Spool.open(tmp_path / "spool", create=True)
    with start_session(spool) as session:
        owed = add_segment(session, 1)
        with claim(spool, session.name, owed.segment) as found:
            yield found


def test_the_relay_sends_what_the_document_says_and_nothing_else(claimed):
    with recording() as (url, seen):
        ingest = Ingest(IngestSettings(url=url))
        ingest.send_segment(claimed, TOKEN)
        ingest.register(registration("door", {"name": "North gate", "source_type": "test"}), TOKEN)
        ingest.end_stream("door", TOKEN)
        ingest.knock(TOKEN, seconds=10)
        ingest.close()
    paths = SCHEMA.raw_schema["paths"]
    names = {(method, path.replace("door", "{camera_id}")) for method, path, _, _ in seen}
    assert names == {
        (method.upper(), path) for path, item in paths.items() for method in item if method != "parameters"
    }
    (_, _, headers, body), (_, _, _, camera), *_ = seen
    documented = paths["/api/stream/ingest/{camera_id}"]["post"]["parameters"]
    for parameter in documented:
        assert is_valid(parameter["schema"], headers[parameter["name"].lower()])
    known = {parameter["name"].lower() for parameter in documented}
    own = {name for name in headers if name.startswith("x-") or name.endswith(("-key", "-digest"))}
    assert own == known | {"x-api-key"}
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    assert headers["content-digest"] == f"sha-256=:{digest}:"
    assert headers["content-length"] == str(len(body))
    assert "transfer-encoding" not in headers
    components = SCHEMA.raw_schema["components"]
    definition = {**components["schemas"]["Camera"], "components": components}
    assert is_valid(definition, json.loads(camera))
    assert set(json.loads(camera)) == set(definition["properties"])


def answers() -> Iterator[tuple[str, str, str]]:
    shared = SCHEMA.raw_schema["components"]["responses"]
    for path, item in SCHEMA.raw_schema["paths"].items():
        for method, operation in item.items():
            if method == "parameters":
                continue
            for status, told in operation["responses"].items():
                answer = shared[told["$ref"].rsplit("/", 1)[1]] if "$ref" in told else told
                yield f"{method.upper()} {path}", status, answer["x-relay"]


@pytest.mark.parametrize(("label", "status", "outcome"), list(answers()))
def test_the_relay_makes_of_each_answer_what_the_document_says(label, status, outcome):
    success = {
        "GET /api/cameras": (200,),
        "POST /api/cameras": (200, 201),
        SEGMENT: IngestSettings().success,
        "DELETE /api/stream/ingest/{camera_id}": (204, 200, 202, 404),
    }[label]
    assert classify(int(status), {}, b"", success=success).kind == outcome


# --- the server of the page ---


@contextmanager
def server_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the server that docs/ingest-protocol.md shows, as it stands there, on a free port."""
    page = (Path(__file__).parents[2] / "docs/ingest-protocol.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setenv("INGEST_KEY", TOKEN)
    names: dict = {"__name__": "shown"}
    exec(compile(code, "ingest-protocol.md", "exec"), names)  # noqa: S102 - our own page
    names["STORE"] = tmp_path / "store"
    handler = type("Quiet", (names["Ingest"],), {"log_message": lambda *_: None})
    with names["ThreadingHTTPServer"](("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_server_that_the_page_shows_is_a_correct_one(claimed, tmp_path, monkeypatch):
    url = "/api/stream/ingest/door"
    with server_of_the_page(tmp_path, monkeypatch) as base:
        ingest = Ingest(IngestSettings(url=base))
        assert ingest.register(registration("door", {}), TOKEN).status == 200
        assert ingest.send_segment(claimed, "another")[0].status == 401
        assert ingest.send_segment(claimed, TOKEN)[0].status == 204
        assert ingest.send_segment(claimed, TOKEN)[0].status == 409
        assert ingest.end_stream("door", TOKEN).status == 204
        ingest.close()
        headers = {"X-API-Key": TOKEN, "Idempotency-Key": claimed.idempotency_key}
        wrong = base64.b64encode(hashlib.sha256(b"wrong").digest()).decode()
        headers["Content-Digest"] = f"sha-256=:{wrong}:"
        assert httpx.post(base + url, headers=headers, content=b"wrong").status_code == 422
        assert httpx.post(base + url, headers=headers, content=b"damaged").status_code == 400
    (stored,) = (tmp_path / "store/door").iterdir()
    claimed.file.seek(0)
    assert stored.read_bytes() == claimed.file.read()

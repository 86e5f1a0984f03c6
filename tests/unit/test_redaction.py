"""No secret is left in a text, however it is spelled, and no text keeps anybody waiting."""

import html
import json
import re
import string
import sys
import threading
import time
from io import StringIO
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from capture.log import configure_logging
from capture.redaction import MASK, redact

MARK = "Zq7xKv"
ODD = st.text(
    st.one_of(
        st.sampled_from(string.punctuation + " "),
        st.sampled_from("äßñ€漢字🔑\u00a0"),
        st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]),
    ),
    max_size=16,
)
SPELLINGS = {
    "as it is": str,
    "percent": lambda text: quote(text, safe=""),
    "percent in lower case": lambda text: "".join(
        f"%{byte:02x}" if byte > 126 else chr(byte) for byte in text.encode()
    ),
    "percent but for slashes": quote,
    "form": quote_plus,
    "percent twice": lambda text: quote(quote(text, safe=""), safe=""),
    "JSON": lambda text: json.dumps(text)[1:-1],
    "JSON of PHP": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "repr": repr,
    "ascii": ascii,
    "HTML": html.escape,
    "HTML by numbers": lambda text: text.replace("&", "&amp;").replace("'", "&#39;").replace('"', "&#34;"),
    "HTML of ASCII": lambda text: html.escape(text).encode("ascii", "xmlcharrefreplace").decode(),
    "UTF-8 as Latin-1": lambda text: text.encode().decode("latin-1"),
    "ASCII with question marks": lambda text: text.encode("ascii", "replace").decode(),
    "bytes": lambda text: repr(text.encode()),
    "shell": lambda text: text.replace("'", r"'\''"),
    "blanks in one": lambda text: re.sub(r"\s+", " ", text),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@given(before=ODD, after=ODD)
@example(before="\\\\'\\", after='\\"%25%2541&amp;&')
@example(before="  +\u00a0 %20", after="''''")
def test_no_spelling_of_a_secret_gets_past_the_mask(spelling, before, after):
    secret = f"{before}{MARK}{after}"
    shown = redact(f"the key <{SPELLINGS[spelling](secret)}> is not good", [secret])
    assert MARK not in shown
    assert shown.startswith("the key <")
    assert shown.endswith("> is not good")
    assert shown.count(MASK) == 1


@given(before=ODD, after=ODD, length=st.integers(4, 60))
def test_the_beginning_of_a_secret_that_was_cut_off_is_masked(before, after, length):
    secret = f"{MARK}{before}{MARK}{after}"
    spelled = quote(secret, safe="")[:length]
    for rest in ("", "[http @ 0x55dc8dc7a900] [warning] HTTP error 404"):
        shown = redact("GET http://h/" + "x" * 600 + "?token=" + spelled + rest, [secret])
        assert MARK[:4] not in shown
        assert shown.endswith(rest)


def test_a_word_that_a_secret_begins_with_is_left_where_nothing_was_cut():
    assert redact("camera gate is back", ["gateway-7"]) == "camera gate is back"
    assert redact("x" * 600 + " gate is back", ["gateway-7"]).endswith(" gate is back")


def test_what_is_no_secret_stays():
    text = """it's "100 %" \\ & <b> http://h/x?n=1"""
    assert redact(text, ["s3cret/%41", "pä55"]) == text


@pytest.mark.parametrize(
    "secret", ["\\\\\\a\\\\b", "%25%25%2525x", "ää漢漢ää", "    x", "+ + + +", "&&&&", "''''", "????"]
)
@pytest.mark.parametrize("piece", ["\\", "?", "\ufffd", "%25", "&amp;", "+ ", "'", "'\\''", " ", "://"])
def test_no_line_keeps_anybody_waiting(secret, piece):
    began = time.process_time()
    redact(piece * (10_000 // len(piece)), [secret])
    assert time.process_time() - began < 2.0


def test_a_hundred_cameras_are_masked_quickly():
    secrets = [f"p@ss{number}/w0rd#%{number}" for number in range(300)]
    redact("x", secrets)
    began = time.process_time()
    for number in range(100):
        assert redact(f"camera {number} of http://h/{secrets[number]}", secrets).count(MASK) == 1
    assert time.process_time() - began < 2.0


# --- tracebacks ------------------------------------------------------------------------------------


class BadEnd:
    """Fails where nobody can catch it."""

    def __del__(self):
        raise ValueError(f"at its end: {MARK}'x")


@pytest.fixture
def said(kept_logging):
    """Is what is logged, with the hooks for crashes as a command sets them."""
    stream = StringIO()
    configure_logging(secrets=[f"{MARK}'x"], as_json=True, stream=stream)
    return stream


def crash():
    raise ValueError(f"a bug: {MARK}'x, {f'{MARK}{chr(39)}x'!r}")


def in_main():
    try:
        crash()
    except ValueError:
        sys.excepthook(*sys.exc_info())


def in_a_thread():
    thread = threading.Thread(target=crash)
    thread.start()
    thread.join()


@pytest.mark.parametrize("where", [in_main, in_a_thread, lambda: BadEnd() and None])
def test_the_traceback_of_a_bug_is_logged_without_the_secret(said, capsys, where):
    where()
    (line,) = said.getvalue().splitlines()
    found = json.loads(line)
    assert found["event"] == "crashed"
    assert "Traceback" in found["exception"]
    assert MASK in found["exception"]
    assert MARK not in said.getvalue() + "".join(capsys.readouterr())

"""Where URLs lead."""

import pytest

from capture.http1 import Place


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://a/x", Place(False, "a", 80, "a", "/x")),
        ("https://a", Place(True, "a", 443, "a", "/")),
        ("https://A:443/x?y=1#z", Place(True, "a", 443, "a", "/x?y=1")),
        ("http://a:8080/%20/ü b", Place(False, "a", 8080, "a:8080", "/%20/%C3%BC%20b")),
        ("http://a/x\u2028y?é", Place(False, "a", 80, "a", "/x%E2%80%A8y?%C3%A9")),
        ("http://[::1]:81/", Place(False, "::1", 81, "[::1]:81", "/")),
        ("https://münchen.test/", Place(True, "xn--mnchen-3ya.test", 443, "xn--mnchen-3ya.test", "/")),
        ("http://a:0/", Place(False, "a", 80, "a", "/")),
    ],
)
def test_a_url_is_read_as_everybody_reads_it(url, place):
    assert Place.of(url) == place


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "ftp://a/",
        "http:///x",
        "http://a:99999/",
        "http://[::1/",
        "http://ü" + "x" * 70 + "/",
        "https://straße.test/",
    ],
)
def test_what_leads_nowhere_is_a_value_error(url):
    with pytest.raises(ValueError, match=r"."):
        Place.of(url)

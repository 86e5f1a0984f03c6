"""What the parts of `up` get to know."""

import pytest

from capture.stack import environment_for

COMMON = {
    "PATH": "/bin",
    "RELAY_INGEST__TOKEN": "T",
    "FLOWER_BASIC_AUTH": "user:word",
    "RELAY_SPOOL__PATH": "/s",
}


@pytest.mark.parametrize(
    ("what", "left_out"),
    [
        ("worker", {"FLOWER_BASIC_AUTH"}),
        ("beat", {"FLOWER_BASIC_AUTH", "RELAY_INGEST__TOKEN"}),
        ("flower", {"RELAY_INGEST__TOKEN"}),
    ],
)
def test_each_part_gets_its_own_secrets_alone(what, left_out):
    assert environment_for(what, COMMON) == {key: COMMON[key] for key in COMMON if key not in left_out}

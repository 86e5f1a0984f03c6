"""What the parts of `up` get to know."""

import pytest

from capture.settings import child_environment
from capture.stack import environment_for

COMMON = {"PATH": "/bin", "RELAY_INGEST__TOKEN": "T", "RELAY_SPOOL__PATH": "/s"}
OURS = {"HOME": "/root", "FLOWER_BASIC_AUTH": "user:word"}
BARE = {"PATH": "/bin", "RELAY_SPOOL__PATH": "/s"}


@pytest.mark.parametrize(
    ("what", "environment"),
    [
        ("worker", COMMON),
        ("beat", BARE),
        ("flower", {**BARE, "FLOWER_BASIC_AUTH": "user:word"}),
    ],
)
def test_each_part_gets_its_own_secrets_alone(what, environment):
    assert environment_for(what, COMMON, OURS) == environment


def test_no_other_child_gets_the_login_of_flower(monkeypatch):
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "user:word")
    assert "FLOWER_BASIC_AUTH" not in child_environment()

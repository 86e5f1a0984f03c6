"""Several processes get the tests in equal pieces, the long ones first."""

import ast
from pathlib import Path

import pytest

from tests import order

ROOT = Path(__file__).parents[2]
SHORT = [
    "tests/acceptance/a.py::a",
    "tests/integration/b.py::b",
    *(f"tests/unit/c.py::{n}" for n in range(7)),
]
LONG = ["tests/acceptance/l.py::one[x]", "tests/acceptance/l.py::two", "tests/integration/m.py::three"]
TABLE = dict(order.SECONDS)


def pieces(tests, hands):
    """Deal them as xdist does: of what is left, each an equal part, rounded down."""
    found = []
    for place in range(hands):
        size = len(tests) // (hands - place)
        found.append(tests[:size])
        tests = tests[size:]
    return found


@pytest.fixture(autouse=True)
def table(monkeypatch):
    seconds = {"acceptance/l.py::one": 30.0, "acceptance/l.py::two": 20.0, "integration/m.py": 11.0}
    monkeypatch.setattr(order, "SECONDS", seconds)


def test_each_piece_begins_with_its_share_of_the_long_ones_and_ends_with_unit_tests():
    dealt = order.dealt([*SHORT, *LONG], 2, node=str)

    first, second = pieces(dealt, 2)
    assert first[:2] == [LONG[0], SHORT[0]]
    assert second[:3] == [LONG[1], LONG[2], SHORT[1]]
    assert all(test.startswith("tests/unit/") for test in first[2:] + second[3:])
    assert sorted(dealt) == sorted([*SHORT, *LONG])


@pytest.mark.parametrize("hands", range(1, 20))
def test_none_is_lost_or_doubled_however_many_share_them(hands):
    for tests in ([], LONG, SHORT, [*SHORT, *LONG]):
        assert sorted(order.dealt(tests, hands, node=str)) == sorted(tests)


def names_in(file):
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {file, *(f"{file}::{node.name}" for node in tree.body if isinstance(node, ast.FunctionDef))}


def test_every_test_of_the_table_exists():
    files = {name.partition("::")[0] for name in TABLE}
    assert TABLE.keys() <= set().union(*map(names_in, files))

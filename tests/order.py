"""The order of the tests where several processes run them: what takes long first, and dealt out evenly.

A long test that begins last has all other processes wait for it. Which ones are long stands in a table: a new
checkout knows no earlier run. One that is missing here, or became short, costs seconds and no more.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def read_table(path: Path) -> dict[str, float]:
    """Return the seconds of each entry."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {name: float(seconds) for seconds, name in map(str.split, lines)}


SECONDS = read_table(Path(__file__).with_name("seconds.txt"))


def long_one(node: str) -> str | None:
    """Return the entry of the table that a test belongs to."""
    name = node.removeprefix("tests/").partition("[")[0]
    return next((entry for entry in (name.partition("::")[0], name) if entry in SECONDS), None)


def dealt(tests: Sequence[T], hands: int, *, node: Callable[[T], str]) -> list[T]:
    """Return the tests in an order whose pieces, one for each of the processes, take about the same time.

    The pieces are those that xdist's `worksteal` begins with. Each has its share of the long tests, longest
    first; then of all others that start processes, file by file; unit tests last: many small ones are easily
    shared at the end.
    """
    entries: dict[str | None, list[T]] = {}
    for test in tests:
        entries.setdefault(long_one(node(test)), []).append(test)
    rest = entries.pop(None, [])
    piles: list[list[T]] = [[] for _ in range(hands)]
    loads = [0.0] * hands
    for entry in sorted(entries, key=lambda each: -SECONDS[each]):
        lightest = loads.index(min(loads))
        piles[lightest] += entries[entry]
        loads[lightest] += SECONDS[entry]
    units = [test for test in rest if node(test).startswith("tests/unit/")]
    others = [test for test in rest if not node(test).startswith("tests/unit/")]
    for place in range(hands):
        piles[place] += others[len(others) * place // hands : len(others) * (place + 1) // hands]
    return _filled(piles, units, len(tests))


def _filled(piles: list[list[T]], units: list[T], count: int) -> list[T]:
    """Fill the piles up to the sizes that xdist gives out: of what is left, an equal part, rounded down."""
    order: list[T] = []
    for place, pile in enumerate(piles):
        size = (count - len(order)) // (len(piles) - place)
        room = max(0, size - len(pile))
        order += [*pile, *units[:room]]
        units = units[room:]
    return order

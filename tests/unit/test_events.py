"""Every event that is logged: a static name, the names of what it concerns, and a row in docs/events.md."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/events.md"
LEVELS = {"debug", "info", "warning", "error", "exception"}
SELDOM = {"seldom", "_unfit"}  # tasks.seldom: they log an error
PASSED_ON = {ROOT / "tasks/seldom.py"}  # logs what it was given under the name it was given
NAME = re.compile(r"[a-z]+(_[a-z]+)*")
BOUND = {"camera", "session", "segment"}  # a bound logger or a ** of names may bring these
NOT_OURS = {"event", "level", "timestamp", "exception", "exc_info"}


@dataclass(frozen=True)
class Call:
    where: str
    level: str
    names: tuple[str, ...]
    fields: frozenset[str]
    logger: str
    unpacks: bool


def literals(node: ast.expr, function: ast.AST | None) -> tuple[str, ...]:
    """Return the texts an argument can be; none if it is made up at run time."""
    match node:
        case ast.Constant(value=str() as text):
            return (text,)
        case ast.IfExp(body=ast.Constant(value=str() as one), orelse=ast.Constant(value=str() as other)):
            return (one, other)
        case ast.Name(id=name) if function is not None:
            for each in ast.walk(function):
                if isinstance(each, ast.Assign) and [ast.unparse(target) for target in each.targets] == [
                    name
                ]:
                    return literals(each.value, None)
    return ()


def calls(path: Path) -> Iterator[Call]:
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        base, _, level = ast.unparse(node.func).rpartition(".")
        logger = base.rpartition(".")[2] or base
        if level in SELDOM and not base:
            logger, level = level, "error"
        elif level not in LEVELS or logger.lstrip("_") != "log":
            continue
        around = next((each for each in functions if node in ast.walk(each)), None)
        yield Call(
            f"{path.relative_to(ROOT)}:{node.lineno}",
            "error" if level == "exception" else level,
            literals(node.args[0], around) if len(node.args) == 1 else (),
            frozenset(keyword.arg for keyword in node.keywords if keyword.arg),
            logger,
            any(keyword.arg is None for keyword in node.keywords),
        )


CALLS = [
    call
    for folder in ("capture", "tasks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path not in PASSED_ON
    for call in calls(path)
]


def rows() -> dict[str, tuple[set[str], set[str], str]]:
    """Return levels, fields and meaning by event."""
    found = {}
    for line in DOCUMENT.read_text().splitlines():
        if match := re.fullmatch(r"\| `(\w+)` \| ([\w, ]+) \| (.*?) \| (.+) \|", line):
            name, levels, fields, meaning = match.groups()
            assert name not in found, name
            found[name] = (set(levels.split(", ")), set(re.findall(r"`(\w+)`", fields)), meaning)
    return found


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.where)
def test_an_event_has_a_static_name(call):
    assert call.names, "the name of an event is made up at run time"
    for name in call.names:
        assert NAME.fullmatch(name), name


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.where)
def test_a_line_about_a_session_names_its_camera_and_one_about_a_segment_its_session(call):
    if call.fields & {"segment", "sequence"} and not call.unpacks:
        assert "session" in call.fields
    if call.fields & {"session", "segment", "sequence"} and not call.unpacks:
        assert "camera" in call.fields or call.logger == "_log", "self._log knows its camera"


def test_a_logger_of_an_object_is_bound_to_a_camera():
    for path in {ROOT / call.where.partition(":")[0] for call in CALLS if call.logger == "_log"}:
        assert re.search(r"_log = log\.bind\(camera=|_log = log$", path.read_text(), re.MULTILINE), path


def test_the_table_names_every_event_and_no_other():
    assert sorted(rows()) == sorted({name for call in CALLS for name in call.names})


@pytest.mark.parametrize("name", sorted({name for call in CALLS for name in call.names}))
def test_a_row_has_the_real_levels_and_fields(name):
    levels, fields, meaning = rows()[name]
    at = [call for call in CALLS if name in call.names]
    assert levels == {call.level for call in at}
    said = set().union(*(call.fields for call in at)) - NOT_OURS
    assert said <= fields, "a field is missing"
    assert fields - said <= BOUND, "a field is never logged"
    assert meaning.strip()

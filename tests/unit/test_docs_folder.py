"""The pages in docs/ name what there is: events, messages, tests, commands, settings, links."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from capture.cli import cli
from tests.unit.test_docs import OTHER_VARIABLES, keys, options, variable

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
MODULES = sorted(path for folder in ("capture", "tasks") for path in (ROOT / folder).glob("*.py"))
LOUD = {"warning", "error", "exception", "critical"}
HOSTS = {"cloud.example.com", "127.0.0.1", "keepachangelog.com", "semver.org"}


@cache
def text(name: str) -> str:
    return (ROOT / name).read_text()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def said(node: ast.AST) -> str | None:
    """Return the text of a literal, with … for what is filled in; None for anything else."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=values):
            return "".join(each.value if isinstance(each, ast.Constant) else "…" for each in values)
    return None


# --- events ---


def constants(node: ast.AST) -> set[str]:
    return {value for each in ast.walk(node) if (value := said(each)) is not None}


def assigned(module: ast.Module, name: str) -> set[str]:
    """Return the texts that a variable may hold, without those that its condition compares."""
    found: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == name for target in node.targets):
            value = node.value
            parts = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            found |= set.union(*(constants(part) for part in parts))
    return found


def is_log_call(call: ast.Call) -> bool:
    """Tell whether it says something loudly: by a log, or by a `Seldom`, which says it seldom."""
    match call.func:
        case ast.Attribute(value=ast.Name(id="log") | ast.Attribute(attr="_log"), attr=level):
            return level in LOUD
        case ast.Name(id="seldom" | "_unfit"):
            return True
    return False


def loud_events() -> Iterator[tuple[str, str]]:
    """Yield module and name of each event of level warning or above; "" for a name that cannot be found."""
    for path in MODULES:
        module = parsed(path)
        for node in ast.walk(module):
            if not (isinstance(node, ast.Call) and is_log_call(node)):
                continue
            first = node.args[0]
            if path.name == "seldom.py" and ast.unparse(first) == "event":
                continue  # its callers' names count
            names = {said(first)} if said(first) else assigned(module, ast.unparse(first))
            yield from ((path.name, name.split()[0]) for name in names or {""})


def headings() -> list[str]:
    return re.findall(r"^### `(.+)`$", text("docs/troubleshooting.md"), re.MULTILINE)


def is_event(heading: str) -> bool:
    return re.fullmatch(r"[a-z]+(?:_[a-z]+)+", heading) is not None


def test_every_loud_event_has_an_entry_and_every_entry_an_event():
    events = {name for _, name in loud_events()}
    assert len(events) > 50
    assert {module for module, name in loud_events() if not name} == set()
    told = {heading for heading in headings() if is_event(heading)}
    assert (events - told, told - events) == (set(), set())


def test_every_message_of_a_heading_is_in_the_code():
    texts = {
        value for path in MODULES for node in ast.walk(parsed(path)) if (value := said(node)) is not None
    }
    texts |= {re.sub(r"…+", "…", value) for value in texts}
    for heading in headings():
        if is_event(heading):
            continue
        pattern = re.compile(".*".join(map(re.escape, heading.split("…"))), re.DOTALL)
        assert any(pattern.search(value) for value in texts), heading


def test_every_entry_says_what_it_means_what_happens_and_what_to_do():
    entries = re.split(r"^### ", text("docs/troubleshooting.md"), flags=re.MULTILINE)[1:]
    for entry in entries:
        body = entry.split("\n## ")[0]
        assert re.findall(r"^\*\*(Means|By itself|Do)\*\* \S", body, re.MULTILINE) == [
            "Means",
            "By itself",
            "Do",
        ], entry


# --- names ---


def known_tests() -> set[str]:
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        found |= {node.name for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("name", PAGES)
def test_every_test_that_a_page_names_exists(name):
    named = set(re.findall(r"`(test_\w+)`", text(name)))
    assert named <= known_tests()


def test_each_invariant_of_the_spool_is_held_by_a_test_that_exists():
    section = text("docs/architecture.md").split("## The invariants of the spool")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \|.*\|(.*)\|$", section, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 10
    for number, tests in rows:
        assert re.findall(r"`(test_\w+)`", tests), number


@pytest.mark.parametrize("name", PAGES)
def test_every_command_line_of_a_page_is_a_real_one(name):
    for line in re.findall(r"relay-capture ([a-z][^`\n#]*)", text(name)):
        words = line.split()
        command: click.Command = cli
        while words and isinstance(command, click.Group) and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        if command is not cli:
            assert {word for word in words if re.match(r"--?[a-z]", word)} - {"--help"} <= set(
                options(command)
            ), line
    for word in re.findall(r"`relay-capture ([a-z]+)", text(name)):
        assert word in cli.commands


@pytest.mark.parametrize("name", PAGES)
def test_every_setting_and_variable_of_a_page_exists(name):
    real = {key for key, _ in keys()}
    sections = {key.split(".")[0] for key in real if "." in key}
    named = re.findall(rf"`((?:{'|'.join(sections)})\.[a-z<][\w.<>]*)\b", text(name))
    assert {key for key in named if key not in real and not key.endswith((".json", ".toml"))} == set()
    known = {variable(key) for key in real} | OTHER_VARIABLES
    assert set(re.findall(r"\bRELAY_[A-Z_]*[A-Z]\b", text(name))) <= known


def anchors(page: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_of_a_page_leads_somewhere(name):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text(name)):
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.resolve().relative_to(ROOT).as_posix()), anchor
    named = re.findall(r"`((?:scripts|docker|docs|tests|capture|tasks|benchmarks)/[\w./*-]+)`", text(name))
    assert [path for path in named if not list(ROOT.glob(path.rstrip("/")))] == []
    modules = re.findall(r"python -m (benchmarks\.\w+)", text(name))
    assert [each for each in modules if not (ROOT / f"{each.replace('.', '/')}.py").exists()] == []


@pytest.mark.parametrize("name", [*PAGES, "docs/openapi.yaml"])
def test_no_private_machine_shows_in_a_page(name):
    assert not re.search(r"/(?:home/(?!relay\b)|Users/|work/|root/)|\b10\.\d+\.\d+\.\d+", text(name))
    hosts = set(re.findall(r"https?://(?:[^@\s/]*@)?([\w.-]*\w)", text(name)))
    assert hosts <= HOSTS

"""README and docs say what the code does: settings, commands, exit codes, variables, events, links."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest
from pydantic import BaseModel, SecretStr

from capture import errors
from capture.cli import cli
from capture.pulse import DIRECTORY_VARIABLE
from capture.settings import ENV_PREFIX, ENV_SHORT, FLAGS, CameraSettings, Settings, load_settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONTRACT = (ROOT / "docs/contract.md").read_text()
COMPOSE = (ROOT / "docker/compose.yaml").read_text()
DOCUMENTS = {
    name: (ROOT / name).read_text()
    for name in ("README.md", "CHANGELOG.md", "docs/contract.md", "docker/compose.yaml", "docker/Dockerfile")
}
CODE = "\n".join(
    path.read_text() for folder in ("capture", "tasks", "scripts") for path in (ROOT / folder).glob("[a-z_]*")
    if path.is_file()
)  # fmt: skip

# What is no setting of its own, and where it is read.
OTHER_VARIABLES = {"RELAY_CONFIG", "RELAY_SOURCE", "RELAY_CAMERA_ID", "RELAY_LOG_JSON", "RELAY_PYTHON"}
OTHER_VARIABLES |= {DIRECTORY_VARIABLE}
CAMERA_FLAGS = {"cameras.<id>.source": "--source", "defaults.realtime": "--no-realtime"}
CAMERA_VARIABLES = {"cameras.<id>.source": "RELAY_SOURCE"}
NOTHING = "–"  # noqa: RUF001 - the README's sign for "none"


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str, header: str) -> list[list[str]]:
    """Return the cells of the table whose first column has this header."""
    table = re.search(rf"^\| {header} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table, header
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in table[1].splitlines()]


def bare(cell: str) -> str:
    return "" if cell == NOTHING else cell.strip("`")


def settings_rows() -> dict[str, list[str]]:
    return {bare(cells[0]): cells for cells in rows(section("Settings"), "key")}


def keys() -> Iterator[tuple[str, object]]:
    for name, field in Settings.model_fields.items():
        if name == "cameras":
            yield from (
                (f"cameras.<id>.{key}", None if key == "source" else each.default)
                for key, each in CameraSettings.model_fields.items()
            )
        elif isinstance(field.default, BaseModel):
            model = type(field.default)
            yield from ((f"{name}.{key}", each.default) for key, each in model.model_fields.items())
        else:
            yield name, field.default


def written(default: object) -> str:
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        return ",".join(map(str, default))
    if isinstance(default, float):
        return f"{default:.12g}"
    return "" if default is None else str(default)


def variable(key: str) -> str:
    short = {target: name for name, target in ENV_SHORT.items()}
    if key in short or key in CAMERA_VARIABLES:
        return short.get(key) or CAMERA_VARIABLES[key]
    name = key.replace(".", "__").upper()
    return "" if key.startswith("cameras.") else f"{ENV_PREFIX}{name}"


def test_the_settings_table_has_every_key_and_no_other():
    assert list(settings_rows()) == [key for key, _ in keys()]


@pytest.mark.parametrize(("key", "default"), list(keys()))
def test_a_row_of_the_settings_table_has_the_real_flag_variable_and_default(key, default):
    flags = {target: flag for flag, target in FLAGS.items()} | CAMERA_FLAGS
    assert [bare(cell) for cell in settings_rows()[key][1:4]] == [
        flags.get(key, ""),
        variable(key),
        written(default),
    ]


def test_every_variable_of_the_table_is_read():
    for key, default in keys():
        if variable(key) and variable(key) not in OTHER_VARIABLES and written(default):
            load_settings(environ={variable(key): written(default)})


def test_the_commands_are_the_real_ones():
    named = [bare(cells[0]) for cells in rows(section("Commands and exit codes"), "command")]
    assert sorted(named) == sorted(cli.commands)


def test_the_exit_codes_are_the_real_ones():
    named = {int(cells[0]) for cells in rows(section("Commands and exit codes"), "exit code")}
    real = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert named == real | {errors.RelayError.exit_code}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_variable_that_is_named_exists(name):
    real = {variable(key) for key, _ in keys()} | set(ENV_SHORT) | OTHER_VARIABLES
    found = set(re.findall(r"\bRELAY_[A-Z_]*[A-Z]\b", DOCUMENTS[name]))
    assert found <= real


@pytest.mark.parametrize("name", sorted(OTHER_VARIABLES))
def test_every_other_variable_is_read_by_the_code(name):
    assert name in CODE
    assert name in README


def options(command: click.Command) -> Mapping[str, click.Parameter]:
    return {flag: param for param in command.params for flag in (*param.opts, *param.secondary_opts)}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_line_that_is_shown_has_a_real_command_and_real_flags(name):
    for command, rest in re.findall(r"relay-capture[ ,]+([a-z]+)\b([^`\n#\]]*)", DOCUMENTS[name]):
        if command in cli.commands:
            assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest)) <= set(options(cli.commands[command]))
    for command in re.findall(r"`relay-capture ([a-z]+)", DOCUMENTS[name]):
        assert command in cli.commands


def test_every_flag_of_the_prose_is_a_flag_of_some_command():
    real = {flag for command in cli.commands.values() for flag in options(command)} | {"--help"}
    for title in ("When things go wrong", "Settings", "Commands and exit codes"):
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", section(title))) <= real


def test_the_events_and_messages_of_the_table_of_troubles_are_in_the_code():
    seen = "\n".join(cells[2] for cells in rows(section("When things go wrong"), "fault"))
    events = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)\b", seen))
    assert len(events) >= 12
    assert {event for event in events if f'"{event}"' not in CODE} == set()
    joined = re.sub(r'"\n\s*f?"', "", CODE)
    for message in re.findall(r"then='([^']+)'|reason='([^']+)'", seen):
        assert "".join(message) in joined


def test_the_advice_for_a_refused_token_is_quoted_in_full():
    from capture.gate import ADVICE  # noqa: PLC0415

    assert f"`{ADVICE[401]}`" in README


@pytest.mark.parametrize(("name", "number"), [("README.md", 1), ("docs/contract.md", 1)])
def test_the_configuration_files_that_are_shown_load(tmp_path, name, number):
    shown = re.findall(r"```toml\n(.*?)```", DOCUMENTS[name], re.DOTALL)
    assert len(shown) == number
    for text in shown:
        config = tmp_path / "relay.toml"
        config.write_text(text)
        settings = load_settings(environ={}, config=config)
        assert settings.ingest.url == "https://cloud.example.com"
        assert settings.cameras["yard"].resolution == (1280, 720)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_is_linked_or_named_exists(name):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", DOCUMENTS[name])
    folder = (ROOT / name).parent
    assert [link for link in links if not (folder / link).exists()] == []
    named = re.findall(
        r"`((?:scripts|docker|docs|tests|capture|tasks|benchmarks)/[\w./*-]+)`", DOCUMENTS[name]
    )
    assert [path for path in named if not list(ROOT.glob(path.rstrip("/")))] == []


def test_every_module_has_an_owner_in_the_layout():
    layout = " ".join(cells[0] for cells in rows(section("Development"), "module"))
    patterns = [pattern.split("/")[-1] for pattern in re.findall(r"`([\w/*]+\.py)`", layout)]
    modules = {path for path in (ROOT / "capture").glob("*.py") if path.name != "__init__.py"}
    owned = {path for pattern in patterns for path in (ROOT / "capture").glob(pattern)}
    assert {path.name for path in modules - owned} == set()
    assert [pattern for pattern in patterns if "*" not in pattern and not list(ROOT.rglob(pattern))] == []


def test_every_dependency_has_its_reason():
    import tomllib  # noqa: PLC0415

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.match(r"[A-Za-z0-9-]+", each)[0] for each in wanted}
    told = " ".join(cells[0] for cells in rows(section("Development"), "package"))
    assert names == set(re.findall(r"[a-z][a-z0-9-]+", told)) - {"hiredis"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_private_machine_shows(name):
    assert not re.search(r"/(?:home/(?!relay\b)|Users/|work/|root/)|\b10\.\d+\.\d+\.\d+", DOCUMENTS[name])
    hosts = set(re.findall(r"https?://(?:[^@\s/]*@)?([\w.-]*\w)", DOCUMENTS[name]))
    assert hosts <= {"cloud.example.com", "127.0.0.1", "keepachangelog.com", "semver.org", "sink"}


def test_the_licence_is_the_whole_apache_2_0():
    licence = (ROOT / "LICENSE").read_text()
    assert licence.strip().startswith("Apache License")
    assert "END OF TERMS AND CONDITIONS" in licence
    assert len(licence) > 11_000


def test_compose_runs_one_beat_and_no_secret_stands_in_it():
    assert len(re.findall(r"tasks, beat\b", COMPOSE)) == 1
    assert "RELAY_TOKEN:" not in COMPOSE
    assert "live,backlog" in COMPOSE

"""`config check` and `config init` without the command: the example, all problems at once, the summary."""

import os
import re
import tomllib

import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from capture.cli import cli
from capture.config_check import check_config, report_lines
from capture.config_example import EXAMPLE
from capture.settings import CameraSettings, Settings, load_settings

PASSWORD = "hunter2-that-nobody-may-see"


def everything_on():
    return re.sub(r"^#([a-z_]+ = )", r"\1", EXAMPLE, flags=re.MULTILINE)


@pytest.fixture
def write(tmp_path):
    def run(text, **files):
        for name, content in files.items():
            path = tmp_path / name.replace("_", ".")
            path.write_text(content)
            path.chmod(0o600)
        path = tmp_path / "relay.toml"
        path.write_text(text)
        path.chmod(0o600)
        return path

    return run


def keys_of(table, prefix=""):
    for key, value in table.items():
        if isinstance(value, dict) and key in {*Settings.model_fields, "gate"}:
            yield from keys_of(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def all_keys():
    for name, field in Settings.model_fields.items():
        if name == "cameras":
            yield from (f"cameras.gate.{key}" for key in CameraSettings.model_fields)
        elif isinstance(field.default, BaseModel):
            yield from (f"{name}.{key}" for key in type(field.default).model_fields)
        else:
            yield name


def test_the_example_has_every_key_and_no_other():
    assert sorted(keys_of(tomllib.loads(everything_on()))) == sorted(all_keys())


def test_the_example_loads_as_it_is_and_with_everything_on(write):
    assert list(load_settings(environ={}, config=write(EXAMPLE)).cameras) == ["gate"]
    path = write(everything_on(), gate_password=PASSWORD)
    settings = load_settings(environ={"CLOUD_TOKEN": "t"}, config=path)
    assert settings.cameras["gate"].resolution == (1280, 720)


def test_what_the_example_shows_as_a_default_is_the_default(write):
    """Where a commented line has the default's form; the others are examples of what has none."""
    settings, plain = (
        load_settings(environ={"CLOUD_TOKEN": "t"}, config=write(text, gate_password="p"))
        for text in (everything_on(), EXAMPLE)
    )
    for section in ("ingest", "spool", "broker", "defaults"):
        for key, value in getattr(plain, section):
            if value is not None and key not in {"token_files", "key_prefix"}:
                assert getattr(getattr(settings, section), key) == value, key
    assert settings.drain_timeout == plain.drain_timeout


def test_init_writes_for_the_owner_alone_and_overwrites_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = os.umask(0)
    try:
        done = CliRunner().invoke(cli, ["config", "init"], standalone_mode=False)
    finally:
        os.umask(old)
    path = tmp_path / "relay.toml"
    assert (done.return_value, path.read_text()) == (0, EXAMPLE)
    assert path.stat().st_mode & 0o777 == 0o600
    assert "config check" in done.output
    path.write_text("mine")
    again = CliRunner().invoke(cli, ["config", "init"], standalone_mode=False)
    assert "there already" in str(again.exception)
    assert path.read_text() == "mine"


def test_check_names_everything_at_once(write):
    report = check_config(
        write(
            f"""
            drain_timout = 3
            [ingest]
            url = "cloud.example.com"
            tokenfile = "x"
            [cameras.gate]
            source = "rtsp://user:{PASSWORD}@192.0.2.1/x"
            user = "user"
            fps = "many"
            [cameras.yard]
            source = "rtsp://192.0.2.2/x"
            password = "{PASSWORD}"
            audoi = "off"
            [cameras."no good"]
            source = "test:"
            [cameras.hall]
            password = {{ file = "nowhere" }}
            user = "u"
            """
        ),
        {},
    )
    found = {finding.key: finding for finding in report.problems}
    assert set(found) == {
        "drain_timout",
        "ingest.url",
        "ingest.tokenfile",
        "cameras.gate.user",
        "cameras.gate.fps",
        "cameras.yard.password",
        "cameras.yard.audoi",
        'cameras."no good"',
        "cameras.hall.password",
        "cameras.hall.source",
    }
    assert {finding.file for finding in report.problems} == {report.file}
    assert "did you mean drain_timeout?" in found["drain_timout"].expected
    assert "did you mean ingest.token_file?" in found["ingest.tokenfile"].expected
    assert "did you mean cameras.yard.audio?" in found["cameras.yard.audoi"].expected
    assert found["ingest.url"].found == '"cloud.example.com"'
    assert found["cameras.gate.fps"].found == '"many"'
    assert PASSWORD not in "\n".join(report_lines(report))
    assert not report.is_good


def test_check_says_what_to_look_at(write):
    report = check_config(
        write(
            """
            [cameras.gate]
            source = "rtsp://a:b@192.0.2.1/x"
            [cameras.Gate]
            source = "rtsp://192.0.2.1:554/x"
            user = "c"
            [cameras.a]
            source = "test:"
            [cameras.b]
            source = "test:"
            [cameras.off]
            source = "rtsp://192.0.2.1/x"
            enabled = false
            """
        ),
        {"RELAY_SOURCE": "test:"},
    )
    assert report.is_good
    said = "\n".join(report.warnings)
    assert "cameras gate and Gate have the same source" in said
    assert "cameras gate and Gate differ in upper and lower case alone" in said
    assert "RELAY_SOURCE is set here" in said
    assert "RELAY_CLOUD" in said
    assert "RELAY_TOKEN_FILE" in said
    assert len(report.warnings) == 5


def test_check_sums_up_without_a_secret_and_says_where_values_come_from(write):
    path = write(
        f"""
        [ingest]
        url = "https://cloud.example.com"
        token = "{PASSWORD}"
        [broker]
        url = "redis://:{PASSWORD}@192.0.2.9/0"
        [defaults]
        fps = 5
        [cameras.gate]
        source = "rtsp://192.0.2.1/x?pwd={PASSWORD}"
        user = "me"
        password = "{PASSWORD}"
        segment_seconds = "4s"
        enabled = false
        [cameras.yard]
        source = "rtsp://192.0.2.2/x"
        """
    )
    report = check_config(path, {"RELAY_SPOOL": "/elsewhere"})
    assert report.is_good
    said = "\n".join(report_lines(report))
    assert "camera   gate: rtsp://***@192.0.2.1/x?pwd=***, segments of 4 s, transcode to 5 fps" in said
    assert "left out (enabled = false)" in said
    assert "spool.path = /elsewhere  (RELAY_SPOOL)" in said
    assert f"ingest.token = (not shown)  ({path}: ingest.token)" in said
    assert PASSWORD not in said
    assert PASSWORD not in repr(report.as_json())


def test_a_named_token_file_that_holds_none_is_a_problem(write):
    text = '[ingest]\nurl = "http://x"\ntoken_file = "t"\n[cameras.a]\nsource = "test:"\ntoken_file = "u"\n'
    report = check_config(write(text), {})
    assert [finding.key for finding in report.problems] == ["ingest.token_file", "ingest.token_files.a"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[ingest]\nurl = \n", "line 2, column"),
        (b'[cameras.a]\npassword = "a\\c"\n', "single quotes"),
        (b"\n\n\xff\xfe\x00", "line 3"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = " + b"{a=" * 100_000, "nested too deeply"),
        (b"a = " + b"1" * 5000, "a number that is too long"),
        (b"# " + b"x" * 2_000_000, "more than 1024 KiB"),
    ],
)
def test_a_file_that_is_no_toml_is_one_problem_that_says_where(tmp_path, content, says):
    path = tmp_path / "relay.toml"
    path.write_bytes(content)
    report = check_config(path, {})
    assert len(report.problems) == 1
    assert says in report.problems[0].text


def test_deep_tables_are_unknown_keys_and_break_nothing(write):
    deep = ".".join("a" * 3000)
    report = check_config(write(f"{deep} = 1\n[cameras.gate]\nsource.{deep} = 1\n[cameras.{deep}]\n"), {})
    assert {finding.key for finding in report.problems} >= {"a", "cameras.gate.source"}


def test_check_as_typed_ends_with_its_exit_code(write):
    def run(*arguments):
        return CliRunner().invoke(cli, ["config", "check", *map(str, arguments)], standalone_mode=False)

    good = run("-c", write('[cameras.a]\nsource = "test:"\n'))
    assert (good.return_value, good.output.count("camera   a: test:")) == (0, 1)
    bad = run("-c", write("[cameras.a]\n"), "--json")
    assert bad.return_value == 78
    assert '"key": "cameras.a.source"' in bad.output

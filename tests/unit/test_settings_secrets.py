"""Secrets by reference, logins as keys, cameras left out when wrong: and no secret in any word about it."""

import json
import string
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as how
from hypothesis import strategies as st

from capture.errors import ConfigError, RelayError
from capture.settings import child_environment, load_settings, read_settings, read_token, require_cloud
from capture.source import parse_source

CLOUD = {"RELAY_CLOUD": "https://cloud.example.com", "RELAY_TOKEN": "t0ken"}
GOOD = '[cameras.good]\nsource = "test:"\n'

# What a camera's web page lets people type: all that is special in a URL, in TOML and beyond ASCII.
ODD = st.text(
    st.one_of(
        st.sampled_from(string.punctuation + " "),
        st.sampled_from("äßñ€漢字🔑\u00a0"),
        st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]),
    ),
    min_size=8,
    max_size=24,
).filter(lambda text: len(set(text)) > 3)


@pytest.fixture
def load(tmp_path):
    def run(text, environ=None, **options):
        path = tmp_path / "relay.toml"
        path.write_text(text, encoding="utf-8")
        return load_settings(environ=environ or {}, config=path, **options)

    return run


def basic_string(text):
    special = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(special.get(char, char) for char in text) + '"'


def login(settings, camera="gate"):
    found = settings.cameras[camera].parsed_source()._login
    return found.user, found.password


# --- references ------------------------------------------------------------------------------------


def test_every_secret_can_stand_in_a_file_beside_or_in_a_variable(load, tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/pw").write_text(" odd \r\n")
    (tmp_path / "secrets/token").write_text("one\n")
    (tmp_path / "broker").write_bytes(b"\xef\xbb\xbfredis://:pw@192.0.2.9/0")
    settings = load(
        """
        [ingest]
        token = { file = "secrets/token" }
        [broker]
        url = { file = "broker" }
        [cameras.gate]
        source = { env = "GATE_URL" }
        user = "u"
        password = { file = "secrets/pw" }
        [cameras.yard]
        source = "rtsp://192.0.2.2/x"
        user = "u"
        password = { env = "YARD_PASSWORD" }
        """,
        {"GATE_URL": "rtsp://192.0.2.1/x", "YARD_PASSWORD": "p@ss"},
    )
    assert read_token(settings.ingest) == "one"
    (tmp_path / "secrets/token").write_text("two\n")
    assert read_token(settings.ingest) == "two"
    assert settings.broker.url.get_secret_value() == "redis://:pw@192.0.2.9/0"
    assert login(settings) == ("u", " odd ")
    assert login(settings, "yard") == ("u", "p@ss")
    assert settings.secret_variables() == {"GATE_URL", "YARD_PASSWORD"}


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ('{ file = "gone" }', "which cannot be read: No such file"),
        ('{ file = "." }', "Is a directory"),
        ('{ file = "empty" }', "nothing in the file"),
        ('{ file = "line-end" }', "nothing in the file"),
        ('{ file = "two-lines" }', "several lines in the file"),
        ('{ file = "large" }', "more than 8192 bytes"),
        ('{ file = "binary" }', "no UTF-8 text"),
        ('{ file = "control" }', "control character"),
        ('{ env = "UNSET" }', "UNSET, which is not set"),
        ('{ env = "EMPTY" }', "nothing in the variable EMPTY"),
        ('{ env = "TWO" }', "several lines in the variable TWO"),
        ("{ env = 3 }", "no reference"),
        ('{ env = "" }', "no reference"),
        ('{ file = "a\\u0000b" }', "no reference"),
        ('{ file = "empty", env = "EMPTY" }', "no reference"),
        ('{ vault = "x" }', "no reference"),
        ("{}", "no reference"),
        ("[]", "expected a text"),
        ("12345", "expected a text"),
    ],
)
def test_a_reference_that_leads_nowhere_is_one_problem_that_says_why(load, tmp_path, reference, says):
    for name, content in {
        "empty": b"",
        "line-end": b"\n",
        "two-lines": b"hunter2\nhunter2\n",
        "large": b"hunter2" * 2000,
        "binary": b"hunter2\xff",
        "control": b"hunter2\x07",
    }.items():
        (tmp_path / name).write_bytes(content)
    text = f'[cameras.gate]\nsource = "rtsp://192.0.2.1/x"\nuser = "u"\npassword = {reference}\n'
    with pytest.raises(ConfigError) as caught:
        load(text, {"EMPTY": "", "TWO": "hunter2\nhunter2"})
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'relay.toml'}: cameras.gate.password: ")
    assert says in message
    assert "hunter2" not in message
    assert "12345" not in message


def test_only_secrets_go_by_reference(load):
    with pytest.raises(ConfigError, match=r"spool\.path"):
        load('[spool]\npath = { env = "HOME" }\n', {"HOME": "/x"})


def test_a_worker_needs_no_secret_of_a_camera_and_has_all_token_files(load, tmp_path):
    text = (
        '[cameras.gate]\nsource = { env = "UNSET" }\ntoken_file = "gate.token"\nnonsense = 1\n'
        '[ingest.token_files]\nhall = "hall.token"\n'
    )
    settings = load(text, CLOUD, for_worker=True)
    assert settings.cameras == {}
    assert settings.ingest.token_files == {
        "gate": tmp_path / "gate.token",
        "hall": tmp_path / "hall.token",
    }


def test_a_variable_that_names_a_cameras_key_is_refused_unless_a_reference_names_it(load):
    name = "RELAY_CAMERAS__GATE__PASSWORD"
    with pytest.raises(ConfigError, match=name):
        load(GOOD, {name: "hunter2"})
    text = f'[cameras.gate]\nsource = "rtsp://h/x"\nuser = "u"\npassword = {{ env = "{name}" }}\n'
    assert login(load(text, {name: "hunter2"})) == ("u", "hunter2")


def test_children_inherit_neither_our_settings_nor_variables_with_secrets(monkeypatch):
    monkeypatch.setenv("RELAY_TOKEN", "t")
    monkeypatch.setenv("GATE_PASSWORD", "p")
    monkeypatch.setenv("OTHER", "o")
    environment = child_environment({"GATE_PASSWORD"})
    assert environment["OTHER"] == "o"
    assert not {"RELAY_TOKEN", "GATE_PASSWORD"} & set(environment)


# --- who may read them -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "is_secret"),
    [
        (GOOD, False),
        ('[broker]\nurl = "redis://192.0.2.9/0"\n' + GOOD, False),
        ('[cameras.gate]\nsource = "rtsp://u:p@h/x"\n', True),
        ('[cameras.gate]\nsource = "rtsp://h/x"\nuser = "u"\npassword = "p"\n', True),
        ('[broker]\nurl = "redis://:p@192.0.2.9/0"\n' + GOOD, True),
        ('[ingest]\ntoken = "t"\n' + GOOD, True),
        ('[cameras.gate]\nsource = "rtsp://h/x"\nuser = "u"\npassword = { env = "PW" }\n', False),
    ],
)
def test_a_file_with_a_secret_that_everybody_may_read_is_warned_of(load, tmp_path, text, is_secret):
    path = tmp_path / "relay.toml"
    path.touch()
    path.chmod(0o644)
    warnings = load(text, {"PW": "x"}).warnings
    assert len(warnings) == is_secret
    assert all(f"chmod o-r {path}" in warning for warning in warnings)
    path.chmod(0o640)
    assert load(text, {"PW": "x"}).warnings == ()


def test_a_secret_file_that_everybody_may_read_is_warned_of(load, tmp_path):
    for name in ("pw", "token", "own"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0o604)
    text = (
        '[ingest]\ntoken_file = "token"\n[cameras.gate]\nsource = "rtsp://h/x"\nuser = "u"\n'
        'password = { file = "pw" }\ntoken_file = "own"\n'
    )
    assert [warning.split()[0].rpartition("/")[2] for warning in load(text).warnings] == [
        "own",
        "pw",
        "token",
    ]


# --- cameras that are wrong ------------------------------------------------------------------------

WRONG_TABLES = [
    "fps = 1",
    'source = "htp://x"',
    'source = "rtsp://u:hunter2@h/x"\nuser = "u"\npassword = "hunter2"',
    'source = "rtsp://h/x"\npassword = "hunter2"',
    'source = "test:"\nuser = "u"\npassword = "hunter2"',
    'source = "rtsp://h/x"\nuser = "u"\npassword = { env = "UNSET" }',
    'source = "rtsp://h/x"\nuser = "u"\npassword = 12345',
    'source = "test:"\nname = "a\\u001b[31m"',
    'source = "test:"\nname = ""',
    f'source = "test:"\nname = "{"n" * 201}"',
    'source = "test:"\nresolution = "1281x720"',
    'source = "test:"\nsegment_seconds = "hunter"',
    'source = "test:"\ntoken_file = 3',
    'source = "test:"\n[cameras.bad.deep.er]\nx = 1',
]


@pytest.mark.parametrize("table", WRONG_TABLES)
def test_a_camera_whose_table_is_wrong_is_left_out_and_told_and_the_others_run(load, table):
    text = f"{GOOD}[cameras.bad]\n{table}\n"
    with pytest.raises(ConfigError, match=r"cameras\.bad"):
        load(text)
    settings = load(text, tolerate_bad_cameras=True)
    assert list(settings.cameras) == ["good"]
    assert list(settings.faulty_cameras) == ["bad"]
    assert all("cameras.bad" in problem for problem in settings.faulty_cameras["bad"])
    assert "hunter2" not in str(settings.faulty_cameras)


@pytest.mark.parametrize(
    "camera", ['"../x"', '""', '"a b"', '"\\u0000"', '"rtsp://u:hunter2@h"', f'"{"a" * 65}"']
)
def test_a_camera_with_an_impossible_id_is_left_out_too(load, camera):
    text = f'{GOOD}[cameras.{camera}]\nsource = "test:"\ntoken_file = "x"\n'
    settings = load(text, tolerate_bad_cameras=True)
    assert list(settings.cameras) == ["good"]
    [(_, problems)] = settings.faulty_cameras.items()
    assert "expected 1 to 64 ASCII letters" in problems[0]
    assert "hunter2" not in "".join(problems)


def test_when_no_camera_is_good_or_more_than_cameras_are_wrong_nothing_runs(load):
    for text in (
        "[cameras.bad]\nfps = 1\n",
        '[cameras.bad]\nfps = 1\n[cameras.off]\nsource = "test:"\nenabled = false\n',
        f"{GOOD}[cameras.bad]\nfps = 1\n[spool]\nx = 1\n",
        f"{GOOD}[cameras.bad]\nfps = 1\n[defaults]\nfps = 0\n",
    ):
        with pytest.raises(ConfigError):
            load(text, tolerate_bad_cameras=True)


@pytest.mark.parametrize(
    "text", ["ingest = 3", "cameras = 'x'", "cameras = []", "[[ingest]]", "[[cameras.a]]"]
)
def test_what_stands_where_a_table_has_to_be_is_a_problem(load, text):
    with pytest.raises(ConfigError, match="expected a table"):
        load(text, CLOUD | {"RELAY_INGEST__TRIES": "3"})


# --- tokens of single cameras ----------------------------------------------------------------------


def test_a_cameras_own_token_file_beats_the_general_token_and_reaches_the_worker(load, tmp_path):
    (tmp_path / "own").write_text("its-own\n")
    settings = load(f'{GOOD}[cameras.gate]\nsource = "test:"\ntoken_file = "own"\n', CLOUD)
    worker = load_settings(environ=settings.worker_environment(), for_worker=True)
    for each in (settings, worker):
        assert read_token(each.ingest, "gate") == "its-own"
        assert read_token(each.ingest, "good") == read_token(each.ingest) == "t0ken"


def test_a_cloud_and_a_token_of_one_camera_are_enough_to_start(load, tmp_path):
    text = '[ingest]\nurl = "http://x"\n[cameras.a]\nsource = "test:"\ntoken_file = "own"\n' + GOOD
    with pytest.raises(ConfigError, match="token"):
        require_cloud(load(text))
    (tmp_path / "own").write_text("its-own\n")
    assert require_cloud(load(text)) == "http://x"


def test_an_empty_table_of_token_files_is_none_and_a_number_is_no_path(load):
    assert load("[ingest.token_files]\n").ingest.token_files == {}
    with pytest.raises(ConfigError, match=r"ingest\.token_file: found 3"):
        load("[ingest]\ntoken_file = 3\n")


@pytest.mark.parametrize("value", ["x", "[]", '{"../x": "y"}', '{"a": 3}', "[" * 5000])
def test_token_files_in_a_variable_are_json_or_a_problem(value):
    with pytest.raises(ConfigError, match="RELAY_INGEST__TOKEN_FILES"):
        load_settings(environ={"RELAY_INGEST__TOKEN_FILES": value})


# --- odd passwords ---------------------------------------------------------------------------------


def with_login_by_all_ways(load, directory, user, password):
    (directory / "pw").write_bytes(password.encode() + b"\n")
    ways = {"inline": basic_string(password), "file": '{ file = "pw" }', "env": '{ env = "PW" }'}
    text = "".join(
        f'[cameras.{way}]\nsource = "http://192.0.2.1/x"\nuser = {basic_string(user)}\npassword = {value}\n'
        for way, value in ways.items()
    )
    url = f"http://{quote(user, safe='')}:{quote(password, safe='')}@192.0.2.1/x"
    text += f'[cameras.url]\nsource = "{url}"\n[cameras.plain]\nsource = "http://192.0.2.1/x"\n'
    return load(text, {"PW": password})


def all_that_is_shown(settings):
    sources = [camera.parsed_source() for camera in settings.cameras.values()]
    shown = [settings, str(settings), settings.cameras, settings.worker_environment(), settings.warnings]
    return repr([*shown, sources, *map(str, sources)])


@how(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(user=ODD, password=ODD)
@example(user="admin", password="a%41:@/?#[]\\'\"&=;ü ")
def test_a_login_of_any_characters_arrives_as_it_is_and_shows_nowhere(tmp_path, load, user, password):
    settings = with_login_by_all_ways(load, tmp_path, user, password)
    for way in ("inline", "file", "env", "url"):
        assert login(settings, way) == (user, password)
    # The id is that of the address: it stays when user or password change.
    assert len({camera.parsed_source().camera_id() for camera in settings.cameras.values()}) == 1
    assert password in settings.secrets()
    # A password can be a word of what is shown; so: what is shown is the same for any other login.
    assert all_that_is_shown(settings) == all_that_is_shown(
        with_login_by_all_ways(load, tmp_path, "somebody", "something")
    )


def words_about(path, password):
    """Return all that is said of a file with a secret in many wrong places."""
    (path.parent / "pw").write_bytes(password.encode() * 2 + b"\n" + password.encode())
    value, url = basic_string(password), basic_string(f"rtsp://u:{password}@")
    text = f"""
    token = {value}
    [ingest]
    token = {value}
    pasword = {value}
    url = {basic_string("https://u:" + password + "@cloud.example.com")}
    [broker]
    url = {basic_string("amqp://:" + password + "@x")}
    [cameras]
    a = {url}
    [cameras.b]
    source = {url}
    password = {value}
    [cameras.c]
    source = "test:"
    user = {value}
    password = {value}
    [cameras.d]
    source = {basic_string("rtsp://u:" + password + "@h/x")}
    user = {value}
    [cameras.e]
    source = "rtsp://192.0.2.1/x"
    user = "u"
    password = {{ file = "pw" }}
    [cameras.f]
    source = {{ env = "PW" }}
    pass = {value}
    """
    path.write_text(text, encoding="utf-8")
    environ = {"PW": f"rtmp://u:{password}@h"}
    reading = read_settings(environ=environ, config=path)
    assert reading.settings is None
    assert len(reading.problems) >= 8
    with pytest.raises(RelayError) as caught:
        load_settings(environ=environ, config=path)
    chain, words = caught.value, [*map(str, reading.problems), *map(repr, reading.problems)]
    while chain is not None:
        words += [str(chain), repr(chain)]
        chain = chain.__cause__ or chain.__context__
    return "\n".join(words)


@how(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(password=ODD)
def test_no_message_about_a_wrong_place_for_a_secret_quotes_it(tmp_path, password):
    path = tmp_path / "relay.toml"
    words = words_about(path, password)
    # A password can be a word of a message: then it stands there with any other, too.
    for form in (password, json.dumps(password)[1:-1], quote(password, safe="")):
        assert form not in words or form in words_about(path, "Xq7~")


@given(password=ODD)
def test_the_id_of_a_camera_is_the_same_with_and_without_a_login(password):
    bare = parse_source("rtsp://192.0.2.1:554/x")
    for login in (("user", None), ("user", password[:40]), ("other", password[::-1][:40])):
        assert bare.with_login(*login).camera_id() == bare.camera_id()

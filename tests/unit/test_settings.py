"""Layers of settings, their messages, and what they hand to workers."""

import pytest

from capture.errors import ConfigError, UsageError
from capture.settings import Settings, load_settings, read_token, require_cloud

CLOUD = {"RELAY_CLOUD": "https://cloud.example.com/", "RELAY_TOKEN": "t0ken"}


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(tmp_path):
    config = tmp_path / "relay.toml"
    config.write_text('[ingest]\nurl = "http://file"\n[spool]\npath = "from-file"\nsweep_after = "2h"\n')
    environ = {"RELAY_CLOUD": "http://environment", "RELAY_SPOOL__PATH": "from-environment"}
    settings = load_settings({"--cloud": "http://flag"}, environ=environ, config=config)
    assert settings.ingest.url == "http://flag"
    assert str(settings.spool.path) == "from-environment"
    assert settings.spool.sweep_after == 7200
    assert settings.spool.recover_after == 15


def test_a_source_on_the_command_line_is_the_only_camera(tmp_path):
    config = tmp_path / "relay.toml"
    config.write_text('[cameras.yard]\nsource = "test:"\n')
    settings = load_settings(environ={}, config=config, source="test:320x240", camera_id="door")
    assert list(settings.cameras) == ["door"]
    assert list(load_settings(environ={}, config=config).cameras) == ["yard"]


def test_a_camera_takes_what_it_does_not_say_from_the_defaults(tmp_path):
    config = tmp_path / "relay.toml"
    config.write_text(
        '[defaults]\nsegment_seconds = 4\nfps = 5\n[cameras.a]\nsource = "test:"\nfps = 10\n'
        'resolution = "640x360"\n'
    )
    settings = load_settings(environ={}, config=config)
    values = settings.cameras["a"].over(settings.defaults)
    assert (values.segment_seconds, values.fps, values.resolution) == (4.0, 10.0, (640, 360))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"--cloud": "cloud.example.com"}, "--cloud: "),
        ({"--cloud": "ftp://cloud.example.com"}, "http:// or https://"),
        ({"--cloud": "https://user:hunter2@cloud.example.com"}, "user name or password"),
        ({"--cloud": "https://cloud.example.com/?key=hunter2"}, "no query"),
        ({"--cloud": "https://cloud.example.com:port"}, "not a URL"),
        ({"--cloud": "https://straße.example.com"}, "xn-- form"),
        ({"--cloud": f"https://ü{'x' * 70}.example.com"}, "xn-- form"),
        ({"--token": "hunter2 hunter2"}, "blanks"),
        ({"--token": "hunter2\u00e4"}, "non-ASCII"),
        ({"--token": ""}, "empty"),
        ({"--segment-duration": "0"}, "--segment-duration"),
        ({"--segment-duration": "long"}, "number of seconds"),
        ({"--fps": "many"}, "--fps"),
        ({"--resolution": "1280"}, "WIDTHxHEIGHT"),
        ({"--resolution": "1281x721"}, "even"),
        ({"--broker": "amqp://hunter2@x"}, "redis://"),
        ({"--on-refused": "maybe"}, "--on-refused"),
        ({"--drain-timeout": "-1"}, "--drain-timeout"),
    ],
)
def test_a_wrong_flag_is_a_usage_error_that_names_it_and_shows_no_secret(flags, says):
    with pytest.raises(UsageError) as caught:
        load_settings(flags, environ={})
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"RELAY_CLOUD": "nowhere"}, "RELAY_CLOUD: found"),
        ({"RELAY_TOKEN": "hunter2 x"}, "RELAY_TOKEN"),
        ({"RELAY_INGEST__SUCCESS": "404"}, "200 and 299"),
        ({"RELAY_SPOOL__SWEEPAFTER": "1"}, "no such setting"),
        ({"RELAY_BROKER": "http://hunter2@x"}, "RELAY_BROKER"),
    ],
)
def test_a_wrong_variable_is_a_configuration_error_that_names_it_and_shows_no_secret(environ, says):
    with pytest.raises(ConfigError) as caught:
        load_settings(environ=environ)
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_all_problems_are_named_at_once(tmp_path):
    config = tmp_path / "relay.toml"
    config.write_text(
        '[ingest]\nurl = "x"\nsuccess = [99]\n[spool]\nnope = 1\n[cameras.a]\nsource = "htp://x"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_settings(environ={}, config=config)
    for word in ("4 settings are wrong", "ingest.url", "ingest.success", "spool.nope", "cameras.a.source"):
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["[ingest", "\xff"])
def test_a_file_that_is_no_toml_is_one_message(tmp_path, text):
    config = tmp_path / "relay.toml"
    config.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_settings(environ={}, config=config)


def test_a_missing_file_is_one_message(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_settings(environ={}, config=tmp_path / "relay.toml")


def test_a_camera_id_that_cannot_be_a_directory_is_refused():
    with pytest.raises(UsageError, match="--camera-id"):
        load_settings(environ={}, source="test:", camera_id="../x")


def test_the_token_file_is_read_each_time(tmp_path):
    file = tmp_path / "token"
    file.write_text("one\n")
    ingest = load_settings({"--token-file": str(file)}, environ=CLOUD).ingest
    assert read_token(ingest) == "one"
    file.write_text("two\n")
    assert read_token(ingest) == "two"


def test_the_stronger_layer_decides_between_token_and_token_file(tmp_path):
    file = tmp_path / "token"
    file.write_text("from-file")
    by_flag = load_settings({"--token-file": str(file)}, environ=CLOUD).ingest
    assert read_token(by_flag) == "from-file"
    by_env = load_settings({"--token": "from-flag"}, environ={"RELAY_TOKEN_FILE": str(file)}).ingest
    assert read_token(by_env) == "from-flag"


@pytest.mark.parametrize("content", [b"", b"two words", b"\xff\xfe", b"x" * 5000])
def test_a_token_file_that_holds_no_token_is_one_message_without_its_content(tmp_path, content):
    file = tmp_path / "token"
    file.write_bytes(content)
    ingest = load_settings({"--token-file": str(file)}, environ={}).ingest
    with pytest.raises(ConfigError, match="token file") as caught:
        read_token(ingest)
    assert "two words" not in str(caught.value)


def test_without_a_cloud_or_a_token_the_message_says_what_to_give():
    with pytest.raises(ConfigError, match="--cloud"):
        require_cloud(load_settings(environ={}))
    with pytest.raises(ConfigError, match="RELAY_TOKEN"):
        require_cloud(load_settings({"--cloud": "http://x"}, environ={}))


def test_a_worker_gets_the_same_settings_and_no_camera(tmp_path):
    flags = {"--token": "s3cret", "--spool": str(tmp_path), "--on-refused": "hold"}
    environ = {
        "RELAY_INGEST__SUCCESS": "200,204",
        "RELAY_CLOUD": "http://x",
        "RELAY_BROKER": "redis://:pw@h/1",
    }
    settings = load_settings(flags, environ=environ, source="rtsp://u:camera-pw@h/x")
    handed = settings.worker_environment()
    again = load_settings(environ=handed)
    for section in ("ingest", "spool", "broker"):
        assert getattr(again, section) == getattr(settings, section)
    assert "camera-pw" not in "".join(handed.values())


def test_secrets_are_all_listed_and_none_is_shown_by_repr():
    settings = load_settings(
        {"--token": "s3cret"},
        environ={"RELAY_BROKER": "redis://:brokerpw@h/1"},
        source="rtsp://u:camera-pw@h/x",
    )
    assert {"s3cret", "brokerpw", "camera-pw"} <= set(settings.secrets())
    for secret in ("s3cret", "brokerpw", "camera-pw"):
        assert secret not in repr(settings)


def test_defaults_are_sane():
    settings = Settings()
    assert settings.ingest.success == [204]
    assert settings.drain_timeout == 10

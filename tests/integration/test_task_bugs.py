"""A bug in a task whose words hold a secret fails the task with words that hold none."""

import pytest
from celery.exceptions import Retry
from pydantic import SecretStr

import tasks.celery
from tasks.celery import BugError, RelayTask, TransientError, settings


@pytest.fixture
def task(monkeypatch):
    """Makes a task that fails with an exception."""
    ingest = settings.ingest.model_copy(update={"token": SecretStr("s3cret/%41")})
    monkeypatch.setattr(tasks.celery, "settings", settings.model_copy(update={"ingest": ingest}))

    def make(error):
        class Failing(RelayTask):
            name = "failing"
            autoretry_for = ()

            def run(self):
                raise error

        return Failing()

    return make


@pytest.mark.parametrize(
    "words", ["s3cret/%41", "says 's3cret/%41'", r"says \"s3cret\/%41\"", "s3cret%2F%2541"]
)
def test_the_words_of_a_bug_are_masked_and_its_traceback_stays(task, words):
    with pytest.raises(BugError, match=r"ValueError: .*\*\*\*") as caught:
        task(ValueError(words))()
    assert "s3cret" not in repr(caught.value)
    assert caught.value.__suppress_context__
    assert caught.traceback[-1].name == "run"


@pytest.mark.parametrize("error", [ValueError("harmless"), TransientError("later"), Retry()])
def test_what_holds_no_secret_and_what_is_no_bug_stays_as_it_is(task, error):
    with pytest.raises(type(error)) as caught:
        task(error)()
    assert caught.value is error

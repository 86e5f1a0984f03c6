"""The rules that hold the code together: who imports whom, and what Celery is told."""

import ast
from pathlib import Path

import pytest
from celery.app.defaults import NAMESPACES, flatten
from celery.app.task import Task

import celeryconfig
from capture import handoff
from tasks import app

ROOT = Path(__file__).parents[2]
CAPTURE = sorted((ROOT / "capture").glob("*.py"))
TASKS = sorted((ROOT / "tasks").glob("*.py"))

# Each outside world has one door, or the few that stand here.
DOORS = {
    "h11": {"http1"},
    "certifi": {"ingest"},
    "httpx": {"discover_soap"},
    "onvif": {"discover_soap"},
    "zeep": {"discover_soap"},
    "lxml": {"discover_probe", "discover_soap"},
    "celery": {"handoff"},
    "kombu": {"handoff"},
    "redis": {"broker"},
    "subprocess": {"process", "leash", "ffmpeg_binary"},
    "click": {"cli", "operate", "config_commands", "doctor_commands", "discover_commands"},
    "asyncio": {"discover_onvif", "web", "web_look", "web_server"},
    "tomllib": {"settings_layers"},
    "prometheus_client": {"metrics_text"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", CAPTURE, ids=lambda path: path.stem)
def test_capture_knows_the_workers_only_by_message(path):
    assert not {"tasks", "celeryconfig"} & imports(path)


@pytest.mark.parametrize("path", CAPTURE, ids=lambda path: path.stem)
def test_each_outside_world_has_its_door(path):
    wrong = {name for name, doors in DOORS.items() if name in imports(path) and path.stem not in doors}
    assert not wrong, f"{path.stem} imports {wrong}"


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_tasks_talk_http_and_start_processes_only_through_capture(path):
    assert not {"h11", "httpx", "subprocess", "redis"} & imports(path)


def test_celery_knows_every_setting_it_is_given():
    known = {name for name, _ in flatten(NAMESPACES)}
    given = {name for name in vars(celeryconfig) if name.islower() and not name.startswith("_")}
    assert given - {"timedelta"} <= known


def own_tasks():
    app.loader.import_default_modules()
    # In one order for all processes that share the tests: Celery keeps a set until it is asked.
    return [task for name, task in sorted(app.tasks.items()) if name.startswith("tasks.")]


def test_every_task_has_the_name_that_the_agent_sends():
    names = {
        value for key, value in vars(handoff).items() if key.isupper() and str(value).startswith("tasks.")
    }
    assert {task.name for task in own_tasks()} == names


@pytest.mark.parametrize("task", own_tasks(), ids=lambda task: task.name)
def test_no_task_carries_an_option_that_celery_does_not_know(task):
    # Celery takes any option silently; a mistyped one is an attribute that its base does not have.
    allowed = {"run", "app", "name", "retry", "throws", "retry_kwargs"}
    allowed |= {"autoretry_for", "retry_backoff", "retry_backoff_max", "retry_jitter", "dont_autoretry_for"}
    own = {key for kind in type(task).__mro__ if kind.__module__.startswith("tasks") for key in vars(kind)}
    own = {key for key in own if not key.startswith("_")}
    assert own <= set(dir(Task)) | allowed | {"store_eager_result"}


@pytest.mark.parametrize("task", own_tasks(), ids=lambda task: task.name)
def test_every_task_keeps_its_message_until_its_work_is_done(task):
    assert task.acks_late
    assert task.reject_on_worker_lost
    assert task.ignore_result
    assert task.soft_time_limit or app.conf.task_soft_time_limit

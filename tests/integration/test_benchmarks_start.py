"""Each benchmark starts and knows the options that `scripts/bench` gives it; a broken one is told as such."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bench

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")
)
# One process for all: each would import the same for half a second.
HELP = """
import contextlib, io, json, runpy, sys
found = {}
for name in sys.argv[1:]:
    out, code = io.StringIO(), None
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        except SystemExit as end:
            code = end.code
    found[name] = [code, out.getvalue()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int, str]]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HELP, *PROGRAMS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_benchmark_says_what_it_is_for(helps, name):
    code, text = helps[name]
    assert code == 0
    assert text.startswith("usage: ")
    assert len(text.split("options:")[0].splitlines()) > 2


@pytest.mark.parametrize("run", bench.RUNS, ids=lambda run: run.name)
def test_a_benchmark_has_the_options_that_it_is_given(helps, run):
    _, text = helps[run.module]
    given = {word for word in (*run.full, *(run.quick or ()), "--json") if word.startswith("--")}
    assert given <= set(re.findall(r"--[a-z-]+", text.split("options:")[1]))


def test_a_benchmark_that_ends_without_figures_is_told_and_old_figures_are_not_taken_for_its_own(tmp_path):
    (tmp_path / "owed.json").write_text("{}")
    run = next(run for run in bench.RUNS if run.name == "owed")
    done = bench.run_one(run, ["-c", "raise SystemExit('there is no room')"], tmp_path)
    assert done.trouble == "it ended with 1: there is no room"
    assert bench.read_results(tmp_path) == {}


def test_figures_are_those_that_were_written_also_where_a_target_of_its_own_was_missed(tmp_path):
    run = next(run for run in bench.RUNS if run.name == "owed")
    code = "import sys; open(sys.argv[2], 'w').write('{\"owed\": []}'); sys.exit(1)"
    assert bench.run_one(run, ["-c", code], tmp_path).trouble == ""
    assert bench.read_results(tmp_path) == {"owed": {"owed": []}}


def test_the_script_shows_what_a_folder_holds_without_measuring(tmp_path):
    environment = {"cpu": "c", "cpus_usable": 1, "platform": "p", "python": "3", "commit": "x"}
    environment |= {"at": "2026-06-01T12:00:00+00:00", "load": [0.0]}
    data = {
        "environment": environment,
        "owed": [{"owed": count, "cpu_ms": 1.0, "ms": 2.0} for count in (10, 1000, 100_000)],
    }
    (tmp_path / "owed.json").write_text(json.dumps(data))
    (tmp_path / bench.OPTIONS).write_text(json.dumps({"owed": "python -m benchmarks.owed"}))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench", "--only", "none", "--output", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "| 10 | 1 | 1.00 (1.00 to 1.00) | 2.00 (2.00 to 2.00) |" in done.stdout

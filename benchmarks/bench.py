"""Runs the benchmarks of the published table, one after the other, and says of each target whether it is met.

    scripts/bench [--quick] [--only NAME,…] [--output DIR] [--write-docs]

Each benchmark is a program of its own, writes its figures to DIR/<name>.json and its words to DIR/<name>.txt.
The tables are made of all JSON files in DIR, so that single ones can be measured again with --only, and
with --only none the tables are made of what is there. --quick takes about five minutes on an idle machine
with two cores, all of it about fifty. The exit code is 1 where a benchmark failed or a target is missed.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench_report import page, tables
from benchmarks.bench_targets import MET, verdicts
from benchmarks.figures import ROOT

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
NOTHING = "none"
DEADLINE_SECONDS = 3600.0
OPTIONS = "options.json"


@dataclass(frozen=True)
class Run:
    """One benchmark: its module, and its options in both modes; None for one that is too long for --quick."""

    name: str
    module: str
    full: tuple[str, ...]
    quick: tuple[str, ...] | None

    def command(self, *, is_quick: bool) -> list[str] | None:
        options = self.quick if is_quick else self.full
        return None if options is None else ["-m", f"benchmarks.{self.module}", *options]


def _run(name: str, full: str = "", quick: str | None = "", *, module: str | None = None) -> Run:
    return Run(name, module or name, tuple(full.split()), None if quick is None else tuple(quick.split()))


RUNS = (
    _run("start_up", "--commands 30 --repeat 10", "--commands 10 --repeat 3 --segments 1"),
    _run("costs", "--repeat 50", "--repeat 15"),
    _run("upload_path", "--repeat 5", "--sizes 1.5MiB --repeat 3 --paced 200"),
    _run("wan", "", "--rtts 0.08 --segments 15 --repeat 1"),
    _run("wan_outage", "--outage", "--outage --rtts 0.08 --minutes 1 --normal 10", module="wan"),
    _run("rate_cap", "", "--rates 20Mbit --seconds 15"),
    _run("many_cameras", "", "--cameras 1,10 --seconds 10 --repeat 1"),
    _run("scale", "", "--cameras 100,1000 --seconds 15"),
    _run("owed", "--repeat 3", "--owed 10,1000,100000 --repeat 1"),
    _run("recover_scale"),
    _run("startup_backlog", "--seconds 30", "--seconds 5"),
    _run("live_first", "--repeat 2", None),
)
PRINTED = ("upload_path", "wan", "wan_outage", "rate_cap", "many_cameras")


@dataclass(frozen=True)
class Done:
    """How a run ended: its command, its seconds, and what kept it from giving figures, if anything did."""

    name: str
    command: str
    seconds: float
    trouble: str = ""


def run_one(run: Run, command: Sequence[str], folder: Path) -> Done:
    """Run one benchmark to its end; a missed target of its own is no trouble here."""
    found, log = folder / f"{run.name}.json", folder / f"{run.name}.txt"
    found.unlink(missing_ok=True)  # what is old must not be taken for new
    began, trouble = time.monotonic(), ""
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                [sys.executable, *command, "--json", str(found)],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=DEADLINE_SECONDS,
                check=False,
            )
            if not found.exists():
                trouble = f"it ended with {done.returncode}: {last_line(log)}"
        except subprocess.TimeoutExpired:
            trouble = f"it took longer than {DEADLINE_SECONDS:.0f} s"
    return Done(run.name, " ".join(["python", *command]), time.monotonic() - began, trouble)


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it said nothing")


def read_results(folder: Path) -> dict[str, Any]:
    """Return what was measured, by the name of the run, in the order of the table."""
    files = {run.name: folder / f"{run.name}.json" for run in RUNS}
    return {name: json.loads(path.read_text("utf-8")) for name, path in files.items() if path.exists()}


def read_printed(folder: Path) -> dict[str, str]:
    """Return what runs printed whose words are tables."""
    files = {name: folder / f"{name}.txt" for name in PRINTED}
    return {name: path.read_text("utf-8") for name, path in files.items() if path.exists()}


def read_options(folder: Path) -> dict[str, str]:
    """Return the command of each run that was ever made into this folder."""
    path = folder / OPTIONS
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def chosen(names: str | None, *, is_quick: bool) -> list[Run]:
    """Return the runs to make. Raises ValueError for a name that is none."""
    if names == NOTHING:
        return []
    wanted = names.split(",") if names else [run.name for run in RUNS]
    unknown = sorted(set(wanted) - {run.name for run in RUNS})
    if unknown:
        raise ValueError(f"found {unknown[0]!r}; expected some of {', '.join(run.name for run in RUNS)}")
    return [run for run in RUNS if run.name in wanted and run.command(is_quick=is_quick) is not None]


def measure(runs: Iterable[Run], folder: Path, *, is_quick: bool) -> dict[str, str]:
    """Make the runs, one at a time; return what kept some from giving figures."""
    failed = {}
    options = read_options(folder)
    for run in runs:
        command = run.command(is_quick=is_quick) or []
        print(f"{run.name:<14} python {' '.join(command)}", flush=True)
        done = run_one(run, command, folder)
        options[run.name] = done.command
        (folder / OPTIONS).write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")
        print(f"{'':<14} {done.seconds:.0f} s {done.trouble}".rstrip(), flush=True)
        if done.trouble:
            failed[run.name] = done.trouble
    return failed


def write_page(path: Path, shown: str) -> None:
    path.write_text(page(path.read_text(encoding="utf-8"), shown), encoding="utf-8")
    print(f"wrote {path}")


def exit_code(results: Mapping[str, Any], failed: Mapping[str, str]) -> int:
    """Return 1 if a run failed, a target is missed, or a run that was made has no figure for one of its own.

    What was left out on purpose is none of these.
    """
    made = [each for each in verdicts(results) if each.target.run in results]
    return int(bool(failed) or any(each.word != MET for each in made))


def main() -> int:
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        runs = chosen(options.only, is_quick=options.quick)
    except ValueError as error:
        sys.exit(f"--only: {error}")
    failed = measure(runs, options.output, is_quick=options.quick)
    results = read_results(options.output)
    printed = {name: text for name, text in read_printed(options.output).items() if name in results}
    shown = tables(results, read_options(options.output), failed, printed)
    print(f"{time.monotonic() - began:.0f} s in all; figures and words in {options.output}\n\n{shown}")
    if options.write_docs:
        write_page(PAGE, shown)
    return exit_code(results, failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer repetitions and sizes")
    add("--only", metavar="NAME,…", help=f"only these: {', '.join(run.name for run in RUNS)}; or {NOTHING}")
    add("--output", type=Path, default=RESULTS, metavar="DIR", help="[benchmarks/results]")
    add("--write-docs", action="store_true", help="write the tables into docs/benchmarks.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

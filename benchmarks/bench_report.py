"""What `scripts/bench` shows of its results: tables in Markdown, and their place in a page. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from benchmarks.bench_targets import Data, Results, verdicts
from benchmarks.costs import BARE, NAMES, Costs
from benchmarks.figures import MIB, spread

BEGIN = "<!-- bench -->"
END = "<!-- /bench -->"


def page(text: str, tables: str) -> str:
    """Return a page with the tables between its two markers. Raises ValueError where they are not."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"found no place for the tables; expected one {BEGIN} and one {END} after it")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{tables.strip()}\n{END}{rest.split(END)[1]}"


def tables(
    results: Results,
    options: Mapping[str, str],
    failed: Mapping[str, str],
    printed: Mapping[str, str] | None = None,
) -> str:
    """Return everything that is shown.

    `options` are what each run was given, by name; `failed` says what became of those without a result;
    `printed` is what a run said, where that is a table by itself.
    """
    parts = [_environments(results), _targets(results)]
    if failed:
        parts.append("\n".join(f"- `{name}` gave no figures: {why}" for name, why in failed.items()))
    parts += [f"### {name}\n\n```text\n{text.strip()}\n```" for name, text in (printed or {}).items()]
    parts += [f"### {title}\n\n{show(results[name])}" for name, title, show in SECTIONS if name in results]
    parts.append("### The commands\n\n" + _commands(results, options))
    return "\n\n".join(parts)


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; a bar within a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def _environments(results: Results) -> str:
    """Say where and when: once for all runs that agree in it."""
    by_place: dict[str, list[str]] = {}
    for name, data in results.items():
        found = data["environment"]
        place = (
            f"{found['cpu']}, {found['cpus_usable']} CPUs, {found['platform']}, Python {found['python']}, "
            f"commit {found['commit']}"
        )
        by_place.setdefault(place, []).append(
            f"`{name}` {found['at'][:16].replace('T', ' ')} UTC, load {max(found['load']):.1f}"
        )
    return "\n\n".join(f"On {place}: {'; '.join(runs)}." for place, runs in by_place.items())


def _targets(results: Results) -> str:
    rows = [
        [each.target.what, each.target.words, each.measured, each.word, f"`{each.target.run}`"]
        for each in verdicts(results)
    ]
    header = ["what", "target", "measured: median (least to most)", "", "run"]
    return markdown(header, rows)


def _costs(data: Data) -> str:
    """A column for each size: the time, and its share of what bare httpx takes for the same bytes."""
    sizes = {size: [Costs(**each) for each in rounds] for size, rounds in data["sizes"].items()}
    rows = [[words, *(_cost(rounds, name) for rounds in sizes.values())] for name, words in NAMES.items()]
    count = min(len(rounds) for rounds in sizes.values())
    header = [f"ms, on {data['file_system']}, n = {count}", *(f"{int(size) / MIB:g} MiB" for size in sizes)]
    return markdown(header, rows)


def _cost(rounds: Sequence[Costs], name: str) -> str:
    bare = median(each.seconds(BARE) for each in rounds)
    wall = [1000 * each.seconds(name) for each in rounds]
    return f"{spread(wall)} = {100 * median(wall) / 1000 / bare:.0f} %"


def _scale(data: Data) -> str:
    header = ["cameras", "segments/s", "confirmed/s", "closed → confirmed p50 / p95 / p99, ms"]
    header += ["CPU ms per segment: worker", "agent's part", "broker"]
    rows = [
        [
            f"{each['cameras']:,}",
            f"{each['asked']:.0f}",
            f"{each['delivered']:.0f}",
            " / ".join(f"{each[key]:.0f}" for key in ("p50_ms", "p95_ms", "p99_ms")),
            *(f"{each[key]:.2f}" for key in ("worker_ms", "publisher_ms", "broker_ms")),
        ]
        for each in data["runs"]
    ]
    return markdown(header, rows)


def _owed(data: Data) -> str:
    counts = dict.fromkeys(int(each["owed"]) for each in data["owed"])
    rows = []
    for count in counts:
        runs = [each for each in data["owed"] if int(each["owed"]) == count]
        cells = (spread([each[key] for each in runs]) for key in ("cpu_ms", "ms"))
        rows.append([f"{count:,}", len(runs), *cells])
    return markdown(["owed", "n", "CPU ms per segment: worker and broker", "ms per segment"], rows)


def _recover(data: Data) -> str:
    rows = [
        [
            f"{each['owed']:,}",
            *(spread([1000 * s for s in each[key]], ".1f") for key in ("listing", "further")),
        ]
        for each in data["runs"]
    ]
    return markdown(["owed", "ms with a listing", "ms without"], rows)


def _start_up(data: Data) -> str:
    bare = median(next(iter(data["commands"].values())))
    rows = [
        [
            f"`{name}`",
            len(times),
            spread([1000 * each for each in times], ".0f"),
            f"{median(times) / bare:.1f}",
        ]
        for name, times in data["commands"].items()
    ]
    commands = markdown(["command", "n", "ms", "times bare Python"], rows)
    steps = [name for name in next(iter(data["up"].values()))[0] if name not in {"segment", "ahead"}]
    columns = [f"{length} s segments, n = {len(runs)}" for length, runs in data["up"].items()]
    rows = [[step, *(spread([run[step] for run in runs]) for runs in data["up"].values())] for step in steps]
    return commands + "\n\n" + markdown(["`up`: seconds from exec to", *columns], rows)


def _backlog(data: Data) -> str:
    found = data["start"]
    confirmed = f"{found['confirmed']:.1f}" if "confirmed" in found else "–"  # noqa: RUF001 - none
    largest = max(data["peak_bytes"].values()) / MIB
    header = [
        "owed",
        "every camera captures, s after exec",
        "first new segment confirmed, s",
        "largest process",
    ]
    return markdown(
        header, [[f"{found['owed']:,}", f"{found['captures']:.1f}", confirmed, f"{largest:.0f} MiB"]]
    )


def _commands(results: Results, options: Mapping[str, str]) -> str:
    return markdown(["run", "command"], [[f"`{name}`", f"`{options[name]}`"] for name in results])


SECTIONS = (
    ("costs", "What each part of a safe delivery costs", _costs),
    ("scale", "Many simulated cameras", _scale),
    ("owed", "Many owed segments", _owed),
    ("recover_scale", "Choosing a batch", _recover),
    ("startup_backlog", "A start with very many owed segments", _backlog),
    ("start_up", "A start", _start_up),
)

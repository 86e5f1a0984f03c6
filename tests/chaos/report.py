"""What a chaos run prints in the end."""

from dataclasses import dataclass, field

from tests.chaos.calm import Calm
from tests.chaos.oracle import Verdict
from tests.chaos.storm import Storm


@dataclass
class Outcome:
    """What a run was like, for the report."""

    layout: str
    storm: Storm
    calm: Calm
    verdict: Verdict
    decoded: int
    duplicates: int
    stepped_lines: int
    seconds: float
    starts: int
    problems: list[str] = field(default_factory=list)


def report(outcome: Outcome) -> None:
    storm, verdict, calm = outcome.storm, outcome.verdict, outcome.calm
    print("struck: " + ", ".join(f"{count} {name}" for name, count in sorted(storm.done.items())))
    if storm.missed:
        print("nobody there: " + ", ".join(f"{count} {name}" for name, count in sorted(storm.missed.items())))
    print(
        f"starts by this run: {outcome.starts}; clock steps {len(storm.steps)},"
        f" journal lines written on a stepped clock {outcome.stepped_lines}"
    )
    for fresh in calm.fresh:
        print(f"fresh video: {fresh}")
    if calm.paid_after is not None:
        print(f"backlog gone after {calm.paid_after:.1f} s of calm")
    if calm.ticks:
        print("recover was asked for after " + " and ".join(f"{at:.1f} s" for at in calm.ticks))
    print(
        f"segments written {verdict.segments} = delivered {verdict.delivered} + owed {verdict.owed}"
        f" + explained {verdict.explained}; unseen {verdict.unseen}; sent twice {outcome.duplicates};"
        f" journal lines {verdict.journal_lines}, torn {verdict.torn_lines}; decoded {outcome.decoded}"
    )
    for problem in outcome.problems:
        print(f"PROBLEM {problem}")
    print(f"{outcome.seconds:.0f} s in all")

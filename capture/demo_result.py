"""What a demo run amounted to, and the checks that decide its exit code: pure, a finding per check.

A check sees nothing but the frozen `Result`. The exit code is 0 only when every one of `CHECKS` finds what
it expects; evidence that is missing counts against the run, never for it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FPS = 25
SEGMENT_SECONDS = 2
SERVICES = ("beat", "broker", "worker")
EXIT_FAILED = 1
_MOST_NAMED = 6


@dataclass(frozen=True)
class Wait:
    """How long one segment took from closed to confirmed, in seconds."""

    sequence: int
    seconds: float
    in_outage: bool


@dataclass(frozen=True)
class Decoded:
    """What a decoder made of one file: frames, whether the first is a key frame, and complaints."""

    frames: int
    starts_with_key: bool
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """Everything that is known after a run. Sequence numbers stand in the order they were found in.

    `captured` and `delivered` are the journal's, `stored` is the ingest's. `alone` holds the decoded
    segments by sequence. `services` were seen running. `outage_hits` counts the uploads that the outage
    turned away.
    """

    seconds: int
    captured: tuple[int, ...] = ()
    delivered: tuple[int, ...] = ()
    stored: tuple[int, ...] = ()
    sessions: int = 0
    digests_wrong: tuple[str, ...] = ()
    frames_written: int = 0
    joined: Decoded | None = None
    alone: tuple[tuple[int, Decoded], ...] = ()
    retried: int = 0
    duplicates: int = 0
    owed: int = 0
    rejected: int = 0
    dropped: int = 0
    gaps: tuple[str, ...] = ()
    restarts: int = 0
    bytes_captured: int = 0
    bytes_stored: int = 0
    outage_seconds: float = 0.0
    outage_hits: int = 0
    waits: tuple[Wait, ...] = ()
    registered: bool = False
    ended: bool = False
    services: tuple[str, ...] = ()
    left_running: tuple[str, ...] = ()
    trouble: str = ""

    @property
    def frames_expected(self) -> int:
        return self.seconds * FPS

    @property
    def segments_expected(self) -> int:
        return math.ceil(self.seconds / SEGMENT_SECONDS)

    @property
    def sequence_expected(self) -> tuple[int, ...]:
        return tuple(range(1, self.segments_expected + 1))

    def frames_expected_of(self, sequence: int) -> int:
        """Return how many frames a segment has: the last may be a shorter one."""
        full = SEGMENT_SECONDS * FPS
        return min(full, self.frames_expected - (sequence - 1) * full)


@dataclass(frozen=True)
class Finding:
    """What a check found, in words, and what is wrong with it, if anything is."""

    name: str
    found: str
    problem: str = ""

    @property
    def is_good(self) -> bool:
        return not self.problem


# --- the checks ------------------------------------------------------------------------------------


def check_run(result: Result) -> Finding:
    """Capture went to the end of its source, and the cloud confirmed all of it."""
    return Finding("run to its end", result.trouble or "yes", result.trouble)


def check_captured(result: Result) -> Finding:
    """Every segment of the source was closed, once and in order."""
    found = _complete(result.captured, result)
    if found.problem or result.sessions == 1:
        return Finding("segments captured", found.found, found.problem)
    return Finding("segments captured", found.found, f"found {result.sessions} sessions, expected 1")


def check_delivered(result: Result) -> Finding:
    """The journal has every segment as delivered, and the ingest has stored every one."""
    confirmed, stored = _complete(result.delivered, result), _complete(result.stored, result)
    problem = confirmed.problem or (stored.problem and f"at the ingest: {stored.problem}")
    if not problem and result.bytes_stored != result.bytes_captured:
        problem = f"found {result.bytes_stored} bytes at the ingest, expected {result.bytes_captured}"
    size = f"{megabytes(result.bytes_captured)} in, {megabytes(result.bytes_stored)} out"
    return Finding("segments delivered", f"{len(result.delivered)}  ({size})", problem)


def check_digests(result: Result) -> Finding:
    """Hashed again, every stored file has the digest of its receipt and of the journal."""
    good = len(result.stored) - len(result.digests_wrong)
    problem = _some(result.digests_wrong) if result.stored else "nothing was stored"
    return Finding("digests matched", f"{max(good, 0)} of {len(result.stored)}", problem)


def check_frames(result: Result) -> Finding:
    """Frames made = written by ffmpeg = decoded from what the ingest stored, joined in order."""
    joined = result.joined or Decoded(0, starts_with_key=False, errors=("nothing was decoded",))
    expected = result.frames_expected
    found = f"{result.frames_written} / {joined.frames}"
    problem = "; ".join(joined.errors[:1])
    if (result.frames_written, joined.frames) != (expected, expected):
        problem = f"expected {expected} in and {expected} out ({result.seconds} s at {FPS} per second)"
    return Finding("frames in / out", found, problem)


def check_alone(result: Result) -> Finding:
    """Each segment by itself begins with a key frame and decodes to all of its frames."""
    wrong = [
        f"segment {sequence} has {decoded.frames} frames, expected {result.frames_expected_of(sequence)}"
        if decoded.frames != result.frames_expected_of(sequence)
        else f"segment {sequence}: {decoded.errors[0] if decoded.errors else 'no key frame first'}"
        for sequence, decoded in result.alone
        if decoded.frames != result.frames_expected_of(sequence)
        or not decoded.starts_with_key
        or decoded.errors
    ]
    good = len(result.alone) - len(wrong)
    if tuple(sequence for sequence, _ in result.alone) != result.sequence_expected:
        wrong.append(f"{len(result.alone)} were tried, expected {result.segments_expected}")
    return Finding("play by themselves", f"{good}, each from its own key frame", _some(wrong))


def check_outage(result: Result) -> Finding:
    """The outage turned at least one upload away; otherwise the run proved nothing about outages."""
    found = f"{result.outage_seconds:g} s, turned {count(result.outage_hits, 'upload')} away"
    late = sum(wait.in_outage for wait in result.waits)
    problem = "" if result.outage_hits and late else "it hit no upload: nothing was proved; run it again"
    return Finding("outage", found, problem)


def check_retried(result: Result) -> Finding:
    """What was turned away was tried again."""
    problem = "" if result.retried >= result.outage_hits else f"expected at least {result.outage_hits}"
    return Finding("retried", f"{count(result.retried, 'attempt')} beyond the first", problem)


def check_duplicates(result: Result) -> Finding:
    """Nothing was sent again that the ingest had already."""
    problem = f"expected 0, found {result.duplicates}" if result.duplicates else ""
    return Finding("duplicates", str(result.duplicates), problem)


def check_debts(result: Result) -> Finding:
    """Nothing is owed, nothing was refused for good, nothing dropped."""
    found = f"{result.owed} / {result.rejected} / {result.dropped}"
    problem = "expected 0 / 0 / 0" if result.owed or result.rejected or result.dropped else ""
    return Finding("owed / rejected / dropped", found, problem)


def check_gaps(result: Result) -> Finding:
    """There is no time without video, and ffmpeg ran through."""
    problem = _some(result.gaps)
    if result.restarts:
        problem = f"ffmpeg was restarted {count(result.restarts, 'time')}" + (problem and f"; {problem}")
    return Finding("gaps", str(len(result.gaps)), problem)


def check_announced(result: Result) -> Finding:
    """The cloud was told that the camera starts and that its stream is over."""
    words = {True: "yes", False: "no"}
    found = f"{words[result.registered]} / {words[result.ended]}"
    problem = "" if result.registered and result.ended else "expected yes / yes"
    return Finding("camera registered / ended", found, problem)


def check_processes(result: Result) -> Finding:
    """Broker, worker and beat were there, and they and ffmpeg are gone."""
    unseen = sorted(set(SERVICES) - set(result.services))
    problem = f"never seen running: {', '.join(unseen)}" if unseen else _some(result.left_running)
    return Finding("processes left", str(len(result.left_running)), problem)


CHECKS: tuple[Callable[[Result], Finding], ...] = (
    check_run,
    check_captured,
    check_delivered,
    check_digests,
    check_frames,
    check_alone,
    check_outage,
    check_retried,
    check_duplicates,
    check_debts,
    check_gaps,
    check_announced,
    check_processes,
)


def findings(result: Result) -> list[Finding]:
    """Return what every check found."""
    return [check(result) for check in CHECKS]


def exit_code(found: Sequence[Finding]) -> int:
    """Return 0 only if all checks were made and all are good."""
    complete = len(found) == len(CHECKS)
    return 0 if complete and all(finding.is_good for finding in found) else EXIT_FAILED


# --- figures ---------------------------------------------------------------------------------------


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the nearest-rank percentile, `share` in 0 … 1; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def figures(result: Result) -> list[Finding]:
    """Return what was measured and is not judged: close-to-confirmed, without and with the outage."""
    found = []
    for name, in_outage in (("close-to-confirmed", False), ("... with the outage", True)):
        waits = [wait.seconds for wait in result.waits if wait.in_outage is in_outage]
        half, most = percentile(waits, 0.5), percentile(waits, 0.95)
        if half is None or most is None:
            text = "no segment"
        else:
            text = f"p50 {duration(half)}, p95 {duration(most)}  ({count(len(waits), 'segment')})"
        found.append(Finding(name, text))
    return found


def duration(seconds: float) -> str:
    """Return a short time as people read it: ``48 ms``, ``4.2 s``."""
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"  # noqa: PLR2004 - rounds to 1000


def megabytes(size: int) -> str:
    """Return bytes as people read them."""
    return f"{size / 1e6:.1f} MB"


def count(number: int, noun: str) -> str:
    """Return ``1 upload``, ``2 uploads``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _complete(found: tuple[int, ...], result: Result) -> Finding:
    """Compare sequence numbers with 1 … N; the order in which they arrived does not matter."""
    expected = set(result.sequence_expected)
    missing = sorted(expected - set(found))
    extra = sorted(set(found) - expected)
    twice = sorted({number for number in found if found.count(number) > 1})
    problems = [
        f"{what} {_named(numbers)}"
        for what, numbers in (("missing:", missing), ("twice:", twice), ("unexpected:", extra))
        if numbers
    ]
    numbers = f"  (1 to {len(found)})" if found and not problems else ""
    return Finding("", f"{len(found)}{numbers}", "; ".join(problems))


def _named(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else ""
    return ", ".join(map(str, numbers[:_MOST_NAMED])) + more


def _some(problems: Sequence[str]) -> str:
    more = f"; {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{problems[0]}{more}" if problems else ""

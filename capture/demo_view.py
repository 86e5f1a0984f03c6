"""What people see of a demo: a timeline on a terminal, plain lines anywhere else, a table at the end.

Drawing is pure: a `Picture` in, lines or rich renderables out. Shapes say all that colours say, so that it
reads the same without them; the colours are such as can be read on dark and on light.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from capture.demo_evidence import Piece, Window
from capture.demo_result import FPS, SEGMENT_SECONDS, Finding, Result, count, duration, megabytes

PLAIN_WIDTH = 100
STOPPING, COUNTING = "stopping", "counting every frame"
SAID = {STOPPING, COUNTING}  # stages that no other line tells of
MOST_WIDTH = 100
_SHOW_CURSOR = b"\x1b[?25h\n"
_CELL = 4
_MOST_ROWS = 4
_GOOD, _BAD, _WAITING = "green", "bold red", "color(166)"  # yellow cannot be read on white
_OUTAGE_WORDS = {"503": "answers 503", "refuse": "refuses connections"}


@dataclass(frozen=True)
class Glyphs:
    """The shapes: of Unicode, or of ASCII where the terminal has no more."""

    delivered: str = "███"
    late: str = "▓▓▓"
    owed: str = "▒▒▒"
    recording: str = "░░░"
    to_come: str = " · "
    outage: str = "▄"
    lamp: str = "●"
    good: str = "✓"
    bad: str = "✗"


UNICODE = Glyphs()
ASCII = Glyphs("###", "+++", "ooo", "...", " . ", "=", "*", "ok", "!!")


@dataclass(frozen=True)
class Picture:
    """All that is shown of one moment. `outage` in seconds since 1970, `faults` as the ingest names them."""

    stage: str = "starting"
    elapsed: float = 0.0
    seconds: int = 30
    cloud: str = ""
    frames: int = 0
    expected: int = 15
    is_recording: bool = False
    pieces: tuple[Piece, ...] = ()
    faults: tuple[str, ...] = ()
    outage: tuple[float, float] | None = None
    turned_away: int = 0
    ended: bool = False

    @property
    def owed(self) -> int:
        return len(self.pieces) - self.delivered

    @property
    def delivered(self) -> int:
        return sum(piece.delivered_at is not None for piece in self.pieces)

    @property
    def newest(self) -> Piece | None:
        """The newest of the confirmed segments."""
        confirmed = [piece for piece in self.pieces if piece.delivered_at is not None]
        return max(confirmed, key=lambda piece: piece.sequence, default=None)

    def is_late(self, piece: Piece) -> bool:
        """Tell whether the outage kept a segment waiting."""
        return self.outage is not None and Window.of(self.outage, self.pieces).delayed(piece)

    @property
    def outage_words(self) -> str:
        """What the cloud does wrong now; empty when it is up."""
        return _OUTAGE_WORDS.get(self.faults[-1], self.faults[-1]) if self.faults else ""


# --- plain lines -----------------------------------------------------------------------------------


def changes(before: Picture, now: Picture) -> list[str]:
    """Say what happened between two moments, a line each."""
    lines: list[str] = []
    if now.cloud and not before.cloud:
        lines.append(f"a local ingest listens on {now.cloud} and checks every byte")
    if now.is_recording and not before.is_recording:
        lines.append(f"capture started: {_source(now)}, a segment every {SEGMENT_SECONDS} s")
    if now.outage_words and now.outage_words != before.outage_words:
        lines.append(f"OUTAGE {'goes on' if before.faults else 'begins'}: the cloud {now.outage_words}")
    if before.faults and not now.faults:
        lines.append(f"OUTAGE over: {count(now.owed, 'segment')} owed, safe in the spool")
    lines += _segment_changes(before, now)
    if _is_caught_up(now) and not _is_caught_up(before):
        lines.append("backlog caught up: nothing owed")
    if before.is_recording and not now.is_recording:
        lines.append(f"capture ended: {count(now.frames, 'frame')}")
    if now.ended and not before.ended:
        lines.append("the cloud was told that the stream is over")
    if now.stage in SAID and now.stage != before.stage:
        lines.append(now.stage)
    return lines


def _is_caught_up(picture: Picture) -> bool:
    """Tell whether all that was owed when the outage ended is confirmed."""
    if picture.outage is None or picture.faults:
        return False
    end = picture.outage[1]
    return all(piece.delivered_at is not None for piece in picture.pieces if piece.closed_at < end)


def _segment_changes(before: Picture, now: Picture) -> list[str]:
    known = {piece.sequence: piece for piece in before.pieces}
    lines = []
    for piece in now.pieces:
        old = known.get(piece.sequence)
        if old == piece:
            continue
        wait = "" if piece.wait is None else f"delivered in {duration(piece.wait)}"
        if old is None:
            wait = f"closed ({piece.bytes / 1000:.0f} kB)" + (wait and f", {wait}")
        lines.append(f"segment {piece.sequence:2} {wait}")
    return lines


def _source(picture: Picture) -> str:
    return f"test pattern 640x360, {FPS} frames/s, {picture.seconds} s"


# --- the timeline ----------------------------------------------------------------------------------


def draw(picture: Picture, *, width: int, glyphs: Glyphs = UNICODE) -> RenderableType:
    """Return the whole display, at most `width` columns wide."""
    width = min(width, MOST_WIDTH)
    head = _spread(
        Text("relay-capture demo", style="bold"),
        Text(f"{_clock(picture.elapsed)}  {picture.stage}"),
        width,
    )
    return Group(
        Text(""),
        head,
        Text(""),
        Text.assemble("  camera   ", _source(picture), f"   {picture.frames} frames"),
        Text.assemble("  cloud    ", picture.cloud or "…", "   ", _lamp(picture, glyphs)),
        Text(""),
        *_timeline(picture, width, glyphs),
        Text(""),
        _counters(picture),
        _newest(picture),
        Text(""),
        _legend(glyphs),
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _spread(left: Text, right: Text, width: int) -> Text:
    gap = max(2, width - 4 - left.cell_len - right.cell_len)
    return Text.assemble("  ", left, " " * gap, right)


def _lamp(picture: Picture, glyphs: Glyphs) -> Text:
    if picture.outage_words:
        return Text(f" OUTAGE: {picture.outage_words} ", style="bold reverse red")
    return Text(f"{glyphs.lamp} up", style=_GOOD) if picture.cloud else Text("starting")


def _timeline(picture: Picture, width: int, glyphs: Glyphs) -> list[Text]:
    """Return rows of cells, an outage's bar above and the numbers below; the newest rows if many."""
    per_row = max(1, (width - 3) // _CELL)
    rows = [
        range(first, min(first + per_row, picture.expected + 1))
        for first in range(1, picture.expected + 1, per_row)
    ]
    current = next((at for at, row in enumerate(rows) if len(picture.pieces) + 1 in row), len(rows) - 1)
    first = max(0, current - _MOST_ROWS + 1)
    lines: list[Text] = []
    for row in rows[first : first + _MOST_ROWS]:
        lines += _row(picture, row, glyphs)
    return lines


def _row(picture: Picture, row: range, glyphs: Glyphs) -> list[Text]:
    known = {piece.sequence: piece for piece in picture.pieces}
    bar, cells, numbers = Text("  "), Text("  "), Text("  ", style="dim")
    for number in row:
        piece = known.get(number)
        is_hit = _was_out(picture, piece, number)
        bar.append(glyphs.outage * _CELL if is_hit else " " * _CELL, style="red")
        cells.append(*_cell(picture, piece, number, glyphs)).append(" ")
        numbers.append(f"{number:^3} ")
    return [bar, cells, numbers]


def _was_out(picture: Picture, piece: Piece | None, number: int) -> bool:
    """Tell whether the cloud was out while a segment was being recorded."""
    if picture.outage is None:
        return False
    begin, end = picture.outage
    if piece is None:
        return bool(picture.faults) and number == len(picture.pieces) + 1
    return piece.closed_at > begin and piece.closed_at - SEGMENT_SECONDS < end


def _cell(picture: Picture, piece: Piece | None, number: int, glyphs: Glyphs) -> tuple[str, str]:
    if piece is None:
        is_next = picture.is_recording and number == len(picture.pieces) + 1
        return (glyphs.recording, "") if is_next else (glyphs.to_come, "dim")
    if piece.delivered_at is None:
        return glyphs.owed, _WAITING
    return (glyphs.late if picture.is_late(piece) else glyphs.delivered), _GOOD


def _counters(picture: Picture) -> Text:
    size = sum(piece.bytes for piece in picture.pieces if piece.delivered_at is not None)
    owed = Text(f"{picture.owed} owed", style=f"bold {_WAITING}" if picture.owed else "")
    away = Text(f"{count(picture.turned_away, 'upload')} turned away")
    return Text.assemble(
        f"  {len(picture.pieces)} closed   {picture.delivered} delivered, {megabytes(size)}   ",
        *(owed, "   ", away),
    )


def _newest(picture: Picture) -> Text:
    newest = picture.newest
    if newest is None or newest.wait is None:
        return Text("  no segment confirmed yet")
    return Text.assemble(
        f"  newest, segment {newest.sequence}: confirmed {duration(newest.wait)} after it was closed"
    )


def _legend(glyphs: Glyphs) -> Text:
    return Text.assemble(
        *("  ", (glyphs.delivered, _GOOD), " delivered  "),
        *((glyphs.late, _GOOD), " after the outage  "),
        *((glyphs.owed, _WAITING), " owed  "),
        *(glyphs.recording, " recording  "),
        *((glyphs.outage * 2, "red"), " cloud out"),
    )


# --- the table -------------------------------------------------------------------------------------


def table(found: Sequence[Finding], figures: Sequence[Finding], glyphs: Glyphs) -> RenderableType:
    """Return the table of the end: checks with their marks, then figures without."""
    width = max(len(finding.name) for finding in (*found, *figures))
    lines = []
    for finding in found:
        mark = (glyphs.good, _GOOD) if finding.is_good else (glyphs.bad, _BAD)
        words = (finding.found, "" if finding.is_good else _BAD)
        lines.append(Text.assemble("  ", mark, f" {finding.name:<{width}}  ", words))
        if finding.problem and finding.problem != finding.found:
            lines.append(Text(f"    {'':{width}}  {finding.problem}", style=_BAD))
    indent = " " * (3 + len(glyphs.good))
    lines += [Text(f"{indent}{figure.name:<{width}}  {figure.found}") for figure in figures]
    return Group(*lines)


def verdict(result: Result, kept: str) -> Text:
    """Return the last line of a run in which every check is good."""
    text = Text.assemble(
        ("  Every frame arrived", f"bold {_GOOD}"),
        f": {result.frames_expected} of {result.frames_expected}, through a cloud outage of "
        f"{result.outage_seconds:g} s.",
    )
    return text.append(f"\n  {kept}") if kept else text


# --- the two ways to show it -----------------------------------------------------------------------


class DemoConsole(Console):
    """Standard output; colours as the terminal and NO_COLOR say. When its reader leaves, it falls silent."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else PLAIN_WIDTH
        super().__init__(file=sys.stdout, width=width, highlight=False, emoji=False, markup=False)
        self.is_broken = False

    def on_broken_pipe(self) -> None:
        """Go on without a reader: what runs must still be stopped in order."""
        self.quiet = True
        self.is_broken = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class View(Protocol):
    """Shows pictures as they come, then lets go of the terminal."""

    @property
    def is_broken(self) -> bool: ...

    def show(self, picture: Picture) -> None: ...

    def close(self) -> None: ...


class Lines:
    """One line for each change, with the seconds since the start."""

    def __init__(self, console: DemoConsole) -> None:
        self._console = console
        self._last = Picture(stage="starting")

    @property
    def is_broken(self) -> bool:
        return self._console.is_broken

    def show(self, picture: Picture) -> None:
        for line in changes(self._last, picture):
            self._console.out(f"{picture.elapsed:6.1f} s  {line}", highlight=False)
        self._last = picture

    def close(self) -> None:
        """There is nothing to let go of."""


class Screen:
    """The timeline, drawn anew in place when something on it has changed."""

    def __init__(self, console: DemoConsole) -> None:
        self._console = console
        self._last: object = None
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._live.start()

    @property
    def is_broken(self) -> bool:
        return self._console.is_broken

    def show(self, picture: Picture) -> None:
        width = self._console.width
        key = (replace(picture, elapsed=float(int(picture.elapsed))), width)
        if key != self._last:
            self._live.update(draw(picture, width=width, glyphs=choose_glyphs(self._console)), refresh=True)
        self._last = key

    def close(self) -> None:
        self._live.stop()


def choose_glyphs(console: Console) -> Glyphs:
    """Return the shapes that the output can encode."""
    return UNICODE if console.encoding.lower().startswith("utf") else ASCII


def open_view(console: DemoConsole, *, plain: bool) -> View:
    """Return the view that fits the output: lines if they are asked for, or nothing else is possible."""
    if plain or not sys.stdout.isatty() or console.is_dumb_terminal:
        return Lines(console)
    return Screen(console)


def show_cursor() -> None:
    """Give the cursor back; for a process that is about to end at once."""
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), _SHOW_CURSOR)

"""The ledger of an audit: one camera's journal, condensed, and judged by what lies in its directories."""

import zlib
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple

from capture.audit import NO_FILES, CameraReport, Finding, Gap, Kind, Listing, SessionFiles
from capture.journal import Entry, Event, day_of
from capture.segment import SegmentName, SessionName

MOST_FINDINGS = 200  # of one camera, kept with their words; all are counted
MOST_GAPS = 1000
_LARGEST_HOLE = 100_000
_WHY = {
    Kind.HOLE: "missing",
    Kind.RESTART: "left empty where ffmpeg was started anew",
    Kind.PUT_AWAY: "of days that the journal no longer holds",
}
_PAGE = 1024


def audit_entries(camera: str, entries: Iterable[Entry], listing: Listing) -> CameraReport:
    """Return the report of one camera from its journal and its directories. Pure."""
    ledger = Ledger(camera)
    for entry in entries:
        ledger.feed(entry)
    return ledger.report(listing)


class _Findings:
    """Findings: all counted, the first ones kept."""

    def __init__(self, counts: Mapping[Kind, int] | None = None, kept: Iterable[Finding] = ()) -> None:
        self.counts = Counter(counts or {})
        self.kept = list(kept)

    def add(self, kind: Kind, text: str, session: str | None = None, segment: str | None = None) -> None:
        self.counts[kind] += 1
        if len(self.kept) < MOST_FINDINGS:
            self.kept.append(Finding(kind, text, session, segment))

    def copy(self) -> "_Findings":
        return _Findings(self.counts, self.kept)


class _Numbers:
    """The sequence numbers of a session, each with a fingerprint of its name: 4 bytes a number."""

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}
        self.highest = 0

    def __contains__(self, number: int) -> bool:
        return self._get(number) != 0

    def has(self, number: int, name: str) -> bool:
        """Tell whether this very name has the number."""
        return self._get(number) == _fingerprint(name)

    def put(self, number: int, name: str) -> bool:
        """Note a number; False if another name has it."""
        page = self._pages.setdefault(number // _PAGE, array("I", bytes(4 * _PAGE)))
        old, new = page[number % _PAGE], _fingerprint(name)
        page[number % _PAGE] = old or new
        self.highest = max(self.highest, number)
        return old in {0, new}

    def _get(self, number: int) -> int:
        page = self._pages.get(number // _PAGE)
        return page[number % _PAGE] if page else 0


def _fingerprint(name: str) -> int:
    return zlib.crc32(name.encode()) or 1


class _Closed(NamedTuple):
    """What a line says of a segment's content; None where it says nothing."""

    size: int | None
    sha256: str | None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "_Closed":
        size, sha256 = fields.get("bytes"), fields.get("sha256")
        return cls(size if isinstance(size, int) else None, sha256 if isinstance(sha256, str) else None)


@dataclass
class _Session:
    """What the journal says about one session."""

    is_first: bool = False  # of all: no video before it can be missed
    is_older: bool = False  # than the first day of the journal: lines about its first numbers may be put away
    numbers: _Numbers = field(default_factory=_Numbers)
    unsettled: dict[str, _Closed] = field(default_factory=dict)
    unannounced: set[str] = field(default_factory=set)  # settled, and no line said that they were closed
    top: int = 0  # the highest number that was closed so far
    gaps_before: int | None = None  # how many gap lines stood before the line of the last closing
    holes: list[tuple[int, int]] = field(default_factory=list)  # first and last number that was passed over
    restarts: set[int] = field(default_factory=set)  # numbers that were closed first after a restart


class Ledger:
    """The journal of one camera, condensed: a few bytes for what is settled, names for what is not."""

    def __init__(self, camera: str) -> None:
        self.camera = camera
        self._sessions: dict[str, _Session] = {}
        self._outcomes: Counter[Event] = Counter()
        self._findings = _Findings()
        self._gaps: deque[Gap] = deque(maxlen=MOST_GAPS)
        self._gap_count = 0
        self._gap_seconds = 0.0
        self._gaps_before_last = 0
        self._first_day: date | None = None

    # --- the journal, line by line ---

    def feed(self, entry: Entry) -> None:
        """Take the next line."""
        self._first_day = self._first_day or day_of(entry.path)
        if entry.event is None:
            self._torn(entry, self._findings)
        elif entry.event is Event.GAP:
            self._gap(entry)
        else:
            self._line(entry, entry.event)

    def _torn(self, entry: Entry, findings: _Findings) -> None:
        findings.add(Kind.TORN, f"{_place(entry)}: the line is torn, or of another program")

    def _foreign(self, entry: Entry) -> None:
        self._findings.add(Kind.FOREIGN, f"{_place(entry)}: the line does not fit this camera's journal")

    def _gap(self, entry: Entry) -> None:
        start, end, seconds, cause = (entry.fields.get(key) for key in ("start", "end", "seconds", "cause"))
        if not (isinstance(start, str) and isinstance(end, str) and isinstance(seconds, int | float)):
            self._foreign(entry)
            return
        self._gaps.append(Gap(start, end, float(seconds), str(cause)))
        self._gap_count += 1
        self._gap_seconds += float(seconds)

    def _line(self, entry: Entry, event: Event) -> None:
        session_name, name = entry.fields.get("session"), entry.fields.get("segment")
        session = self._session(session_name)
        if session is None or not isinstance(name, str):
            self._foreign(entry)
            return
        number = _number(name)
        if number is None:
            self._foreign(entry)
            return
        is_new = number not in session.numbers
        if not session.numbers.put(number, name):
            is_new = name not in session.unsettled
            self._findings.add(
                Kind.DUPLICATE,
                f"{_place(entry)}: number {number} of {session_name} has another name already",
                str(session_name),
                name,
            )
        if event in {Event.DELIVERED, Event.DROPPED}:
            self._settle(session, entry, event, name, is_new=is_new)
        elif is_new:
            session.unsettled[name] = _Closed.of(entry.fields)
        if event in {Event.CLOSED, Event.RECOVERED}:
            session.unannounced.discard(name)
            self._advance(session, number, is_salvaged=event is Event.RECOVERED)

    def _session(self, text: object) -> _Session | None:
        if not isinstance(text, str):
            return None
        found = self._sessions.get(text)
        if found is None:
            name = SessionName.parse(text)
            if name is None or name.camera != self.camera:
                return None
            found = self._sessions[text] = _Session(
                is_first=not self._sessions,
                is_older=self._first_day is not None and self._first_day > name.began,
            )
        return found

    def _settle(self, session: _Session, entry: Entry, event: Event, name: str, *, is_new: bool) -> None:
        if name in session.unsettled:
            closed = session.unsettled.pop(name)
            if event is Event.DELIVERED:
                self._compare(entry, name, closed)
        elif not is_new:
            return  # once more: a crash between the line and the removal of the file
        else:
            session.unannounced.add(name)
        self._outcomes[event] += 1

    def _compare(self, entry: Entry, name: str, closed: _Closed) -> None:
        """Hold what was delivered against what was closed, as far as both lines say."""
        sent, session = _Closed.of(entry.fields), str(entry.fields["session"])
        if None not in {closed.size, sent.size} and sent.size not in {0, closed.size}:
            text = f"{name} was closed with {closed.size} bytes and delivered with {sent.size}"
            self._findings.add(Kind.SIZE, f"{_place(entry)}: {text}", session)
        elif None not in {closed.sha256, sent.sha256} and sent.sha256 != closed.sha256:
            text = f"{name} was delivered with other content than it was closed with"
            self._findings.add(Kind.CONTENT, f"{_place(entry)}: {text}", session)

    def _advance(self, session: _Session, number: int, *, is_salvaged: bool) -> None:
        """Follow the numbers as they were closed; note where some were passed over."""
        if is_salvaged or self._gaps_since(session):
            session.restarts.add(number)
        if number > session.top + 1:
            session.holes.append((session.top + 1, number - 1))
        session.top = max(session.top, number)
        session.gaps_before = self._gaps_before_last = self._gap_count

    def _gaps_since(self, session: _Session) -> int:
        """Count the gap lines after the last closing that a session has a line about."""
        before = self._gaps_before_last if session.gaps_before is None else session.gaps_before
        return self._gap_count - before

    # --- the judgement ---

    def report(self, listing: Listing, unfinished: Iterable[Entry] = ()) -> CameraReport:
        """Compare what was fed with what lies in the directories. May be called again, and fed on."""
        findings = self._findings.copy()
        for entry in unfinished:
            self._torn(entry, findings)
        found: Counter[str] = Counter()
        for name in sorted({*self._sessions, *listing}):
            session = self._sessions.get(name) or _Session()
            files = listing.get(name, NO_FILES)
            _Judgement(name, session, files, findings, found, gaps=self._gaps_since(session)).run()
        delivered = self._outcomes[Event.DELIVERED] + found["delivered"]
        dropped = self._outcomes[Event.DROPPED]
        return CameraReport(
            camera=self.camera,
            sessions=len({*self._sessions, *listing}),
            segments=delivered + dropped + found["owed"] + found["rejected"] + found["lost"],
            delivered=delivered,
            owed=found["owed"],
            rejected=found["rejected"],
            dropped=dropped,
            unaccounted=found["lost"],
            counts=dict(findings.counts),
            findings=tuple(findings.kept),
            gap_count=self._gap_count,
            gap_seconds=round(self._gap_seconds, 3),
            gaps=tuple(self._gaps),
        )


@dataclass
class _Judgement:
    """One session: its lines against its files."""

    name: str
    session: _Session
    files: SessionFiles
    findings: _Findings
    found: Counter[str]
    gaps: int  # gap lines after the last line about a closing
    numbers: dict[int, str] = field(default_factory=dict)  # of files that no line announced

    def run(self) -> None:
        for name, size in self.files.owed.items():
            self._owed(name, size)
        for name in self.files.rejected - self.files.owed.keys():
            if name in self.session.unsettled:
                self.found["rejected"] += 1
                self._compare(name)
            else:
                self.found["rejected"] += self._unsettled_file(name)
        for name in self.session.unsettled:
            if name not in self.files.owed and name not in self.files.rejected:
                self.found["lost"] += 1
                self._add(Kind.LOST, "was closed; it has no file and no outcome", name)
        for name in self.session.unannounced:
            self._add(Kind.UNANNOUNCED, "has an outcome, and no line announced it", name)
        for first, last, kind in self._holes():
            which = f"number {first} is" if first == last else f"numbers {first} to {last} are"
            self.findings.add(kind, f"{self.name}: {which} {_WHY[kind]}", self.name)

    def _add(self, kind: Kind, words: str, name: str) -> None:
        self.findings.add(kind, f"{self.name}/{name}: {words}", self.name, name)

    def _owed(self, name: str, size: int) -> None:
        known = name in self.session.unsettled
        if size == 0:
            if known or self._unsettled_file(name):
                self.found["delivered"] += 1
                self._add(Kind.UNJOURNALLED, "is empty: delivered, and the line follows", name)
            return
        if not known:
            self.found["owed"] += self._unsettled_file(name)
            return
        self.found["owed"] += 1
        closed = self.session.unsettled[name]
        if closed.size not in (None, size):
            self._add(Kind.SIZE, f"was closed with {closed.size} bytes and has {size}", name)
        else:
            self._compare(name)

    def _compare(self, name: str) -> None:
        closed = self.session.unsettled[name].sha256
        if closed not in (None, self.files.digests.get(name, closed)):
            self._add(Kind.CONTENT, "has other content than it was closed with", name)

    def _unsettled_file(self, name: str) -> bool:
        """Judge a file that no line announced, or whose outcome is known; tell whether it counts."""
        number = _number(name) or 0
        if self.session.numbers.has(number, name):
            self._add(Kind.STILL_PRESENT, "is settled and still there; it is sent once more", name)
            return False
        if number in self.session.numbers or number in self.numbers:
            self._add(Kind.DUPLICATE, f"number {number} has another name already", name)
        else:
            self._add(Kind.UNANNOUNCED, "is there, and no line announced it", name)
        self.numbers[number] = name
        return True

    def _holes(self) -> Iterator[tuple[int, int, Kind]]:
        here = {_number(name) or 0 for name in (*self.files.owed, *self.files.rejected)}
        highest = max(self.session.numbers.highest, *here, 0)
        for first, last in [*self.session.holes, (self.session.top + 1, highest)]:
            is_put_away = first == 1 and self.session.is_older
            if last - first > _LARGEST_HOLE:
                yield first, last, Kind.PUT_AWAY if is_put_away else Kind.HOLE
                continue
            missing = (n for n in range(first, last + 1) if not self._is_known(n, here))
            for begin, end in _runs(missing):
                is_restart = not is_put_away and self._is_restart(begin, end, highest)
                yield begin, end, Kind.PUT_AWAY if is_put_away else Kind.RESTART if is_restart else Kind.HOLE

    def _is_restart(self, first: int, last: int, highest: int) -> bool:
        """Tell whether empty files may have had these numbers. See the notes at the top of this module."""
        if last + 1 in self.session.restarts or (self.session.is_first and first == 1):
            return True
        if first <= self.session.top:
            return False
        # Salvage may have died here: it leaves one owed file without a line, on top of all others.
        is_one_below_top = first == last == highest - 1
        return self.gaps > 0 or (is_one_below_top and self.numbers.get(highest) in self.files.owed)

    def _is_known(self, number: int, here: set[int]) -> bool:
        return number in self.session.numbers or number in here or number in self.files.open


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Join rising numbers to runs without holes: first and last of each."""
    first = last = None
    for number in numbers:
        if first is not None and last is not None and number != last + 1:
            yield first, last
            first = number
        first, last = (number if first is None else first), number
    if first is not None and last is not None:
        yield first, last


def _number(name: str) -> int | None:
    """Return the sequence number of a segment's name; None for any other name."""
    segment = SegmentName.parse(name)
    return segment.sequence if segment else None


def _place(entry: Entry) -> str:
    return f"journal/{entry.path.parent.name}/{entry.path.name}:{entry.line}"

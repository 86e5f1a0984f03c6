"""The status on a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from capture.log import printable
from capture.status import BrokerStatus, CameraStatus, IngestStatus, Status
from capture.words import bytes_text, many, seconds_text

_COLUMNS = ("camera", "state", "newest", "owed", "oldest", "rejected", "in", "out", "gaps in 24 h")
# The words alone tell the states apart; colour only helps, and rich leaves it out where it does not belong.
_STYLES = {
    "recording": "green",
    "starting": "cyan",
    "no video": "bold red",
    "interrupted": "yellow",
    "never ran": "yellow",
    "switched off": "dim",
    "ended": "dim",
}


def view(status: Status) -> RenderableType:
    """Return the status as a table and a few lines. Columns that would say nothing stay away."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    left_out = set() if status.owed else {"oldest"}
    left_out |= set() if status.rejected else {"rejected"}
    chosen = [index for index, name in enumerate(_COLUMNS) if name not in left_out]
    for name in (_COLUMNS[index] for index in chosen):
        # What a narrow terminal folds; the rest stays in one piece.
        folds = name in {"camera", "newest", "owed", "gaps in 24 h"}
        table.add_column(name, overflow="fold", no_wrap=not folds, min_width=6 if folds else None)
    for camera in status.cameras:
        row = _row(camera)
        table.add_row(*(row[index] for index in chosen))
    rows: list[RenderableType] = [table] if status.cameras else [Text("no camera yet")]
    return Group(*rows, *(Text(printable(line)) for line in _lines(status)))


def _row(camera: CameraStatus) -> tuple[str | Text, ...]:
    owed = f"{camera.owed} ({bytes_text(camera.owed_bytes)})" if camera.owed else "0"
    age = camera.newest_segment_age
    return (
        camera.id,
        Text(camera.words, _STYLES.get(camera.words, "")),
        "-" if age is None else seconds_text(age),
        owed,
        seconds_text(camera.oldest_owed_age),
        str(camera.rejected),
        f"{bytes_text(camera.closed_bytes_per_second)}/s",
        f"{bytes_text(camera.delivered_bytes_per_second)}/s",
        f"{camera.gaps.count}, {seconds_text(camera.gaps.seconds)}" if camera.gaps.count else "0",
    )


def _lines(status: Status) -> list[str]:
    return [
        f"owed    {many(status.owed, 'segment')}, {bytes_text(status.owed_bytes)}; {_drain(status)}",
        f"spool   {status.spool}: {bytes_text(status.free_bytes)} free; {_full(status)}",
        f"broker  {_broker(status.broker)}",
        f"ingest  {_ingest(status.ingest)}",
    ]


def _drain(status: Status) -> str:
    if not status.owed:
        return "all delivered"
    if status.drain_seconds is None:
        return "not getting less"
    return f"all delivered in {seconds_text(status.drain_seconds)} at this rate"


def _full(status: Status) -> str:
    if status.full_in_seconds is not None:
        return f"full in {seconds_text(status.full_in_seconds)} at this rate"
    if status.full_in_seconds_without_uploads is not None:
        return f"would take {seconds_text(status.full_in_seconds_without_uploads)} without uploads"
    return "not filling up"


def _broker(broker: BrokerStatus) -> str:
    if not broker.reachable:
        return f"NOT reachable: {broker.reason}"
    waiting = ", ".join(f"{name} {count}" for name, count in broker.queues.items())
    return f"{broker.url} answers; messages: {waiting}"


def _ingest(ingest: IngestStatus) -> str:
    age = ingest.last_delivered_age
    last = "nothing delivered yet" if age is None else f"last delivery {seconds_text(age)} ago"
    match ingest.state:
        case "ok":
            return f"ok; {last}"
        case "unknown":
            return last
        case "refused":
            return f"token REFUSED since {ingest.since}: {ingest.reason}; {ingest.advice}"
        case "failing":
            return f"failing since {ingest.since} ({ingest.failures_in_a_row} times): {ingest.reason}; {last}"
        case "down":
            return f"DOWN since {ingest.since}: {ingest.reason}; one probe at a time; {last}"

"""The doctor at the cloud: whether it answers and knows each token, its clock, and whether the video fits.

No video is sent, and no camera registered.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from capture.doctor_check import Check, failed
from capture.doctor_source import Seen
from capture.errors import EXIT_REFUSED, ConfigError
from capture.gate import Gate
from capture.ingest import Answer, Ingest
from capture.settings import Settings, read_token
from capture.spool import Spool
from capture.upkeep import rejected_registrations
from capture.words import bytes_text, many, rate_text, seconds_text

KNOCK_SECONDS = 10.0
LARGEST_CLOCK_OFFSET = 5.0
HOUR = 3600.0
LONGEST_CATCH_UP = 5 * HOUR  # after an outage of an hour


def examine_ingest(settings: Settings) -> Iterator[Check]:
    """Yield what is found about the cloud, the tokens and the clock."""
    if settings.ingest.url is None:
        yield Check("fail", "ingest", "no cloud is set", "give --cloud, or set RELAY_CLOUD")
        return
    try:
        ingest = Ingest(settings.ingest)
    except ConfigError as error:
        yield failed("ingest", error)
        return
    try:
        yield from _knock_with_each(settings, settings.ingest.url, ingest)
    finally:
        ingest.close()
    yield from _registrations(settings)


def _knock_with_each(settings: Settings, url: str, ingest: Ingest) -> Iterator[Check]:
    """Try each token once: the common one, and those that cameras have for themselves."""
    clock: Check | None = None
    told = False
    for camera in _with_tokens(settings):
        what = "token" if camera is None else f"token of {camera}"
        try:
            token = read_token(settings.ingest, camera)
        except ConfigError as error:
            yield failed(what, error)
            continue
        answer = ingest.knock(token, seconds=KNOCK_SECONDS)
        if not told:
            told = True
            clock = clock_check(answer, datetime.now(UTC)) if answer.status else None
            yield from _reachable(url, answer)
        if not answer.status:
            return
        yield _token(what, answer, _held_back(settings, token))
    if clock is not None:
        yield clock


def _with_tokens(settings: Settings) -> Iterator[str | None]:
    """Yield each camera that has a token of its own, and first None where the common token is used."""
    own = settings.ingest.token_files
    enabled = [camera for camera, each in settings.cameras.items() if each.enabled]
    if not enabled or any(camera not in own for camera in enabled):
        yield None
    yield from (camera for camera in enabled if camera in own)


def _reachable(url: str, answer: Answer) -> Iterator[Check]:
    if not answer.status:
        fix = "check the address, the network and a firewall between here and there"
        yield Check("fail", "ingest", f"{url} cannot be reached: {answer.reason}", fix)
    elif answer.status >= 500:  # noqa: PLR2004 - a server's error
        fix = "nothing is lost meanwhile; ask the cloud's operator if it lasts"
        yield Check("warn", "ingest", f"{url} answers, with an error of its own ({answer.status})", fix)
    elif 300 <= answer.status < 400:  # noqa: PLR2004 - redirects
        fix = "give the address that it redirects to with --cloud"
        yield Check("warn", "ingest", f"{url} redirects ({answer.status})", fix)
    elif answer.is_page and answer.status == 200:  # noqa: PLR2004
        fix = "see whether this network wants a sign-in, and whether --cloud is the API's address"
        yield Check("warn", "ingest", f"{url} answers with a web page", fix)
    else:
        yield Check("ok", "ingest", f"{url} answers ({answer.status})")


def _token(what: str, answer: Answer, held_back: str | None) -> Check:
    if answer.status in {401, 403}:
        fix = "give the current one with RELAY_TOKEN or --token-file; then start again, or run "
        fix += "`relay-capture requeue`"
        if what != "token":
            fix = "put the current one into its token file; then run `relay-capture requeue`"
        return Check("fail", what, f"refused: {answer.reason}", fix, EXIT_REFUSED)
    if held_back:
        return Check("warn", what, held_back, "start again, or run `relay-capture requeue`")
    if not 200 <= answer.status < 300:  # noqa: PLR2004 - success
        found = f"cannot be told: GET /api/cameras is answered with {answer.status} there"
        fix = "start `up`: the first segment tells, and nothing is lost if not"
        return Check("warn", what, found, fix)
    return Check("ok", what, "accepted")


def _held_back(settings: Settings, token: str) -> str | None:
    """Return words about an earlier refusal that still keeps uploads back."""
    try:
        found = Gate(Spool.open(settings.spool.path), settings.ingest).refusal(token)
    except ConfigError:
        return None
    return f"was refused at {found.get('time')}; uploads are held back since" if found else None


def _registrations(settings: Settings) -> Iterator[Check]:
    """Yield a warning for each camera whose registration the cloud would not take; its video is sent."""
    try:
        notes = rejected_registrations(Spool.open(settings.spool.path))
    except (ConfigError, OSError):  # told where the spool is looked at
        return
    for camera, note in notes.items():
        found = f"the cloud would not register this camera at {note.get('time')}: {note.get('answer')}"
        fix = (
            "ask the cloud's operator; it is tried again every 10 minutes, and segments are sent all the same"
        )
        yield Check("warn", f"registration of {camera}", found, fix)


def clock_check(answer: Answer, now: datetime) -> Check:
    """Compare this machine's clock with the cloud's."""
    if answer.date is None:
        return Check("ok", "clock", "the cloud does not tell its time")
    offset = (now - answer.date).total_seconds()
    found = f"{abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the cloud's"
    if abs(offset) > LARGEST_CLOCK_OFFSET:
        return Check("warn", "clock", found, "set this machine's clock (NTP): segments carry its time")
    return Check("ok", "clock", "agrees with the cloud's to a few seconds")


# --- does it fit? ----------------------------------------------------------------------------------


def total_sent(seen: list[Seen]) -> float | None:
    """Return the bits per second of all cameras that could be measured; None if that is none."""
    known = [each.sent for each in seen if each.sent is not None and each.is_continuous]
    return sum(known) if known else None


def examine_uplink(settings: Settings, seen: list[Seen]) -> Iterator[Check]:
    """Yield whether the cameras' bitrates fit what the settings say about the uplink; nothing is measured."""
    total = total_sent(seen)
    if total is None:
        return
    unknown = sum(each.sent is None for each in seen)
    known = len(seen) - unknown
    found = f"{many(known, 'camera')} {'sends' if known == 1 else 'together send'} {rate_text(total)}"
    if unknown:
        found += f" (and {unknown} that could not be measured)"
    uplink = float(settings.ingest.slowest_uplink) * 8
    if "slowest_uplink" not in settings.ingest.model_fields_set:
        found += "; what the uplink carries is not known, and no video was sent to find out"
        least = bytes_text(total / 8 * 1.25)
        fix = f"set ingest.slowest_uplink to its bytes per second (at least {least}), and it is compared"
        yield Check("ok", "uplink", found, fix)
        return
    judged = f"{found}, judged by ingest.slowest_uplink ({rate_text(uplink)}), without sending video"
    if total >= uplink:
        fix = "lower the cameras' bitrates, transcode with fps or resolution, or get a faster uplink; "
        fix += "until then the backlog only grows"
        yield Check("warn", "uplink", f"{judged}: too much", fix)
        return
    catch_up = HOUR * total / (uplink - total)
    judged += f": fits; an outage of an hour takes {seconds_text(catch_up)} to make up for"
    if catch_up > LONGEST_CATCH_UP:
        yield Check("warn", "uplink", judged, "lower the cameras' bitrates, or get a faster uplink")
        return
    yield Check("ok", "uplink", judged)

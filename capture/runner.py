"""How `run` and `up` live and end: signals, the drain, and the exit code."""

import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import structlog

from capture.agent import Agent
from capture.errors import (
    EXIT_DONE,
    ConfigError,
    OwedError,
    RefusedError,
    RelayError,
)
from capture.liveness import Liveness
from capture.outcome import attempt_seconds
from capture.pulse import pulse_directory
from capture.reload import Reloader
from capture.settings import Settings
from capture.spool import MARKER, Spool
from capture.stack import Stack
from capture.words import many

TICK_SECONDS = 0.2
STEADY_TICK_SECONDS = 0.5
REMIND_SECONDS = 3.0
LEAST_DRAIN_SECONDS = 0.8
_LONGEST_ATTEMPT_BYTES = 16 * 1024 * 1024

log = structlog.get_logger()


class StopSignals:
    """SIGTERM and SIGINT: the first asks for a clean stop, the second ends the process at once.

    SIGHUP, where it is listened for, asks to read the settings anew; several that come together are one. When
    the terminal that this was started from is gone, it asks for a clean stop.
    """

    def __init__(self) -> None:
        # A plain flag: a handler that sets an Event can meet the very lock that it interrupted.
        self._asked = False
        self._reload_asked = False
        self._terminal: int | None = None
        # What a handler writes here ends a wait at once.
        self._ear, self._bell = os.pipe()
        for each in (self._ear, self._bell):
            os.set_blocking(each, False)
        self._name = ""
        self.asked_at = 0.0  # monotonic seconds

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def listen_for_reload(self) -> None:
        """Take SIGHUP, too."""
        self._terminal = next((number for number in (0, 1, 2) if os.isatty(number)), None)
        signal.signal(signal.SIGHUP, self._note_hang_up)

    def _note_hang_up(self, _number: int, _frame: FrameType | None) -> None:
        self._reload_asked = True
        self._ring()

    def take_reload(self) -> bool:
        """Tell whether a reload was asked for since the last call, however often."""
        if not self._reload_asked:
            return False
        self._reload_asked = False
        if self._terminal is None or os.isatty(self._terminal):
            return True
        if not self._asked:  # a closed window ends what runs in it, as people expect; now cleanly
            self._name = signal.Signals.SIGHUP.name
            self.ask()
        return False

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._asked:
            # All children are on a leash: they go with us. What was open is salvaged at the next start.
            os._exit(OwedError.exit_code)
        self._name = signal.Signals(number).name
        self.ask()

    @property
    def name(self) -> str:
        return self._name

    def is_asked(self) -> bool:
        return self._asked

    def ask(self) -> None:
        """Ask for a stop without a signal."""
        self.asked_at = time.monotonic()
        self._asked = True
        self._ring()

    def _ring(self) -> None:
        with suppress(OSError):  # full: it is about to be heard
            os.write(self._bell, b"\0")

    def wait(self, seconds: float) -> bool:
        """Wait for a signal, at most `seconds`; tell whether a stop is asked for."""
        if not self._asked:
            listening = select.poll()  # not select(), which knows 1024 descriptors
            listening.register(self._ear, select.POLLIN)
            listening.poll(seconds * 1000)
            with suppress(OSError):
                os.read(self._ear, 512)
        return self._asked


def live(
    agent: Agent,
    stack: Stack | None,
    settings: Settings,
    spool: Spool,
    signals: StopSignals,
    *,
    on_tick: Callable[[], None] = lambda: None,
    reloader: Reloader | None = None,
) -> int:
    """Run until the source ends, a signal comes, or the cloud refuses us; then stop and drain.

    Returns 0 when nothing is owed. Raises the RelayError that says otherwise.
    """
    alive = Liveness(pulse_directory(spool.state), "agent", disk=spool.root / MARKER)
    on_tick = alive.beating(on_tick)
    if stack is not None:
        stack.start()
    alive.watch()
    try:
        agent.start()
        advice = _watch(agent, stack, signals, on_tick, reloader or Reloader(settings))
        if signals.is_asked():
            log.info("stopping", reason=signals.name or "asked")
        alive.stopping()
        agent.stop()
        if advice is None:
            advice = _drain(agent, stack, settings, signals, on_tick)
        if stack is not None:
            stack.ask_to_stop()
        agent.close()
    finally:
        alive.end()
        if stack is not None:
            stack.stop(idle=_is_settled(agent))
    return _conclude(agent, spool, advice)


def _is_settled(agent: Agent) -> bool:
    """Tell whether nothing is left to do; a spool that cannot be read is not settled."""
    try:
        return agent.is_settled()
    except OSError:
        return False


def _owed(agent: Agent) -> int:
    """Count what is owed. Raises ConfigError when the spool cannot be read any more."""
    try:
        return agent.owed()
    except OSError as error:
        raise ConfigError(
            f"the spool cannot be read: {error.strerror}; what it owes is still there; "
            "check its file system, then start again with the same --spool"
        ) from None


def _left_open(agent: Agent) -> int:
    """Count what could not even be closed: it is salvaged later, and is no less to be sent."""
    try:
        return agent.left_open()
    except OSError:
        return 0


def _watch(
    agent: Agent,
    stack: Stack | None,
    signals: StopSignals,
    on_tick: Callable[[], None],
    reloader: Reloader,
) -> str | None:
    """Wait for the end of it; return the advice if the cloud refused the token."""
    while agent.is_running() and not signals.wait(STEADY_TICK_SECONDS if agent.is_steady() else TICK_SECONDS):
        if signals.take_reload():
            reloader.reload(agent, stack)
        agent.attend()
        if stack is not None:
            stack.check()
        if (advice := agent.refusal()) is not None:
            return advice
        on_tick()
    return None


def _drain(
    agent: Agent,
    stack: Stack | None,
    settings: Settings,
    signals: StopSignals,
    on_tick: Callable[[], None],
) -> str | None:
    """Wait until the cloud has confirmed everything; return the advice if it refuses the token.

    After a signal for `drain_timeout` seconds in all. At the end of a source for as long as something
    moves: `drain_timeout` longer than an attempt may take without a single delivery.
    """
    patience = settings.drain_timeout
    by_signal = signals.is_asked()
    if not by_signal:
        patience += attempt_seconds(settings.ingest, _LONGEST_ATTEMPT_BYTES)
    owed = _owed(agent)
    # What ffmpeg took to finish counts, so that a stop is bounded as a whole.
    # A last segment that took its time gets at least a moment.
    now = time.monotonic()
    moment = now + min(LEAST_DRAIN_SECONDS, patience)
    deadline = max(signals.asked_at + patience, moment) if by_signal else now + patience
    remind_at = time.monotonic()
    while not _is_settled(agent) and time.monotonic() < deadline:
        left = _owed(agent)
        if left == 0 < owed:  # now the sessions can be ended
            remind_at = time.monotonic()
        signals.take_reload()  # too late for one, and not for a terminal that is gone
        if not by_signal and signals.is_asked():
            by_signal, deadline = True, signals.asked_at + settings.drain_timeout
        if time.monotonic() >= remind_at:
            agent.remind()
            remind_at = time.monotonic() + REMIND_SECONDS
        if stack is not None:
            stack.check()
        if (advice := agent.refusal()) is not None:
            return advice
        if not by_signal and left < owed:
            deadline = time.monotonic() + patience
        owed = left
        on_tick()
        time.sleep(TICK_SECONDS / 2)
    return None


def _conclude(agent: Agent, spool: Spool, advice: str | None) -> int:
    owed = _owed(agent) + _left_open(agent)
    if advice is not None:
        raise RefusedError(f"{advice}; {many(owed, 'segment')} waiting in {spool.root}")
    errors: list[RelayError] = agent.errors()
    owing = OwedError(
        f"stopped with {many(owed, 'segment')} still owed, in {spool.root}; "
        "start again with the same --spool to send them"
    )
    if errors:
        if owed:  # the exit code can tell one thing only
            log.warning("segments_owed", count=owed, advice=str(owing))
        raise _together(errors)
    if owed:
        raise owing
    if rejected := agent.rejected():
        log.warning(
            "segments_rejected",
            count=rejected,
            advice="the cloud would not take them; see rejected/ in the spool; "
            "`relay-capture requeue --rejected` sends them again",
        )
    return EXIT_DONE


def _together(errors: list[RelayError]) -> RelayError:
    """Return the first failure, with the number of the others: each of them stands in the log."""
    first, *others = errors
    if not others:
        return first
    more = many(len(others), "other camera")
    return type(first)(f"{first}; and {more} failed, see the log")

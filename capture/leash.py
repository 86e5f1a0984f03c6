"""Run a command that dies with the process that started it, even when that one was killed hard.

::

    python -I -S leash.py [--resident] SIGNAL PARENT_PID -- COMMAND ARGUMENT...

On Linux it asks the kernel for SIGNAL when the parent dies and then becomes the command: no process
stays behind. The kernel means the *thread* that started us, not the process: a child started from
a thread that ends dies with that thread.

Elsewhere, with ``--resident``, or when the kernel refuses, it stays as a small parent: it hands
signals on, looks every `POLL` seconds whether its own parent is still there, and ends as the
command ended. It cannot hand on what cannot be caught, so a hard kill must go to the whole group.

A script for itself: the standard library only, and as little of it as possible, because every
start of a child waits for it. Exit codes of its own: 126 and 127 as a shell has them, 1 when the
parent was gone before the command could start.
"""

import os
import signal
import sys
from typing import NoReturn

POLL = 0.2  # seconds between two looks at the parent
PR_SET_PDEATHSIG = 1
CANNOT_START = 126
NOT_FOUND = 127
KILLED = 128
MOST_DESCRIPTORS = 65536
FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTSTP,
    signal.SIGCONT,
)


def main(arguments: list[str]) -> NoReturn:
    """Put the command on the leash and become it, or stay and watch it."""
    _undo_interpreter()
    stay = arguments[0] == "--resident"
    number, parent, separator, *command = arguments[1:] if stay else arguments
    if separator != "--" or not command:
        sys.exit("usage: leash.py [--resident] SIGNAL PARENT_PID -- COMMAND ARGUMENT...")
    bound = not stay and _bind(int(number))
    # Asked only now: a parent that died before the kernel was told will never be announced.
    if os.getppid() != int(parent):
        sys.exit(1)
    if not bound:
        _stay(int(number), int(parent), command)
    _become(command)


def _undo_interpreter() -> None:
    """Give signals back what a fresh process expects.

    Python ignores SIGPIPE and SIGXFSZ, and what is ignored stays ignored over an exec. The mask
    comes from the thread that started us, and a blocked SIGTERM would never arrive.
    """
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _bind(number: int) -> bool:
    """Ask for signal `number` on the death of the parent; tell whether the kernel agreed."""
    if sys.platform != "linux":
        return False
    try:
        import ctypes  # noqa: PLC0415  half of the start-up time, and of no use elsewhere

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return False
    return bool(prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0) == 0)


def _become(command: list[str]) -> NoReturn:
    try:
        os.execvpe(command[0], command, _environment())
    except OSError as error:
        message = f"leash: cannot start {command[0]}: {error.strerror}\n"
        os.write(2, message.encode(errors="replace"))
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_START)


def _environment() -> dict[bytes, bytes]:
    """Return the environment as it was given to us: under the C locale Python adds LC_CTYPE."""
    try:
        with open("/proc/self/environ", "rb", buffering=0) as file:  # noqa: PTH123  pathlib: 15 ms
            given = file.readall()
    except OSError:
        return dict(os.environb)
    pairs = (entry.partition(b"=") for entry in given.split(b"\0") if b"=" in entry)
    return {name: value for name, _, value in pairs if name}


def _stay(death_signal: int, parent: int, command: list[str]) -> NoReturn:
    """Start the command as our child, watch it and our parent, and end as it ended."""
    # Held back until we can hand them on: a signal in between would end us and leave the child.
    signal.pthread_sigmask(signal.SIG_BLOCK, (*FORWARDED, signal.SIGCHLD))
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _become(command)
    _let_go()
    signals = _listen()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _end_as(_watch(child, parent, death_signal, signals))


def _let_go() -> None:
    """Close what belongs to the command: a pipe or lock that we held too would outlive its use."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    limit = os.sysconf("SC_OPEN_MAX")
    os.closerange(3, limit if 0 < limit < MOST_DESCRIPTORS else MOST_DESCRIPTORS)


def _listen() -> int:
    """Turn signals into bytes on a pipe and return its reading end."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    for number in (*FORWARDED, signal.SIGCHLD):
        signal.signal(number, lambda _number, _frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _watch(child: int, parent: int, death_signal: int, signals: int) -> int:
    """Hand signals on until the child has ended; return its wait status."""
    import select  # noqa: PLC0415  only the resident needs it

    orphaned = False
    while True:
        if select.select([signals], [], [], POLL)[0]:
            for number in os.read(signals, 512):
                if number != signal.SIGCHLD:
                    os.kill(child, number)
        gone, status = os.waitpid(child, os.WNOHANG)
        if gone:
            return status
        if not orphaned and os.getppid() != parent:
            orphaned = True
            os.kill(child, death_signal)


def _end_as(status: int) -> NoReturn:
    """Exit with the same code, or die by the same signal, as the wait status says."""
    import resource  # noqa: PLC0415  only the resident needs it

    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        os._exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one core, the child's own, is enough
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    os._exit(KILLED - code)


if __name__ == "__main__":
    main(sys.argv[1:])

"""`capture.process` and its leash with real children that misbehave."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from capture.errors import ConfigError
from capture.process import DRAIN_LIMIT, LEASH, Child, LineTail, Output, Stream

ROOT = Path(__file__).parents[2]
DEADLINE = 10.0
SLEEP = ["sleep", "60"]

both_leashes = pytest.mark.parametrize("resident", [False, True], ids=["exec", "resident"])
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def python(code):
    return [sys.executable, "-I", "-S", "-c", code]


def wait_until(condition, deadline=DEADLINE):
    end = time.monotonic() + deadline
    while not (result := condition()):
        assert time.monotonic() < end, f"not within {deadline} s"
        time.sleep(0.01)
    return result


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def open_files():
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def read_until(output, expected):
    """Read until `expected` has come on standard output; return all that came there."""
    got = b""
    end = time.monotonic() + DEADLINE
    while expected not in got:
        assert time.monotonic() < end, f"only {got!r}"
        assert not output.eof, f"ended after {got!r}"
        got += b"".join(data for name, data in output.read(1.0) if name == "stdout")
    return got


def read_all(output):
    got = {"stdout": b"", "stderr": b""}
    end = time.monotonic() + DEADLINE
    while not output.eof:
        assert time.monotonic() < end, "no end of the output"
        for name, data in output.read(1.0):
            got[name] += data
    return got


def run(argv, **options):
    """Run to the end; return standard output and the exit code."""
    with Child(argv, stdout=Stream.PIPE, **options) as child, Output(child) as output:
        return read_all(output)["stdout"], child.wait(DEADLINE)


# --- what the child is given ---------------------------------------------------------------------


@both_leashes
@pytest.mark.parametrize("env", [{}, {"A": "1", "LC_CTYPE": "C"}, {"B": "x=ä\n"}])
def test_the_environment_is_exactly_what_was_given(env, resident):
    expected = b"".join(os.fsencode(f"{name}={value}\0") for name, value in env.items())
    assert run(["/usr/bin/env", "-0"], env=env, resident_leash=resident) == (expected, 0)


@both_leashes
def test_the_script_is_its_whole_standard_input(resident):
    script = os.urandom(60_000)
    assert run(["cat"], script=script, resident_leash=resident) == (script, 0)


def test_without_a_script_standard_input_is_empty():
    assert run(["cat"]) == (b"", 0)


@linux_only
def test_a_script_that_no_pipe_holds_is_refused_and_leaves_nothing_open():
    before = len(open_files())
    with pytest.raises(ValueError, match="more than a pipe holds"):
        Child(["cat"], script=b"x" * 2_000_000)
    assert len(open_files()) == before


def test_a_program_that_is_not_there_is_told_before_anything_starts():
    with pytest.raises(ConfigError, match="no program 'no-such-ffmpeg'"):
        Child(["no-such-ffmpeg"])


@both_leashes
def test_a_program_that_cannot_run_exits_as_in_a_shell(tmp_path, resident):
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF, but not really")
    program.chmod(0o755)
    with Child([str(program)], stderr=Stream.PIPE, resident_leash=resident) as child:
        if not resident:
            with Output(child) as output:
                assert b"cannot start" in read_all(output)["stderr"]
        assert child.wait(DEADLINE) == 126


@linux_only
@both_leashes
def test_signals_are_as_in_a_fresh_process_whatever_the_caller_blocked(resident):
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what nohup ignores is to stay ignored
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    try:
        wanted, _ = run(["cat", "/proc/self/status"], resident_leash=resident)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGUSR1])
        signal.signal(signal.SIGHUP, hang_up)
    sets = dict(line.split(":\t") for line in wanted.decode().splitlines() if line[:3] == "Sig")
    assert int(sets["SigBlk"], 16) == 0
    assert int(sets["SigIgn"], 16) == 0


@linux_only
def test_the_leash_leaves_no_trace_of_itself():
    with Child(SLEEP) as child:
        command = Path(f"/proc/{child.pid}/cmdline")
        wait_until(lambda: command.read_bytes() == b"sleep\x0060\0")
        assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid
        assert psutil.Process(child.pid).children() == []


@both_leashes
def test_a_lock_passed_on_is_held_by_the_child_alone(tmp_path, resident):
    path = tmp_path / "lock"
    with path.open("w") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        child = Child(SLEEP, pass_fds=[mine.fileno()], resident_leash=resident)
    with child, path.open("w") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.stop(DEADLINE)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- how it ends ---------------------------------------------------------------------------------

POLITE = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
os.write(1, b"ready")
while True: signal.pause()
"""
DEAF = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGCONT, signal.SIG_IGN)
os.write(1, b"ready")
while True: signal.pause()
"""


@both_leashes
@pytest.mark.parametrize(("code", "grace", "end"), [(POLITE, DEADLINE, 7), (DEAF, 0.2, -9)])
def test_stop_asks_first_and_kills_what_does_not_listen(code, grace, end, resident):
    with (
        Child(python(code), stdout=Stream.PIPE, resident_leash=resident) as child,
        Output(child) as output,
    ):
        read_until(output, b"ready")
        started = time.monotonic()
        assert child.stop(grace) == end
        assert time.monotonic() - started < DEADLINE / 2


@both_leashes
@pytest.mark.parametrize(("code", "grace", "end"), [(POLITE, DEADLINE, 7), (DEAF, 0.2, -9)])
def test_a_stopped_child_is_woken_to_end_or_killed_as_it_is(code, grace, end, resident):
    with (
        Child(python(code), stdout=Stream.PIPE, resident_leash=resident) as child,
        Output(child) as output,
    ):
        read_until(output, b"ready")
        child.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)
        assert child.poll() is None
        assert child.stop(grace) == end


@both_leashes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
def test_a_death_by_signal_is_reported_as_one(number, resident):
    code = f"import os, resource; resource.setrlimit(4, (0, 0)); os.kill(os.getpid(), {number:d})"
    if number == signal.SIGINT:
        code = "import signal; signal.signal(2, signal.SIG_DFL)\n" + code
    with Child(python(code), resident_leash=resident) as child:
        assert child.wait(DEADLINE) == -number
        child.kill_group()


def test_waiting_for_a_child_that_goes_on_ends_with_none():
    with Child(SLEEP) as child:
        assert child.wait(0.05) is None
        assert child.poll() is None
    assert child.poll() == -signal.SIGKILL


@linux_only
@both_leashes
def test_nothing_stays_open_when_it_is_closed(resident):
    before = open_files()
    for _ in range(3):
        run(["echo"], script=b"x", stderr=Stream.PIPE, resident_leash=resident)
    assert open_files() == before


OWNER = """
import sys, time
from capture.process import Child
child = Child(sys.argv[2:], resident_leash=sys.argv[1] == "resident")
print(child.pid, flush=True)
time.sleep(60)
"""


def start_owner(*argv):
    return subprocess.Popen([sys.executable, "-c", OWNER, *argv], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@both_leashes
def test_a_parent_that_is_killed_takes_the_child_with_it(tmp_path, resident):
    up = tmp_path / "pid"
    child = python(DEAF.replace("os.write", f"open({str(up)!r}, 'w').write(str(os.getpid()));0,"))
    with start_owner("resident" if resident else "exec", *child) as owner:
        leader = int(owner.stdout.readline())
        pid = int(wait_until(lambda: up.exists() and up.read_text()))
        assert (pid != leader) == resident
        owner.kill()
        wait_until(lambda: is_gone(pid) and is_gone(leader))


@linux_only
def test_a_child_dies_with_the_thread_that_started_it():
    children, enough = [], threading.Event()
    thread = threading.Thread(
        target=lambda: (children.append(Child(SLEEP, death_signal=signal.SIGTERM)), enough.wait())
    )
    thread.start()
    child = wait_until(lambda: children and children[0])
    with child:
        wait_until(lambda: psutil.Process(child.pid).cmdline() == SLEEP)
        enough.set()
        thread.join()
        assert child.wait(DEADLINE) == -signal.SIGTERM


@both_leashes
def test_a_command_is_not_started_when_the_parent_is_gone_already(tmp_path, resident):
    flags = ["--resident"] if resident else []
    witness = tmp_path / "witness"
    leash = [sys.executable, "-I", "-S", LEASH, *flags, "9", "1", "--", "touch", witness]
    assert subprocess.run(leash, check=False, timeout=DEADLINE).returncode == 1
    assert not witness.exists()


# --- what it says --------------------------------------------------------------------------------

FLOOD_WHEN_STOPPED = """
import os, signal
going = True
def stop(*_):
    global going
    going = False
signal.signal(signal.SIGTERM, stop)
os.write(1, b"ready")
while going: os.write(1, b"." * 4096); os.write(2, b"." * 4096)
for _ in range(512): os.write(1, b"x" * 4096); os.write(2, b"y" * 4096)
os._exit(0)
"""


@both_leashes
def test_a_child_that_must_write_megabytes_to_end_ends_while_it_is_read(resident):
    with (
        Child(
            python(FLOOD_WHEN_STOPPED),
            stdout=Stream.PIPE,
            stderr=Stream.PIPE,
            resident_leash=resident,
        ) as child,
        Output(child) as output,
    ):
        read_until(output, b"ready")
        child.terminate()
        got = read_all(output)
        assert child.wait(DEADLINE) == 0
        assert got["stdout"].count(b"x") == got["stderr"].count(b"y") == 2 * 1024 * 1024


def test_a_child_nobody_reads_is_killed_after_the_grace():
    with Child(python(FLOOD_WHEN_STOPPED), stdout=Stream.PIPE, stderr=Stream.PIPE) as child:
        with Output(child) as output:
            read_until(output, b"ready")
        assert child.stop(0.2) == -signal.SIGKILL


GRANDCHILD = """
import os, sys, time
if (pid := os.fork()) == 0:
    while {noisy}: os.write(1, b"." * 65536)
    time.sleep(60)
os.write(2, str(pid).encode())
os._exit(3)
"""


@both_leashes
@pytest.mark.parametrize("noisy", [False, True])
def test_a_grandchild_that_holds_the_pipe_is_not_waited_for_and_dies_with_the_group(noisy, resident):
    with (
        Child(
            python(GRANDCHILD.format(noisy=noisy)),
            stdout=Stream.PIPE,
            stderr=Stream.PIPE,
            resident_leash=resident,
        ) as child,
        Output(child) as output,
    ):
        grandchild = int(read_all(output)["stderr"])
        assert child.poll() == 3
        assert not is_gone(grandchild)
        child.kill_group()
        wait_until(lambda: is_gone(grandchild))


def test_the_end_of_a_child_is_noticed_where_the_kernel_has_no_pidfd(monkeypatch):
    def refuse(_pid):
        raise OSError

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    code = GRANDCHILD.format(noisy=False).replace("os._exit", "time.sleep(0.3); os._exit")
    with (
        Child(python(code), stdout=Stream.PIPE, stderr=Stream.PIPE) as child,
        Output(child) as output,
    ):
        started = time.monotonic()
        while not output.eof:
            output.read(60)
        assert time.monotonic() - started < DEADLINE / 2
        child.kill_group()


def test_what_a_dead_child_left_is_never_more_than_a_pipe_holds(monkeypatch):
    with Child(["true"], stdout=Stream.PIPE) as child, Output(child) as output:
        child.wait(DEADLINE)
        monkeypatch.setattr(output, "_take", lambda _name: b"x" * 65536)
        assert sum(len(data) for _, data in output.read(1.0)) == DRAIN_LIMIT
        assert output.eof


def test_a_stranger_that_got_the_number_of_a_dead_child_is_not_killed(monkeypatch):
    killed = []
    with Child(["true"]) as child:
        child.wait(DEADLINE)
        monkeypatch.setattr(os, "killpg", lambda *who: killed.append(who))
        monkeypatch.setattr(os, "kill", lambda _pid, _number: None)
        child.kill_group()
    assert killed == []


@both_leashes
def test_output_that_ends_before_the_child_is_told_and_the_end_of_the_child_wakes(resident):
    code = "import os, time; os.close(1); time.sleep(0.3)"
    with (
        Child(python(code), stdout=Stream.PIPE, resident_leash=resident) as child,
        Output(child) as output,
    ):
        assert read_all(output)["stdout"] == b""
        assert child.poll() is None
        started = time.monotonic()
        assert output.read(DEADLINE) == []
        assert child.wait(DEADLINE / 2) == 0
        assert time.monotonic() - started < DEADLINE / 2


def test_a_read_that_waits_is_woken_from_another_thread():
    with Child(SLEEP, stdout=Stream.PIPE) as child, Output(child) as output:
        threading.Timer(0.05, output.wake).start()
        started = time.monotonic()
        assert output.read(DEADLINE) == []
        assert time.monotonic() - started < DEADLINE / 2
        assert output.read(0.01) == []
    output.wake()


def test_a_wake_before_the_read_is_not_lost_and_many_are_one():
    with Child(SLEEP, stdout=Stream.PIPE) as child, Output(child) as output:
        for _ in range(10_000):
            output.wake()
        started = time.monotonic()
        assert output.read(DEADLINE) == []
        assert time.monotonic() - started < DEADLINE / 2


def test_what_a_child_said_before_it_died_is_in_the_tail():
    code = "import os; os.write(2, b'\\n'.join(b'line %d' % i for i in range(2000))); os._exit(1)"
    tail = LineTail(maxlen=3)
    with Child(python(code), stderr=Stream.PIPE) as child:
        child.wait(DEADLINE)
        with Output(child) as output:
            while not output.eof:
                for _, data in output.read(1.0):
                    tail.feed(data)
    assert tail.lines() == ["line 1997", "line 1998", "line 1999"]


def test_output_can_go_to_a_file(tmp_path):
    with (tmp_path / "log").open("w") as log:
        child = Child(["sh", "-c", "echo out; echo err >&2"], stdout=log.fileno(), stderr=log.fileno())
    with child:
        assert child.wait(DEADLINE) == 0
        assert (child.stdout_fd, child.stderr_fd) == (None, None)
    assert (tmp_path / "log").read_text() == "out\nerr\n"

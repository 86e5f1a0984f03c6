"""A chaos run: several cameras, faults drawn from a seed, then calm, then the judge.

scripts/chaos --minutes 2 --seed 1
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import redis

from capture.sink import Fault, Sink
from tests.chaos.oracle import Witness, judge

COMMAND = Path(sys.executable).with_name("relay-capture")
TOKEN = "chaos-token"
CURRENT_SECONDS = 10.0
SETTLE_SECONDS = 120.0


class Relay:
    """The installed `up`, started again whenever it was killed."""

    def __init__(self, folder: Path, url: str, cameras: int) -> None:
        self.folder = folder
        self.spool = folder / "spool"
        config = [f'[cameras.cam{n}]\nsource = "test:320x180@25"\n' for n in range(cameras)]
        (folder / "relay.toml").write_text("\n".join(config))
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TMPDIR": str(folder / "tmp"),
            "RELAY_CLOUD": url,
            "RELAY_TOKEN": TOKEN,
            "RELAY_SPOOL": str(self.spool),
            "RELAY_DEFAULTS__SEGMENT_SECONDS": "1",
            "RELAY_SPOOL__RECOVER_AFTER": "2",
            "RELAY_INGEST__ATTEMPT_SECONDS": "3",
            "RELAY_INGEST__ON_REFUSED": "hold",
            "RELAY_INGEST__HOLD_PROBE_EVERY": "1",
        }
        (folder / "tmp").mkdir()
        self.process: psutil.Popen | None = None
        self.everyone: dict[int, psutil.Process] = {}

    def start(self) -> None:
        log = (self.folder / "relay.log").open("ab")
        self.process = psutil.Popen(
            [COMMAND, "up", "--config", self.folder / "relay.toml"], env=self.environment, stderr=log
        )
        log.close()

    def ensure(self) -> None:
        if self.process is None or self.process.poll() is not None:
            self.start()

    def children(self, word: str) -> list[psutil.Process]:
        """Return descendants whose command line holds a word."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for child in self.process.children(recursive=True) if self.process else []:
                self.everyone[child.pid] = child
                with suppress(psutil.NoSuchProcess):
                    if word in " ".join(child.cmdline()):
                        found.append(child)
        return found

    def left(self) -> list[psutil.Process]:
        """Return processes that were ever seen and still run."""
        return [process for process in self.everyone.values() if process.is_running()]


class Chaos:
    """The workload of faults."""

    def __init__(self, relay: Relay, sink: Sink, dice: random.Random) -> None:
        self.relay, self.sink, self.dice = relay, sink, dice
        self.done: Counter[str] = Counter()
        self.faults: dict[str, Callable[[], None]] = {
            "kill up": self._kill_up,
            "kill ffmpeg": lambda: self._kill("ffmpeg"),
            "kill worker parent": lambda: self._kill_worker(parent=True),
            "kill worker child": lambda: self._kill_worker(parent=False),
            "kill beat": lambda: self._kill(" beat "),
            "kill broker": lambda: self._kill("valkey"),
            "flush broker": self._flush,
            "freeze something": self._freeze,
            **{f"ingest {kind}": lambda kind=kind: self._ingest(kind) for kind in INGEST},
        }

    def strike(self) -> None:
        name = self.dice.choice(sorted(self.faults))
        with suppress(psutil.NoSuchProcess):
            self.faults[name]()
            self.done[name] += 1

    def _kill_up(self) -> None:
        if self.relay.process is not None:
            self.relay.children("")
            self.relay.process.kill()
            self.relay.process.wait()
            time.sleep(self.dice.uniform(0.0, 1.5))

    def _kill(self, word: str) -> None:
        found = self.relay.children(word)
        if found:
            self.dice.choice(found).kill()

    def _kill_worker(self, *, parent: bool) -> None:
        workers = self.relay.children(" worker ")
        pids = {worker.pid for worker in workers}
        found = [worker for worker in workers if (worker.ppid() not in pids) is parent]
        if found:
            self.dice.choice(found).kill()

    def _flush(self) -> None:
        for path in (self.relay.folder / "tmp").glob("relay-capture-*/broker.sock"):
            with suppress(redis.RedisError), redis.Redis(unix_socket_path=str(path)) as client:
                client.flushall()

    def _freeze(self) -> None:
        found = self.relay.children("")
        if not found:
            return
        victim = self.dice.choice(found)
        victim.send_signal(signal.SIGSTOP)
        time.sleep(self.dice.uniform(0.5, 4.0))
        victim.send_signal(signal.SIGCONT)

    def _ingest(self, kind: str) -> None:
        text = f"{kind}+{self.dice.uniform(0.5, 6.0):.1f}"
        self.sink.faults.add(Fault.parse(f"{text}:path=any,method=any"))


INGEST = ("503", "401", "429", "hang", "reset", "lost", "half", "trickle", "refuse")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--keep", type=Path, help="keep spool, ingest and log in this new directory")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir()
        sys.exit(run(options.keep.absolute(), options))
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        sys.exit(run(Path(folder), options))


def run(folder: Path, options: argparse.Namespace) -> int:
    with Sink(folder / "ingest", token=TOKEN) as sink:
        relay = Relay(folder, sink.url, options.cameras)
        chaos = Chaos(relay, sink, random.Random(options.seed))
        witness = Witness(relay.spool, folder / "kept")
        witness.start()
        problems: list[str] = []
        try:
            relay.start()
            storm(relay, chaos, options.minutes * 60)
            sink.faults.clear()
            relay.ensure()
            problems += calm(relay, sink, options.cameras)
            problems += stop(relay)
        finally:
            if relay.process is not None and relay.process.poll() is None:
                relay.process.kill()
            witness.stop()
        verdict = judge(list(witness.seen()), relay.spool, folder / "ingest")
        problems += verdict.problems
        audit = subprocess.run(
            [COMMAND, "audit", "--spool", relay.spool], capture_output=True, text=True, check=False
        )
        if audit.returncode:
            problems.append(f"audit does not agree: {audit.stdout}{audit.stderr}")
        report(options, chaos, sink, verdict, problems)
        if problems:
            print((folder / "relay.log").read_text(errors="replace")[-4000:])
    return 1 if problems else 0


def storm(relay: Relay, chaos: Chaos, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(chaos.dice.uniform(0.5, 3.0))
        relay.ensure()
        chaos.strike()
        print(".", end="", flush=True)
    print()


def calm(relay: Relay, sink: Sink, cameras: int) -> list[str]:
    """Wait until new video passes again, then until nothing is owed."""
    began = time.time()
    while (
        len({r.camera for r in sink.receipts() if r.received_at > began and begins_after(r.start, began)})
        < cameras
    ):
        if time.time() - began > SETTLE_SECONDS:
            return ["no fresh segment of every camera passed after the storm"]
        relay.ensure()
        time.sleep(0.1)
    fresh = time.time() - began
    print(f"fresh video of all cameras after {fresh:.1f} s of calm")
    late = (
        [f"fresh video took {fresh:.1f} s, more than {CURRENT_SECONDS:.0f} s"]
        if fresh > CURRENT_SECONDS
        else []
    )
    while owed(relay.spool) > 2 * cameras:
        if time.time() - began > SETTLE_SECONDS:
            return [*late, f"{owed(relay.spool)} segments still owed after {SETTLE_SECONDS:.0f} s of calm"]
        time.sleep(0.2)
    print(f"backlog gone after {time.time() - began:.1f} s")
    return late


def begins_after(start: str, moment: float) -> bool:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))
    return start > stamp


def owed(spool: Path) -> int:
    return sum(1 for _ in spool.glob("relay-segments-*/*_*.ts"))


def stop(relay: Relay) -> list[str]:
    relay.children("")
    if relay.process is None:
        return ["never started"]
    relay.process.terminate()
    problems = []
    try:
        code = relay.process.wait(20)
        problems += [f"the last stop ended with {code}"] if code else []
    except psutil.TimeoutExpired:
        problems.append("the last stop took more than 20 s")
    deadline = time.monotonic() + 5
    while relay.left() and time.monotonic() < deadline:
        time.sleep(0.1)
    problems += [f"left running: {process}" for process in relay.left()]
    problems += [f"left behind: {path}" for path in (relay.folder / "tmp").iterdir()]
    return problems


def report(options, chaos, sink, verdict, problems) -> None:
    print(f"seed {options.seed}, {options.minutes:g} min, {options.cameras} cameras")
    print("faults: " + ", ".join(f"{count} {name}" for name, count in sorted(chaos.done.items())))
    duplicates = sum(receipt.duplicates for receipt in sink.receipts())
    print(
        f"segments written {verdict.segments} = delivered {verdict.delivered} + owed {verdict.owed}"
        f" + explained {verdict.explained}; sent twice {duplicates}"
    )
    for problem in problems:
        print(f"PROBLEM {problem}")
    print("nothing was lost" if not problems else f"{len(problems)} problems")


if __name__ == "__main__":
    main()

"""Segments over a line with a round-trip time, a limited rate and TLS: what keeping the connection is worth.

    python -m benchmarks.wan [--rate 20Mbit] [--rtts 0.02,0.08,0.2] [--size 256KiB] [--segments 40]

The same segments, one after the other, (a) by the relay's client, which keeps its connection, (b) by the same
client made anew for each segment, as a relay does that opens a connection each time, (c) by two and three
of (a) side by side, as a worker's processes are. Each gets the line for itself; the order changes with each
round. The ideal is the bytes divided by the line's rate. The line (benchmarks/line.py) knows no slow start:
a real one costs (b) more.
"""

import argparse
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.backlog import video
from benchmarks.discard import discarding
from benchmarks.figures import MIB, environment, environment_lines, spread, table, write_figures
from benchmarks.line import line_process, parse_rate
from benchmarks.rate_cap import segments
from capture.claim import claim
from capture.ingest import Ingest, tls_context
from capture.segment import SegmentName, SessionName
from capture.settings import IngestSettings
from capture.spool import Spool

WAYS = {"kept": 1, "new for each": 1, "kept, two at once": 2, "kept, three at once": 3}


def certificate(folder: Path) -> Path:
    """Make a certificate for this machine's own address; return the PEM file with it and its key."""
    key, cert, both = folder / "key.pem", folder / "cert.pem", folder / "both.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run(
        [*command, "-days", "2", *names, "-keyout", key, "-out", cert], check=True, capture_output=True
    )
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    return both


class Sender:
    """Sends owed segments, without ever settling them, so that they can be sent again."""

    def __init__(self, url: str, ca_file: Path, spool: Spool) -> None:
        self._settings = IngestSettings(url=url, ca_file=ca_file)
        self._tls = tls_context(ca_file)
        self._spool = spool

    def send(self, names: list[tuple[SessionName, SegmentName]], *, keep: bool) -> None:
        ingest = Ingest(self._settings, tls=self._tls)
        for each in names:
            found = claim(self._spool, *each)
            assert found is not None  # noqa: S101 - nobody else has it
            with found:
                outcome, _ = ingest.send_segment(found, "benchmark")
            if outcome.status != 204:
                raise RuntimeError(outcome.reason)
            if not keep:
                ingest.close()
                ingest = Ingest(self._settings, tls=self._tls)
        ingest.close()

    def at_once(self, names: list[tuple[SessionName, SegmentName]], lanes: int, *, keep: bool) -> float:
        """Return the seconds that it took."""
        threads = [
            threading.Thread(target=self.send, args=(names[lane::lanes],), kwargs={"keep": keep})
            for lane in range(lanes)
        ]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - began


def measure(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    pem = certificate(folder)
    spool = Spool.open(folder / "spool", create=True)
    names = segments(spool, options.segments, video(options.size))
    ideal = options.segments * options.size / options.rate
    found: dict[str, dict[str, list[float]]] = {}
    with discarding(pem) as server:
        for rtt in options.rtts:
            with line_process(server.port, rate=options.rate, rtt=rtt) as port:
                sender = Sender(f"https://127.0.0.1:{port}", pem, spool)
                shares: dict[str, list[float]] = {name: [] for name in WAYS}
                for number in range(options.repeat):
                    ways = list(WAYS.items())
                    for name, lanes in ways[number % len(ways) :] + ways[: number % len(ways)]:
                        seconds = sender.at_once(names, lanes, keep="new" not in name)
                        shares[name].append(ideal / seconds)
            found[f"{rtt:g}"] = shares
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=parse_rate, default="20Mbit", help="of the line, upstream  [20Mbit]")
    parser.add_argument(
        "--rtts", type=lambda text: [float(each) for each in text.split(",")], default="0.02,0.08,0.2"
    )
    parser.add_argument("--size", type=int, default=MIB // 4, help="of a segment, in bytes  [262144]")
    parser.add_argument("--segments", type=int, default=40, help="for each measurement  [40]")
    parser.add_argument("--repeat", type=int, default=3, help="rounds  [3]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    print(f"{environment_lines()}\n{options.rate * 8 / 1e6:g} Mbit/s, {options.segments} segments, TLS\n")
    with tempfile.TemporaryDirectory(prefix="wan-") as name:
        found = measure(Path(name), options)
    rows = [
        [
            f"{float(rtt) * 1000:g} ms",
            *(spread([100 * share for share in shares[way]], ".0f") for way in WAYS),
        ]
        for rtt, shares in found.items()
    ]
    print("share of the line's rate that segments get, %\n")
    print(table(["round trip", *WAYS], rows))
    write_figures(options.json, {"environment": environment(), "shares": found})


if __name__ == "__main__":
    main()

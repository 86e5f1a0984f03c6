"""The benchmarks run as they are written down, in short: what they use of the product is still there."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(name: str, *options: str, folder: Path) -> tuple[dict, str]:
    """Run one; a verdict of FAIL is allowed in so short a time, anything else is not."""
    found = folder / "figures.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(found), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(found.read_text()), done.stdout


def test_live_first_measures_both_and_loses_nothing(tmp_path):
    line = ["--rate", "80Mbit", "--rtt", "0.005"]
    options = [
        "--segments",
        "400",
        "--size",
        "20000",
        "--every",
        "0.3",
        "--repeat",
        "1",
        "--bare-seconds",
        "0.5",
    ]
    found, words = run("live_first", *line, *options, "--seconds", "6", "--settle", "0.2", folder=tmp_path)
    without, with_backlog = found["phases"]
    assert (without["owed_before"], with_backlog["owed_before"]) == (0, 400)
    assert without["waits"]
    assert with_backlog["waits"]
    assert None not in without["waits"] + with_backlog["waits"]
    assert with_backlog["drained_bytes"] > 0
    assert found["problems"] == []
    assert "PASS  nothing is lost" in words


def test_the_outage_counts_what_the_ingest_was_asked(tmp_path):
    options = ["--how", "503", "--cameras", "2", "--segment", "1", "--settle", "1", "--after", "2"]
    found, words = run("outage", *options, "--minutes", "0.15", "--before", "0.05", folder=tmp_path)
    (outage,) = found["outages"]
    assert sum(outage["requests_per_minute"]) > 0
    assert outage["owed_at_return"] > 0
    assert outage["current_after"] is not None
    assert (outage["audit"], outage["exit_code"], outage["owed_at_end"]) == (0, 0, 0)
    assert "PASS  nothing is lost" in words


def test_the_soak_follows_every_process_and_counts_every_segment(tmp_path):
    options = ["--every", "3", "--warm-up", "0", "--cameras", "2", "--with-outages", "--outage-every", "4"]
    found, words = run("soak", "--minutes", "0.15", *options, folder=tmp_path)
    names = {trend["process"].removesuffix(" child") for trend in found["trends"]}
    assert {"agent (up)", "beat", "valkey", "ffmpeg cam0", "ffmpeg cam1"} <= names
    assert any(name.startswith("worker") for name in names)
    assert found["outages"] > 0
    assert found["closed"] == found["confirmed"] == found["arrived"] > 0
    assert "PASS  nothing is lost" in words


def test_many_cameras_are_measured_against_as_many_bare_ffmpegs(tmp_path):
    options = ["--cameras", "1,2", "--repeat", "1", "--seconds", "1", "--settle", "0", "--segment", "1"]
    found, words = run("many_cameras", *options, folder=tmp_path)
    kinds = [(sample["kind"], sample["cameras"]) for sample in found["samples"]]
    assert kinds == [("bare", 1), ("up", 1), ("bare", 2), ("up", 2)]
    for sample in found["samples"]:
        assert all(pss > 0 for pss in sample["pss"].values())
        assert (sample["exit_code"], sample["problems"]) == (0, "")
    _, one, _, two = found["samples"]
    assert (two["agent_threads"] - one["agent_threads"], two["agent_fds"] > one["agent_fds"]) == (1, True)
    assert found["agent_mib"]["base"] > 0
    assert "PASS  nothing is lost" in words


def test_what_an_outage_left_behind_is_gone_after_a_while_beside_new_video(tmp_path):
    options = ["--outage", "--minutes", "0.1", "--rtts", "0.05", "--cameras", "2", "--segment", "1"]
    found, words = run("wan", *options, "--settle", "1", "--normal", "3", folder=tmp_path)
    (drain,) = found["drains"]
    assert drain["owed_segments"] >= 12
    assert drain["owed_bytes"] > drain["live_bytes"] > 0
    assert 0 < drain["seconds"] < 120
    assert drain["normal"]
    assert drain["beside"]
    assert drain["problems"] == ""
    assert "PASS  nothing is lost" in words

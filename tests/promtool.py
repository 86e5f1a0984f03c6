"""Prometheus' own tool, as tests use it; where it is not installed they are skipped, except in CI."""

import os
import shutil
import subprocess

import pytest

HINT = "promtool is missing: it is in Debian's package prometheus"


def promtool(*arguments: object, text: bytes = b"") -> str:
    """Run promtool; what it says is the answer, and any complaint a failure."""
    program = shutil.which("promtool")
    if program is None:
        return pytest.fail(HINT) if os.environ.get("CI") else pytest.skip(HINT)
    done = subprocess.run(
        [program, *map(str, arguments)], input=text, capture_output=True, check=False, timeout=60
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def check_metrics(text: bytes) -> None:
    """Hold a scrape to Prometheus' rules for names, types, units and help."""
    assert promtool("check", "metrics", text=text).strip() == ""

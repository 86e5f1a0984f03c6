"""A file system of a few megabytes that a test can fill, with root and, where the kernel allows, without."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, megabytes: int, *, inodes: int | None = None) -> Iterator[Path]:
    """Mount a tmpfs at `folder`; yields the path by which this process reaches it.

    Without root it is mounted in a namespace of its own, and reached through the process that lives there.
    """
    options = f"size={megabytes}m" + (f",nr_inodes={inodes}" if inodes else "")
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return
    if shutil.which("unshare") is None:
        _cannot("no unshare command here")
    script = '"$@" && echo mounted && exec cat'
    with subprocess.Popen(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *mount],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stderr
        if holder.stdout.readline() != b"mounted\n":
            _cannot(holder.stderr.read().decode(errors="replace").strip())
        try:
            yield Path(f"/proc/{holder.pid}/root{folder.resolve()}")
        finally:
            holder.stdin.close()  # its end takes the namespace and the mount with it


def _cannot(reason: str) -> None:
    message = f"this kernel lets this user mount no tmpfs, not even in a namespace of its own: {reason}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def fill_up(directory: Path) -> Path:
    """Take all room that is left; return the file that has it."""
    path = directory / "filler"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (1 << 20, 4096, 1):
            try:
                while os.write(descriptor, b"x" * size):
                    pass
            except OSError:
                continue
    finally:
        os.close(descriptor)
    return path


def use_up_inodes(directory: Path) -> list[Path]:
    """Make empty files until no more can be made; return them."""
    made = []
    while True:
        path = directory / f"filler-{len(made)}"
        try:
            path.touch()
        except OSError:
            return made
        made.append(path)

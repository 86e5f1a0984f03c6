"""Files of removed segments are closed beside the next upload.

Closing the last descriptor of a removed file frees its pages and waits for its file system: a seventh of the
time of a backlog on a fast line.
"""

import contextlib
import queue
import threading
from typing import BinaryIO

MOST = 8  # that wait; more are closed by whoever brings them, so that none can pile up


class Closer:
    """Closes files in a thread of its own, which begins with the first. One for each process."""

    def __init__(self) -> None:
        self._files: queue.Queue[BinaryIO] = queue.Queue(MOST)
        self._thread: threading.Thread | None = None

    def close(self, file: BinaryIO) -> None:
        """Have a file closed soon, or close it."""
        try:
            self._begin()
            self._files.put_nowait(file)
        except (queue.Full, RuntimeError):  # no room; no thread
            file.close()

    def _begin(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="closer", daemon=True)
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # what it held is delivered, and its name is gone
                self._files.get().close()

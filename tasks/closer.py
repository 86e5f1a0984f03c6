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
        # Of the two kinds of queue the one that a time limit cannot leave locked.
        self._files: queue.SimpleQueue[BinaryIO] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def close(self, file: BinaryIO) -> None:
        """Have a file closed soon, or close it."""
        if self._files.qsize() < MOST and self._has_begun():
            self._files.put(file)
        else:
            file.close()

    def _has_begun(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="closer", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has none left
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # what it held is delivered, and its name is gone
                self._files.get().close()

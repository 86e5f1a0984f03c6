"""Wall time for what is written down, monotonic time for what is measured; both replaceable."""

import time
from datetime import UTC, datetime


class Clock:
    """The real clocks. Tests step their own."""

    def now(self) -> datetime:
        """Return the wall time in UTC."""
        return datetime.now(UTC)

    def time(self) -> float:
        """Return the wall time in seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that only ever grow; for durations."""
        return time.monotonic()

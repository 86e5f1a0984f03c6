"""Amounts in words: for people, never for machines."""

_STEPS = ((86400.0, "d", 3600.0, "h"), (3600.0, "h", 60.0, "min"), (60.0, "min", 1.0, "s"))


def seconds_text(seconds: float | None) -> str:
    """Return a duration like ``3.2 s``, ``4 min 10 s``, ``2 h 5 min`` or ``3 d 4 h``; ``-`` for None."""
    if seconds is None:
        return "-"
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{max(0.0, seconds):.1f} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004
    for size, unit, smaller, smaller_unit in _STEPS:
        if seconds >= size:
            whole, rest = divmod(round(seconds / smaller), round(size / smaller))
            return f"{whole} {unit} {rest} {smaller_unit}" if rest else f"{whole} {unit}"
    raise AssertionError(seconds)


def many(count: int, thing: str) -> str:
    """Return a count and its thing, like ``1 segment`` or ``3 segments``."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def bytes_text(size: float) -> str:
    """Return an amount of bytes like ``800 B``, ``1.2 MB`` or ``35 GB``, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:  # noqa: PLR2004 - what still has three digits
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def rate_text(bits_per_second: float) -> str:
    """Return a rate like ``800 bit/s``, ``512 kbit/s`` or ``2.1 Mbit/s``."""
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bits_per_second < 999.5:  # noqa: PLR2004 - what still has three digits
            return f"{bits_per_second:.3g} {unit}"
        bits_per_second /= 1000
    return f"{bits_per_second:.3g} Gbit/s"

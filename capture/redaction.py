"""Taking secrets out of texts, in whatever spelling a program or a server repeats them. Pure.

An answer quotes a key as JSON, as HTML, percent-encoded; a log prints it as Python's repr; a page that was
read in the wrong encoding garbles it. So a secret is looked for character by character, each in all its
spellings.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby

MASK = "***"

_LOGIN_IN_TEXT = re.compile(r"(:/{1,2})[^\s'\"<>]*@")  # a path that was made of a URL has one slash
_WHOLE_WORD_BELOW = 4
# A text of this length may have been cut: ffmpeg cuts its lines at 1024 bytes, and we an answer at 512.
_MAYBE_CUT_FROM = 500
_SHORTEST_REST = 4
# After a line that it cut, ffmpeg goes on without a line end.
_CUT = re.compile(r"(?:[%\\&][\w#%\\;]{0,11})?(?:\Z|(?=\[[^\s\]]+ @ 0x))")
_NAMED = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}
# Every repetition has a bound: a hostile line of nothing but backslashes must not keep a camera waiting.
_SLASHES = r"\\{0,8}"
_ESCAPE = r"\\{1,8}"
_PERCENT = "%(?:25){0,4}"
_AND = "&(?:amp;){0,4}"
_BACKSLASHES = rf"(?:\\|{_PERCENT}5[cC]|&#(?:92|x5[cC]);){{1,64}}"


def redact(text: str, secrets: Iterable[str]) -> str:
    """Mask the given secrets, and the user and password of any URL, in `text`.

    A secret of less than four characters is masked only where it stands alone: masking every "a"
    would leave nothing to read, and tell what the password is.
    """
    known = tuple(sorted({secret for secret in secrets if secret}, key=lambda each: (-len(each), each)))
    if known:
        text = _pattern(known).sub(MASK, text)
        if len(text) >= _MAYBE_CUT_FROM:
            text = _without_cut_secrets(text, known)
    return _LOGIN_IN_TEXT.sub(rf"\g<1>{MASK}@", text)


@lru_cache(maxsize=256)
def _pattern(secrets: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(_secret_pattern, secrets)))


def _secret_pattern(secret: str) -> str:
    spelled = "".join(_parts(secret))
    if "+" in secret and any(char.isspace() for char in secret):  # forms write blanks so, and a plus as %2B
        spelled = f"(?:{spelled}|{''.join(_parts(secret, as_form=True))})"
    return spelled if len(secret) >= _WHOLE_WORD_BELOW else rf"(?<!\w){spelled}(?!\w)"


@lru_cache(maxsize=1024)
def _parts(secret: str, *, as_form: bool = False) -> tuple[str, ...]:
    """Return a pattern for each character.

    A run of blanks, which many programs shorten, is one; so is a run of backslashes: with a pattern for
    each, a line of nothing but backslashes could be matched in endless ways.
    """
    found = []
    after_backslash = False
    for kind, group in groupby(secret, key=lambda char: " " if char.isspace() else char):
        run = list(group)
        if kind == " ":
            found.append(_blanks(set(run), plus=as_form or "+" not in secret))
        elif kind == "+" and as_form:
            found += [f"{_PERCENT}2[bB]"] * len(run)
        elif kind == "\\":
            found.append(_BACKSLASHES)
        else:
            found += [_spelled(kind, escapes=not after_backslash), *[_spelled(kind)] * (len(run) - 1)]
        after_backslash = kind == "\\"
    return tuple(found)


def _blanks(kinds: set[str], *, plus: bool) -> str:
    ways = [r"\s", "&nbsp;", *(_spelled(each, escapes=False) for each in sorted(kinds))]
    # Atomic: a blank that could be read in two ways would make a run of them one of endless ways.
    return f"(?>{'|'.join([*ways, *([r'[+]'] if plus else [])])}){{1,64}}"


def _spelled(char: str, *, escapes: bool = True) -> str:
    """Return a pattern for one character; `escapes` if backslashes before it may be no characters."""
    if char.isascii() and char.isalnum():
        return char
    code = ord(char)
    slashes = _SLASHES if escapes else ""
    ways = [slashes + re.escape(char)] if char.isascii() else [re.escape(char), r"\?", "\ufffd"]
    if char == "%":
        ways = [slashes + _PERCENT]
    elif char == "&":
        ways = [slashes + _AND]
    elif char == "'":
        ways = [rf"'{_ESCAPE}''", *ways]  # as in a script for a shell or ffmpeg
    ways += [_percents(each) for each in _encodings(char)]
    ways += [f"{_ESCAPE}u{unit}" if len(unit) == 4 else f"{_ESCAPE}U{unit}" for unit in _escapes(char)]  # noqa: PLR2004
    ways += ["".join(f"{_ESCAPE}x{byte:02x}" for byte in each) for each in _encodings(char)]
    ways.append(rf"{_AND}#(?:0*{code}|x0*{code:x});")
    if name := _NAMED.get(char):
        ways.append(f"{_AND}{name};")
    if not char.isascii():
        ways += [re.escape(each) for each in _misread(char)]
    return f"(?i:{'|'.join(ways)})"


def _percents(content: bytes) -> str:
    return "".join(f"{_PERCENT}{byte:02x}" for byte in content)


def _encodings(char: str) -> list[bytes]:
    """Return the bytes of a character in UTF-8, and in Latin-1 if it is in it."""
    utf8 = char.encode("utf-8", "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass")
    latin1 = char.encode("latin-1", "ignore")
    return [utf8, latin1] if latin1 and latin1 != utf8 else [utf8]


def _escapes(char: str) -> list[str]:
    """Return its code as JSON and Python write it after a backslash and u or U."""
    units = char.encode("utf-16-be", "surrogatepass").hex()
    pairs = [units[at : at + 4] for at in range(0, len(units), 4)]
    return [f"{_ESCAPE}u".join(pairs), f"{ord(char):08x}"] if len(pairs) > 1 else [units]


def _misread(char: str) -> set[str]:
    """Return what becomes of its UTF-8 in the hands of who takes it for another encoding."""
    content = _encodings(char)[0]
    return {content.decode("latin-1"), content.decode("cp1252", "replace")} - {char}


def _without_cut_secrets(text: str, secrets: tuple[str, ...]) -> str:
    """Mask the beginning of a secret whose rest was cut off."""
    for secret in secrets:
        parts = _parts(secret)
        if len(parts) > _SHORTEST_REST:
            head = re.compile("".join(parts[:_SHORTEST_REST]))
            # The first that was cut wins: what a secret repeats of its own beginning is within it.
            for found in head.finditer(text):
                end = _end_of_cut(text, found.end(), parts[_SHORTEST_REST:])
                if end is not None:
                    return _without_cut_secrets(text[: found.start()] + MASK + text[end:], secrets)
    return text


def _end_of_cut(text: str, at: int, parts: tuple[str, ...]) -> int | None:
    """Return where a secret that begins before `at` was cut; None where it goes on as something else."""
    for part in parts:
        if cut := _CUT.match(text, at):
            return cut.end()
        found = re.compile(part).match(text, at)
        if found is None:
            return None
        at = found.end()
    return None

"""Made-up secrets of odd characters, and a search that finds each of them in whatever spelling.

Every secret has marks in it: at its beginning, in its middle and at its end. A mark is letters and digits
alone, so that it survives any escaping of a text, and also shows a secret that was masked in part. All marks
of one search begin alike: one look for that beginning, as it is and in the encodings that change letters,
finds all of them.
"""

import base64
import hashlib
import html
import json
import random
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, quote_plus

FAMILY_LENGTH = 6
MARK_LENGTH = FAMILY_LENGTH + 3  # two tell which it is; of the last one base64 may leave nothing
CONTEXT_BYTES = 100
LETTERS = string.ascii_letters + string.digits

URL_SPECIAL = list(":/?#[]@!$&'()*+,;=%")
AWKWARD = [*'"\\<>^`{|}~ ', "%41", "%zz", "%2f"]
BEYOND_ASCII = list("äß€漢🔑")


@dataclass(frozen=True)
class Secret:
    """A secret and its marks. `user` is the name that it goes with, where there is one."""

    name: str
    text: str
    marks: tuple[str, ...]
    user: str = ""

    @property
    def login(self) -> str:
        """User and password as a URL takes them, all percent-encoded."""
        return f"{quote(self.user, safe='')}:{quote(self.text, safe='')}"


class Maker:
    """Makes secrets from a seed: the same seed, the same secrets."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.family = self._word(FAMILY_LENGTH)
        self.secrets: list[Secret] = []
        self._pairs = self._random.sample([a + b for a in LETTERS for b in LETTERS], 300)

    def password(self, name: str, *, user: str = "admin") -> Secret:
        """Return a password with every character that is special anywhere; short enough for RTSP."""
        return self._keep(name, [*URL_SPECIAL, *AWKWARD, *BEYOND_ASCII], user)

    def plain_password(self, name: str, *, user: str = "admin") -> Secret:
        """Return a password that stands in a URL as it is, without any encoding, and is still odd."""
        return self._keep(name, [*"!$&'()*+,;=:[]^`{|}~\"<>\\", *BEYOND_ASCII], user)

    def token(self, name: str) -> Secret:
        """Return a key of all that a header can carry: printable ASCII without blanks."""
        return self._keep(name, [*string.punctuation, "%41", "%2f"], "")

    def _keep(self, name: str, odd: list[str], user: str) -> Secret:
        self._random.shuffle(odd)
        marks = tuple(self.family + self._pairs.pop() + self._word(1) for _ in range(3))
        half = len(odd) // 2
        text = "".join([marks[0], *odd[:half], marks[1], *odd[half:], marks[2]])
        self.secrets.append(Secret(name, text, marks, user))
        return self.secrets[-1]

    def _word(self, length: int) -> str:
        return "".join(self._random.choices(LETTERS, k=length))


# --- spellings -------------------------------------------------------------------------------------


def _lower_percent(text: str) -> str:
    encoded = quote(text, safe="")
    return "".join(
        part if number == 0 else "%" + part[:2].lower() + part[2:]
        for number, part in enumerate(encoded.split("%"))
    )


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "raw": lambda text: text,
    "percent": lambda text: quote(text, safe=""),
    "percent in lower case": _lower_percent,
    "percent with slashes": quote,
    "form": quote_plus,
    "percent of percent": lambda text: quote(quote(text, safe=""), safe=""),
    "JSON": lambda text: json.dumps(text)[1:-1],
    "JSON beyond ASCII": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "JSON with escaped slashes": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "JSON in JSON": lambda text: json.dumps(json.dumps(text))[1:-1],
    "repr": repr,
    "ascii": ascii,
    "HTML": html.escape,
    "HTML by numbers": lambda text: (
        html.escape(text, quote=False).replace('"', "&#34;").replace("'", "&#39;")
    ),
    "UTF-8 read as Latin-1": lambda text: text.encode().decode("latin-1"),
    "concat script": lambda text: text.replace("'", r"'\''"),
    "base64": lambda text: _base64(text.encode()),
    "base64, one off": lambda text: _base64(b"x" + text.encode()),
    "base64, two off": lambda text: _base64(b"xy" + text.encode()),
    "URL-safe base64": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "Basic": lambda text: _base64(f"admin:{text}".encode()),
    "hex": lambda text: text.encode().hex(),
    "hex in upper case": lambda text: text.encode().hex().upper(),
}
HASHES = ("md5", "sha1", "sha256")
HASH_CHARACTERS = 16  # as many of a hash as tell it from any other


# --- the search ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """A secret where none may be."""

    place: str
    secret: str
    context: str


@dataclass
class Search:
    """Looks for the secrets of a maker, and remembers where it looked."""

    maker: Maker
    findings: dict[tuple[str, str], Finding] = field(default_factory=dict)
    looked: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._seen: dict[tuple[str, frozenset[str]], set[int]] = {}

    def look(self, kind: str, place: str, content: bytes | str, *, may_hold: Iterable[str] = ()) -> None:
        """Search one content of a kind of place. `may_hold` names secrets that were put there on purpose."""
        data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
        self.looked[kind] += len(data)
        allowed = frozenset(may_hold)
        seen = self._seen.setdefault((kind, allowed), set())
        if hash(data) in seen:
            return
        seen.add(hash(data))
        for name, at in self._hits(data):
            if name not in allowed:
                shown = data[max(0, at - CONTEXT_BYTES) : at + CONTEXT_BYTES]
                found = Finding(f"{kind}: {place}", name, ascii(shown.decode("utf-8", "replace")))
                self.findings.setdefault((found.place, name), found)

    def _hits(self, data: bytes) -> Iterator[tuple[str, int]]:
        """Yield the name of each secret that stands in the data, and where."""
        for needle in _beginnings(self.maker.family):
            at = data.find(needle)
            while at >= 0:
                yield self._name_at(data, at), at
                at = data.find(needle, at + 1)
        lowered = data.lower()
        for secret in self.maker.secrets:
            for content in (secret.text, f"{secret.user}:{secret.text}"):
                for algorithm in HASHES:
                    digest = hashlib.new(algorithm, content.encode(), usedforsecurity=False).hexdigest()
                    at = lowered.find(digest[:HASH_CHARACTERS].encode())
                    if at >= 0:
                        yield secret.name, at

    def _name_at(self, data: bytes, at: int) -> str:
        around = data[max(0, at - 8) : at + 8 * MARK_LENGTH]
        for secret in self.maker.secrets:
            for mark in secret.marks:
                if any(needle in around for needle in _beginnings(mark)):
                    return secret.name
        return "the beginning of one"

    def report(self) -> str:
        """Return all findings as text."""
        lines = [f"{each.secret} in {each.place}:\n    {each.context}" for each in self.findings.values()]
        return "\n".join(lines)


def _beginnings(text: str) -> Iterator[bytes]:
    """Yield what a run of letters and digits looks like in the encodings that change letters."""
    content = text.encode()
    yield content
    yield content.hex().encode()
    yield content.hex().upper().encode()
    yield text.encode("utf-16-le")
    for before in range(3):
        # The first and last characters depend on what stands beside; those between on the text alone.
        encoded = base64.b64encode(b"x" * before + content)
        first = -(-8 * before // 6)
        yield encoded[first : 8 * (before + len(content)) // 6]

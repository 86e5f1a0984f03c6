"""WS-Discovery: asks who is there, by datagrams to everybody (multicast over IPv4), and reads the answers.

From WS-Discovery (2005/04) and SOAP-over-UDP, as ONVIF's Core Specification uses them. The datagram is short
and its answer a handful of elements: less than what a library for it brings with it.
"""

import ipaddress
import re
import selectors
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

from lxml import etree

from capture.discover import Answer, clean
from capture.errors import ConfigError, UsageError

GROUP = "239.255.255.250"
PORT = 3702
MOST_DEVICES = 500
_DATAGRAM_BYTES = 65536
_SENDS = (0.0, 0.3)  # seconds; SOAP-over-UDP sends each datagram again
_TTL = 4
_MOST_ADDRESSES = 16

_SOAP = "http://www.w3.org/2003/05/soap-envelope"
_ADDRESSING = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
_DISCOVERY = "http://schemas.xmlsoap.org/ws/2005/04/discovery"
_SPACES = {"s": _SOAP, "a": _ADDRESSING, "d": _DISCOVERY}
# Some devices answer to the one type, some to the other.
_TYPES = (
    ("http://www.onvif.org/ver10/network/wsdl", "NetworkVideoTransmitter"),
    ("http://www.onvif.org/ver10/device/wsdl", "Device"),
)
_NAME = re.compile(r"onvif://www\.onvif\.org/name/([^/\s]{1,200})", re.IGNORECASE)


def probe_message(message_id: str, kind: tuple[str, str]) -> bytes:
    """Return the datagram that asks for devices of a kind (namespace, name)."""
    space, name = kind
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><s:Envelope xmlns:s="{_SOAP}" xmlns:a="{_ADDRESSING}" '
        f'xmlns:d="{_DISCOVERY}" xmlns:k="{space}"><s:Header>'
        f'<a:Action s:mustUnderstand="1">{_DISCOVERY}/Probe</a:Action><a:MessageID>{message_id}</a:MessageID>'
        f"<a:ReplyTo><a:Address>{_ADDRESSING}/role/anonymous</a:Address></a:ReplyTo>"
        '<a:To s:mustUnderstand="1">urn:schemas-xmlsoap-org:ws:2005:04:discovery</a:To></s:Header>'
        f"<s:Body><d:Probe><d:Types>k:{name}</d:Types></d:Probe></s:Body></s:Envelope>"
    ).encode()


def parse_xml(data: bytes) -> Any | None:  # noqa: ANN401 - lxml has no types
    """Return the root of a document from a stranger; None for what is none, or brings its own entities."""
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError):
        return None
    return None if root.getroottree().docinfo.doctype else root


def read_answers(data: bytes, sender: str, asked: Iterable[str]) -> list[Answer]:
    """Read a datagram: the devices of a ProbeMatches that relates to one of our messages."""
    root = parse_xml(data)
    if root is None or _text(root, "s:Header/a:RelatesTo") not in set(asked):
        return []
    matches = root.findall("s:Body/d:ProbeMatches/d:ProbeMatch", _SPACES)
    return [_answer(match, sender) for match in matches[:MOST_DEVICES]]


def _answer(match: Any, sender: str) -> Answer:  # noqa: ANN401
    addresses = _text(match, "d:XAddrs").split()[:_MOST_ADDRESSES]
    own = [address for address in addresses if host_of(address) == sender]
    name = _NAME.search(_text(match, "d:Scopes"))
    return Answer(
        sender,
        clean(_text(match, "a:EndpointReference/a:Address")),
        # Plain before encrypted: cameras certify themselves, so the latter is no safer against a liar.
        min(own, key=lambda address: address.startswith("https:"), default=""),
        clean(unquote(name[1])) if name else "",
        tuple(clean(address) for address in addresses if address not in own),
    )


def _text(root: Any, path: str) -> str:  # noqa: ANN401
    return (root.findtext(path, "", _SPACES) or "").strip()


def host_of(address: str) -> str:
    """Return the host of an http address; "" for anything else."""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        return ""
    return (parts.hostname or "") if parts.scheme in {"http", "https"} and "@" not in parts.netloc else ""


# --- on the wire -----------------------------------------------------------------------------------


def probe(
    seconds: float, interfaces: Iterable[str] = (), *, report: Callable[[Answer], None] | None = None
) -> list[Answer]:
    """Ask by all interfaces, or the named ones, and collect answers for so many seconds.

    An interface is given by its name or its IPv4 address. Raises UsageError for one that is not here, and
    ConfigError when no datagram could be sent at all.
    """
    asked = {f"uuid:{uuid.uuid4()}": kind for kind in _TYPES}
    found: dict[tuple[str, str], Answer] = {}
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        sockets = [stack.enter_context(each) for each in _sockets(list(interfaces))]
        for each in sockets:
            selector.register(each, selectors.EVENT_READ)
        began = time.monotonic()
        for wait in (*_SENDS, seconds):
            _listen(selector, began + min(wait, seconds), asked, found, report)
            if wait != seconds:
                _send(sockets, asked)
    return sorted(found.values(), key=lambda answer: (_numeric(answer.sender), answer.endpoint))


def _send(sockets: list[socket.socket], asked: dict[str, tuple[str, str]]) -> None:
    trouble = None
    sent = 0
    for each in sockets:
        for message_id, kind in asked.items():
            try:
                each.sendto(probe_message(message_id, kind), (GROUP, PORT))
                sent += 1
            except OSError as error:  # an interface that is down, or knows no multicast
                trouble = error
    if not sent:
        why = trouble.strerror if trouble else "this machine has no network interface"
        raise ConfigError(
            f"nobody can be asked by multicast: {why}; expected a network; give --interface, or --host with "
            "the address of a device"
        )


def _listen(
    selector: selectors.BaseSelector,
    until: float,
    asked: dict[str, tuple[str, str]],
    found: dict[tuple[str, str], Answer],
    report: Callable[[Answer], None] | None,
) -> None:
    while (left := until - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            with suppress(OSError):  # an ICMP error of an earlier datagram
                data, address = key.fileobj.recvfrom(_DATAGRAM_BYTES)  # type: ignore[union-attr]
                for answer in read_answers(data, address[0], asked):
                    _keep(answer, found, report)


def _keep(
    answer: Answer, found: dict[tuple[str, str], Answer], report: Callable[[Answer], None] | None
) -> None:
    """Keep one answer of each device: it may answer by several interfaces, and to both questions."""
    key = (answer.sender, answer.endpoint)
    known = found.get(key)
    if known is None and len(found) < MOST_DEVICES:
        found[key] = answer
        if report is not None:
            report(answer)
    elif known is not None and not known.address and answer.address:
        found[key] = replace(answer, name=answer.name or known.name)


def _sockets(interfaces: list[str]) -> Iterable[socket.socket]:
    if interfaces:
        yield from (_socket(_choice(interface)) for interface in interfaces)
        return
    for index, _ in socket.if_nameindex():
        with suppress(OSError):  # one without multicast, or without an address
            yield _socket(struct.pack("4s4si", b"", b"", index))


def _choice(interface: str) -> bytes:
    try:
        return ipaddress.IPv4Address(interface).packed
    except ValueError:
        pass
    try:
        return struct.pack("4s4si", b"", b"", socket.if_nametoindex(interface))
    except OSError:
        names = ", ".join(name for _, name in socket.if_nameindex())
        raise UsageError(
            f"--interface: found {clean(interface)!r}; expected one of {names}, or an IPv4 address of this "
            "machine"
        ) from None


def _socket(choice: bytes) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, choice)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, _TTL)
        made.bind(("", 0))
        made.setblocking(False)
    except OSError as error:
        made.close()
        if len(choice) == 4:  # noqa: PLR2004 - an address that somebody typed
            raise UsageError(
                f"--interface: {ipaddress.IPv4Address(choice)} cannot be used: {error.strerror}; "
                "expected an IPv4 address of this machine"
            ) from None
        raise
    return made


def _numeric(host: str) -> tuple[int, str]:
    try:
        return int(ipaddress.ip_address(host)), host
    except ValueError:
        return 0, host

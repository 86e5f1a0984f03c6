"""ONVIF: asks a device who it is and for the addresses of its streams. The one door to `onvif` and `zeep`.

What comes back is a stranger's: answers are bounded in size and time, documents with entities of their own
are refused, redirects are not followed, and nobody but the device that was asked is ever sent a login.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import onvif.client
import structlog
import zeep.exceptions
from lxml import etree
from onvif.exceptions import ONVIFError
from onvif.settings import DEFAULT_SETTINGS
from zeep.transports import Transport
from zeep.wsdl.utils import etree_to_string

from capture.discover import Answer, Device, Profile, clean
from capture.discover_probe import host_of

DEVICE_SECONDS = 20.0
CONNECT_SECONDS = 4.0
MOST_BYTES = 2_000_000  # a recorder with 64 channels tells about 500 kB of profiles
MOST_PROFILES = 256
DEVICE_PATH = "/onvif/device_service"
_HIGHEST = 1_000_000
_AT_ONCE = 16
_KEPT_HEADERS = {"content-type", "www-authenticate"}
_ENTITIES = {"forbid_dtd": True, "forbid_entities": True, "forbid_external": True, "xml_huge_tree": False}
_UNICAST = {"Stream": "RTP-Unicast", "Transport": {"Protocol": "RTSP"}}
_DEVICE = ("devicemgmt.wsdl", "{http://www.onvif.org/ver10/device/wsdl}DeviceBinding")
_MEDIA = ("media.wsdl", "{http://www.onvif.org/ver10/media/wsdl}MediaBinding")
_MEDIA_SPACE = "http://www.onvif.org/ver10/media/wsdl"
_WSDL = Path(onvif.client.__file__).with_name("wsdl")
# What zeep raises on answers that are not as its schemas say.
_ODD = (
    zeep.exceptions.Error,
    ONVIFError,
    etree.LxmlError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
)

log = structlog.get_logger()


@dataclass(frozen=True)
class Login:
    """User and password for devices."""

    user: str
    password: str

    def __repr__(self) -> str:
        return "Login(***)"


class DeviceError(Exception):
    """Why a device did not tell what it was asked, in words for people."""


def ask_devices(answers: list[Answer], login: Login | None) -> list[Device]:
    """Ask each device that answered a probe, several at once; results in the same order."""

    async def ask_all() -> list[Device]:
        turns = asyncio.Semaphore(_AT_ONCE)

        async def ask(answer: Answer) -> Device:
            async with turns:
                return await _ask_in_time(answer, login)

        return list(await asyncio.gather(*(ask(answer) for answer in answers)))

    # Of this thread alone: the library's own settings trust documents of any size.
    with DEFAULT_SETTINGS(**_ENTITIES):
        return asyncio.run(ask_all())


async def _ask_in_time(answer: Answer, login: Login | None) -> Device:
    device = Device(host_of(answer.address), clean(answer.address), answer.name)
    try:
        async with asyncio.timeout(DEVICE_SECONDS):
            return await _ask(device, login)
    except TimeoutError:
        return replace(device, trouble=f"did not answer within {DEVICE_SECONDS:.0f} s")
    except DeviceError as error:
        return replace(device, trouble=clean(error))
    except Exception:
        log.exception("device_not_read", host=device.host)
        return replace(device, trouble="its answers cannot be read")


async def _ask(device: Device, login: Login | None) -> Device:
    async with _client() as client:
        ask = _Asker(client, login)
        async with ask.service(device.address, _DEVICE) as service:
            ask.offset = await _clock_offset(service)
            device = replace(device, clock_offset=ask.offset)
        async with ask.service(device.address, _DEVICE) as service:
            device = _identified(device, await ask.call(service, "GetDeviceInformation"))
            media = await _media_address(ask, service, device.address)
        if urlsplit(media).hostname != urlsplit(device.address).hostname:
            raise DeviceError("its media service is at another host, which is not asked")
        async with ask.service(media, _MEDIA) as service:
            profiles = _profiles(await ask.call(service, "GetProfiles"))
            found = [await _with_uri(ask, service, profile) for profile in profiles]
        return replace(device, profiles=tuple(found), trouble="" if found else "it has no stream")


def _identified(device: Device, information: object) -> Device:
    def word(name: str) -> str:
        return clean(_get(information, name), 80)

    return replace(
        device,
        maker=word("Manufacturer"),
        model=word("Model"),
        serial=word("SerialNumber"),
        firmware=word("FirmwareVersion"),
    )


async def _clock_offset(service: Any) -> float | None:  # noqa: ANN401
    """Return how many seconds its clock is ahead; it is told without a login. None when it is not.

    Raises DeviceError where nobody answers at all.
    """
    try:
        told = await service.authless_GetSystemDateAndTime()
        date, time = _get(told, "UTCDateTime", "Date"), _get(told, "UTCDateTime", "Time")
        parts = [_get(date, "Year"), _get(date, "Month"), _get(date, "Day")]
        parts += [_get(time, "Hour"), _get(time, "Minute"), _get(time, "Second")]
        return (datetime(*map(int, parts), tzinfo=UTC) - datetime.now(UTC)).total_seconds()  # type: ignore[misc,arg-type]
    except httpx.HTTPError as error:
        raise DeviceError(f"cannot be reached: {type(error).__name__}: {clean(error)}") from None
    except (*_ODD, OverflowError):
        return None


async def _media_address(ask: "_Asker", service: Any, address: str) -> str:  # noqa: ANN401
    """Return where the streams are asked for: what the device names, or what every other device has."""
    try:
        for each in await ask.call(service, "GetServices", {"IncludeCapability": False}) or []:
            if _get(each, "Namespace") == _MEDIA_SPACE:
                return _at(str(_get(each, "XAddr")), address)
    except DeviceError:  # an older device
        pass
    told = await ask.call(service, "GetCapabilities", {"Category": "Media"})
    named = _get(told, "Media", "XAddr")
    if not named:
        raise DeviceError("it offers no streams (no ONVIF media service)")
    return _at(str(named), address)


def _at(named: str, address: str) -> str:
    """Return a named address at the host that was asked; elsewhere nothing is sent."""
    if not host_of(named):
        raise DeviceError("its media service has no address that can be asked")
    if host_of(named) == host_of(address):
        return named
    # Behind an address translation it names the address that it has itself.
    there, here = urlsplit(named), urlsplit(address)
    return urlunsplit((here.scheme, here.netloc, there.path, there.query, ""))


def _profiles(told: object) -> Iterator[Profile]:
    for each in list(told if isinstance(told, list) else [])[:MOST_PROFILES]:
        token = _get(each, "token")
        encoder = _get(each, "VideoEncoderConfiguration")
        if not token or encoder is None:
            continue
        codec = clean(_get(encoder, "Encoding"), 20)
        gov = _get(encoder, codec.upper(), "GovLength") if codec.upper() in {"H264", "MPEG4"} else None
        yield Profile(
            str(token),
            clean(_get(each, "Name"), 80),
            clean(_get(each, "VideoSourceConfiguration", "SourceToken"), 80),
            codec,
            _number(_get(encoder, "Resolution", "Width")),
            _number(_get(encoder, "Resolution", "Height")),
            float(_number(_get(encoder, "RateControl", "FrameRateLimit"))),
            _number(gov),
            _number(_get(encoder, "RateControl", "BitrateLimit")),
        )


async def _with_uri(ask: "_Asker", service: Any, profile: Profile) -> Profile:  # noqa: ANN401
    try:
        request = {"StreamSetup": _UNICAST, "ProfileToken": profile.token}
        told = await ask.call(service, "GetStreamUri", request)
    except DeviceError as error:
        return replace(profile, trouble=clean(error))
    return replace(profile, uri=str(_get(told, "Uri") or "")[:4096])


def _get(thing: object, *names: str) -> Any:  # noqa: ANN401
    """Return a member of a member; None where anything on the way is missing."""
    for name in names:
        thing = getattr(thing, name, None)
    return thing


def _number(value: object) -> int:
    """Return a count that can be meant; 0 for anything else."""
    return int(value) if isinstance(value, int | float) and 0 < value < _HIGHEST else 0


# --- SOAP ------------------------------------------------------------------------------------------


class _Asker:
    """Calls operations, with the login where there is one, and by the device's own clock."""

    def __init__(self, client: httpx.AsyncClient, login: Login | None) -> None:
        self._client = client
        self._login = login
        self.offset: float | None = None

    @asynccontextmanager
    async def service(self, address: str, kind: tuple[str, str]) -> AsyncIterator[Any]:
        wsdl, binding = kind
        login = self._login
        service = onvif.client.ONVIFService(
            address,
            login.user if login else None,
            login.password if login else None,
            str(_WSDL / wsdl),
            no_cache=True,
            binding_name=binding,
            # A device refuses logins whose time is not its own.
            dt_diff=None if self.offset is None else timedelta(seconds=self.offset),
        )
        service.transport = _BoundedTransport(self._client, login)
        try:
            await service.setup()
            yield service
        finally:
            await service.close()

    async def call(self, service: Any, operation: str, request: object = None) -> Any:  # noqa: ANN401
        """Return the result of an operation. Raises DeviceError, with the device's words in it."""
        name = operation if self._login else f"authless_{operation}"
        call: Callable[..., Awaitable[Any]] = getattr(service, name)
        try:
            return await call(request)
        except zeep.exceptions.Fault as fault:
            raise DeviceError(_fault_words(fault, operation, has_login=self._login is not None)) from None
        except zeep.exceptions.TransportError as error:
            if error.status_code in {401, 403}:
                raise DeviceError(_login_words(has_login=self._login is not None)) from None
            status = f" (HTTP {error.status_code})" if error.status_code else ""
            raise DeviceError(f"{operation}: its answer cannot be read{status}") from None
        except httpx.HTTPError as error:
            raise DeviceError(f"{operation}: {type(error).__name__}: {clean(error)}") from None
        except _ODD as error:
            raise DeviceError(f"{operation}: its answer cannot be read ({type(error).__name__})") from None


def _fault_words(fault: zeep.exceptions.Fault, operation: str, *, has_login: bool) -> str:
    codes = " ".join(str(getattr(code, "text", code)) for code in fault.subcodes or ())
    if "notauthorized" in codes.lower() or "not authorized" in str(fault.message).lower():
        return _login_words(has_login=has_login)
    return f"{operation}: it says: {clean(fault.message)}"


def _login_words(*, has_login: bool) -> str:
    if has_login:
        return "it refuses user or password: check both; many cameras have users for ONVIF of their own"
    return "it wants a login: give --user, and the password by --password-file, --password-env or when asked"


@asynccontextmanager
async def _client() -> AsyncIterator[httpx.AsyncClient]:
    # Cameras certify themselves: there is nobody to check it with. No proxy and no .netrc of somebody's
    # environment; no redirect, which could carry the login elsewhere.
    async with httpx.AsyncClient(
        verify=False,  # noqa: S501
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(DEVICE_SECONDS, connect=CONNECT_SECONDS),
        headers={"User-Agent": "relay-capture", "Accept-Encoding": "identity"},
    ) as client:
        yield client


class _BoundedTransport(Transport):  # type: ignore[misc] # zeep has no types
    """Posts for zeep: takes no more than it has room for, and knows HTTP's digest login too."""

    def __init__(self, client: httpx.AsyncClient, login: Login | None) -> None:
        super().__init__()
        self._http = client
        self._login = login

    def load(self, url: str) -> bytes:
        """Refuse: everything that zeep needs is on this disk already."""
        raise zeep.exceptions.TransportError(f"nothing is loaded from {clean(url)}")

    async def aclose(self) -> None:
        """Leave the client to its owner."""

    async def post_xml(self, address: str, envelope: Any, headers: dict[str, str]) -> httpx.Response:  # noqa: ANN401
        request = self._http.build_request(
            "POST", address, content=etree_to_string(envelope), headers=headers
        )
        answer = await self._exchange(request)
        challenge = answer.headers.get("www-authenticate", "").lower()
        if answer.status_code == httpx.codes.UNAUTHORIZED and self._login and challenge.startswith("digest"):
            flow = httpx.DigestAuth(self._login.user, self._login.password).sync_auth_flow(request)
            next(flow)
            answer = await self._exchange(flow.send(answer))
        if answer.is_redirect:
            raise zeep.exceptions.TransportError("it redirects", status_code=answer.status_code)
        return answer

    async def _exchange(self, request: httpx.Request) -> httpx.Response:
        response = await self._http.send(request, stream=True)
        try:
            content = b""
            async for piece in response.aiter_raw(65536):
                content += piece
                if len(content) > MOST_BYTES:
                    raise zeep.exceptions.TransportError(f"more than {MOST_BYTES} bytes")
        finally:
            await response.aclose()
        return httpx.Response(
            response.status_code,
            headers=[(key, value) for key, value in response.headers.items() if key in _KEPT_HEADERS],
            content=content,
            request=request,
        )

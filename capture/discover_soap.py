"""SOAP to a device that nobody vouches for; the one door to `onvif` and `zeep`.

What comes back is a stranger's: answers are bounded in size and time, documents with entities of their own
are refused, redirects are not followed, and nobody but the device that was asked is ever sent a login.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import onvif.client
import zeep.exceptions
from lxml import etree
from onvif.exceptions import ONVIFError
from onvif.settings import DEFAULT_SETTINGS
from zeep.transports import Transport
from zeep.wsdl.utils import etree_to_string

from capture.discover import clean

DEVICE_SECONDS = 20.0
CONNECT_SECONDS = 4.0
MOST_BYTES = 2_000_000  # a recorder with 64 channels tells about 500 kB of profiles
_KEPT_HEADERS = {"content-type", "www-authenticate"}
_ENTITIES = {"forbid_dtd": True, "forbid_entities": True, "forbid_external": True, "xml_huge_tree": False}
_WSDL = Path(onvif.client.__file__).with_name("wsdl")
# What zeep raises on answers that are not as its schemas say.
_ODD = (
    zeep.exceptions.Error,
    ONVIFError,
    etree.LxmlError,
    httpx.InvalidURL,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
)


@dataclass(frozen=True)
class Login:
    """User and password for devices."""

    user: str
    password: str

    def __repr__(self) -> str:
        return "Login(***)"


class DeviceError(Exception):
    """Why a device did not tell what it was asked, in words for people."""


class UnreachableError(DeviceError):
    """Nobody answers there, or nobody who speaks HTTP."""


def distrustful() -> AbstractContextManager[None]:
    """Return a context in which this thread's documents are bounded: the library's own settings trust any."""
    settings: AbstractContextManager[None] = DEFAULT_SETTINGS(**_ENTITIES)
    return settings


class Asker:
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
        service.transport = BoundedTransport(self._client, login)
        try:
            await service.setup()
            yield service
        finally:
            await service.close()

    async def call(
        self,
        service: Any,  # noqa: ANN401
        operation: str,
        request: object = None,
        *,
        is_free: bool = False,
    ) -> Any:  # noqa: ANN401
        """Return the result of an operation; one that `is_free` is asked for without a login.

        Raises DeviceError, with the device's words in it, UnreachableError where there is no device.
        """
        name = f"authless_{operation}" if is_free or self._login is None else operation
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
            raise UnreachableError(f"cannot be reached: {type(error).__name__}: {clean(error)}") from None
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
async def new_client() -> AsyncIterator[httpx.AsyncClient]:
    """Open a client for one device."""
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


class BoundedTransport(Transport):  # type: ignore[misc] # zeep has no types
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

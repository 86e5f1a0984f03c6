"""ONVIF: asks a device who it is, and for the addresses of its streams."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import structlog

from capture.discover import Answer, Device, Profile, clean
from capture.discover_probe import host_of
from capture.discover_soap import (
    DEVICE_SECONDS,
    Asker,
    DeviceError,
    Login,
    UnreachableError,
    distrustful,
    new_client,
)

DEVICE_PATH = "/onvif/device_service"
MOST_PROFILES = 256
_HIGHEST = 1_000_000
_AT_ONCE = 16
_UNICAST = {"Stream": "RTP-Unicast", "Transport": {"Protocol": "RTSP"}}
_DEVICE = ("devicemgmt.wsdl", "{http://www.onvif.org/ver10/device/wsdl}DeviceBinding")
_MEDIA = ("media.wsdl", "{http://www.onvif.org/ver10/media/wsdl}MediaBinding")
_MEDIA_SPACE = "http://www.onvif.org/ver10/media/wsdl"

log = structlog.get_logger()


def ask_devices(answers: list[Answer], login: Login | None) -> list[Device]:
    """Ask each device that answered a probe, several at once; results in the same order."""

    async def ask_all() -> list[Device]:
        turns = asyncio.Semaphore(_AT_ONCE)

        async def ask(answer: Answer) -> Device:
            async with turns:
                return await _ask_in_time(answer, login)

        return list(await asyncio.gather(*(ask(answer) for answer in answers)))

    with distrustful():
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
    async with new_client() as client:
        ask = Asker(client, login)
        async with ask.service(device.address, _DEVICE) as service:
            ask.offset = await _clock_offset(ask, service)
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


async def _clock_offset(ask: Asker, service: Any) -> float | None:  # noqa: ANN401
    """Return how many seconds its clock is ahead; it is told without a login. None when it is not.

    Raises UnreachableError where nobody answers at all.
    """
    try:
        told = await ask.call(service, "GetSystemDateAndTime", is_free=True)
        date, time = _get(told, "UTCDateTime", "Date"), _get(told, "UTCDateTime", "Time")
        parts = [_get(date, "Year"), _get(date, "Month"), _get(date, "Day")]
        parts += [_get(time, "Hour"), _get(time, "Minute"), _get(time, "Second")]
        return (datetime(*map(int, parts), tzinfo=UTC) - datetime.now(UTC)).total_seconds()  # type: ignore[misc,arg-type]
    except UnreachableError:
        raise
    except (DeviceError, ValueError, TypeError, OverflowError):
        return None


async def _media_address(ask: Asker, service: Any, address: str) -> str:  # noqa: ANN401
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


async def _with_uri(ask: Asker, service: Any, profile: Profile) -> Profile:  # noqa: ANN401
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

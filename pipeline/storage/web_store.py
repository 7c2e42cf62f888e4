"""A web server as a store: a stream is one GET, which a Range resumes. fsspec does listing and writing.

With `public_only`, for addresses from untrusted tables, no connection is made to this machine or the local network: the
IP addresses of a host name are checked when it is resolved, and again when the socket is created. A redirect makes a
connection like any other, so the check applies to it too.

An address is sent as it is written, and so is that of a redirect: a signature covers its bytes, and a client that
writes "%2B" as "+" or "%2f" as "/" makes another address of it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urljoin

import aiohttp
from fsspec.implementations.http import HTTPFileSystem
from yarl import URL

from latentmill.store.event_loop import fill, finished
from pipeline.errors import (
    AccessError,
    ChangedError,
    NotFoundError,
    StorageError,
    TransientError,
    UnsafeAddressError,
    VideoError,
)
from pipeline.storage.addresses import inside_network, redacted, scheme_of
from pipeline.storage.other_store import OtherStore
from pipeline.storage.store import Body

CONNECT_SECONDS = 30.0
HEADER_SECONDS = 60.0
"""Time limit for the headers of the response, redirects included."""
READ_SECONDS = 60.0
"""Time limit for a read that gets no byte."""
MAX_REDIRECTS = 10


class WebStore(OtherStore):
    """Objects under `root`, http:// or https://."""

    def __init__(self, root: str, *, public_only: bool) -> None:
        super().__init__(root)
        self.public_only = public_only

    def open(self, path: str, start: int, stop: int | None, etag: str) -> Body:
        del etag  # the caller compares it with that of the Body
        address = self.address(path)
        headers = {"Accept-Encoding": "identity"}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-" + ("" if stop is None else str(stop - 1))
        filesystem, _ = self._open_root()
        with _translated(address):
            response = finished(filesystem.loop, _get(filesystem, address, headers), HEADER_SECONDS)
        try:
            _check_status(response.status, redacted(address))
            if start and response.status != 206:
                raise StorageError(f"{redacted(address)}: the server ignored the range {headers['Range']}")
            size = _size(response)
        except StorageError:
            filesystem.loop.call_soon_threadsafe(response.close)
            raise

        def readinto(view: memoryview) -> int:
            with _translated(address):
                return finished(filesystem.loop, fill(response.content.read, view))

        def close() -> None:
            filesystem.loop.call_soon_threadsafe(response.close)

        return Body(size=size, etag=response.headers.get("ETag", "").strip('"'), readinto=readinto, close=close)

    def _open_root(self) -> tuple[Any, str]:
        client = _public_client if self.public_only else _any_client
        return _AsWritten(get_client=client, use_listings_cache=False), self.root


class _AsWritten(HTTPFileSystem):  # type: ignore[misc]
    """fsspec's listing and writing, with the addresses of `as_sent`."""

    def encode_url(self, url: str) -> URL:
        return as_sent(url)


def as_sent(address: str) -> URL:
    """Return the URL of a request: `address` byte for byte, but what no URL may hold (spaces, umlauts) is quoted."""
    scheme, _, rest = address.partition("#")[0].partition("://")
    end = min((rest.index(sign) for sign in "/?" if sign in rest), default=len(rest))
    origin = URL(f"{scheme}://{rest[:end]}").origin()  # yarl writes the name of a host as DNS wants it
    return URL(str(origin) + quote(rest[end:], safe=_LEGAL, errors="surrogateescape"), encoded=True)


_LEGAL = "".join(map(chr, range(0x21, 0x7F))).translate(dict.fromkeys(map(ord, '"<>\\^`{|}')))
"""The characters that may stand in a URL, "%" with them (RFC 3986, 2)."""


async def _any_client(**options: Any) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(**options, requote_redirect_url=False)


async def _public_client(**options: Any) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(resolver=_PublicResolver(), socket_factory=_public_socket)
    return await _any_client(**{**options, "connector": connector, "trust_env": False})


class _PublicResolver(aiohttp.ThreadedResolver):
    """Resolve host names, and raise if any of their IP addresses is not public."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        found = await super().resolve(host, port, family)
        for result in found:
            _check_public(result["host"], f"{host} is at ")
        return found


def _public_socket(address: Any) -> socket.socket:
    family, kind, protocol, _, (host, *_) = address
    _check_public(host, "")
    return socket.socket(family, kind, protocol)


def _check_public(number: str, name: str) -> None:
    if inside_network(number):
        raise UnsafeAddressError(f"{name}{number}, inside the local network")


async def _get(filesystem: Any, address: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
    session = await filesystem.set_session()
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    for _ in range(MAX_REDIRECTS):
        # aiohttp's own redirects would send a space of a "Location" as it is.
        response: aiohttp.ClientResponse = await session.get(
            as_sent(address), headers=headers, timeout=timeout, allow_redirects=False
        )
        location = response.headers.get("Location")
        if response.status not in (301, 302, 303, 307, 308) or location is None:
            return response
        response.release()
        address = location if scheme_of(location) else urljoin(address, location)
    raise StorageError(f"{redacted(address)}: more than {MAX_REDIRECTS} redirects")


def _size(response: aiohttp.ClientResponse) -> int | None:
    """Return the size of the whole object, or None if the server does not give it."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        return None
    if response.status == 206:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isdecimal() else None
    return response.content_length


def _check_status(status: int, where: str) -> None:
    message = f"{where}: HTTP status {status}"
    if status in (404, 410):
        raise NotFoundError(message)
    if status in (401, 403, 407):
        raise AccessError(message)
    if status == 412:
        raise ChangedError(message)
    if status in (408, 425, 429) or status >= 500:
        raise TransientError(message)
    if status not in (200, 206):
        raise StorageError(message)


@contextlib.contextmanager
def _translated(address: str) -> Iterator[None]:
    # The text of an error may contain a signed URL, so the message has only its class.
    try:
        yield
    except (StorageError, VideoError):
        raise
    except (ValueError, aiohttp.NonHttpUrlClientError) as error:  # InvalidURL and yarl's errors are ValueErrors
        raise UnsafeAddressError(
            f"{redacted(address)} is not a web address, or leads to none: {type(error).__name__}"
        ) from error
    except (aiohttp.ClientError, OSError) as error:
        raise TransientError(f"{redacted(address)}: {type(error).__name__}") from error

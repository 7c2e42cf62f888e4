"""URIs as strings: normal form, joining, what may be shown, and which of them a table may name."""

from __future__ import annotations

import ipaddress
import os.path
import posixpath
import socket
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import ConfigError

TABLE_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "file", "local", "memory", "http", "https")
"""What a table row may name. Not fsspec's chains ("zip::...") nor schemes that reach programs or other machines."""


def scheme_of(uri: str) -> str:
    """The scheme in lower case; "" for a path on this machine."""
    scheme, separator, _ = uri.partition("://")
    return scheme.lower() if separator and scheme.replace("+", "").replace("-", "").isalnum() else ""


def normal_uri(uri: str) -> str:
    """One spelling for each place: absolute local paths without a scheme, "s3://" for "s3a://", no trailing slash.

    Raises:
        ConfigError: empty, or with credentials inside: these come from the standard chain only.
    """
    scheme = scheme_of(uri)
    if not uri or "\0" in uri:
        raise ConfigError(f"a storage address must be a path or a URL, got {uri!r}")
    if scheme in ("", "file", "local"):
        path = Path(uri.partition("://")[2] if scheme else uri).expanduser()
        return os.path.abspath(path)  # noqa: PTH100 (resolve() would follow links, and a link is the user's name for it)
    rest = uri.partition("://")[2]
    if "@" in rest.partition("/")[0]:
        raise ConfigError(f"{scheme}:// address with credentials in it: use the environment or a profile instead")
    if not rest.partition("/")[0].partition("?")[0] and scheme != "memory":
        raise ConfigError(f"{uri!r} names no bucket or host")
    return f"{'s3' if scheme == 's3a' else scheme}://{rest.rstrip('/')}"


def folder_of(uri: str) -> str:
    """The normal URI of what contains `uri`."""
    scheme = scheme_of(uri)
    rest = uri.partition("://")[2] if scheme else uri
    parent = posixpath.dirname(rest)
    return f"{scheme}://{parent}" if scheme else parent


def joined(folder: str, reference: str) -> str:
    """`reference` as seen from `folder`: itself if absolute, else below it.

    Raises:
        ValueError: ".." leads out of the bucket, or it is a chain of fsspec's ("zip://a::s3://b").
    """
    if "://" in reference and ("::" in reference.partition("?")[0] or not scheme_of(reference)):
        raise ValueError(f"{redacted(reference)!r} is not one address")
    if scheme_of(reference) or reference.startswith("/"):
        return normal_uri(reference)
    scheme = scheme_of(folder)
    rest = folder.partition("://")[2] if scheme else folder
    path = posixpath.normpath(posixpath.join(rest, reference))
    bucket = rest.partition("/")[0]
    if scheme and not path.startswith(f"{bucket}/"):
        raise ValueError(f"{reference!r} leads out of {scheme}://{bucket}")
    return f"{scheme}://{path}" if scheme else path


def redacted(uri: str) -> str:
    """`uri` as it may be shown: the query of a web address is often a signature."""
    if scheme_of(uri) in ("", "file", "local", "s3"):
        return uri
    host, slash, path = uri.partition("://")[2].partition("/")
    return f"{scheme_of(uri)}://{host.rpartition('@')[2].partition('?')[0]}{slash}{path.partition('?')[0]}"


def refusal(uri: str, *, allow_private: bool) -> str | None:
    """Why a table may not name this address, or None.

    A table may come from anybody, and the workers stand inside a network: without `allow_private`, web addresses that
    lead to this machine or its neighbours are refused, by number or by name. A name that answers differently a moment
    later, or a server that redirects, is not caught: who fears that closes the workers' way out.
    """
    scheme = scheme_of(uri)
    if scheme and scheme not in TABLE_SCHEMES:
        return f"scheme {scheme!r} is not one of {', '.join(TABLE_SCHEMES)}"
    if scheme not in ("http", "https") or allow_private:
        return None
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"not a web address: {error}"
    if not host:
        return "a web address without a host"
    del port
    for address in _numbers(host):
        if not address.is_global or address.is_multicast:
            return f"{host} is at {address}, inside the local network"
    return None


@lru_cache(maxsize=1024)
def _numbers(host: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    """All addresses of a host; none if the name is unknown, which opening it will report as a storage error."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return ()
    numbers = [ipaddress.ip_address(str(address).partition("%")[0]) for address in found]
    return tuple(getattr(number, "ipv4_mapped", None) or number for number in numbers)

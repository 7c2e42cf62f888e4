"""URIs as strings: normalize, join, redact for display, and check which of them a table may name."""

from __future__ import annotations

import ipaddress
import os.path
import posixpath
import re
import socket
from urllib.parse import urlsplit

from latentmill.store.addresses import redacted, scheme_of, without_user
from pipeline.errors import ConfigError

__all__ = [
    "TABLE_SCHEMES",
    "folder_of",
    "inside_network",
    "joined",
    "normal_uri",
    "parted",
    "redacted",
    "refusal",
    "scheme_of",
]

TABLE_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "file", "local", "memory", "http", "https")
"""URI schemes that a table row may use. fsspec's chains ("zip::...") and schemes that start programs are excluded."""

_Number = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_IPV6_HOST = re.compile(r"\[[0-9A-Fa-f:.]*\]")

_OBJECT = re.compile(r"(.*[^/])/(/*[^/]+/*)", re.DOTALL)


def normal_uri(uri: str) -> str:
    """Normalize a URI: absolute local paths without a scheme, "s3://" for "s3a://", no trailing slash.

    Everything else of a URL stays byte for byte: an object store and a web server may tell "a//b" from "a/b", and a
    signature covers its query as it is written.

    Raises:
        ConfigError: it is empty, or contains credentials, which may come from the standard chain only.
    """
    scheme = scheme_of(uri)
    if not uri or "\0" in uri:
        raise ConfigError(f"a storage address must be a path or a URL, got {uri!r}")
    if scheme in ("", "file", "local"):
        path = uri.partition("://")[2] if scheme else uri
        return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 (Path: resolve() follows links, which are the user's names; expanduser() raises)
    rest = uri.partition("://")[2]
    if without_user(rest) != rest:
        raise ConfigError(f"{scheme}:// address with credentials in it: use the environment or a profile instead")
    if not rest.partition("/")[0].partition("?")[0] and scheme != "memory":
        raise ConfigError(f"{uri!r} names no bucket or host")
    if scheme not in ("http", "https") or "?" not in rest:
        rest = rest.rstrip("/")
    return f"{'s3' if scheme == 's3a' else scheme}://{rest}"


def parted(uri: str) -> tuple[str, str]:
    """Split a normalized URI into the folder and the path of the object in it; joined by "/" they are `uri` again.

    The folder never ends in a slash, so that of "s3://bucket/a//b" is "s3://bucket/a", and the path is "/b".

    Raises:
        ConfigError: it names no object.
    """
    scheme = scheme_of(uri)
    if not scheme:
        folder, _, name = uri.rpartition("/")
        parts: tuple[str, ...] = (folder or "/", name)
    else:
        found = _OBJECT.fullmatch(uri.partition("://")[2])
        parts = (f"{scheme}://{found[1]}", found[2]) if found else ("", "")
    if not parts[1]:
        raise ConfigError(f"{redacted(uri)} is not the address of an object")
    return parts[0], parts[1]


def folder_of(uri: str) -> str:
    """Return the normalized URI of the folder that contains `uri`."""
    scheme = scheme_of(uri)
    rest = uri.partition("://")[2] if scheme else uri
    parent = posixpath.dirname(rest)
    return f"{scheme}://{parent}" if scheme else parent


def joined(folder: str, reference: str) -> str:
    """Resolve `reference` against `folder`: an absolute URI stays, a relative path is below the folder.

    Raises:
        ValueError: ".." leads out of the bucket, it is an fsspec chain ("zip://a::s3://b"), or it names no object.
    """
    uri = _joined(folder, reference)
    if parted(uri)[1].rpartition("/")[2] == "..":
        raise ValueError(f"{redacted(reference)!r} is not the address of an object")
    return uri


def _joined(folder: str, reference: str) -> str:
    if "://" in reference:
        if "::" in _IPV6_HOST.sub("", reference.partition("?")[0], count=1) or not scheme_of(reference):
            raise ValueError(f"{redacted(reference)!r} is not one address")
        if scheme_of(reference) in ("file", "local") and not reference.partition("://")[2].startswith("/"):
            raise ValueError(f"{reference!r} is not an absolute path: write file:///folder/name")
    if scheme_of(reference) or reference.startswith("/"):
        return normal_uri(reference)
    scheme = scheme_of(folder)
    if not scheme:
        return posixpath.normpath(posixpath.join(folder, reference))
    bucket, *steps = folder.partition("://")[2].split("/")
    for step in reference.split("/"):  # not normpath(), which would make one slash of two
        if step == ".." and not steps:
            raise ValueError(f"{reference!r} leads out of {scheme}://{bucket}")
        if step == "..":
            steps.pop()
        elif step != ".":
            steps.append(step)
    return "/".join((f"{scheme}://{bucket}", *steps))


def refusal(uri: str, folder: str, *, allow_private: bool, allow_local: bool) -> str | None:
    """Return why a table in `folder` may not name this address, or None if it may.

    A table may come from an untrusted party, and the workers run inside a private network. Without `allow_local`, only
    a table on this machine may name files of this machine. Without `allow_private`, web addresses of this machine or
    the local network are rejected: IP addresses here, host names and redirects when connecting (see web_store.py).
    """
    scheme = scheme_of(uri)
    if scheme and scheme not in TABLE_SCHEMES:
        return f"scheme {scheme!r} is not one of {', '.join(TABLE_SCHEMES)}"
    if not scheme and scheme_of(folder) and not allow_local:
        return "a file of this machine, named by a table that lies elsewhere (see --allow-local)"
    if scheme not in ("http", "https"):
        return None
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"not a web address: {error}"
    if not host:
        return "a web address without a host"
    del port
    if not allow_private and inside_network(host):
        return f"{host} is inside the local network (see --allow-private)"
    return None


def inside_network(host: str) -> bool:
    """Return whether `host` is an IP address (in any notation) or a name of this machine or the local network."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):  # an ordinary host name
        return False
    numbers = (ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in found)
    return any(not inner.is_global or inner.is_multicast for number in numbers for inner in _numbers_in(number))


def _numbers_in(number: _Number) -> tuple[_Number, ...]:
    """Return the IP address and, if it embeds an IPv4 address, that one."""
    if isinstance(number, ipaddress.IPv6Address):
        if number in _NAT64:
            return (ipaddress.IPv4Address(int(number) & 0xFFFFFFFF),)
        if inner := number.ipv4_mapped or number.sixtofour:
            return (inner,)
        if number.teredo:
            return number.teredo
    return (number,)

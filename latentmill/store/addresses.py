"""Addresses as strings: their scheme, and how they are shown without the secrets in them."""

from __future__ import annotations

import re

_PARAMETER = re.compile(r";[^/;=]*=[^/;]*")
"""A parameter of a path (RFC 3986, 3.3), such as ";token=..."."""


def scheme_of(uri: str) -> str:
    """Return the scheme in lower case, or "" for a path on this machine."""
    scheme, separator, _ = uri.partition("://")
    return scheme.lower() if separator and scheme.replace("+", "").replace("-", "").isalnum() else ""


def redacted(uri: str) -> str:
    """Return `uri` without secrets, for display: without the query, often a signature, and the password before "@".

    A password may contain a slash: if something other than a port follows the host, everything up to the last "@" is
    removed. Parameters and fragments that assign a value (";token=...", "#token=...") are removed too; other fragments
    name a member of a tar. The name of an object in S3 may hold a question mark, so it stays whole.
    """
    scheme = scheme_of(uri)
    if scheme in ("", "file", "local"):
        return uri
    rest = uri.partition("://")[2]
    if scheme != "s3":
        rest = rest.partition("?")[0]
    if scheme in ("http", "https"):
        rest, mark, fragment = rest.partition("#")
        rest = _PARAMETER.sub("", rest)
        rest += mark + fragment if "=" not in fragment else ""
    return f"{scheme}://{without_user(rest)}"


def without_user(rest: str) -> str:
    """Return what follows "://" without user and password."""
    host, slash, path = rest.partition("/")
    port = host.rpartition("]")[2].partition(":")[2]
    if "@" in host:
        return host.rpartition("@")[2] + slash + path
    if port and not port.isdecimal() and not host.startswith("arn:"):  # an access point of S3 is named by an ARN
        return rest.rpartition("@")[2]
    return rest

"""Ranged GETs of S3 objects straight into waiting memory: half the processor time of s3fs, which copies twice.

s3fs signs, so that credentials, profiles and endpoints are found as ever; one signed address serves a file for minutes.
The body goes from the socket into the memory. Whatever goes wrong here is answered by False: the caller then reads
through s3fs, which knows its errors and tries again.
"""

from __future__ import annotations

import http.client
import os
import ssl
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

SIGNED_SECONDS = 3600
USED_SECONDS = 600
"""A signed address is used this long, well before it runs out."""
SIGNED_FILES = 4096
"""Signed addresses that are kept."""
TIMEOUT_SECONDS = 60
IDLE_SECONDS = 4
"""A connection that was idle for longer is not used again: stores close them after five seconds and more."""


class S3Ranges:
    """See the module. Safe in several threads; belongs to the process that made it."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem
        self._signed: dict[str, tuple[float, str]] = {}
        self._idle: dict[tuple[str, str], deque[tuple[float, http.client.HTTPConnection]]] = {}
        self._lock = threading.Lock()
        self._trust = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE"))

    @staticmethod
    def fits(options: dict[str, Any]) -> bool:
        """Whether nothing is asked of the connection that only s3fs knows how to do."""
        special = {"client_kwargs", "config_kwargs", "session", "requester_pays", "s3_additional_kwargs", "use_ssl"}
        proxies = {"http_proxy", "https_proxy", "all_proxy"} & {name.lower() for name in os.environ}
        return not (special & set(options) or proxies)

    def read_into(self, path: str, start: int, views: Sequence[memoryview]) -> bool:
        """Fill the views, one after the other, with the bytes from `start` on."""
        try:
            address = urlsplit(self._address(path))
            length = sum(len(view) for view in views)
            header = {"Range": f"bytes={start}-{start + length - 1}"}
            place = address.scheme, address.netloc
            connection = self._connection(place)
            connection.request("GET", f"{address.path}?{address.query}", headers=header)
            answer = connection.getresponse()
            if answer.status != 206 or answer.length != length:
                connection.close()
                self._signed.pop(path, None)  # its credentials may have run out
                return False
            for view in views:
                left = view
                while len(left):
                    count = answer.readinto(left)
                    if not count:
                        return False
                    left = left[count:]
            answer.read()  # the end, so that the connection is free again
        except Exception:
            return False
        with self._lock:
            self._idle[place].append((time.monotonic(), connection))
        return True

    def _address(self, path: str) -> str:
        signed = self._signed.get(path)
        if signed is None or time.monotonic() - signed[0] > USED_SECONDS:
            signed = time.monotonic(), self._filesystem.sign(path, expiration=SIGNED_SECONDS)
            if len(self._signed) >= SIGNED_FILES:
                self._signed.clear()
            self._signed[path] = signed
        return signed[1]

    def _connection(self, place: tuple[str, str]) -> http.client.HTTPConnection:
        with self._lock:
            idle = self._idle.setdefault(place, deque())
            while idle:
                since, connection = idle.pop()
                if time.monotonic() - since < IDLE_SECONDS:
                    return connection
                connection.close()
        scheme, host = place
        if scheme == "https":
            return http.client.HTTPSConnection(host, timeout=TIMEOUT_SECONDS, context=self._trust)
        return http.client.HTTPConnection(host, timeout=TIMEOUT_SECONDS)

"""Read byte ranges of S3 objects from the socket into given memory. s3fs copies twice and takes double the CPU time.

s3fs signs the addresses, so it finds credentials, profiles and endpoints as always. One signed address serves a file
for minutes. If anything fails here, `read_into` returns False; the caller then reads through s3fs, with its errors and
retries.
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
"""A signed address is used for this long; it expires after SIGNED_SECONDS."""
SIGNED_FILES = 4096
"""Most signed addresses that are kept."""
TIMEOUT_SECONDS = 60
IDLE_SECONDS = 4
"""A connection that was idle for longer is closed: some stores close theirs after five seconds."""


class S3Ranges:
    """Reads ranges of the objects below `root`, "bucket/prefix/", for one process. Several threads may share it."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._filesystem, self._root = filesystem, root
        self._signed: dict[str, tuple[float, str]] = {}
        self._idle: dict[tuple[str, str], deque[tuple[float, http.client.HTTPConnection]]] = {}
        self._lock = threading.Lock()
        self._trust = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE"))

    @staticmethod
    def fits(options: dict[str, Any]) -> bool:
        """Return whether no option asks for a connection that only s3fs can make."""
        special = {"client_kwargs", "config_kwargs", "session", "requester_pays", "s3_additional_kwargs", "use_ssl"}
        proxies = {"http_proxy", "https_proxy", "all_proxy"} & {name.lower() for name in os.environ}
        return not (special & set(options) or proxies)

    def read_into(self, path: str, start: int, views: Sequence[memoryview]) -> bool:
        """Fill the views, one after the other, with the bytes from `start` on. Return False on any failure."""
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
                self._signed.pop(path, None)  # its credentials may have expired
                return False
            for view in views:
                left = view
                while len(left):
                    count = answer.readinto(left)
                    if not count:
                        return False
                    left = left[count:]
            answer.read()  # reach the end of the body, so that the connection can be reused
        except Exception:
            return False
        with self._lock:
            self._idle[place].append((time.monotonic(), connection))
        return True

    def _address(self, path: str) -> str:
        signed = self._signed.get(path)
        if signed is None or time.monotonic() - signed[0] > USED_SECONDS:
            signed = time.monotonic(), self._filesystem.sign(self._root + path, expiration=SIGNED_SECONDS)
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

"""Packets that show nothing: what a container counts, and no viewer sees."""

from __future__ import annotations

from typing import Any

_IMAGE, _EXTENSION, _TRAILER = 0x2C, 0x21, 0x3B


def is_invisible(packet: Any, stream: Any) -> bool:
    """Whether a packet shows nothing: an empty one (dropped in AVI, repeated in Ogg), a frame that is only
    referred to, what follows the last image of a GIF.

    VP8 (RFC 6386, 9.1) and VP9 (bitstream specification, 6.2) say so in their first byte; a VP9 superframe, told by
    its last byte, always shows one.
    """
    if packet.size == 0:
        return True
    match stream.codec_context.name:
        case "vp8":
            return not memoryview(packet)[0] & 0x10
        case "vp9":
            data = memoryview(packet)
            if data[-1] & 0xE0 == 0xC0:
                return False
            shift = 0 if data[0] & 0x30 == 0x30 else 1
            return not (data[0] >> shift) & 0b101
        case "gif":
            return not _holds_an_image(memoryview(packet))
    return False


def _holds_an_image(gif: memoryview) -> bool:
    """Whether an image comes after any number of extensions (GIF89a, 18 to 27). The first packet has the header."""
    at = 0
    if bytes(gif[:3]) == b"GIF" and len(gif) > 10:
        at = 13 + (6 << (gif[10] & 7) if gif[10] & 0x80 else 0)
    while at < len(gif) and gif[at] == _EXTENSION:
        at += 2
        while at < len(gif) and gif[at]:
            at += 1 + gif[at]
        at += 1
    return at < len(gif) and gif[at] != _TRAILER

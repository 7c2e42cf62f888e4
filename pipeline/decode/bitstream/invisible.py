"""Invisible packets: the container counts them, but they show no frame."""

from __future__ import annotations

from typing import Any

from pipeline.decode.bitstream.gif import holds_an_image


def is_invisible(packet: Any, stream: Any) -> bool:
    """Return whether a packet shows no frame: an empty packet (a dropped frame in AVI, a repeated one in Ogg), a frame
    that is only a reference, or data after the last image of a GIF.

    VP8 (RFC 6386, 9.1) and VP9 (bitstream specification, 6.2) state it in their first byte. A VP9 superframe, which has
    a special last byte, always shows a frame.
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
            return not holds_an_image(memoryview(packet))
    return False

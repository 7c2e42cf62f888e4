"""Packets that show nothing: what a container counts, and no viewer sees."""

from __future__ import annotations

from typing import Any

from pipeline.decode.bitstream.gif import holds_an_image


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
            return not holds_an_image(memoryview(packet))
    return False

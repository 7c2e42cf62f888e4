"""Apple Video (RPZA), read far enough to tell which frames need no earlier one. No container states it.

A frame is a header of 4 bytes and codes for the blocks of 4 x 4 pixels, row by row. A code that skips blocks leaves
them as they were in the frame before. The layout of the codes is that of FFmpeg's decoder (libavcodec/rpza.c).
"""

from __future__ import annotations

_HEADER_SIZE = 4
_ONE_COLOR, _FOUR_COLORS = 0xA0, 0xC0


def draws_every_block(packet: bytes, width: int, height: int) -> bool:
    """Return whether a frame of this size, in pixels, skips no block and ends with the last one."""
    missing = -(-width // 4) * -(-height // 4)
    at = _HEADER_SIZE
    while missing > 0 and at + 2 < len(packet):
        kind, count = packet[at] & 0xE0, (packet[at] & 31) + 1
        if kind < 0x80:  # a colour: of a block with 16 colours, or the first of four, if the next has its top bit set
            count, size = 1, 8 if packet[at + 2] & 0x80 else 32
        elif kind == _ONE_COLOR:
            size = 3
        elif kind == _FOUR_COLORS:
            size = 5 + 4 * count
        else:
            return False
        missing -= count
        at += size
    return missing <= 0 and at <= len(packet)

"""A tar passes as whole only if it is: each cut, each flipped header byte is noticed; no claim is believed."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StorageError, TarDamagedError
from pipeline.sources.tar import BLOCK, TarReader, parse_number, parse_pax
from tests.sources import FORMATS, make_tar

LONG = "folder/" * 30 + "name.mp4"
MEMBERS = [
    ("a.mp4", b"A" * 1000),
    ("a.txt", b"caption"),
    ("b.mp4", b""),
    ("sub/c.mp4", b"C" * 512),
    ("d.mp4", b"D" * 1500),
]


def read(data: bytes, size: int | None = None) -> list[tuple[str, bytes]]:
    tar = TarReader(io.BufferedReader(io.BytesIO(data)), len(data) if size is None else size)  # type: ignore[arg-type]
    return [(member.name, bytes(tar.read())) for member in tar]


def read_until_damage(data: bytes) -> tuple[list[tuple[str, bytes]], bool]:
    tar = TarReader(io.BufferedReader(io.BytesIO(data)), len(data))  # type: ignore[arg-type]
    found = []
    try:
        for member in tar:
            found.append((member.name, bytes(tar.read())))
    except TarDamagedError:
        return found, True
    return found, False


def headers(data: bytes) -> Iterator[int]:
    """Offsets of every header block, the extended ones too."""
    position = 0
    while any(data[position : position + BLOCK]):
        yield position
        size = int(data[position + 124 : position + 135].strip(b"\0 ") or b"0", 8)
        position += BLOCK + size + -size % BLOCK


@pytest.mark.parametrize("kind", FORMATS)
def test_what_tarfile_writes_is_read(kind: str) -> None:
    assert read(make_tar(MEMBERS, kind)) == MEMBERS


@pytest.mark.parametrize("kind", ["gnu", "pax"])
@pytest.mark.parametrize("name", [LONG, LONG * 19, "\u6587\u5b57/\u00e9.mp4", "with\nnewline.mp4", " spaces .mp4"])
def test_names_of_every_kind(kind: str, name: str) -> None:
    assert read(make_tar([(name, b"x"), ("after", b"y")], kind)) == [(name, b"x"), ("after", b"y")]


def test_a_ustar_prefix_belongs_to_the_name() -> None:
    name = "p" * 90 + "/" + "n" * 90
    assert read(make_tar([(name, b"x")], "ustar")) == [(name, b"x")]


@given(
    members=st.lists(
        st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), st.binary(max_size=1200)),
        max_size=5,
    ),
    kind=st.sampled_from(["gnu", "pax"]),
)
@settings(max_examples=60, deadline=None)
def test_tarfile_and_we_agree(members: list[tuple[str, bytes]], kind: str) -> None:
    members = [(name.strip("/").removeprefix("./") or "x", data) for name, data in members]
    members = [(name, data) for name, data in members if not name.startswith("./") and not name.endswith("/")]
    data = make_tar(members, kind)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    assert read(data) == expected == members


@pytest.mark.parametrize("kind", FORMATS)
def test_a_tar_cut_anywhere_is_damaged(kind: str) -> None:
    data = make_tar([*MEMBERS, (LONG[:90], b"x" * 600)], kind)
    end = len(data.rstrip(b"\0"))
    end += -end % BLOCK
    # All block boundaries, which are the member boundaries too, and places inside headers, data and padding.
    cuts = {cut + shift for cut in range(0, end + 2 * BLOCK, BLOCK) for shift in (0, 1, 100, 300, 511)}
    for cut in sorted(cut for cut in cuts if cut < end + 2 * BLOCK):
        found, damaged = read_until_damage(data[:cut])
        assert damaged, cut
        assert found == [*MEMBERS, (LONG[:90], b"x" * 600)][: len(found)]
    assert read_until_damage(data[: end + 2 * BLOCK])[1] is False


@pytest.mark.parametrize("kind", ["gnu", "pax"])
@pytest.mark.parametrize("mask", [0xFF, 0x80, 0x01])
def test_a_flipped_byte_in_a_header_is_damage_or_changes_nothing(kind: str, mask: int) -> None:
    members = [("a.mp4", b"A" * 600), (LONG, b"L" * 10), ("z.mp4", b"Z")]
    data = make_tar(members, kind)
    unnoticed = []
    for header in headers(data):
        for offset in range(BLOCK):
            broken = bytearray(data)
            broken[header + offset] ^= mask
            found, damaged = read_until_damage(bytes(broken))
            if not damaged:
                assert found == members, (header, offset)
                unnoticed.append(offset)
    # The checksum does not cover itself: how its number is written may vary, what it says may not.
    assert set(unnoticed) <= set(range(148, 156))
    assert len(unnoticed) <= 3 * len(list(headers(data)))


def test_one_zero_block_is_not_an_end() -> None:
    data = make_tar(MEMBERS)
    end = len(data.rstrip(b"\0"))
    end += -end % BLOCK
    assert read_until_damage(data[: end + BLOCK])[1]
    assert read_until_damage(data[: end + BLOCK] + make_tar([("late", b"x")]))[1]
    assert read_until_damage(data[: end + BLOCK] + b"\1" * BLOCK)[1]


def test_nothing_but_zeros_may_follow_the_end() -> None:
    data = make_tar(MEMBERS)
    assert read(data + bytes(3_000_001)) == MEMBERS
    for junk in (data + b"x", data + bytes(3_000_000) + b"\1", data + make_tar([("late", b"x")])):
        found, damaged = read_until_damage(junk)
        assert damaged
        assert found == MEMBERS


@pytest.mark.parametrize("data", [b"", b"\0" * 512, b"not a tar" * 200, b"\xff" * 4096, b"\0" * 1023])
def test_what_is_not_a_tar_is_damaged(data: bytes) -> None:
    assert read_until_damage(data) == ([], True)


def test_an_empty_tar_is_whole() -> None:
    assert read(bytes(1024)) == []


def test_fewer_bytes_than_planned_are_a_storage_fault_and_not_damage() -> None:
    data = make_tar(MEMBERS)
    for cut in (0, 100, 512, 700, 3000, len(data) - 1):
        with pytest.raises(StorageError):
            read(data[:cut], len(data))


def with_header(name: bytes, size: bytes, type_: bytes = b"0", data: bytes = b"") -> bytes:
    """A tar with one hand-made member: `size` is the field as it stands."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = type_
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % BLOCK) + bytes(1024)


TEN_TB = (10 << 40).to_bytes(12, "big").replace(b"\0", b"\x80", 1)


@pytest.mark.parametrize("size", [TEN_TB, b"77777777777\0", b"\x80" + b"\xff" * 11])
@pytest.mark.parametrize("type_", [b"0", b"x", b"g", b"L", b"S", b"V"])
def test_a_claimed_size_is_not_believed(size: bytes, type_: bytes) -> None:
    data = with_header(b"big.mp4", size, type_, b"x" * 1000)
    tracemalloc.start()
    try:
        assert read_until_damage(data) == ([], True)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [b"-0000000001\0", b"0000000009\0", b"\xff" * 12, b"0x10\0", b"1 2\0"])
def test_a_size_that_is_no_number_is_damage(size: bytes) -> None:
    assert read_until_damage(with_header(b"x.mp4", size)) == ([], True)


def test_a_pax_size_counts_like_the_other() -> None:
    record = b"15 size=" + str(10 << 40).encode()[:6] + b"\n"
    data = with_header(b"pax", b"%011o\0" % len(record), b"x", record)[:-1024] + with_header(b"a.mp4", b"00000000000\0")
    assert read_until_damage(data) == ([], True)


@pytest.mark.parametrize("type_", [b"1", b"2", b"3", b"4", b"6"])
def test_links_and_devices_are_told_apart_and_have_no_data(type_: bytes) -> None:
    data = with_header(b"x.mp4", b"00000001000\0", type_)
    tar = TarReader(io.BufferedReader(io.BytesIO(data)), len(data))  # type: ignore[arg-type]
    assert [(member.kind, member.size) for member in tar] == [("other", 0)]


def test_folders_are_folders_in_old_tars_too() -> None:
    for name, type_ in ((b"d", b"5"), (b"d/", b"0"), (b"d/", b"\0")):
        data = with_header(name, b"00000000000\0", type_)
        tar = TarReader(io.BufferedReader(io.BytesIO(data)), len(data))  # type: ignore[arg-type]
        assert [member.kind for member in tar] == ["folder"]


def test_sparse_files_are_not_taken_for_their_map() -> None:
    data = with_header(b"s.mp4", b"00000000010\0", b"S", b"8 bytes.")
    tar = TarReader(io.BufferedReader(io.BytesIO(data)), len(data))  # type: ignore[arg-type]
    assert [member.kind for member in tar] == ["other"]


def test_a_chain_of_extended_headers_needs_no_stack_and_no_memory() -> None:
    link = with_header(b"././@LongLink", b"00000000004\0", b"L", b"abc\0")[:-1024]
    data = link * 20_000 + with_header(b"x.mp4", b"00000000000\0")
    assert read(data) == [("abc", b"")]
    assert read_until_damage(link * 3 + bytes(1024)) == ([], True)


def test_members_are_skipped_when_nobody_reads_them() -> None:
    data = make_tar([("a", b"x" * 5_000_000), ("b", b"yes")])
    tar = TarReader(io.BufferedReader(io.BytesIO(data)), len(data))  # type: ignore[arg-type]
    found = [bytes(tar.read()) for member in tar if member.name == "b"]
    assert found == [b"yes"]


def test_old_writers_summed_signed_bytes() -> None:
    data = bytearray(with_header(b"caf\xe9.mp4", b"00000000000\0"))
    unsigned = int(data[148:154], 8)
    data[148:156] = b"%06o\0 " % (unsigned - 256)
    assert read(bytes(data)) == [("caf\\xe9.mp4", b"")]
    data[148:156] = b"%06o\0 " % (unsigned - 512)
    assert read_until_damage(bytes(data)) == ([], True)


def test_numbers() -> None:
    assert parse_number(b"0000644\0") == 0o644
    assert parse_number(b"   644 \0") == 0o644
    assert parse_number(b"\0" * 8) == 0
    assert parse_number(b"\x80\0\0\0\0\0\1\0") == 256
    for bad in (b"-1      ", b"8       ", b"1\0000001", b"\xff\xff\xff\xff"):
        with pytest.raises(TarDamagedError):
            parse_number(bad)


def test_pax_records() -> None:
    assert parse_pax(b"12 path=a.b\n11 size=42\n") == {"path": b"a.b", "size": b"42"}
    assert parse_pax(b"13 path=a=\n\n\n") == {"path": b"a=\n\n"}
    for bad in (b"12 path=a.b", b"13 path=a.b\n", b"-1 a=b\n", b"3 \n", b"path=a\n", b"99999999999999999999999 a=b\n"):
        with pytest.raises(TarDamagedError):
            parse_pax(bad)

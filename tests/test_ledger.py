"""Laws: the ledger's answer depends on the set of receipts only, and planned = latents + rejections or no commit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.receipts import ClipsReceipt, ElsewhereReceipt, PartReceipt, Receipt, RejectionReceipt, VideosReceipt
from pipeline.records import ChunkId, CompleteShard, Rejection
from pipeline.runs.ledger import Ledger


def rejection(reason: str = "corrupt") -> Rejection:
    return Rejection(reason=reason, stage="decode", message="")


def part(video: int, clip: int, chunk: int = 0, num_chunks: int = 1) -> Receipt:
    return PartReceipt(id=ChunkId(shard="s", video=video, clip=clip, chunk=chunk, num_chunks=num_chunks))


def rejected(video: int, clip: int, chunk: int = 0, reason: str = "corrupt") -> Receipt:
    id = ChunkId(shard="s", video=video, clip=clip, chunk=chunk)
    return RejectionReceipt(id=id, rejection=rejection(reason))


RECEIPTS: list[Receipt] = [
    VideosReceipt(shard="s", count=3),
    ClipsReceipt(shard="s", video=0, count=2),
    ClipsReceipt(shard="s", video=1, count=1),
    ClipsReceipt(shard="s", video=2, count=1),
    part(0, 0, 0, 2),
    part(0, 0, 1, 2),
    part(0, 1, 0, 3),
    rejected(0, 1, 2, "truncated"),
    rejected(0, 1, 1, "corrupt"),
    rejected(1, 0, reason="unreadable"),
    part(2, 0),
]
EXPECTED = CompleteShard(
    name="s",
    planned=4,
    latents={(0, 0): 2, (2, 0): 1},
    rejections={(0, 1): rejection("corrupt"), (1, 0): rejection("unreadable")},
)


def settle(receipts: list[Receipt]) -> CompleteShard | None:
    ledger = Ledger()
    return [ledger.add(receipt) for receipt in receipts][-1]


@given(st.permutations(RECEIPTS), st.lists(st.sampled_from(RECEIPTS), max_size=5))
def test_order_and_repeats_do_not_matter(order: list[Receipt], repeats: list[Receipt]) -> None:
    assert settle([*repeats, *order]) == EXPECTED


@pytest.mark.parametrize("missing", [i for i in range(len(RECEIPTS)) if i not in (6, 7, 8)])
def test_no_shard_is_complete_while_a_receipt_is_missing(missing: int) -> None:
    assert settle([r for i, r in enumerate(RECEIPTS) if i != missing]) is None


def test_a_clip_with_every_chunk_is_a_latent_whatever_was_said_of_it() -> None:
    receipts: list[Receipt] = [
        VideosReceipt(shard="s", count=1),
        ClipsReceipt(shard="s", video=0, count=1),
    ]
    assert settle([*receipts, rejected(0, 0), part(0, 0)]) == CompleteShard(
        name="s", planned=1, latents={(0, 0): 1}, rejections={}
    )


def test_an_empty_shard_is_complete() -> None:
    assert settle([VideosReceipt(shard="s", count=0)]) == CompleteShard(name="s", planned=0, latents={}, rejections={})


def test_a_clip_that_nobody_announced_keeps_the_shard_open() -> None:
    receipts: list[Receipt] = [VideosReceipt(shard="s", count=1), ClipsReceipt(shard="s", video=0, count=1)]
    assert settle([*receipts, part(0, 0), part(0, 1)]) is None
    ledger = Ledger()
    for receipt in [*receipts, part(0, 0), part(0, 1)]:
        ledger.add(receipt)
    assert ledger.still_open() == {"s": "an account of clip 1 of video 0, which nobody announced"}


def test_counts_that_contradict_each_other_raise() -> None:
    ledger = Ledger()
    ledger.add(ClipsReceipt(shard="s", video=0, count=1))
    with pytest.raises(ValueError, match="1 before and 2 now"):
        ledger.add(ClipsReceipt(shard="s", video=0, count=2))


def test_a_reopened_clip_is_awaited_and_named() -> None:
    ledger = Ledger()
    for receipt in RECEIPTS:
        ledger.add(receipt)
    ledger.reopen("s", [(0, 0)])
    assert ledger.still_open() == {"s": "clip 0 of video 0"}
    assert ledger.add(part(0, 0, 0, 2)) is None
    assert ledger.add(part(0, 0, 1, 2)) == EXPECTED


def test_elsewhere_closes_the_shard() -> None:
    ledger = Ledger()
    ledger.add(RECEIPTS[1])
    ledger.add(ElsewhereReceipt(shard="s"))
    assert ledger.still_open() == {}


def test_a_complete_shard_waits_for_its_commit() -> None:
    """The grace period after a signal may end while a commit is under way, or after it failed."""
    ledger = Ledger()
    ledger.add(VideosReceipt(shard="s", count=1))
    ledger.add(ClipsReceipt(shard="s", video=0, count=1))
    assert ledger.add(part(0, 0))
    assert ledger.still_open() == {"s": "its commit"}

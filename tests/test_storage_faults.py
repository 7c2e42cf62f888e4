"""Storage under faults: each operation gets through what passes by itself, and says clearly what does not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from latentmill.store.retry import ATTEMPTS
from pipeline.errors import AccessError, ChangedError, NotFoundError, StorageError, TransientError
from pipeline.storage import Storage, read_object, stream
from tests.fault_proxy import DropResponse, Fault, FaultProxy, Reset, Status, StripHeader, Truncate

if TYPE_CHECKING:
    from tests.s3 import S3

pytest_plugins = ["tests.s3"]

DATA = bytes(range(256)) * 8
BIG = DATA * 5

# What a caller does, with the S3 operations that it comes to and what it must give.
CALLS: dict[str, tuple[list[str], Callable[[Storage], object], object]] = {
    "read": (["GetObject"], lambda s: s.read("there"), DATA),
    "read range": (["GetObject"], lambda s: s.read("there", 100, 1500), DATA[100:1500]),
    "list": (["ListObjectsV2"], lambda s: len([entry.path for entry in s.list("many")]), 3),
    "size": (["HeadObject"], lambda s: s.size("there"), len(DATA)),
    "exists": (["HeadObject"], lambda s: (s.exists("there"), s.exists("not there")), (True, False)),
    "now": (["ListObjectsV2"], lambda s: s.now() > 1e9, True),
    "put": (["PutObject"], lambda s: (s.put("new", DATA), s.read("new")), (None, DATA)),
    "create": (["PutObject"], lambda s: (s.create("new", DATA), s.read("new")), (True, DATA)),
    "create again": (["PutObject"], lambda s: (s.create("there", DATA), s.create("there", b"other")), (True, False)),
    "delete": (["DeleteObjects"], lambda s: (s.delete("there"), s.exists("there")), (None, False)),
    "delete folder": (["ListObjectsV2", "DeleteObjects"], lambda s: (s.delete("many/"), [*s.list("many")]), (None, [])),
    "put parts": (
        ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"],
        lambda s: (s.put("new", BIG), s.read("new")),
        (None, BIG),
    ),
    "create parts": (
        ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"],
        lambda s: (s.create("new", BIG), s.create("new", BIG[:-1] + b"x"), s.read("new")),
        (True, False, BIG),
    ),
}
FAULTS: dict[str, Fault] = {
    "slow down": Status(503, "SlowDown"),
    "internal error": Status(500, "InternalError"),
    "conflict": Status(409, "ConditionalRequestConflict"),
    "timeout": Status(400, "RequestTimeout"),
    "reset": Reset(),
    "lost response": DropResponse(),
    "empty body": Truncate(0),
    "cut body": Truncate(37),
}
BODY_FAULTS = {"empty body", "cut body", "timeout"}
WITHOUT_BODY = {"HeadObject", "PutObject", "UploadPart"}
"""Their answers have no body that could be cut, nor, for HEAD, one that says more than the status."""
EVERYDAY = {"lost response", "cut body"}
MAIN = {"read", "list", "put", "create", "delete", "create parts"}


def some(call: str, fault: str = "lost response") -> list[pytest.MarkDecorator]:
    """Marks that leave the heart of a matrix to every run, and the rest to the slow one."""
    return [] if call in MAIN and fault in EVERYDAY else [pytest.mark.slow]


MATRIX = [
    pytest.param(call, operation, fault, id=f"{call}-{operation}-{fault}", marks=some(call, fault))
    for call, (operations, _, _) in CALLS.items()
    for operation in operations
    for fault in FAULTS
    if operation not in WITHOUT_BODY or fault not in BODY_FAULTS
]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentmill.store.retry.BASE_SECONDS", 0.001)
    monkeypatch.setattr("pipeline.storage.s3_store.PART_BYTES", 3000)


@pytest.fixture
def output(s3: S3, faults: FaultProxy) -> Storage:
    storage = Storage(s3.uri("out"))
    storage._create_only = True  # spares each test the probe
    s3.put("out/there", DATA)
    for number in range(3):
        s3.put(f"out/many/{number}", b"")
    faults.clear()
    return storage


@pytest.mark.parametrize(("call", "operation", "fault"), MATRIX)
def test_every_call_gets_through_every_passing_fault(
    output: Storage, faults: FaultProxy, s3: S3, call: str, operation: str, fault: str
) -> None:
    _, attempt, expected = CALLS[call]
    faults.add(operation, FAULTS[fault], times=2)
    assert attempt(output) == expected
    assert sum(met != "ok" for _, _, met in faults.requests) == 2, "the faults were met"
    if operation != "CreateMultipartUpload":  # an upload whose name never arrived can't be aborted: see s3_store.py
        assert "Uploads" not in s3.client.list_multipart_uploads(Bucket=s3.bucket), "no upload is left open"


@pytest.mark.parametrize("call", [pytest.param(call, marks=some(call)) for call in CALLS if call != "create again"])
def test_every_call_gives_up_in_the_end_and_publishes_nothing(
    output: Storage, faults: FaultProxy, s3: S3, call: str
) -> None:
    operations, attempt, _ = CALLS[call]
    before = s3.paths()
    faults.add(operations[0], Status(503, "ServiceUnavailable"), times=1000)
    with pytest.raises(TransientError, match=r"\(503\)"):
        attempt(output)
    # A call that creates asks, when it is told of a conflict, whether the object is there.
    assert faults.count(operations[0]) <= ATTEMPTS
    assert s3.paths() == before


@pytest.mark.parametrize(
    ("call", "code"),
    [
        *(pytest.param(call, "AccessDenied", marks=some(call)) for call in CALLS),
        ("put", "ExpiredToken"),
        ("read", "SignatureDoesNotMatch"),
    ],
)
def test_forbidden_is_not_tried_again_and_is_not_taken_for_missing(
    output: Storage, faults: FaultProxy, call: str, code: str
) -> None:
    operations, attempt, _ = CALLS[call]
    faults.add(operations[0], Status(403, code), times=1000)
    with pytest.raises(AccessError, match=r"s3://.*403"):
        attempt(output)
    assert faults.count(operations[0]) == 1


def test_not_found_is_not_tried_again(output: Storage, faults: FaultProxy) -> None:
    with pytest.raises(NotFoundError, match=r"s3://.*nowhere"):
        output.read("nowhere")
    assert faults.count("GetObject") == 1


def test_a_stream_goes_on_from_the_offset_however_often_it_breaks(
    s3: S3, faults: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentmill.store.retry.ATTEMPTS", 2)
    data = b"".join(number.to_bytes(4, "big") for number in range(500_000))
    uri = s3.put("x", data)
    # Large enough to get past what the client has received and not handed out when the connection goes.
    faults.add("GetObject", Truncate(600_000), times=1000)
    with stream(uri, size=len(data)) as body:
        assert body.readall() == data
    assert faults.count("GetObject") > 3


def test_a_whole_stream_is_one_request(s3: S3, faults: FaultProxy) -> None:
    uri = s3.put("x", DATA * 100)
    assert read_object(uri) == DATA * 100
    assert [operation for operation, _, _ in faults.requests] == ["GetObject"]


def test_an_object_that_is_replaced_while_it_is_read_is_noticed(s3: S3, faults: FaultProxy) -> None:
    uri = s3.put("x", b"1" * 2_000_000)
    faults.add("GetObject", Truncate(600_000))
    with stream(uri) as body:
        assert body.read(1000) == b"1" * 1000
        s3.put("x", b"2" * 2_000_000)
        with pytest.raises(ChangedError):
            body.readall()


def test_a_stream_that_makes_no_progress_is_given_up(s3: S3, faults: FaultProxy) -> None:
    uri = s3.put("x", DATA)
    faults.add("GetObject", Truncate(0), times=1000)
    with pytest.raises(TransientError), stream(uri) as body:
        body.readall()
    assert faults.count("GetObject") == ATTEMPTS


def test_the_etag_of_the_plan_is_held_against_the_object(s3: S3) -> None:
    uri = s3.put("x", DATA)
    etag = Storage(s3.uri()).entry("x").etag
    assert read_object(uri, size=len(DATA), etag=etag) == DATA
    s3.put("x", DATA[::-1])
    with pytest.raises(ChangedError):
        read_object(uri, size=len(DATA), etag=etag)


def test_a_lost_response_to_a_create_is_still_ours(output: Storage, faults: FaultProxy, s3: S3) -> None:
    faults.add("PutObject", DropResponse())
    assert output.create("new", b"ours")
    assert [met for operation, _, met in faults.requests if operation == "PutObject"] == ["DropResponse", "ok"]
    faults.add("PutObject", DropResponse())
    assert not output.create("new", b"theirs")
    assert s3.get("out/new") == b"ours"


def test_a_store_that_answers_the_loser_with_409_for_ever(output: Storage, faults: FaultProxy) -> None:
    faults.add("PutObject", Status(409, "ConditionalRequestConflict"), times=1000)
    assert output.create("there", DATA)
    assert not output.create("there", b"other")
    with pytest.raises(TransientError):
        output.create("new", b"")


def test_a_store_that_ignores_the_condition_is_found_out(
    s3: S3, faults: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    faults.add("PutObject", StripHeader("If-None-Match"), times=1000)
    storage = Storage(s3.uri("out"))
    assert storage.create("x", b"first")
    assert storage.create("x", b"first")
    assert not storage.create("x", b"other")
    assert not storage.create_only
    assert s3.get("out/x") == b"first"
    assert caplog.text.count("no atomic create") == 1


def test_a_store_that_does_not_know_the_condition_is_found_out(s3: S3, faults: FaultProxy) -> None:
    faults.add("PutObject", Status(501, "NotImplemented"))
    assert not Storage(s3.uri("out")).create_only


def test_an_upload_that_fails_for_good_is_aborted(output: Storage, faults: FaultProxy, s3: S3) -> None:
    faults.add("CompleteMultipartUpload", Status(403, "AccessDenied"), times=10)
    with pytest.raises(AccessError):
        output.put("new", BIG)
    assert faults.count("AbortMultipartUpload") == 1
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket=s3.bucket)
    assert "out/new" not in s3.paths()


def test_nothing_reaches_outside_its_prefix_and_no_bucket_is_listed_or_made(
    output: Storage, faults: FaultProxy, s3: S3
) -> None:
    for _, attempt, _ in CALLS.values():
        attempt(output)
    for operation, path, _ in faults.requests:
        assert operation not in ("CreateBucket", "HeadBucket", "DeleteBucket")
        assert path.startswith(f"/{s3.bucket}")
        if operation == "ListObjectsV2":
            assert "prefix=out%2F" in path


def test_credentials_appear_in_no_log_and_no_error(
    output: Storage, faults: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="pipeline")
    messages = []
    for fault in (Status(403, "InvalidAccessKeyId"), Status(503, "ServiceUnavailable"), Status(418, "Teapot")):
        faults.clear()
        faults.add("*", fault, times=1000)
        for _, attempt, _ in CALLS.values():
            with pytest.raises(StorageError) as caught:
                attempt(output)
            messages.append(str(caught.value))
    said = "\n".join([*messages, caplog.text])
    assert "503" in said
    assert "test-secret-key" not in said
    assert "test-access-key" not in said

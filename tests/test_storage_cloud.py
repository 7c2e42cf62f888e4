"""Azure (and, by the same client, Google) storage: create-only holds, and every call gets through passing faults."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import ChangedError, ConfigError, NotFoundError, TransientError
from pipeline.storage import Storage, open_uri, stream
from tests.azure import point_at
from tests.fault_proxy import DropResponse, Fault, FaultProxy, Reset, Status, Truncate

pytest_plugins = ["tests.azure"]

DATA = bytes(range(256)) * 8

# What a caller does, the HTTP requests that it comes to, and what it must give.
CALLS: dict[str, tuple[str, str, Callable[[Storage], object], object]] = {
    "read": ("GetObject", "there", lambda s: s.read("there"), DATA),
    "read range": ("GetObject", "there", lambda s: s.read("there", 100, 1500), DATA[100:1500]),
    "list": ("GetObject", "comp=list", lambda s: [entry.path for entry in s.list("many/")], ["many/0", "many/1"]),
    "size": ("HeadObject", "there", lambda s: s.size("there"), len(DATA)),
    "put": ("PutObject", "new", lambda s: (s.put("new", DATA), s.read("new")), (None, DATA)),
    "create": ("PutObject", "new", lambda s: (s.create("new", DATA), s.read("new")), (True, DATA)),
    "create again": ("PutObject", "there", lambda s: (s.create("there", DATA), s.create("there", b"x")), (True, False)),
    "delete": (
        "CompleteMultipartUpload",
        "comp=batch",
        lambda s: (s.delete("there"), s.exists("there")),
        (None, False),
    ),
}
FAULTS: dict[str, Fault] = {
    "busy": Status(503, "ServerBusy"),
    "internal error": Status(500, "InternalError"),
    "reset": Reset(),
    "lost response": DropResponse(),
    "cut body": Truncate(37),
}
WITHOUT_BODY = {"HeadObject", "PutObject"}
MATRIX = [
    pytest.param(call, fault, id=f"{call}-{fault}")
    for call, (operation, *_) in CALLS.items()
    for fault in FAULTS
    if operation not in WITHOUT_BODY or fault != "cut body"
]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentmill.store.retry.BASE_SECONDS", 0.001)


@pytest.fixture
def faults(azure_server: int) -> Iterator[FaultProxy]:
    proxy = FaultProxy(azure_server)
    yield proxy
    proxy.close()


@pytest.fixture
def output(azure: str, faults: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Storage:
    storage = Storage(f"{azure}/out")
    storage.put("there", DATA)
    for number in range(2):
        storage.put(f"many/{number}", b"")
    assert storage.create_only
    point_at(faults.port, monkeypatch)
    return storage


@pytest.mark.parametrize(("call", "fault"), MATRIX)
def test_every_call_gets_through_every_passing_fault(
    output: Storage, faults: FaultProxy, call: str, fault: str
) -> None:
    operation, path, attempt, expected = CALLS[call]
    faults.add(operation, FAULTS[fault], times=2, path=path)
    assert attempt(output) == expected
    assert sum(met != "ok" for _, _, met in faults.requests) == 2, "the faults were met"


@pytest.mark.parametrize("call", CALLS)
def test_every_call_gives_up_in_the_end(output: Storage, faults: FaultProxy, call: str) -> None:
    operation, path, attempt, _ = CALLS[call]
    faults.add(operation, Status(503, "ServerBusy"), times=1000, path=path)
    with pytest.raises(TransientError):
        attempt(output)


def test_one_of_many_creators_wins(azure: str) -> None:
    storage = Storage(azure)
    for number in range(4):
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda i, n=number: storage.create(f"race/{n}", bytes([i]) * 1000), range(8)))
        assert won.count(True) == 1


def test_another_object_under_the_address_is_noticed(azure: str) -> None:
    storage = Storage(azure)
    storage.put("x", b"first")
    etag = storage.entry("x").etag
    storage.put("x", b"other")
    with pytest.raises(ChangedError), stream(storage.address("x"), etag=etag) as body:
        body.read()


def test_what_is_not_there_is_not_found(azure: str) -> None:
    storage, path = open_uri(f"{azure}/folder/{uuid.uuid4().hex}.mp4")
    with pytest.raises(NotFoundError):
        storage.read(path)


def test_missing_credentials_are_a_setting_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore", reason="needs the extra `cloud`")
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"az://nobody: .*Account must be specified"):
        Storage("az://nobody/out").size("x")

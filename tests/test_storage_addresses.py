"""Addresses: one spelling for each place, joined without leaving the bucket, shown without what is secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.storage.addresses import folder_of, joined, normal_uri, parted, redacted, scheme_of


@pytest.mark.parametrize(
    ("uri", "normal"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("s3a://bucket/a", "s3://bucket/a"),
        ("S3://bucket/A", "s3://bucket/A"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("file:///a/b", "/a/b"),
        ("local:///a", "/a"),
        ("/a//b/../c/", "/a/c"),
        ("s3://bucket/a//b", "s3://bucket/a//b"),
        ("https://host/a//b?sig=x/", "https://host/a//b?sig=x/"),
        ("gs://bucket/x", "gs://bucket/x"),
        ("memory://x", "memory://x"),
        ("abfs+x://a/b", "abfs+x://a/b"),
    ],
)
def test_one_spelling_for_each_place(uri: str, normal: str) -> None:
    assert normal_uri(uri) == normal
    assert normal_uri(normal) == normal


def test_relative_paths_and_homes_become_absolute() -> None:
    assert normal_uri("a/b") == f"{Path.cwd()}/a/b"
    assert normal_uri("~/a") == f"{os.path.expanduser('~')}/a"  # noqa: PTH111
    assert scheme_of("a:b/c") == scheme_of("C:/x") == scheme_of("/a/s3://b") == ""


@pytest.mark.parametrize(
    "uri", ["", "a\0b", "s3://", "s3:///key", "https://?x=1", "s3://key:secret@bucket/x", "s3://key:sec/ret@bucket/x"]
)
def test_what_is_no_place(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        normal_uri(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "reference", "uri"),
    [
        ("/data/lists", "a.mp4", "/data/lists/a.mp4"),
        ("/data/lists", "../x/a.mp4", "/data/x/a.mp4"),
        ("/data/lists", "/abs/a.mp4", "/abs/a.mp4"),
        ("/data/lists", "s3a://bucket/a.mp4", "s3://bucket/a.mp4"),
        ("/", "a.mp4", "/a.mp4"),
        ("s3://bucket", "a.mp4", "s3://bucket/a.mp4"),
        ("s3://bucket/lists", "./a b#c?.mp4", "s3://bucket/lists/a b#c?.mp4"),
        ("s3://bucket/lists", "../a.mp4", "s3://bucket/a.mp4"),
        ("s3://bucket/lists", "s3://other/a.mp4", "s3://other/a.mp4"),
        ("s3://bucket/lists", "d//a.mp4", "s3://bucket/lists/d//a.mp4"),
        ("s3://bucket//lists", "../x/./a.mp4", "s3://bucket//x/a.mp4"),
        ("/data/lists", "d//a.mp4", "/data/lists/d/a.mp4"),
    ],
)
def test_a_reference_is_seen_from_its_folder(folder: str, reference: str, uri: str) -> None:
    assert joined(folder, reference) == uri


@pytest.mark.parametrize("reference", ["../../a.mp4", "../..", "x/../../../a", "zip://a::s3://b/c", "a::s3://b/c", ""])
def test_a_reference_stays_in_its_bucket(reference: str) -> None:
    if reference:
        with pytest.raises(ValueError, match=r"leads out|not one address"):
            joined("s3://bucket/lists", reference)
    with pytest.raises(ValueError, match=r"leads out|not one address"):
        joined("s3://bucket", reference or "../bucket2/a")


def test_the_folder_of() -> None:
    assert folder_of("s3://bucket/a/b.csv") == "s3://bucket/a"
    assert folder_of("s3://bucket/b.csv") == "s3://bucket"
    assert folder_of("/a/b.csv") == "/a"
    assert folder_of("/b.csv") == "/"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://host/a.mp4?X-Amz-Signature=secret", "https://host/a.mp4"),
        ("https://user:secret@host/a.mp4", "https://host/a.mp4"),
        ("https://host?token=secret", "https://host"),
        ("https://host/a.mp4#token=secret", "https://host/a.mp4"),
        ("https://host/a.tar#b.mp4", "https://host/a.tar#b.mp4"),
        ("https://user:sec/ret@host/a.mp4", "https://host/a.mp4"),
        ("https://user:sec/ret@ret@host:80/a.mp4", "https://host:80/a.mp4"),
        ("https://[2606:4700::1111]:8080/@user/a.mp4", "https://[2606:4700::1111]:8080/@user/a.mp4"),
        ("https://host/@user/a.mp4", "https://host/@user/a.mp4"),
        ("https://host:8080/@user/a.mp4", "https://host:8080/@user/a.mp4"),
        ("https://user:secret@host/@user/a.mp4", "https://host/@user/a.mp4"),
        ("s3://bucket/what?.mp4", "s3://bucket/what?.mp4"),
        ("s3://key:secret@bucket/what?@.mp4", "s3://bucket/what?@.mp4"),
        ("s3://key:sec/ret@bucket/a.mp4", "s3://bucket/a.mp4"),
        ("s3://bucket/@user/a.mp4", "s3://bucket/@user/a.mp4"),
        ("s3://arn:aws:s3:eu-west-1:1:accesspoint:x/@a.mp4", "s3://arn:aws:s3:eu-west-1:1:accesspoint:x/@a.mp4"),
        ("https://host/a;token=secret/b.mp4;v=1?x", "https://host/a/b.mp4"),
        ("https://host/a;b.mp4", "https://host/a;b.mp4"),
        ("/local/what?.mp4", "/local/what?.mp4"),
    ],
)
def test_secrets_are_not_shown(uri: str, shown: str) -> None:
    assert redacted(uri) == shown


@pytest.mark.parametrize(
    "uri", ["s3://b/a.mp4", "s3://b/d//a.mp4", "s3://b//a.mp4", "/a.mp4", "/d/a.mp4", "https://h/a?x=/"]
)
def test_folder_and_path_make_the_address_again(uri: str) -> None:
    folder, path = parted(uri)
    assert f"{folder.rstrip('/')}/{path}" == uri


@pytest.mark.parametrize("uri", ["s3://bucket", "https://host", "/"])
def test_a_bucket_is_no_object(uri: str) -> None:
    with pytest.raises(ConfigError, match="not the address of an object"):
        parted(uri)

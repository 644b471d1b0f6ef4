"""Servers that lie: what they answer takes no more room than it has bytes, and reaches no terminal or other key."""

from __future__ import annotations

import contextlib
import io
import weakref
from collections.abc import Callable, Iterator

import pytest

from hopaas_p2p.errors import Denied, HopaasError, StoreUnreachable
from hopaas_p2p.remote import protocol
from hopaas_p2p.remote.client import Connections, RemoteAddress
from hopaas_p2p.stores.s3.store import S3Store
from tests.support.s3_fixtures import s3_environment
from tests.support.s3_imitation import Imitation

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], S3Store]]:
    """A store in a bucket whose server answers each listing with this text."""
    s3_environment(monkeypatch)
    with Imitation() as server, contextlib.closing(S3Store(server.url("store"))) as store:

        def answers(text: str) -> S3Store:
            server._list = lambda _: text  # type: ignore[method-assign]
            return store

        yield answers


def listed(inside: str, before: str = "") -> str:
    return f'{before}<ListBucketResult xmlns="{_NAMESPACE}">{inside}</ListBucketResult>'


@pytest.mark.parametrize(
    "text",
    [
        "",
        listed("<Contents/>" * 100_000),
        listed("<a/>" * 300_000),
        listed("<a {}/>".format(" ".join(f"a{number}=''" for number in range(300_000)))),
        listed("\n" * 300_000),
        listed(
            "<IsTruncated>false</IsTruncated><Contents><Key>&a;</Key></Contents>",
            f'<!DOCTYPE l [<!ENTITY a "{"x" * 100_000}">]>',
        ),
    ],
    ids=["nothing", "objects", "elements", "attributes", "lines", "entities"],
)
def test_a_listing_of_a_bucket_has_what_was_asked_for_and_declares_nothing(
    listing: Callable[[str], S3Store], text: str
) -> None:
    with pytest.raises(StoreUnreachable, match=r"more objects at a time than|not from S3"):
        listing(text).objects.listed("study/")


def test_a_listing_goes_on_behind_the_key_that_it_was_asked_for(listing: Callable[[str], S3Store]) -> None:
    """Otherwise who lists page after page would do so for ever."""
    each = "<LastModified>2026-01-01T00:00:00Z</LastModified><Size>1</Size>"
    store = listing(listed("".join(f"<Contents><Key>store/v1/log/{key}</Key>{each}</Contents>" for key in "abc")))
    assert store.objects.listed("log/") == ["log/a", "log/b", "log/c"]
    for after in ("log/a", "log/c"):
        with pytest.raises(StoreUnreachable, match="before those"):
            store.objects.listed("log/", after=after)


def test_a_listed_key_that_leads_elsewhere_is_left_out(listing: Callable[[str], S3Store]) -> None:
    """An HTTP client sends a/x/../../b as b, so that to remove the one would be to remove the other."""
    root = "store/v1/"
    keys = ["study/gone/x", "study/gone/x/../../../../other", "study/./gone", "beats/y", "../study/z"]
    each = "<LastModified>2026-01-01T00:00:00Z</LastModified><Size>1</Size>"
    text = listed("".join(f"<Contents><Key>{root}{key}</Key>{each}</Contents>" for key in keys))
    assert listing(text).objects.listed("study/") == ["study/gone/x"]


@pytest.mark.parametrize("error", ["StoreUnreachable", "Denied", "", "NoSuchError"])
def test_what_a_server_says_is_short_and_no_terminal_obeys_it(error: str) -> None:
    said = "no \x1b]0;owned\x07\x9b2J\u202e\r" + "y" * 10_000_000
    answer = protocol.encode([None, error or "HopaasError", said])
    kind = Denied if error == "Denied" else HopaasError
    with pytest.raises(kind) as raised:
        protocol.result_of("beats", answer)
    assert len(str(raised.value)) < 3000
    assert str(raised.value).isprintable()
    assert protocol.refusal(answer) == (error or "HopaasError", str(raised.value))


@pytest.mark.parametrize(
    ("call", "result"),
    [("beats", dict.fromkeys(map(str, range(1001)), "")), ("blocks", dict.fromkeys(map(str, range(1001)), b""))],
)
def test_an_answer_holds_no_more_than_was_asked_for(call: str, result: object) -> None:
    with pytest.raises(StoreUnreachable, match="cannot be read"):
        protocol.result_of(call, protocol.answered(result))


class _Answer(bytearray):
    """An answer's bytes, of which can be told whether anything still holds them."""


@pytest.mark.parametrize("answer", [b"\xc1", protocol.refused(Denied("go away")), protocol.refused(StoreUnreachable())])
def test_an_error_that_is_kept_keeps_no_answer(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that tries again for hours meets one error after the other, and each answer may have 64 MB."""
    data = _Answer(answer)
    found = weakref.ref(data)

    class Sent(io.BytesIO):
        def read(self, _: int | None = -1) -> _Answer:  # type: ignore[override]
            nonlocal data
            said, data = data, _Answer()
            return said

    monkeypatch.setattr(Connections, "send", lambda *_, **__: Sent())
    with pytest.raises(HopaasError) as kept:
        Connections(RemoteAddress.parse("https://example.org")).ask("hello")
    assert kept.value.__context__ is None
    assert found() is None

import gzip
import zlib
from http import HTTPStatus

import pytest

from timesplit.forwarder.receiver import BODY_BYTES, Refused, decompressed


@pytest.mark.parametrize(
    ("encoding", "sent"),
    [
        (None, b"spans"),
        ("identity", b"spans"),
        ("gzip", gzip.compress(b"spans")),
        ("deflate", zlib.compress(b"spans")),
    ],
)
def test_what_was_compressed_is_as_it_was(encoding: str | None, sent: bytes) -> None:
    assert decompressed(sent, encoding) == b"spans"


@pytest.mark.parametrize(
    ("encoding", "sent"),
    [
        ("gzip", b"no gzip"),
        ("gzip", gzip.compress(b"spans")[:-9]),
        ("deflate", b"no deflate"),
        ("gzip", gzip.compress(b"spans") + b"rubbish"),
        ("deflate", zlib.compress(b"spans")[:-5]),
    ],
)
def test_what_does_not_fit_its_encoding_is_refused_in_one_line(encoding: str, sent: bytes) -> None:
    with pytest.raises(Refused, match=f"the body is not {encoding}") as refused:
        decompressed(sent, encoding)

    assert refused.value.status == HTTPStatus.BAD_REQUEST
    assert "\n" not in str(refused.value)


def test_another_encoding_is_refused() -> None:
    with pytest.raises(Refused, match="br; send gzip") as refused:
        decompressed(b"", "br")

    assert refused.value.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_small_body_that_grows_too_large_is_refused(encoding: str, compress: object) -> None:
    assert callable(compress)

    with pytest.raises(Refused, match=str(BODY_BYTES)) as refused:
        decompressed(compress(bytes(BODY_BYTES + 1)), encoding)

    assert refused.value.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    assert len(decompressed(compress(bytes(BODY_BYTES)), encoding)) == BODY_BYTES

"""JPEGs of strangers: none is decoded whose size is not known before."""

import numpy as np
import pytest

from mbt_core.media import MediaError
from mbt_core.media.jpegs import decode_jpeg, encode_jpeg, jpeg_size

SMALL = b"\xff\xc0\x00\x11\x08\x00\x10\x00\x10\x03"
"""A frame header of 16 x 16 pixels."""
COMMENT = b"\xff\xfe" + (2 + len(SMALL)).to_bytes(2, "big") + SMALL


@pytest.fixture
def small():
    return encode_jpeg(np.full((48, 64, 3), 130, np.uint8), 90)


def frame(data):
    return data.index(b"\xff\xc0")


@pytest.fixture
def huge(small):
    """It says that it has 30000 x 30000 pixels, 2.7 GB."""
    at = frame(small) + 5
    return small[:at] + (30_000).to_bytes(2, "big") * 2 + small[at + 4 :]


def test_usual_headers(small):
    at = frame(small)
    for data in (small, small[:2] + COMMENT + small[2:], small[:at] + b"\xff\xff" + small[at:]):
        assert jpeg_size(data) == (48, 64)
        np.testing.assert_allclose(decode_jpeg(data, "a.jpg"), 130, atol=2)


@pytest.mark.parametrize("before", [b"", COMMENT, b"\xff", b"\xff\xff\xff"])
def test_too_large_ones_are_refused(huge, before):
    at = frame(huge)
    with pytest.raises(MediaError, match=r"a\.jpg: pictures of 30000 x 30000 pixels are too large"):
        decode_jpeg(huge[:at] + before + huge[at:], "a.jpg")


@pytest.mark.parametrize("before", [b"\xff\xd0" + COMMENT, b"\xff\x01" + COMMENT, b"\xff\x00", b"\x00"])
def test_sizes_that_could_be_read_in_two_ways_are_refused(huge, before):
    with pytest.raises(MediaError, match="its header does not say its size"):
        decode_jpeg(huge[:2] + before + huge[2:], "a.jpg")


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"nothing" * 9])
def test_what_is_none(data):
    with pytest.raises(MediaError, match="cannot decode the picture"):
        decode_jpeg(data, "a.jpg")

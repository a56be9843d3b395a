import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypfed.core.errors import ConfigError
from polypfed.privacy.errors import FRAME_REASONS, FrameRefused
from polypfed.privacy.frames import OVERHEAD, Frame, Label, Mac, expect, joined, read, split

LABEL = Label(b"j" * 16, 3, 1, b"k" * 8, b"p" * 8, 1000)
MAC = Mac(b"m" * 32)


@given(
    st.binary(max_size=200),
    st.sampled_from(["update", "sum", "relay", "masked"]),
    st.integers(0, 65535),
    st.integers(0, 65535),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_field_comes_back(body, kind, site, sites, index, count, full):
    frame = Frame(LABEL, kind, site, sites, index, count, body, full)
    data = frame.seal(MAC)
    assert len(data) == OVERHEAD + len(body)
    assert read(data, {site: MAC}) == frame
    expect(frame, LABEL, (kind,))


def test_nothing_but_a_refusal_comes_out_of_garbage():
    """Ten thousand mutations; a few are re-signed, as a hostile site would."""
    draw, good = random.Random(0), Frame(LABEL, "update", 2, 1, 0, 1, bytes(40)).seal(MAC)
    accepted, reasons = 0, set()
    for _ in range(10_000):
        data = bytearray(good)
        for _ in range(draw.randint(1, 6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        data = data[: draw.randint(0, len(data))] if draw.random() < 0.2 else data
        if draw.random() < 0.3 and len(data) > 64:
            head, body = bytes(data[:72]), bytes(data[72:-64])
            import hashlib

            data[-64:] = MAC.sign(b"polypfed frame 1" + head + hashlib.sha256(body).digest())
        try:
            frame = read(bytes(data), {2: MAC})
            expect(frame, LABEL, ("update",))
            accepted += 1
        except FrameRefused as refusal:
            reasons.add(refusal.reason)
    assert accepted < 2500
    assert {"size", "header", "signature", "wrong-job"} < reasons <= set(FRAME_REASONS)


def test_frames_travel_as_one_array():
    frames = [Frame(LABEL, "update", 2, 1, i, 3, bytes([i]) * 10 * i).seal(MAC) for i in range(3)]
    array = joined(frames)
    assert array.dtype == np.uint8
    assert list(split(array)) == frames
    assert list(split(array.tobytes())) == frames
    assert list(split(b"")) == []
    for cut in (1, 100, len(frames[2]) - 1):
        with pytest.raises(FrameRefused) as caught:
            list(split(array[:-cut]))
        assert caught.value.reason == "size"


def test_a_large_frame_is_refused_unread():
    with pytest.raises(FrameRefused, match="no frame of"):
        read(bytes(1000), {}, limit=999)


def test_labels_and_keys_have_their_sizes():
    for fields in ((b"j", 0, 0, b"k" * 8, b"p" * 8, 1), (b"j" * 16, 1 << 32, 0, b"k" * 8, b"p" * 8, 1)):
        with pytest.raises(ConfigError):
            Label(*fields)
    with pytest.raises(ConfigError, match="32 bytes"):
        Mac(b"short")

"""Arrays in JSON files: any of numbers comes back as it was, whole numbers in few bytes."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from abcsearch.runs.disk.arrays import decode_array, encode_array

KINDS = st.sampled_from(["<i8", "<i4", "<i2", "<i1", "<u8", "<u1", "<f8", "<f4", "|b1"])


@given(arrays.arrays(KINDS, arrays.array_shapes(min_dims=0, min_side=0)))
def test_arrays_come_back_as_they_were(array):
    text = json.dumps({"x": array}, default=encode_array)
    again = json.loads(text, object_hook=decode_array)["x"]
    assert again.dtype == array.dtype
    assert again.tobytes() == array.tobytes()
    assert again.shape == array.shape
    assert again.flags.writeable


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_whole_numbers_take_no_more_bytes_than_they_need(numbers):
    stored = np.dtype(encode_array(np.array(numbers)).get("stored", "<i8"))
    smaller = [
        np.dtype(kind)
        for kind in ("<i1", "<i2", "<i4")
        if np.dtype(kind).itemsize < stored.itemsize
    ]
    assert all(
        min(numbers) < np.iinfo(kind).min or max(numbers) > np.iinfo(kind).max for kind in smaller
    )


def test_arrays_of_older_files_are_read():
    form = {"__array__": "<i8", "shape": [2], "data": "AQAAAAAAAAACAAAAAAAAAA=="}
    np.testing.assert_array_equal(decode_array(form), [1, 2])


@pytest.mark.parametrize(
    "kinds", [("|O", "<i1"), ("|O", "|O"), ("<i8", "|O"), ("<i8", "no"), ("<i8", 5), ("no", "<i1")]
)
def test_what_is_no_array_of_numbers_is_refused(kinds):
    form = {"__array__": kinds[0], "stored": kinds[1], "shape": [1], "data": "AAAAAAAAAAA="}
    with pytest.raises((ValueError, TypeError)):
        decode_array(form)

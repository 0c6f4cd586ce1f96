"""Thinned: bounded, even, and always with the first entry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsuvcb.training.thinned import Thinned


def filled(n, cap):
    record = Thinned(cap)
    for i in range(n):
        if record.due():
            record.append(i)
    return record


@given(n=st.integers(0, 3000), half=st.integers(1, 40))
def test_record_of_any_length_is_even_bounded_and_covers_the_series(n, half):
    record = filled(n, 2 * half)
    assert list(record) == list(range(0, n, record.stride))
    assert len(record) < 2 * half or (half == 1 and len(record) == 1)
    assert record.stride == 1 or len(record) >= half


def test_record_that_is_not_full_keeps_everything():
    assert list(filled(9, 10)) == list(range(9))
    assert list(filled(10, 10)) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("cap", [-2, 0, 1, 7])
def test_record_with_a_bad_cap_raises(cap):
    with pytest.raises(ValueError, match=f"`cap` must be an even number >= 2, got {cap}"):
        Thinned(cap)

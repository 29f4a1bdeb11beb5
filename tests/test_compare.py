"""What counts as the same result, and which sentence says what differs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pangu_lab.exercises.compare import CannotCompare, Compare, is_plain

same = Compare().difference

numbers = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
plain = st.recursive(
    numbers,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(st.integers(), max_size=4)
    ),
    max_leaves=12,
)


@given(plain)
def test_plain_data_equals_itself_even_strictly(value):
    assert same(value, value) is None
    assert Compare(0, 0, strict=True, dtype=True).difference(value, value) is None
    assert is_plain(value)


@given(plain, plain)
def test_comparing_never_raises_and_a_difference_is_one_sentence(yours, expected):
    found = same(yours, expected)
    assert found is None or (0 < len(found) < 400 and "\n" not in found)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(0.01, 10))
def test_a_shift_beyond_the_tolerance_is_found_in_every_container(values, shift):
    shifted = [v + shift + abs(v) * 1e-2 for v in values]
    for build in (list, tuple, np.array, lambda v: torch.tensor(v, dtype=torch.float64)):
        assert same(build(shifted), build(values))
        assert same({"a": build(shifted)}, {"a": build(values)}).startswith("in result['a']")


@pytest.mark.parametrize(
    ("yours", "expected"),
    [
        (1, 1.0),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (torch.tensor(0.5), 0.5),
        (0.50001, 0.5),
        (math.nan, math.nan),
        (math.inf, math.inf),
        ([1, 2], (1, 2)),
        (torch.tensor([1, 2]), torch.tensor([1.0, 2.0])),
        (torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0])),
        (torch.tensor([1.0], requires_grad=True), torch.tensor([1.0])),
        (np.array([math.nan, math.inf]), np.array([math.nan, math.inf])),
        (np.array(["a"]), np.array(["a"])),
        (np.zeros((0, 3)), np.zeros((0, 3))),
        (frozenset({1}), {1}),
        (10**400, 10**400),
    ],
)
def test_these_are_the_same(yours, expected):
    assert same(yours, expected) is None


@pytest.mark.parametrize(
    ("yours", "expected", "sentence"),
    [
        (0.41, 0.37, "the value is 0.41, expected 0.37"),
        (1.00012345, 1.0, "the value is 1.000123, expected 1.0"),
        (2, 3, "the value is 2, expected 3"),
        (2.0, 2, "the result is a float, expected an int"),
        (True, 1, "the result is a bool, expected an int"),
        (1, True, "the result is an int, expected a bool"),
        (None, 1.0, "the result is None, expected a float (is a return missing?)"),
        (1, None, "the result is an int, expected None"),
        ("b", "a", "the text is 'b', expected 'a'"),
        ([1], [1, 2], "the length is 1, expected 2"),
        ([1, [2, 4]], [1, [2, 3]], "in result[1][1], the value is 4, expected 3"),
        ({"a": 1}, {"a": 1, "f1": 2}, "key 'f1' is missing"),
        ({"a": 1, "b": 2}, {"a": 1}, "key 'b' is not expected"),
        ({"f1": 0.41}, {"f1": 0.37}, "in result['f1'], the value is 0.41, expected 0.37"),
        ({1, 2}, {2, 3}, "3 is missing from the set"),
        ({1, 2}, {2}, "1 does not belong in the set"),
        ([0.5], np.array([0.5]), "the result is a list, expected a numpy array of shape (1,)"),
        (np.zeros((2, 3)), np.zeros((3, 2)), "the shape is (2, 3), expected (3, 2)"),
        (torch.ones(3), torch.ones(3, dtype=torch.long), "the dtype is float32, expected an integer type"),
        (torch.ones(3), torch.ones(3, dtype=torch.bool), "the dtype is float32, expected bool"),
        (math.inf, -math.inf, "the value is inf, expected -inf"),
        (math.nan, 1.0, "the value is nan, expected 1.0"),
        (10**400, 1.0, "the value is an integer of 1329 bits, expected 1.0"),
        (torch.ones(1), 1.0, "the result is a tensor of shape (1,), expected a float"),
        ((i for i in [1]), [1], "the result is a generator, expected a list"),
        (np.array([1]), np.array([2]), "value at [0] is 1, expected 2"),
        (np.array(0.5), np.array(0.25), "the value is 0.5, expected 0.25"),
    ],
)
def test_the_sentence_says_what_differs(yours, expected, sentence):
    assert same(yours, expected) == sentence


def test_the_first_differing_value_of_a_tensor_is_named_with_its_place_and_how_many_differ():
    expected = torch.zeros(2, 3)
    yours = expected.clone()
    yours[0, 2], yours[1, 0] = 0.41, 1
    assert same(yours, expected) == "value at [0, 2] is 0.41, expected 0.0 (2 of 6 values differ)"


def test_strict_wants_exact_types_and_dtype_wants_the_dtype():
    strict = Compare(strict=True).difference
    assert strict(1, 1.0) == "the result is an int, expected a float"
    assert strict((1,), [1]) == "the result is a tuple, expected a list"
    assert strict(torch.tensor(1.0), 1.0)
    typed = Compare(dtype=True).difference
    assert typed(np.float32([1]), np.float64([1])) == "the dtype is float32, expected float64"


def test_long_texts_are_compared_around_the_first_difference():
    found = same("x" * 500 + "a", "x" * 500 + "b")
    assert "character 500" in found and len(found) < 150


def test_what_is_not_plain_data_is_refused():
    assert not is_plain(object()) and not is_plain([print]) and not is_plain(np.array([None]))
    with pytest.raises(CannotCompare):
        same(1, object())

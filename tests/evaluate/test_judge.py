"""Grading of final answers as a reader would, and lm-eval's filters on request."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from justright.errors import UsageError
from justright.evaluate.judge import filtered, is_right

RIGHT = [
    ("The answer is not 5, but 7.", "7"),
    ("The answer is not A but B.", "B"),
    ("The answer is 3 x 6 = 18.", "18"),
    ("Answer: 5 \u2212 3 = 2", "2"),
    ("The answer is 2^10 = 1024", "1024"),
    ("The answer is 18 (that is 3 x 6).", "18"),
    ("Answer: 5 apples and 3 pears", "5"),
    ("<answer>18</answer>", "18"),
    ("Day 3: 18", "18"),
    ("It is 18.0", "18"),
    ("1,234", "1234"),
    ("The answer is $1,234.00.", "1234"),
    ("-$5", "-5"),
    ("The answer is $-5$", "-5"),
    ("US$ 5", "5"),
    ("18 \u20ac", "$18"),
    ("The answer is \u22125.", "-5"),
    ("50 percent", "50%"),
    ("The answer is 0.5", "50%"),
    ("\\boxed{\\frac{1}{2}}", "0.5"),
    ("half, so 2 1/2", "2.5"),
    ("The answer is 3. No. The answer is 4.", "4"),
    ("Answer: 5 + 3 = 8", "8"),
    ("The answer is 18, since 3 * 6 makes that.", "18"),
    ("The answer is:\n\n**18**", "18"),
    ("**Answer**: 18 dollars", "18"),
    ("#### 72", "She sold 48 + 24 = 72. #### 72"),
    ("1e3", "1000"),
    ("The answer is A.", "A"),
    ("(A)", "a"),
    ("A) Paris", "A"),
    ("The answer is (A) Paris", "A"),
    ("The answer is A because B is wrong", "A"),
    ("B is wrong, so A", "A"),
    ("The capital is Paris.", "Paris"),
    ("First.\nYes, it is.", "yes"),
    ("The answer is Washington, D.C.", "Washington, D.C."),
]
WRONG = [
    ("The answer is not 5, but 7.", "5"),
    ("The answer is not 5.", "5"),
    ("The answer is 3 or 4", "3"),
    ("The answer is 3 and 4", "3"),
    ("The answer is 3, 4", "3"),
    ("It is 3 or 4", "4"),
    ("A or B", "B"),
    ("Answer: 2 + 2", "2"),
    ("Answer: 5 - 3", "5"),
    ("Answer: 3 * 4", "3"),
    ("Answer: 10 / 2", "10"),
    ("The answer is 2^10", "2"),
    ("Answer: 5\u00b2", "5"),
    ("The answer is 10-15", "10"),
    ("It takes 5-6 days", "6"),
    ("The answer is 5:30", "5"),
    ("The answer is C++", "C"),
    ("The answer is C#", "C"),
    ("The answer is A+", "A"),
    ("10-5", "5"),
    ("The answer is B.", "A"),
    ("11/2", "1/2"),
    ("1/22", "1/2"),
    ("10-5", "-5"),
    ("The answer is -5", "5"),
    ("118", "18"),
    ("18.5", "18"),
    ("1,234", "234"),
    ("The answer is 3. No. The answer is 4.", "3"),
    ("I have 18 and then 20", "18"),
    ("0.5%", "50"),
    ("the answer is a bird", "A"),
    ("B or C", "B"),
    ("B is wrong, so A", "B"),
    ("It is not A", "A"),
    ("It is not Paris but Lyon.", "Paris"),
    ("The answer is New York City.", "New York"),
    ("The answer is well-known", "well"),
    ("untrue", "true"),
    ("The answer is 1/0", "5"),
    ("1e999", "1"),
    ("9" * 5000, "9"),
    ("", "A"),
    ("", "5"),
    ("The answer is ", "A"),
    ("anything", ""),
]


@pytest.mark.parametrize(("text", "answer"), RIGHT)
def test_right(text: str, answer: str) -> None:
    assert is_right(text, answer)


@pytest.mark.parametrize(("text", "answer"), WRONG)
def test_wrong(text: str, answer: str) -> None:
    assert not is_right(text, answer)


@given(st.integers(-(10**7), 10**7), st.integers(0, 999), st.integers(-(10**7), 10**7))
def test_numbers_as_python_writes_them(whole: int, thousandths: int, other: int) -> None:
    value = Fraction(whole) + (Fraction(thousandths, 1000) if whole >= 0 else -Fraction(thousandths, 1000))
    plain = f"{'-' if value < 0 else ''}{abs(whole)}.{thousandths:03}"
    grouped = f"{'-' if value < 0 else ''}{abs(whole):,}.{thousandths:03}"
    fraction = f"{value.numerator}/{value.denominator}"
    for text in (plain, grouped, fraction):
        for answer in (plain, grouped, fraction):
            assert is_right(f"First 7. The answer is {text}.", answer)
            assert is_right(f"So it is {text}", answer)
            assert is_right(f"The answer is {other}.", answer) == (other == value)


@given(st.text(min_size=1))
def test_an_answer_is_judged_unchanged(text: str) -> None:
    assert is_right(text, text) == (text.split() != [])


def test_lm_evals_filters_take_the_answer_out() -> None:
    regex = json.dumps({"function": "regex", "regex_pattern": r"<(\w+)>", "group_select": -1})
    judge = filtered([regex, "lowercase"])
    assert judge("<No> and <Maybe>", "maybe")
    assert not judge("<Maybe> and <No>", "maybe")
    assert not judge("maybe", "maybe"), "the filter finds nothing"
    numbers = filtered([json.dumps({"function": "regex", "regex_pattern": r"#### (\S+)"}), "take_first"])
    assert numbers("5 #### 18.0 and 7", "18")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "no filter 'magic'; allowed:"),
        ('{"function": "regex", "pattern": "x"}', "filter regex: .*pattern"),
        ('{"function": "regex", "regex_pattern": "("}', "filter regex"),
        ("{", "allowed: a name, or JSON"),
        ("{}", "allowed: a name, or JSON"),
        ("multi_choice_regex", "do not work on problems.*choices"),
    ],
)
def test_filters_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        filtered([text])

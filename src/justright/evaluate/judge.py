"""Judge whether the final answer of a text is right: numbers by value, words and options as a whole.

The final answer follows the last ``\\boxed{``, ``####``, ``answer is`` or ``answer:``. Without any of these it is the
last number of the text or, for words, the beginning or end of the last line. For other forms, give a function of your
own or lm-eval's filters (`filtered`).
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from justright.errors import UsageError

Judge = Callable[[str, str], bool]
"""``(text, answer)`` -> whether the text, without its reasoning, gives the answer."""

_MARK = re.compile(
    r"\\boxed\s*\{(?P<boxed>(?:[^{}]|\{[^{}]*\})*)\}|####|\banswers?\b[\s*_]*(?:is\b|are\b|[:=])[\s*_:]*",
    re.IGNORECASE,
)
_CURRENCY = re.compile(r"([-+\u2212\u2013]?)[$\u20ac\u00a3\u00a5]\s?")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{(-?[0-9]+)\}\s*\{([0-9]+)\}")
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\].])[-+\u2212\u2013])?(?<![\w.])"
    rf"(?:(?P<whole>[0-9]+)\s+(?=[0-9]+/[0-9]))?(?P<digits>{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:[eE](?P<power>[-+]?[0-9]{1,3})(?![0-9]))?(?:/(?P<below>[0-9]+))?(?:\s*(?P<percent>%|percent\b|per cent\b))?"
)
_JOIN = r"(?:\s*(?:[-\u2212\u2013+*\u00d7\u00b7/\u00f7^]|\b(?:or|and|to|x)\b)\s*|:)"
_CONTINUES = re.compile(
    rf"{_JOIN}[$\u20ac\u00a3\u00a5]?\.?[0-9]|[\u00b9\u00b2\u00b3\u2070-\u2079]"
    r"|,\s+[0-9]+(?=\s*(?:$|[.,;!?]|or\b|and\b))"
)
"""Text after a number that is only part of the answer: an operator, a range, an alternative, a list."""
_PRECEDES = re.compile(rf"[0-9]%?{_JOIN}[$\u20ac\u00a3\u00a5]?$")
_NOT = re.compile(r"not\b.*?\bbut\s+(?:it\s+is\s+|it's\s+)?", re.IGNORECASE | re.DOTALL)
_CLAUSE_END = re.compile(r"[,;.!?](?=\s|$)|\n")
_LEAD = r"(?:[\s*_`\"'(\[{\u201c\u2018]|(?:the|an?|option|choice)\s)*"
_WHOLE = r"(?=\s*(?:$|because\b|since\b|[^\w\s?]))(?![-/'\u2019.,]\w)(?![+#])"


def is_right(text: str, answer: str) -> bool:
    """Whether the text's final answer is ``answer``.

    Numbers are compared by value: ``18.0`` is ``18``, ``1,234`` is ``1234``, ``0.5`` is ``1/2`` and ``50%``; currency
    signs are ignored. Words and options (``B``) must be the whole answer; case and surrounding punctuation are ignored.
    Of an answer in GSM8K's form, only the part after ``####`` counts.
    """
    if _plain(text) == _plain(answer):
        return _plain(answer) != ""
    answer = answer.rpartition("####")[2].strip()
    expected = _whole_number(answer)
    marks = list(_MARK.finditer(text))
    if expected:
        found = (
            _final_number(_after(text, marks[-1]), first=True) if marks else _final_number(text, first=False)
        )
        return found is not None and _same(found, expected[0])
    whole = r"\s+".join(re.escape(word) for word in answer.rstrip(".").split())
    if not whole:
        return False
    begins = re.compile(_LEAD + whole + _WHOLE, re.IGNORECASE)
    if marks:
        return begins.match(_after(text, marks[-1])) is not None
    last = text.strip().rpartition("\n")[2]
    ends = re.compile(
        rf"(?<!\w)(?<!\bnot )(?<!n't )(?<!\bor )(?<!\band )(?<!\w[-/'\u2019.]){whole}[\s*_`\"'.!)\]}}\u201d\u2019]*$",
        re.IGNORECASE,
    )
    return begins.match(last) is not None or ends.search(last) is not None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _after(text: str, mark: re.Match[str]) -> str:
    """The text after the mark, or in its box; of ``not 5, but 7`` the part after ``but``."""
    boxed = mark["boxed"]
    found = (text[mark.end() :] if boxed is None else boxed).strip()
    negated = _NOT.match(found)
    return found[negated.end() :] if negated else found


Number = tuple[Fraction, bool]
"""``(value, whether it is in percent)``"""


def _normal(text: str) -> str:
    """The text without LaTeX and currency signs, for `_NUMBER`."""
    text = _FRACTION.sub(r"\1/\2", text).replace("{,}", ",").replace("\\", "")
    return _CURRENCY.sub(r" \1", text).strip()


def _whole_number(text: str) -> list[Number]:
    """The number if the whole text is one, otherwise an empty list."""
    match = _NUMBER.fullmatch(_normal(text).rstrip("."))
    return [] if match is None else _value(match)


def _final_number(text: str, *, first: bool) -> Number | None:
    """With ``first``, the first number of the first clause (or of an equation's right side), else the last number.

    None if there is none, or if it is only part of the answer: ``3 or 4``, ``5-6``, ``2 + 2``, ``2^10``.
    """
    text = _normal(text)
    if first:
        if text.casefold().startswith("not "):
            return None
        end = _CLAUSE_END.search(text)
        stop = end.start() if end else len(text)
        matches = [m for m in _NUMBER.finditer(text, text.rfind("=", 0, stop) + 1) if m.start() < stop][:1]
    else:
        matches = list(_NUMBER.finditer(text))[-1:]
    if not matches:
        return None
    [match] = matches
    values = _value(match)
    if (
        not values
        or _CONTINUES.match(text, match.end())
        or (not first and _PRECEDES.search(text[: match.start()]))
    ):
        return None
    return values[0]


def _value(match: re.Match[str]) -> list[Number]:
    try:
        value = Fraction(match["digits"].replace(",", ""))
        value = value * Fraction(10) ** int(match["power"] or 0) / Fraction(match["below"] or 1)
        value += Fraction(match["whole"] or 0)
    except (ValueError, ZeroDivisionError):  # ValueError: more digits than Python converts
        return []
    return [(-value if match["sign"] in ("-", "\u2212", "\u2013") else value, match["percent"] is not None)]


def _same(one: Number, other: Number) -> bool:
    if one[0] == other[0]:
        return True
    return one[1] != other[1] and one[0] / (100 if one[1] else 1) == other[0] / (100 if other[1] else 1)


def filtered(filters: Sequence[str]) -> Judge:
    """A judge that extracts the final answer with lm-eval's filters, applied in order.

    Args:
        filters: names of filters, or JSON as in a task's ``filter_list``: ``{"function": "regex",
            "regex_pattern": "#### (-?[0-9]+)"}``.

    Raises:
        UsageError: lm-eval has no such filter, or the filter does not accept these arguments.
    """
    from lm_eval.api.registry import filter_registry
    from lm_eval.filters import build_filter_ensemble  # also registers the filters

    steps = [_step(text, filter_registry) for text in filters]
    ensemble = build_filter_ensemble("final", steps)

    def judge(text: str, answer: str) -> bool:
        found: Any = [[text]]
        for make in ensemble.filters:
            found = list(make().apply(found, [{"answer": answer}]))
        while isinstance(found, list) and found:
            found = found[0]
        final = found.strip() if isinstance(found, str) else ""
        numbers, expected = _whole_number(final), _whole_number(answer)
        if numbers and expected:
            return _same(numbers[0], expected[0])
        return _plain(final) == _plain(answer)

    try:
        judge("1", "1")
    except Exception as error:  # a filter may need other fields of a task's document
        raise UsageError(
            f"lm-eval's filters {', '.join(filters)} do not work on problems: {error!r}"
        ) from error
    return judge


def _step(text: str, known: Any) -> tuple[str, dict[str, Any]]:
    try:
        options = json.loads(text) if text.lstrip().startswith("{") else {"function": text}
        name = str(options.pop("function"))
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"the filter is {text!r}; allowed: a name, or JSON such as "
            '{"function": "regex", "regex_pattern": "#### ([0-9]+)"}'
        ) from error
    if name not in known:
        raise UsageError(f"lm-eval has no filter {name!r}; allowed: {', '.join(sorted(known))}")
    try:
        inspect.signature(known[name]).bind(**options)
        known[name](**options)
    except (TypeError, ValueError, re.error) as error:
        raise UsageError(f"filter {name}: {error}") from error
    return name, options

"""Drafters by name: the built-in ones, and those of other distributions.

A distribution adds a drafter with an entry point in the group ``justright.drafters``: a callable that takes
the options as keywords and returns a ``Drafter``. The name of the entry point is the drafter's name; it cannot
override a built-in name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from justright.errors import UsageError
from justright.speculative.base import Drafter

GROUP = "justright.drafters"


BUILT_IN = {
    "none": None,
    "suffix": ("suffix", "SuffixDrafter", "SuffixOptions"),
    "lstm": ("lstm_drafter", "LstmDrafter", "LstmOptions"),
    "hybrid": ("hybrid", "HybridDrafter", "HybridOptions"),
    "recycling": ("recycling", "RecyclingDrafter", "RecyclingOptions"),
    "attention": ("attention_drafter", "AttentionDrafter", "TrainedOptions"),
}
"""Name -> module, drafter and class of its options, which validates them; imported at the first use."""


def drafter_names() -> list[str]:
    """The names that ``create_drafter`` accepts, the built-in ones first."""
    return [*BUILT_IN, *sorted(_third_party())]


def create_drafter(name: str, **options: object) -> Drafter | None:
    """Make the drafter called ``name``.

    Args:
        name: of `BUILT_IN`, or of an entry point in the group ``justright.drafters``.
        options: the drafter's own options (for ``suffix``: the fields of ``SuffixOptions``, and so on).

    Returns:
        The drafter; None for ``none``: decode without drafts.

    Raises:
        UsageError: no such drafter, an unknown option or a value out of range, or a third-party drafter that does
            not import or is not a ``Drafter``.
        MissingExtraError: the drafter needs an optional dependency that is not installed.
    """
    return _maker(name, options)()


def check_drafter(name: str, **options: object) -> None:
    """Validate a drafter's name and options as far as possible without making it.

    Raises:
        UsageError: no such drafter, an unknown option or a value out of range.
    """
    _maker(name, options)


def _maker(name: str, options: dict[str, object]) -> Callable[[], Drafter | None]:
    """The factory of a drafter, with validated options."""
    if name in BUILT_IN:
        kind, settings = _built_in(name)
        _check_options(name, settings, options)
        checked = settings(**options)
        return lambda: kind(checked)
    third_party = _third_party()
    if name not in third_party:
        raise UsageError(f"unknown drafter {name!r}; allowed: {', '.join(drafter_names())}")
    entry_point = third_party[name]
    try:
        factory = cast(Callable[..., object], entry_point.load())
    except (ImportError, AttributeError) as error:
        raise UsageError(f"drafter {name!r} ({entry_point.value}) cannot be loaded: {error}") from error
    _check_options(name, factory, options)

    def make() -> Drafter:
        drafter = factory(**options)
        if not isinstance(drafter, Drafter):
            raise UsageError(
                f"drafter {name!r} ({entry_point.value}) is a {type(drafter).__name__}; allowed: a subclass of"
                " justright.speculative.base.Drafter"
            )
        return drafter

    return make


def _built_in(name: str) -> tuple[Callable[..., Drafter | None], Callable[..., object]]:
    if (where := BUILT_IN[name]) is None:
        return lambda _: None, lambda: None
    module = import_module(f"justright.speculative.{where[0]}")
    return getattr(module, where[1]), getattr(module, where[2])


def _third_party() -> dict[str, EntryPoint]:
    found = sorted(entry_points(group=GROUP), key=lambda entry_point: entry_point.value, reverse=True)
    return {entry_point.name: entry_point for entry_point in found if entry_point.name not in BUILT_IN}


def _check_options(name: str, factory: Callable[..., object], options: dict[str, object]) -> None:
    try:
        signature = inspect.signature(factory)
    except ValueError:
        return  # some compiled callables have no signature: the call itself validates
    try:
        signature.bind(**options)
    except TypeError as error:
        there = ", ".join(signature.parameters)
        unknown = ", ".join(option for option in options if option not in signature.parameters)
        raise UsageError(
            f"drafter {name!r} does not take these options: {unknown or error}; "
            + (f"allowed: {there}" if there else "it has no options")
        ) from error

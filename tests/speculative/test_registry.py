"""Drafters are found by name, also in third-party packages."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint

import pytest

from justright.errors import UsageError
from justright.speculative import registry
from justright.speculative.registry import create_drafter, drafter_names
from justright.speculative.suffix import SuffixDrafter

BUILT_IN = ["none", "suffix", "lstm", "hybrid", "recycling", "attention"]


def bring(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    points = [EntryPoint(name, value, registry.GROUP) for name, value in values.items()]
    find: Callable[..., list[EntryPoint]] = lambda *, group: points if group == registry.GROUP else []  # noqa: E731
    monkeypatch.setattr(registry, "entry_points", find)


def third_party(tree: bool = False) -> SuffixDrafter:
    drafter = SuffixDrafter()
    drafter.name = f"third-{tree}"
    return drafter


def test_built_in() -> None:
    assert create_drafter("none") is None
    drafter = create_drafter("suffix", tree=True, backend="python", max_depth=16)
    assert isinstance(drafter, SuffixDrafter)
    assert (drafter.options.tree, drafter.options.max_depth) == (True, 16)
    assert drafter_names()[: len(BUILT_IN)] == BUILT_IN


def test_unknown_name_lists_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    bring(monkeypatch, magic="somewhere:make")
    with pytest.raises(UsageError, match=r"'eagle'.*none, suffix, lstm, hybrid, recycling, attention, magic"):
        create_drafter("eagle")


@pytest.mark.parametrize(("name", "option"), [("none", "tree"), ("suffix", "depth")])
def test_unknown_option(name: str, option: str) -> None:
    with pytest.raises(UsageError, match=f"{name}.*these options: {option}; (it|allowed)"):
        create_drafter(name, **{option: 1})


def test_option_out_of_range() -> None:
    with pytest.raises(UsageError, match="max_depth"):
        create_drafter("suffix", max_depth=0)


def test_third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    bring(
        monkeypatch,
        third=f"{__name__}:third_party",
        suffix=f"{__name__}:third_party",
        gone="justright_no_such_module:make",
        wrong="builtins:dict",
    )
    assert drafter_names() == [*BUILT_IN, "gone", "third", "wrong"]
    drafter = create_drafter("third", tree=True)
    assert drafter is not None
    assert drafter.name == "third-True"
    built_in = create_drafter("suffix")
    assert built_in is not None
    assert built_in.name == "suffix", "a built-in name cannot be taken over"
    with pytest.raises(UsageError, match=r"third.*depth"):
        create_drafter("third", depth=1)
    with pytest.raises(UsageError, match=r"gone.*cannot be loaded"):
        create_drafter("gone")
    with pytest.raises(UsageError, match=r"wrong.*is a dict; allowed: a subclass"):
        create_drafter("wrong")

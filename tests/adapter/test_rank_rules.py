"""Rank rules: hand-computed ranks, and a rule that follows the six steps of docs/switch.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from doc_blocks import module_from
from justright.adapter import ranks
from justright.adapter.extract import extract
from justright.adapter.pair import Pair
from justright.adapter.rank_rules.base import RULES
from justright.adapter.ranks import RankRule, choose_ranks, rule_for_budget
from justright.adapter.spectra import make_spectra
from justright.errors import UsageError

VALUES = torch.tensor([3.0, 2.0, 1.0, 0.0])
EXPECTED = {  # squares 9, 4, 1; exp of the entropy of (1/2, 1/3, 1/6) is 2.75; half of four
    "energy": (RankRule("energy", 0.9), 2),
    "entropy": (RankRule("entropy"), 3),
    "fixed": (RankRule("fixed", 1), 1),
    "ratio": (RankRule("ratio", 0.5), 2),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_ranks_by_hand(name: str) -> None:
    rule, rank = EXPECTED[name]
    assert choose_ranks({"": VALUES}, rule) == {"": rank}


def test_the_matrix_has_every_rule() -> None:
    assert set(RULES.known()) == set(EXPECTED)
    files = {file.stem for file in (Path(ranks.__file__).parent / "rank_rules").glob("*.py")}
    assert files == {*EXPECTED, "base", "__init__"}


def test_a_budget_is_for_energy_only() -> None:
    with pytest.raises(UsageError, match="works with rule energy only, not with fixed"):
        rule_for_budget({"": VALUES}, {"": (4, 4)}, 1000, RankRule("fixed", 1), 4)


def test_the_rule_of_the_docs_extracts_an_adapter(
    make_pair: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RULES.known()
    monkeypatch.setattr(RULES, "_found", dict(RULES._found))
    module_from("switch.md", "Add a rank rule in six steps", "above")
    pair = Pair(*make_pair("llama"))  # type: ignore[operator]
    done = extract(pair, tmp_path / "out", RankRule("above", 0.5))
    spectra = make_spectra(pair, tmp_path / "spectra", 512).spectra()
    assert done.ranks == {
        name: sum(float(v) >= 0.5 * float(one.values.max()) for v in one.values)
        for name, one in spectra.items()
    }
    assert len(set(done.ranks.values())) > 1
    with pytest.raises(UsageError, match="share of the largest"):
        RankRule("above", 2.0)
    assert "above: all that are at least" in RULES.help()

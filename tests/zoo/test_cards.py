"""Model cards: tables and summaries show the measured figures."""

from __future__ import annotations

from typing import Any

from justright_zoo.cards import DOMAIN_NAMES, summary, tables


def scores(correct: int, tokens: float) -> list[dict[str, Any]]:
    return [
        {
            "kind": "chain",
            "level": level,
            "problems": 50,
            "correct": correct,
            "tokens": tokens * level,
            "cut": 0,
        }
        for level in (1, 8)
    ]


def test_a_pair_is_shown_side_by_side() -> None:
    measured = {
        "model": "slow",
        "problems": scores(45, 100),
        "parent": {"model": "fast", "problems": scores(10, 8)},
    }
    [(_, header, rows)] = tables(measured)
    assert all(len(row) == len(header) for row in rows)
    assert rows[0][2].startswith("90% (")
    assert rows[0][5:] == ["20%", "8", "12.5"]
    assert "level 1: 90% right, 100 tokens" in summary(measured)


def test_experts_have_perplexity_and_routing() -> None:
    measured = {
        "model": "moe",
        "problems": scores(30, 20),
        "perplexity": {"moe": dict.fromkeys(DOMAIN_NAMES, 10.0), "dense": dict.fromkeys(DOMAIN_NAMES, 12.0)},
        "routing": {"specialisation": [0.1, 0.2], "dead_experts": []},
    }
    found = tables(measured)
    assert [title for title, _, _ in found][2] == "Routing: 0 dead experts"
    assert found[1][1:] == (
        ["domain", "zoo:moe", "zoo:dense"],
        [[domain, "10.00", "12.00"] for domain in DOMAIN_NAMES],
    )
    assert "perplexity 10.0" in summary(measured)

"""The shape of trees adapts to acceptance and cost."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from justright.speculative.tuning import DEPTH, NODES, WIDTHS, TreeTable, best_shape

TREES = st.dictionaries(
    st.sampled_from(WIDTHS),
    st.lists(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 59)), max_size=8), min_size=1, max_size=5),
    min_size=1,
)


@given(TREES)
def test_more_nodes_and_levels_never_accept_less(hits: dict[int, list[list[tuple[int, int]]]]) -> None:
    table = TreeTable.of(hits)
    for accepted in table.accepted.values():
        assert (np.diff(accepted, axis=0) >= 0).all()
        assert (np.diff(accepted, axis=1) >= 0).all()
    again = TreeTable.from_dict(json.loads(json.dumps(table.to_dict())))
    assert again is not None
    for width, accepted in table.accepted.items():
        np.testing.assert_allclose(again.accepted[width], accepted, atol=1e-4)


def chain_that_is_always_right() -> TreeTable:
    return TreeTable.of({1: [[(level, level) for level in range(DEPTH)]]})


def test_where_rows_cost_nothing_the_tree_is_as_large_as_it_helps() -> None:
    shape, rate = best_shape(
        chain_that_is_always_right(), lambda rows: 1.0, lambda width, depth: 0.0, spec=False, min_prob=0.0
    )
    assert (shape.nodes, shape.depth, shape.top_k) == (8, 8, 1)
    assert rate == 9.0


def test_where_every_row_costs_as_much_as_a_step_the_tree_is_small() -> None:
    table = TreeTable.of({1: [[(0, 0)], [], [(0, 0), (1, 1)], []]})
    shape, rate = best_shape(table, float, lambda width, depth: 0.01, spec=False, min_prob=0.0)
    assert shape.nodes == 1
    assert rate < 1


def test_spec_must_be_worth_its_rows() -> None:
    table = chain_that_is_always_right()
    plain = best_shape(table, lambda rows: 1 + rows / 4, lambda *_: 0.0, spec=False, min_prob=0.0)
    spec = best_shape(table, lambda rows: 1 + rows / 4, lambda *_: 0.0, spec=True, min_prob=0.0)
    assert spec[1] < plain[1]


def test_slow_drafting_makes_flat_trees() -> None:
    shape, _ = best_shape(
        chain_that_is_always_right(),
        lambda rows: 1.0,
        lambda width, depth: 2.0**depth,
        spec=False,
        min_prob=0.0,
    )
    assert shape.depth < DEPTH


def test_what_is_no_table_is_none() -> None:
    assert TreeTable.from_dict(None) is None
    assert TreeTable.from_dict({}) is None
    assert TreeTable.from_dict({"1": [[1.0]]}) is None
    assert TreeTable.from_dict({"x": np.zeros((DEPTH, NODES)).tolist()}) is None

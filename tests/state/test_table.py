"""The table behind the store: a dict with views, and nothing in it for the garbage collector to visit."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.state.table import Table

KEYS = st.text("ab", max_size=3)
CHANGES = st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=2)))


def change(table: Table[str, bytes], model: dict[str, bytes], changes: list[tuple[str, bytes | None]]) -> None:
    for key, value in changes:
        if value:
            table[key] = model[key] = value
        elif value is not None:
            if key not in table.shard(key):
                table.added()
            table.shard(key)[key] = model[key] = value
        else:
            assert table.pop(key, None) == model.pop(key, None)


@given(CHANGES, CHANGES, CHANGES)
def test_a_table_is_a_dict_whose_views_stay_as_they_were(
    before: list[tuple[str, bytes | None]],
    between: list[tuple[str, bytes | None]],
    after: list[tuple[str, bytes | None]],
) -> None:
    table: Table[str, bytes] = Table(4)
    model: dict[str, bytes] = {}
    kept = []
    for changes in (before, between, after):
        change(table, model, changes)
        kept.append((table.view(), dict(model)))
    assert dict(table) == model
    assert len(table) == len(model)
    assert all(table.get(key) == model.get(key) and (key in table) == (key in model) for key in ("", "a", "b", "ab"))
    for view, then in kept:
        assert {key: view[key] for key in view} == then
        assert len(view) == len(then)


def test_a_key_that_is_not_there_cannot_be_deleted() -> None:
    table: Table[str, bytes] = Table(4)
    with pytest.raises(KeyError):
        del table["a"]
    assert len(table) == 0


def test_a_released_table_is_empty_and_its_views_are_not() -> None:
    table: Table[str, bytes] = Table(4)
    table["a"] = b"1"
    view = table.view()
    table.release()
    assert list(table) == []
    assert view["a"] == b"1"


def test_keys_add_nothing_that_the_garbage_collector_visits() -> None:
    table: Table[str, bytes] = Table(4)
    gc.collect()
    before = len(gc.get_objects())
    for number in range(10_000):
        table[f"key-{number}"] = b"value-%d" % number
    assert len(gc.get_objects()) - before < 100


def test_a_key_is_discarded_with_what_it_had_and_a_view_keeps_it() -> None:
    table: Table[str, int] = Table(4)
    table["a"], table["b"] = 1, 2
    view = table.view()
    assert (table.discard("a"), table.discard("a"), table.discard("c")) == (1, None, None)
    assert (dict(table), len(table), dict(view), len(view)) == ({"b": 2}, 1, {"a": 1, "b": 2}, 2)

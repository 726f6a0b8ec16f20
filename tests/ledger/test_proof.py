"""What the proof is made of, on text alone: canonical texts from columns, COPY's lines, runs of a stream, leaves."""

import json
from typing import Any

import pytest

from ledger import proof
from pipeline import chain
from pipeline.ids import new_id, to_uuid


def row_of(**columns: Any) -> list[str]:
    """A row as PostgreSQL writes it, with the canonical text that was chained when it was recorded."""
    facts: dict[str, Any] = {**dict.fromkeys(proof.FACTS, ""), "id": new_id(), "subject_id": new_id(), "data": {}}
    nullable = [name for name in proof.FACTS if name.endswith("_id") and name not in ("actor_id", "request_id")]
    facts |= dict.fromkeys([*nullable[1:], "before", "after"])
    facts |= columns

    def written(name: str) -> str:
        value = facts[name]
        if name in ("before", "after", "data"):
            return "" if value is None else json.dumps(value, ensure_ascii=False)
        return str(to_uuid(value)) if value and (name == "id" or name in nullable) else value or ""

    return [*map(written, proof.FACTS), "1", "2", "3", "1", "", "", "0", chain.canonical(facts)]


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"message": 'a "b" \\ \n\t\x01 é 💡', "reason": "'"},
        {"data": {"a": "x: y, z", "b": ["1, 2", {"c": None}], "d": -5}},
        {"data": {"bb": 1, "a": 2}, "before": {}, "after": {"a b": " "}},
        {"data": {"q": 'say "hi" \\'}, "after": {"state": "running"}},
        {"before": [], "after": "text", "data": {"long": "x" * 500, "k": [True, False]}},
        {"run_id": new_id(), "task_id": new_id(), "worker_id": new_id()},
        {"message": '"id":"01ARZ3NDEKTSV4RRFFQ69G5FAV"'},
    ],
)
def test_the_columns_give_the_text_that_was_chained(columns):
    row = row_of(**columns)
    assert proof.rebuilt(row) == row[-1]


def test_what_is_remembered_may_be_forgotten(monkeypatch):
    monkeypatch.setattr(proof, "_KEPT", 2)
    rows = [row_of(run_id=new_id(), data={"b": number, "aa": 1}, actor_name=str(number)) for number in range(9)]
    assert [proof.rebuilt(row) for row in rows + rows] == [row[-1] for row in rows + rows]


@pytest.mark.parametrize("name", ["before", "after", "data"])
def test_blanks_within_a_documents_strings_count(name):
    row = row_of(**{name: {"a": "x:y"}})
    row[proof.FACTS.index(name)] = '{"a": "x: y"}'
    assert proof.rebuilt(row) != row[-1]


def test_json_null_is_not_sqls_null():
    row = row_of(before=None)
    row[proof.FACTS.index("before")] = "null"
    assert proof.rebuilt(row) != row[-1]


@pytest.mark.parametrize("told", ["", '"id":"', '"id":"²³⁴⁵⁶⁷⁸⁹"', '"id":"' + "u" * 26, '"id":"' + "٣" * 26])
def test_an_id_is_what_its_column_says_whatever_the_text_tells(told):
    pk = new_id()
    assert proof._own_id(str(to_uuid(pk)), told) == pk


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a\tb\n", ["a", "b"]),
        ("\t\n", ["", ""]),
        ("\\\\n\\n\\t\\\\\tx\n", ["\\n\n\t\\", "x"]),
        ("\\\\\\\\\n", ["\\\\"]),
        ("\\b\\f\\r\\v\n", ["\b\f\r\v"]),
    ],
)
def test_a_line_of_copy_is_read_as_postgresql_wrote_it(line, expected):
    assert proof.fields(line) == expected


def run(first: int, last: int, prev: str) -> proof.Run:
    """Events `first` to `last` of a stream whose hashes are h1, h2 …"""
    return proof.Run(first, prev, last, f"h{last}", "run")


@pytest.mark.parametrize(
    ("runs", "first", "expected"),
    [
        ([run(1, 3, "")], 1, (0, "")),
        ([run(3, 3, "h2"), run(1, 2, "")], 1, (0, "")),
        ([run(3, 4, "whatever was dropped")], 3, (0, "")),
        ([run(1, 2, ""), run(4, 5, "h3")], 1, (3, "is missing")),
        ([run(2, 3, "h1")], 1, (1, "is missing")),
        ([run(1, 2, ""), run(2, 3, "h1")], 1, (2, "is there twice")),
        ([run(2, 3, "h1"), run(4, 4, "h3")], 4, (2, "was dropped")),
        ([run(1, 2, ""), run(3, 3, "other")], 1, (3, "does not follow from the event before it")),
        ([run(1, 2, "x")], 1, (1, "does not follow from the event before it")),
    ],
)
def test_runs_join_to_one_or_break_at_a_number(runs, first, expected):
    whole, at, what = proof.join(runs, first)
    assert (at, what) == expected
    assert (whole is not None) is (what == "")


def test_leaves_tell_what_came_and_what_went():
    a, b, c, d = (bytes([number]) * proof.LEAF_BYTES for number in range(4))
    assert proof.compare(a + b + c, a + b + c) == ([], [])
    assert proof.compare(a + b + c, a + c) == ([], [1])
    assert proof.compare(a + b, a + d + b) == ([1], [])
    assert proof.compare(a + b + c, a + d + c) == ([1], [1])

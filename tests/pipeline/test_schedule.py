"""The graph of a plan: order, batches, circles, the critical path."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.refusals import NotFound, Refused
from pipeline.schedule import CircularDependency, Graph, UnknownDependency, excludes


def graph_of(needs: dict[str, list[str]], **common: Any) -> Graph:
    graph = Graph()
    for id, depends_on in needs.items():
        graph.add(id, depends_on=depends_on, **common)
    return graph


DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


def test_an_id_is_added_once() -> None:
    graph = graph_of({"a": []})
    with pytest.raises(Refused, match="already exists") as refused:
        graph.add("a")
    assert refused.value.code == "duplicate_key"
    assert len(graph) == 1


def test_an_unknown_id_is_none_to_get_and_a_refusal_to_verbs() -> None:
    graph = Graph()
    assert graph.get("x") is None
    for verb in (graph.mark_running, graph.mark_completed, graph.mark_failed, graph.dependents, graph.blocking):
        with pytest.raises(NotFound) as refused:
            verb("x")
        assert refused.value.code == "task_not_found"


def test_a_replacement_keeps_its_place_and_starts_again() -> None:
    graph = graph_of({"a": [], "b": []})
    graph.mark_completed("a")
    graph.replace("a", "test", ["b"])
    node = graph.get("a")
    assert node is not None
    assert (node.kind, node.depends_on, node.sequence) == ("test", ("b",), 0)
    assert graph.status("a").status == "pending"
    assert graph.levels() == [["b"], ["a"]]


def test_a_refused_replacement_changes_nothing() -> None:
    graph = graph_of({"a": []})
    with pytest.raises(ValueError, match="negative"):
        graph.replace("a", estimate_seconds=-1)
    with pytest.raises(ValueError, match="access mode"):
        graph.replace("a", access={"smell": ["x"]})
    assert graph == graph_of({"a": []})


def test_ready_are_the_pending_whose_dependencies_are_completed() -> None:
    graph = graph_of(DIAMOND)
    assert graph.ready() == ["a"]
    assert graph.ready() == ["a"]
    graph.mark_running("a")
    assert graph.ready() == []
    graph.mark_completed("a", result={"x": 1})
    assert graph.ready() == ["b", "c"]
    assert graph.status("a").result == {"x": 1}
    graph.mark_failed("b", "broken")
    graph.mark_completed("c")
    assert graph.ready() == []
    assert graph.blocking("d") == ["b"]
    assert not graph.can_execute("d")
    assert graph.status("b").error == "broken"


def test_a_missing_dependency_blocks() -> None:
    graph = graph_of({"a": ["ghost"]})
    assert graph.blocking("a") == ["ghost"]
    assert graph.ready() == []
    assert graph.cycle() is None
    with pytest.raises(UnknownDependency, match="ghost") as refused:
        graph.levels()
    assert refused.value.code == "unknown_dependency"


def test_an_ended_node_does_not_move_again() -> None:
    graph = graph_of({"a": []})
    graph.mark_completed("a")
    for verb in (graph.mark_running, graph.mark_completed, graph.mark_failed):
        with pytest.raises(Refused) as refused:
            verb("a")
        assert refused.value.code == "invalid_move"
        assert refused.value.parts == {"state": "completed", "allowed": []}
    assert graph.status("a").status == "completed"


def test_counts_and_ends() -> None:
    assert Graph().is_complete()
    graph = graph_of(DIAMOND)
    graph.mark_completed("a")
    graph.mark_running("b")
    graph.mark_failed("c")
    assert graph.stats() == {"pending": 1, "running": 1, "completed": 1, "failed": 1, "total": 4}
    assert graph.has_failures()
    assert not graph.is_complete()
    graph.mark_completed("b")
    graph.mark_failed("d")
    assert graph.is_complete()
    assert not graph_of(DIAMOND).has_failures()


def test_levels_are_depths_and_dependents_are_direct() -> None:
    graph = graph_of(DIAMOND)
    assert graph.levels() == [["a"], ["b", "c"], ["d"]]
    assert graph.dependents("a") == ["b", "c"]
    assert Graph().levels() == []


def test_a_circle_is_told_as_a_closed_path() -> None:
    graph = graph_of({"a": ["c"], "b": ["a"], "c": ["b"], "x": ["a"]})
    path = graph.cycle()
    assert path is not None
    assert path[0] == path[-1]
    assert set(path) == {"a", "b", "c"}
    for ask in (graph.levels, graph.batches, graph.critical_path, graph.slack):
        with pytest.raises(CircularDependency, match="Circular dependency: a → c → b → a") as refused:
            ask()
        assert refused.value.code == "circular_dependency"
    assert graph.ready() == []
    assert graph_of({"a": ["a"]}).cycle() == ["a", "a"]


def test_a_plan_deeper_than_the_stack_is_no_problem() -> None:
    needs: dict[str, list[str]] = {str(at): [str(at - 1)] if at else [] for at in range(3000)}
    graph = graph_of(dict(reversed(needs.items())))
    assert graph.cycle() is None
    assert len(graph.levels()) == 3000


@pytest.mark.parametrize(
    ("max", "mode", "expected"),
    [
        (5, "parallel", [["a", "b", "c"]]),
        (2, "parallel", [["a", "b"], ["c"]]),
        (1, "parallel", [["a"], ["b"], ["c"]]),
        (5, "sequential", [["a"], ["b"], ["c"]]),
    ],
)
def test_levels_are_cut_into_batches(max: int, mode: str, expected: list[list[str]]) -> None:
    assert graph_of({"a": [], "b": [], "c": []}).batches(max, mode=mode) == expected


def test_batches_have_room_for_at_least_one() -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            Graph().batches(wrong)
    with pytest.raises(ValueError, match="mode"):
        Graph().batches(mode="chaos")


def test_one_that_allows_no_company_is_alone() -> None:
    graph = graph_of({"a": [], "c": []})
    graph.add("b", allow_parallel=False, sequence=0)
    assert graph.batches() == [["a", "c"], ["b"]]


def test_one_conflict_group_never_shares_a_batch() -> None:
    graph = Graph()
    for id, group in (("a", "x"), ("b", "x"), ("c", "y"), ("d", None), ("e", None)):
        graph.add(id, conflict_group=group)
    assert graph.batches() == [["a", "c", "d", "e"], ["b"]]


def test_parallel_groups_keep_to_themselves() -> None:
    graph = Graph()
    for id, group in (("a", "x"), ("b", "y"), ("c", "x"), ("d", None), ("e", None)):
        graph.add(id, group=group)
    assert graph.batches(mode="parallel_groups") == [["a", "c"], ["b"], ["d", "e"]]
    assert graph.batches() == [["a", "b", "c", "d", "e"]]


def test_the_critical_path_is_the_heaviest_and_slack_is_what_is_left() -> None:
    graph = Graph()
    graph.add("a", estimate_seconds=10)
    graph.add("b", depends_on=["a"], estimate_seconds=100)
    graph.add("c", depends_on=["a"])
    graph.add("d", depends_on=["c"])
    assert graph.critical_path() == ["a", "b"]
    assert graph.slack() == {"a": 0, "b": 0, "c": 98, "d": 98}
    assert Graph().critical_path() == []
    assert Graph().slack() == {}


def test_the_score_is_the_formula_of_the_domain() -> None:
    graph = Graph()
    graph.add("a", priority=3, touches=["src/**"])
    graph.add("b", priority=3, depends_on=["a"])
    graph.add("c", priority=3, touches=["src/x"])
    assert graph.score("a") == 10 * 2 + 5 * 1 + 20 * 3
    assert graph.score("a", among=["a", "c", "b"]) == 10 * 2 + 5 * 1 + 20 * 3 - 3
    assert graph.score("c") == 10 + 60


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"priority": 6}, {"priority": 5}),
        ({"sequence": 1}, {"sequence": 2}),
        ({"estimate_seconds": 20}, {}),
    ],
)
def test_a_higher_score_goes_first_then_the_sequence(first: dict[str, Any], second: dict[str, Any]) -> None:
    graph = Graph()
    graph.add("z", **first)
    graph.add("a", **second)
    assert graph.ready() == ["z", "a"]


def test_equal_in_all_else_the_key_decides_and_contention_counts() -> None:
    graph = Graph()
    for id in ("c", "b", "a"):
        graph.add(id, sequence=0)
    assert graph.ready() == ["a", "b", "c"]
    graph = Graph()
    graph.add("a", touches=["x/**"])
    graph.add("b", touches=["x/y"])
    graph.add("c")
    assert graph.ready() == ["c", "a", "b"]


SHARED_PAIRS = {("read", "read"), ("read", "append"), ("append", "read"), ("append", "append")}
MODES = ("read", "append", "edit", "create", "delete")


@pytest.mark.parametrize("pair", list(itertools.product(MODES, MODES)))
def test_read_and_append_share_and_all_else_excludes(pair: tuple[str, str]) -> None:
    one, other = ((mode, ("a/**",)) for mode in pair)
    assert excludes((one,), (other,)) is (pair not in SHARED_PAIRS)
    assert not excludes((one,), ((pair[1], ("b",)),))


def test_a_task_spec_becomes_a_node() -> None:
    graph = Graph()
    node = graph.from_spec(
        {
            "task_id": "a",
            "kind": "test",
            "depends_on": ["b"],
            "priority": 8,
            "group": "g",
            "conflict_group": "c",
            "execution": {"estimate_seconds": 30},
            "resource_scope_delta": {"write": ["src/**"], "create": ["new"]},
        }
    )
    assert (node.kind, node.depends_on, node.priority, node.group, node.conflict_group) == (
        "test",
        ("b",),
        8,
        "g",
        "c",
    )
    assert not node.allow_parallel
    assert node.weight == 30
    assert node.access == (("edit", ("src/**",)), ("create", ("new",)))
    assert graph.from_spec({"task_id": "b"}, touches={"write": ["x"]}).access == (("edit", ("x",)),)


IDS = "abcdef"
EDGES = st.dictionaries(st.sampled_from(IDS), st.lists(st.sampled_from(IDS), unique=True, max_size=3), max_size=6)


def closes_a_circle(needs: dict[str, list[str]]) -> bool:
    """By brute force: some order of some of the nodes in which each needs the next, and the last the first."""
    for length in range(1, len(needs) + 1):
        for path in itertools.permutations(needs, length):
            if all(path[(at + 1) % length] in needs[path[at]] for at in range(length)):
                return True
    return False


def depth(needs: dict[str, list[str]], id: str) -> int:
    return 1 + max((depth(needs, other) for other in needs[id]), default=-1)


def complete(edges: dict[str, list[str]]) -> dict[str, list[str]]:
    return {id: edges.get(id, []) for id in IDS}


def acyclic(edges: dict[str, list[str]]) -> dict[str, list[str]]:
    return {id: [other for other in needs if other < id] for id, needs in complete(edges).items()}


@given(EDGES)
def test_a_circle_is_found_exactly_when_there_is_one(edges: dict[str, list[str]]) -> None:
    needs = complete(edges)
    path = graph_of(needs).cycle()
    assert (path is not None) is closes_a_circle(needs)
    if path is not None:
        assert path[0] == path[-1]
        assert all(other in needs[id] for id, other in itertools.pairwise(path))


@given(EDGES)
def test_a_level_is_the_longest_way_down(edges: dict[str, list[str]]) -> None:
    needs = acyclic(edges)
    levels = graph_of(needs).levels()
    assert {id: at for at, level in enumerate(levels) for id in level} == {id: depth(needs, id) for id in needs}


@given(EDGES, st.integers(1, 4), st.sets(st.sampled_from(IDS)), st.sampled_from(["parallel", "parallel_groups"]))
def test_batches_respect_dependencies_and_hold_each_node_once(
    edges: dict[str, list[str]], max: int, alone: set[str], mode: str
) -> None:
    needs, graph = acyclic(edges), Graph()
    for at, (id, depends_on) in enumerate(needs.items()):
        graph.add(id, depends_on=depends_on, allow_parallel=id not in alone, group=f"g{at % 2}")
    batches = graph.batches(max, mode=mode)
    assert sorted(id for batch in batches for id in batch) == sorted(needs)
    done: set[str] = set()
    for batch in batches:
        assert len(batch) <= max
        assert len(batch) == 1 or not alone & set(batch)
        assert all(set(needs[id]) <= done for id in batch)
        done |= set(batch)


@given(EDGES, st.lists(st.integers(0, 9), min_size=6, max_size=6))
def test_the_critical_path_is_as_long_as_the_longest_of_all_paths(
    edges: dict[str, list[str]], weights: list[int]
) -> None:
    needs, graph = acyclic(edges), Graph()
    weight = dict(zip(IDS, weights, strict=True))
    for id, depends_on in needs.items():
        graph.add(id, depends_on=depends_on, estimate_seconds=weight[id])

    def longest(id: str) -> int:
        return weight[id] + max((longest(other) for other in needs[id]), default=0)

    path, slack = graph.critical_path(), graph.slack()
    assert all(one in needs[other] for one, other in itertools.pairwise(path))
    assert sum(weight[id] for id in path) == max(longest(id) for id in needs)
    assert all(slack[id] == 0 for id in path)
    assert all(left >= 0 for left in slack.values())


@given(EDGES)
def test_working_off_what_is_ready_completes_every_plan(edges: dict[str, list[str]]) -> None:
    graph = graph_of(acyclic(edges))
    while ready := graph.ready():
        assert all(not graph.blocking(id) for id in ready)
        graph.mark_completed(ready[0])
    assert graph.is_complete()

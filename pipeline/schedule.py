"""The graph of a plan: what is ready, in which order and batches, where it closes a circle, and what is critical."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pipeline import scope
from pipeline.refusals import NotFound, Refused

PENDING, RUNNING, COMPLETED, FAILED = "pending", "running", "completed", "failed"
STATUSES = (PENDING, RUNNING, COMPLETED, FAILED)
ENDED = frozenset({COMPLETED, FAILED})

# Access modes, and those that any number of nodes may hold on one path at a time; every other mode is exclusive.
MODES = ("read", "append", "edit", "create", "delete")
SHARED = frozenset({"read", "append"})

# The weights of the score (domain.md §2.1.9).
CRITICAL_WEIGHT, DEPENDENT_WEIGHT, PRIORITY_WEIGHT, CONTENTION_WEIGHT = 10, 5, 20, 3

CONCURRENCY = ("sequential", "parallel", "parallel_groups")

Access = tuple[tuple[str, tuple[str, ...]], ...]


class CircularDependency(Refused):
    """The dependencies close a circle; `path` is that circle, its first id repeated at the end."""

    code = "circular_dependency"
    status = 422

    def __init__(self, path: Sequence[str]) -> None:
        super().__init__("Circular dependency: " + " → ".join(path), path=list(path))


class UnknownDependency(Refused):
    """A node needs one that is not in the graph."""

    code = "unknown_dependency"
    status = 422

    def __init__(self, node: str, needs: str) -> None:
        super().__init__(f"Unknown dependency: {node} needs {needs}", task=node, needs=needs)


@dataclass(frozen=True)
class Node:
    """One task as the scheduler sees it. `estimate_seconds` is its weight on a path; without one it weighs 1."""

    id: str
    kind: str = "unknown"
    depends_on: tuple[str, ...] = ()
    allow_parallel: bool = True
    group: str | None = None
    conflict_group: str | None = None
    priority: int = 5
    sequence: int = 0
    estimate_seconds: float | None = None
    access: Access = ()

    @property
    def weight(self) -> float:
        """Seconds if estimated, else 1."""
        return 1 if self.estimate_seconds is None else self.estimate_seconds


@dataclass(frozen=True)
class Status:
    """Where a node stands: one of STATUSES, the result it completed with, the error it failed with."""

    status: str = PENDING
    result: Any = None
    error: str = ""


@dataclass
class Graph:
    """Nodes by id, their dependencies, and where each stands.

    The order of every answer is the score, higher first, then sequence, then id (domain.md §2.1.9):
    10 · length of the critical path from the node to a sink + 5 · direct dependents + 20 · priority
    - 3 · contention (the others in the same answer whose access to some path excludes this one's).
    """

    _nodes: dict[str, Node] = field(default_factory=dict)
    _status: dict[str, Status] = field(default_factory=dict)
    _lengths: dict[str, float] | None = None
    _dependents: dict[str, list[str]] | None = None

    def add(
        self,
        id: str,
        kind: str = "unknown",
        depends_on: Iterable[str] = (),
        allow_parallel: bool = True,
        *,
        group: str | None = None,
        conflict_group: str | None = None,
        priority: int = 5,
        sequence: int | None = None,
        estimate_seconds: float | None = None,
        touches: Iterable[str] = (),
        access: Mapping[str, Iterable[str]] | None = None,
    ) -> Node:
        """The new node, pending. `touches` are globs it edits; `access` names globs by mode (one of MODES).

        Without `sequence` it is the number of nodes so far. A dependency may be added later than its dependent.
        Raises Refused `duplicate_key` for an id that is there, ValueError for an unknown mode or negative estimate.
        """
        if id in self._nodes:
            raise Refused(f"Task {id} already exists", code="duplicate_key", key=id)
        if estimate_seconds is not None and estimate_seconds < 0:
            raise ValueError("estimate_seconds must not be negative")
        return self._put(
            Node(
                id=id,
                kind=kind,
                depends_on=tuple(dict.fromkeys(depends_on)),
                allow_parallel=allow_parallel,
                group=group,
                conflict_group=conflict_group,
                priority=priority,
                sequence=len(self._nodes) if sequence is None else sequence,
                estimate_seconds=estimate_seconds,
                access=_access(touches, access or {}),
            )
        )

    def replace(self, id: str, kind: str = "unknown", depends_on: Iterable[str] = (), **rest: Any) -> Node:
        """As add(), for an id that is there: takes its place, and its sequence unless told, and is pending again.

        Raises NotFound `task_not_found` for an unknown id; a refused replacement changes nothing.
        """
        old = self._known(id)
        rest.setdefault("sequence", old.sequence)
        return self._put(Graph().add(id, kind, depends_on, **rest))

    def from_spec(self, spec: Mapping[str, Any], touches: Mapping[str, Iterable[str]] | None = None) -> Node:
        """The node that a TaskSpec (domain.md §2.1.2) describes, added.

        `touches` are its effective `write` and `create` globs; without, those of its resource_scope_delta.
        """
        own = touches if touches is not None else spec.get("resource_scope_delta") or {}
        return self.add(
            spec["task_id"],
            spec.get("kind", "unknown"),
            spec.get("depends_on", ()),
            bool(spec.get("allow_parallel", False)),
            group=spec.get("group"),
            conflict_group=spec.get("conflict_group"),
            priority=spec.get("priority", 5),
            estimate_seconds=spec.get("execution", {}).get("estimate_seconds"),
            access={"edit": own.get("write", ()), "create": own.get("create", ())},
        )

    def _put(self, node: Node) -> Node:
        self._nodes[node.id] = node
        self._status[node.id] = Status()
        self._lengths = self._dependents = None
        return node

    def get(self, id: str) -> Node | None:
        """The node, or None."""
        return self._nodes.get(id)

    def status(self, id: str) -> Status:
        """Where the node stands; raises NotFound `task_not_found`."""
        return self._status[self._known(id).id]

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def ready(self) -> list[str]:
        """The pending nodes whose dependencies are completed, in order. Changes nothing."""
        return self._ordered([id for id in self._nodes if self.can_execute(id)])

    def score(self, id: str, among: Iterable[str] = ()) -> float:
        """The score of a node, its contention counted over the nodes `among`; raises NotFound `task_not_found`."""
        node = self._known(id)
        contention = sum(other != id and excludes(node.access, self._nodes[other].access) for other in among)
        return (
            CRITICAL_WEIGHT * self._length_to_sink()[id]
            + DEPENDENT_WEIGHT * len(self._direct_dependents()[id])
            + PRIORITY_WEIGHT * node.priority
            - CONTENTION_WEIGHT * contention
        )

    def _ordered(self, ids: Sequence[str]) -> list[str]:
        return sorted(ids, key=lambda id: (-self.score(id, ids), self._nodes[id].sequence, id))

    def cycle(self) -> list[str] | None:
        """One closed path of ids along `depends_on`, the first repeated at the end, or None. Unknown ids close none."""
        done: set[str] = set()
        for start in self._nodes:
            # Depth first without recursion: a plan may be deeper than Python's stack.
            path, steps = [start], [iter(self._nodes[start].depends_on)]
            on_path = {start}
            while steps and start not in done:
                needs = next(steps[-1], None)
                if needs is None:
                    steps.pop()
                    done.add(path[-1])
                    on_path.discard(path.pop())
                elif needs in on_path:
                    return [*path[path.index(needs) :], needs]
                elif needs in self._nodes and needs not in done:
                    path.append(needs)
                    on_path.add(needs)
                    steps.append(iter(self._nodes[needs].depends_on))
        return None

    def levels(self) -> list[list[str]]:
        """The ids by depth: a node stands one level below the deepest that it needs; each level in order.

        Raises UnknownDependency, then CircularDependency with its path.
        """
        for node in self._nodes.values():
            for needs in node.depends_on:
                if needs not in self._nodes:
                    raise UnknownDependency(node.id, needs)
        depth: dict[str, int] = {}
        for id in self._sorted_by_need():
            depth[id] = 1 + max((depth[needs] for needs in self._nodes[id].depends_on), default=-1)
        levels: list[list[str]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
        for id, at in depth.items():
            levels[at].append(id)
        return [self._ordered(level) for level in levels]

    def _sorted_by_need(self) -> list[str]:
        """Every id after all that it needs; raises CircularDependency. Unknown dependencies are passed over."""
        order = self._reachable_from_sources()
        if len(order) < len(self._nodes):
            raise CircularDependency(self.cycle() or [])
        return order

    def _reachable_from_sources(self) -> list[str]:
        open_needs = {id: sum(n in self._nodes for n in node.depends_on) for id, node in self._nodes.items()}
        order = [id for id, count in open_needs.items() if count == 0]
        for id in order:
            for dependent in self._direct_dependents()[id]:
                open_needs[dependent] -= 1
                if open_needs[dependent] == 0:
                    order.append(dependent)
        return order

    def batches(self, max: int = 5, *, mode: str = "parallel") -> list[list[str]]:
        """The levels cut into chunks of at most `max` ids that may run side by side, in order.

        A node that does not allow parallel work is alone in its chunk, two of one conflict_group never share one, and
        with mode `parallel_groups` only nodes of one `group` do (those without are a group too); `sequential` is
        chunks of one. Raises ValueError for max < 1 or an unknown mode, and what levels() raises.
        """
        if max < 1:
            raise ValueError("max must be at least 1")
        if mode not in CONCURRENCY:
            raise ValueError(f"mode must be one of {', '.join(CONCURRENCY)}")
        room = 1 if mode == "sequential" else max
        chunks: list[list[str]] = []
        for level in self.levels():
            fresh = len(chunks)
            for id in level:
                for chunk in chunks[fresh:]:
                    if len(chunk) < room and all(self._side_by_side(id, other, mode) for other in chunk):
                        chunk.append(id)
                        break
                else:
                    chunks.append([id])
        return chunks

    def _side_by_side(self, a: str, b: str, mode: str) -> bool:
        one, other = self._nodes[a], self._nodes[b]
        return (
            one.allow_parallel
            and other.allow_parallel
            and (one.conflict_group is None or one.conflict_group != other.conflict_group)
            and (mode != "parallel_groups" or one.group == other.group)
        )

    def dependents(self, id: str) -> list[str]:
        """The ids that need this one directly, in the order they were added; raises NotFound `task_not_found`."""
        return list(self._direct_dependents()[self._known(id).id])

    def blocking(self, id: str) -> list[str]:
        """The dependencies of the node that are not completed, those missing from the graph too."""
        return [
            needs
            for needs in self._known(id).depends_on
            if needs not in self._status or self._status[needs].status != COMPLETED
        ]

    def can_execute(self, id: str) -> bool:
        """True when the node is pending and nothing blocks it; raises NotFound `task_not_found`."""
        return self.status(id).status == PENDING and not self.blocking(id)

    def mark_running(self, id: str) -> None:
        """A pending node runs. Raises Refused `invalid_move` from any other status, NotFound `task_not_found`."""
        self._mark(id, Status(RUNNING), {PENDING})

    def mark_completed(self, id: str, result: Any = None) -> None:
        """A pending or running node is completed; raises as mark_running()."""
        self._mark(id, Status(COMPLETED, result=result), {PENDING, RUNNING})

    def mark_failed(self, id: str, error: str = "") -> None:
        """A pending or running node has failed; raises as mark_running()."""
        self._mark(id, Status(FAILED, error=error), {PENDING, RUNNING})

    def _mark(self, id: str, to: Status, sources: set[str]) -> None:
        now = self.status(id).status
        if now not in sources:
            allowed = [] if now in ENDED else [COMPLETED, FAILED]
            raise Refused(
                f"Invalid transition: task {id} is {now}, so it cannot become {to.status}",
                code="invalid_move",
                state=now,
                allowed=allowed,
            )
        self._status[id] = to

    def stats(self) -> dict[str, int]:
        """How many nodes stand in each of STATUSES, and `total`."""
        counts = dict.fromkeys(STATUSES, 0)
        for status in self._status.values():
            counts[status.status] += 1
        return {**counts, "total": len(self._nodes)}

    def is_complete(self) -> bool:
        """True when every node has ended, completed or failed; true for no nodes."""
        return all(status.status in ENDED for status in self._status.values())

    def has_failures(self) -> bool:
        """True when any node has failed."""
        return any(status.status == FAILED for status in self._status.values())

    def critical_path(self) -> list[str]:
        """The ids of the heaviest path from a source to a sink; of equally heavy ones, the first by sequence and id.

        Raises CircularDependency. Empty for no nodes.
        """
        self._sorted_by_need()
        path: list[str] = []
        choice = [id for id, node in self._nodes.items() if not any(n in self._nodes for n in node.depends_on)]
        while choice:
            lengths = self._length_to_sink()
            path.append(min(choice, key=lambda id: (-lengths[id], self._nodes[id].sequence, id)))
            choice = self._direct_dependents()[path[-1]]
        return path

    def slack(self) -> dict[str, float]:
        """How much later than possible each node can start without making the plan longer; 0 on a critical path.

        In the unit of the weights. Raises CircularDependency.
        """
        lengths = self._length_to_sink()
        earliest: dict[str, float] = {}
        for id in self._sorted_by_need():
            needs = [n for n in self._nodes[id].depends_on if n in self._nodes]
            earliest[id] = max((earliest[n] + self._nodes[n].weight for n in needs), default=0)
        total = max(lengths.values(), default=0)
        # Sums of floats taken in another order differ in the last digits; a node on the critical path has none to give.
        return {id: round(max(total - lengths[id] - earliest[id], 0), 6) for id in self._nodes}

    def _length_to_sink(self) -> dict[str, float]:
        """The heaviest path from each node to a sink, the node included; on a circle the node's weight alone."""
        if self._lengths is None:
            self._lengths = {id: node.weight for id, node in self._nodes.items()}
            order = self._reachable_from_sources()
            for id in reversed(order):
                below = (self._lengths[dependent] for dependent in self._direct_dependents()[id])
                self._lengths[id] += max(below, default=0)
        return self._lengths

    def _direct_dependents(self) -> dict[str, list[str]]:
        if self._dependents is None:
            self._dependents = {id: [] for id in self._nodes}
            for node in self._nodes.values():
                for needs in node.depends_on:
                    if needs in self._dependents:
                        self._dependents[needs].append(node.id)
        return self._dependents

    def _known(self, id: str) -> Node:
        if id not in self._nodes:
            raise NotFound.of("task", id)
        return self._nodes[id]


def _access(touches: Iterable[str], access: Mapping[str, Iterable[str]]) -> Access:
    by_mode: dict[str, list[str]] = {"edit": list(touches)}
    for mode, globs in access.items():
        if mode not in MODES:
            raise ValueError(f"access mode must be one of {', '.join(MODES)}")
        by_mode.setdefault(mode, []).extend(globs)
    return tuple((mode, tuple(by_mode[mode])) for mode in MODES if by_mode.get(mode))


@lru_cache(maxsize=8192)
def excludes(a: Access, b: Access) -> bool:
    """True when two accesses to some common path cannot be held at once: one of them edits, creates or deletes."""
    return any(
        (mode not in SHARED or other_mode not in SHARED) and scope.overlap(globs, other)
        for mode, globs in a
        for other_mode, other in b
    )

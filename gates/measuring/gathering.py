"""The evidence that an execution left: read in the bounded child, shard by shard, and joined."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gates import coverage, criteria, evidence, junit
from gates.coverage import Coverage
from gates.evidence import SHARD, TEST_KINDS, EvidenceRefused, Missing, Tree
from gates.junit import Results
from gates.models import Gate, GateRun
from gates.reading import UNKNOWN_LENGTH
from gates.runner import Execution
from gates.sarif import Found
from ledger import git

SANDBOX_TREE = "/src"  # where a command in the box sees the tree


@dataclass(frozen=True, slots=True)
class Again:
    """A further execution within a run: of which command, on which tree, with which files of another laid over it."""

    command: Sequence[str]
    tree_hash: str
    overlay: Mapping[str, bytes | None] = field(default_factory=dict)
    name: str = "again"


Execute = Callable[[Again, float], tuple[Execution, Path]]
"""Makes a fresh copy, executes in it for at most that many seconds; how it ended, and its folder of evidence."""


@dataclass(slots=True)
class Gathered:
    """The evidence of one execution: what could be read, what not and why, and what is to be kept about it."""

    results: Results | None = None
    coverage: Coverage | None = None
    found: tuple[Found, ...] | None = None
    missing: dict[str, str] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    shards_seen: int = 0


def look(gate: Gate, tree: Path) -> Tree:
    """The files that reports may speak of, before the command can touch them."""
    return evidence.survey(tree, seen_as=(SANDBOX_TREE,), cwd=gate.cwd)


def look_in_mirror(gate_run: GateRun) -> Tree:
    """The same of a tree that was run elsewhere: its files' names, from the mirror; how long they are is not known.

    A tree that the mirror does not have has no files: no report may speak of any.
    """
    try:
        names = [file.path for file in git.files(gate_run.project.mirror, gate_run.tree_hash)]
    except (git.UnknownCommit, git.GitFailed):
        names = []
    return Tree(dict.fromkeys(names, UNKNOWN_LENGTH), (SANDBOX_TREE,), gate_run.gate_as_asked().cwd)


def gather(gate: Gate, output: Path, tree: Tree) -> Gathered:
    """Everything that the command left in `output`, read in the bounded child, shard by shard, and joined."""
    gathered = Gathered()
    read: dict[str, list[Any]] = {}
    # Where no path says which shard, what is there is one of them, whatever their number.
    by_shard = any(SHARD in path for path in gate.evidence.values())
    shards = range(1, gate.shards + 1) if by_shard else range(1, 2)
    complete = dict.fromkeys(shards, True)
    for shard in shards:
        declared = {kind: path.replace(SHARD, str(shard)) for kind, path in gate.evidence.items()}
        for kind, content in evidence.collect(output, declared).items():
            told = _read(kind, content, tree, read)
            if "missing" in told or "refused" in told:
                complete[shard] = False
                gathered.missing.setdefault(kind, str(told.get("missing") or told.get("refused")))
            _note(gathered.told, kind, shard if by_shard else 0, told)
    gathered.shards_seen = sum(complete.values()) if gate.evidence else gate.shards
    if any(kind in read for kind in TEST_KINDS):
        gathered.results = junit.join(one for kind in TEST_KINDS for one in read.get(kind, ()))
    if "coverage" in read:
        gathered.coverage = read["coverage"][0] if len(read["coverage"]) == 1 else coverage.join(read["coverage"])
    if "sarif" in read:
        gathered.found = tuple(one for each in read["sarif"] for one in each)
    return gathered


def _read(kind: str, content: bytes | Missing, tree: Tree, read: dict[str, list[Any]]) -> dict[str, Any]:
    if isinstance(content, Missing):
        return {"missing": content.reason}
    told = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    try:
        found = evidence.read(kind, content, tree)
    except EvidenceRefused as refusal:
        return {**told, "refused": str(refusal)}
    read.setdefault(kind, []).append(found)
    return {**told, **evidence.describe(found)}


def _note(told: dict[str, Any], kind: str, shard: int, said: dict[str, Any]) -> None:
    if not shard:
        told[kind] = said
    else:
        told.setdefault(kind, {"shards": {}})["shards"][str(shard)] = said


def ordinary(gate: Gate) -> set[int]:
    """The exit codes with which the tool says that it did its work."""
    return {*(gate.expected_exit_codes or [0]), *(gate.finding_exit_codes or criteria.FINDING_EXIT_CODES)}

"""Which landed patches hold, too, what the reverse of another one would take off their branch.

Two patches of one base may say the same lines. The second of them to land finds those there already, so that its commit
does not show them, and no merge tells that they are its own as well. Its text does.
"""

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import accumulate
from typing import Any

from django.db.models import Q

from ledger import git
from ledger.models import Patch
from ledger.regions import Region, Span, regions_of
from pipeline.models import Project

_WORD = re.compile(r"\w")

_COLUMNS = (
    "pk",
    "rollback_of",
    "committed_at",
    "files_touched",
    "base_commit",
    "tested_parent",
    "commit_sha",
    "committed_tree",
    "result_tree",
)


@dataclass(frozen=True)
class Shared:
    """Lines that a reverse would change and that `patch_id`, which landed later as `commit`, says as well: the `lines`
    lines from `start` on of `path` as that commit left it (0 lines: some that it takes away there, or the whole file).
    """

    path: str
    start: int
    lines: int
    commit: str
    patch_id: str

    def __str__(self) -> str:
        place = f"line {self.start}" if self.lines <= 1 else f"lines {self.start} to {self.start + self.lines - 1}"
        return f"{self.path} {place}, which patch {self.patch_id} changes in the same way"


@dataclass(frozen=True)
class _Holder:
    """A patch whose change stands on the branch: `source` is the row that says it, `patch_id` and `commit` are those
    that it stands by, which are of a later reverse when it was gone for a while.

    `undoes`: it takes back another. What such a one puts there, and what its commit takes away again, belongs to
    whoever had changed that before; it holds only what its text takes away and was gone already.
    """

    source: Mapping[str, Any]
    patch_id: str
    commit: str
    undoes: bool

    @property
    def was_carried_over(self) -> bool:
        """Whether it landed on another commit than the one it was made of; else its commit says all that it says."""
        return bool(self.source["base_commit"] != self.source["tested_parent"])


class Sharing:
    """The patches that stand on one branch, looked up once."""

    def __init__(self, project: Project, branch: str) -> None:
        self.project = project
        self._landed = (
            Patch.objects.of(project)
            .filter(target_branch=branch, state__in=[Patch.State.COMMITTED, Patch.State.ROLLED_BACK])
            .exclude(commit_sha="")
        )
        self._said: dict[str, dict[str, tuple[Region, ...]]] = {}
        self._committed: dict[str, set[str]] = {}

    def of(self, patch: Patch, onto: str, tree: str) -> list[Shared]:
        """What the reverse of `patch`, which makes `tree` of the tree `onto`, would change of others that landed after
        it. Two steps of git, and a few more for each patch that says the same lines. Raises what git raises.
        """
        changes = {change.path: change for change in git.changes(self.project.mirror, onto, tree)}
        holders = list(self._holders(patch, sorted(changes)))
        if not holders:
            return []
        found = set(self._whole_files(changes.values(), holders))
        edited = [change for change in changes.values() if change.kind == "change"]
        modes = {change.path: change for change in edited if change.old_mode != change.new_mode}
        paths = [change.path for change in edited if change.old_oid != change.new_oid]
        text = git.diff_texts(self.project.mirror, [(onto, tree)], paths)[0] if paths else ""
        undone = {file.path: file.regions for file in regions_of(text)}
        found.update(self._lines(onto, undone, holders))
        contents = {path: changes[path] for path, regions in undone.items() if not regions and path not in modes}
        for holder in holders:
            found.update(self._beyond_lines(holder, modes, contents))
        return sorted(found, key=lambda one: (one.path, one.patch_id, one.start))

    # -- who holds -----------------------------------------------------------------------------------------------------

    @cached_property
    def _reverses(self) -> dict[str, tuple[str, str, str, datetime]]:
        """For what was undone: the reverse that did it, its state, its commit and when it landed."""
        rows = self._landed.exclude(rollback_of=None).order_by("committed_at", "pk")
        found = rows.values_list("rollback_of", "pk", "state", "commit_sha", "committed_at")
        return {undone: (pk, state, commit, at) for undone, pk, state, commit, at in found}

    @cached_property
    def _undoes(self) -> dict[str, str]:
        return {reverse[0]: undone for undone, reverse in self._reverses.items()}

    def _holders(self, patch: Patch, paths: list[str]) -> Iterator[_Holder]:
        """Whose change stands on the branch since a time after `patch` landed, and touches one of `paths`."""
        rows = self._landed.touching(paths).exclude(pk=patch.pk)
        rows = rows.filter(Q(committed_at__gt=patch.committed_at) | Q(state=Patch.State.ROLLED_BACK))
        for row in rows.order_by("pk").values(*_COLUMNS):
            undone = self._undoes.get(row["pk"])
            if undone in self._undoes:
                continue  # what it brought back was said by another first
            pk, commit, at, is_there = row["pk"], row["commit_sha"], row["committed_at"], True
            while pk in self._reverses:
                pk, _state, commit, at = self._reverses[pk]
                is_there = not is_there
            if is_there and pk != patch.pk and at > patch.committed_at:
                holder = _Holder(row, pk, commit, undoes=undone is not None)
                if holder.was_carried_over or not holder.undoes:
                    yield holder

    # -- what they hold ------------------------------------------------------------------------------------------------

    def _whole_files(self, changes: Iterable[git.TreeChange], holders: Sequence[_Holder]) -> Iterator[Shared]:
        """Files that the reverse takes away and a holder adds, or that it puts back and a holder takes away."""
        for change in changes:
            for holder in holders if change.kind != "change" else ():
                said = holder.source["files_touched"].get(change.path)
                if {change.kind, said} != {"add", "delete"}:
                    continue
                if not holder.undoes or (said == "delete" and change.path not in self._changed_by(holder)):
                    yield Shared(change.path, 1, 0, holder.commit, holder.patch_id)

    def _changed_by(self, holder: _Holder) -> set[str]:
        """The paths that the commit of what a holder says has changed."""
        row = holder.source
        if row["pk"] not in self._committed:
            changes = git.changes(self.project.mirror, row["tested_parent"], row["commit_sha"])
            self._committed[row["pk"]] = {change.path for change in changes}
        return self._committed[row["pk"]]

    def _beyond_lines(
        self, holder: _Holder, modes: Mapping[str, git.TreeChange], contents: Mapping[str, git.TreeChange]
    ) -> Iterator[Shared]:
        """Files to which the reverse would give another mode (`modes`), or another binary content (`contents`), than
        the one that `holder` gave them.
        """
        touched = [path for path in (*modes, *contents) if path in holder.source["files_touched"]]
        if holder.undoes or not touched:
            return
        made = {change.path: change for change in git.changes(self.project.mirror, *self._trees(holder))}
        for path in touched:
            own = made.get(path)
            if own is None or own.kind != "change":
                continue
            if path in modes:
                is_own = own.old_mode != own.new_mode == modes[path].old_mode
            else:
                is_own = own.old_oid != own.new_oid == contents[path].old_oid
            if is_own:
                yield Shared(path, 1, 0, holder.commit, holder.patch_id)

    def _lines(self, onto: str, undone: Mapping[str, Sequence[Region]], holders: Sequence[_Holder]) -> Iterator[Shared]:
        """The lines that the reverse takes away and a holder adds, or that it puts back and a holder takes away."""
        self._read(holders if undone else ())
        alike = []
        for holder in holders if undone else ():
            said = self._said[holder.source["pk"]]
            paths = [path for path in sorted(undone.keys() & said.keys()) if _is_alike(undone[path], said[path])]
            if paths:
                alike.append((holder, self._trees(holder)[1], paths))
        if not alike:
            return
        asked = sorted({path for _holder, _made, paths in alike for path in paths})
        since = git.diff_texts(self.project.mirror, [(made, onto) for _holder, made, _paths in alike], asked)
        for (holder, made, paths), text in zip(alike, since, strict=True):
            later = {file.path: file.regions for file in regions_of(text)}
            for path in paths:
                lines = self._said[holder.source["pk"]][path]
                met = list(_met(lines, later.get(path, ()), undone[path]))
                yield from self._told(holder, made, path, met)

    def _told(self, holder: _Holder, made: str, path: str, met: Sequence[Span]) -> Iterator[Shared]:
        """Lines of what a holder makes of its own base, as the commit has them by which they stand."""
        if not met:
            return
        landed = git.tree_of(self.project.mirror, holder.commit)
        text = git.diff_texts(self.project.mirror, [(made, landed)], [path])[0]
        shift = _Shift([region for file in regions_of(text) for region in file.regions])
        for start, end in met:
            yield Shared(path, shift.place(start), end - start, holder.commit, holder.patch_id)

    def _read(self, holders: Sequence[_Holder]) -> None:
        """Have the lines of these at hand."""
        wanted = {holder.source["pk"] for holder in holders} - self._said.keys()
        self._said |= {pk: {} for pk in wanted}
        rows = Patch.objects.filter(pk__in=wanted).exclude(content=None).values_list("pk", "content__diff_text")
        for pk, text in rows.iterator(chunk_size=100) if wanted else ():
            self._said[pk] = {file.path: file.regions for file in regions_of(text)}
        for holder in holders:
            if holder.undoes and holder.source["pk"] in wanted:
                self._said[holder.source["pk"]] = self._gone_already(holder)

    def _gone_already(self, holder: _Holder) -> dict[str, tuple[Region, ...]]:
        """The regions of what a holder says, with nothing but the lines that it takes away and its commit does not."""
        row = holder.source
        said = self._said[row["pk"]]
        pair = (git.tree_of(self.project.mirror, row["tested_parent"]), row["committed_tree"])
        text = git.diff_texts(self.project.mirror, [pair], sorted(said))[0] if said else ""
        done = {file.path: {line for region in file.regions for line in region.removed} for file in regions_of(text)}
        found = {}
        for path, regions in said.items():
            by_commit = done.get(path, set())
            rest = [
                replace(region, removed=tuple(line for line in region.removed if line not in by_commit), added=())
                for region in regions
            ]
            found[path] = tuple(region for region in rest if region.removed)
        return found

    def _trees(self, holder: _Holder) -> tuple[str, str]:
        """The base of what a holder says, a commit, and the tree that it makes of that."""
        row, mirror = holder.source, self.project.mirror
        if not holder.was_carried_over:
            return row["base_commit"], row["committed_tree"]
        if row["result_tree"]:
            with suppress(git.UnknownCommit):  # of a mirror that was made anew since it was judged
                return row["base_commit"], git.tree_of(mirror, row["result_tree"])
        text = Patch.objects.values_list("content__diff_text", flat=True).get(pk=row["pk"])
        return row["base_commit"], git.apply(mirror, row["base_commit"], text)


# --- pure: lines -----------------------------------------------------------------------------------------------------


def _is_alike(undone: Sequence[Region], said: Sequence[Region]) -> bool:
    """Whether there is a line that the one takes away and the other adds, or the other way round. One without a letter
    or digit counts only where the region that is undone has no better.
    """
    added = frozenset(line for region in said for line in region.added)
    removed = frozenset(line for region in said for line in region.removed)
    return any(_share(region.removed, added) or _share(region.added, removed) for region in undone)


def _share(lines: Sequence[str], others: Collection[str]) -> bool:
    telling = [line for line in lines if _WORD.search(line)]
    return any(line in others for line in telling or lines)


def _met(said: Sequence[Region], later: Sequence[Region], undone: Sequence[Region]) -> Iterator[Span]:
    """The lines of what `said` has made that `undone` takes away, where nothing of `later` between the two changed
    them; and the places (spans without lines) where `said` took lines away that `undone` puts back.
    """
    shift = _Shift(later)
    gone = {region.old_start + number for region in undone for number in range(len(region.removed))}
    for region in said:
        end = region.new_start + len(region.added)
        met = [number for number in range(region.new_start, end) if shift.stays(number) and shift.place(number) in gone]
        if met:
            yield met[0], met[-1] + 1
            continue
        first, last = shift.place(region.new_start), shift.place(end)
        for back in undone:
            meets = back.old_start <= last and first <= back.old_start + len(back.removed)
            if meets and _share(back.added, region.removed):
                yield region.new_start, region.new_start
                break


class _Shift:
    """Where the lines of a file are after some changes."""

    def __init__(self, changes: Sequence[Region]) -> None:
        self.changes = changes
        self.starts = [change.old_start for change in changes]
        self.grown = [0, *accumulate(len(change.added) - len(change.removed) for change in changes)]

    def stays(self, line: int) -> bool:
        """Whether this line is none of those that were changed."""
        before = bisect_right(self.starts, line)
        return not before or line >= self.starts[before - 1] + len(self.changes[before - 1].removed)

    def place(self, line: int) -> int:
        """Its number afterwards; of a line that was changed, that of what came in its place."""
        before = bisect_right(self.starts, line)
        if self.stays(line):
            return line + self.grown[before]
        return self.changes[before - 1].new_start

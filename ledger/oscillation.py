"""Pure: does a change go back and forth? A patch and those before it in, hits with their evidence out (domain.md
§2.3.1).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ledger.regions import FileRegions, Region, regions_of

Kind = Literal["identical", "inverse", "returning"]

TELLING_LINES = 3
"""So many lines, or more, that come back are no chance, whatever was in their place; `}` alone is."""

SHOWN_REGIONS = 5

_Change = tuple[str, tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Earlier:
    """A patch before the one in question: its text, and how many attempts but its own submitted it once more."""

    patch_id: str
    diff_text: str
    resubmissions: int = 0


@dataclass(frozen=True)
class Hit:
    """One sign: which earlier patch, what it is to the present one, and the lines (path, first line) that show it."""

    kind: Kind
    patch_id: str
    where: tuple[tuple[str, int], ...] = ()

    def document(self) -> dict[str, Any]:
        """As the ledger keeps it among a patch's findings."""
        return {
            "rule": "oscillation",
            "code": f"oscillation_{self.kind}",
            "message": _WORDS[self.kind].format(patch=self.patch_id),
            "severity": "note",
            "patch": self.patch_id,
            "regions": [{"path": path, "line": line} for path, line in self.where],
            **({"path": self.where[0][0]} if self.where else {}),
        }


_WORDS: dict[Kind, str] = {
    "identical": "The same change as patch {patch}",
    "inverse": "Undoes exactly patch {patch}",
    "returning": "Brings lines back to what they were before patch {patch}",
}


@dataclass(frozen=True)
class Swing:
    """The hits of a patch, oldest first, and why it is to be set aside: "" when there are fewer than the threshold."""

    hits: tuple[Hit, ...] = ()
    reason: str = ""


def judge(
    diff_text: str,
    earlier: Sequence[Earlier],
    *,
    threshold: int,
    resubmitted: tuple[str, int] = ("", 0),
    is_released: bool = False,
) -> Swing:
    """The hits of this change, and whether they are as many as `threshold` (see `hits`).

    `is_released`: a person has let it out of quarantine, so it is not set aside again, whatever is found.
    """
    found = tuple(hits(diff_text, earlier, resubmitted=resubmitted))
    if is_released or len(found) < threshold:
        return Swing(found)
    patches = ", ".join(dict.fromkeys(hit.patch_id for hit in found))
    return Swing(found, f"oscillating: the change goes back and forth, {len(found)} times so far (patches {patches})")


def hits(diff_text: str, earlier: Sequence[Earlier], *, resubmitted: tuple[str, int] = ("", 0)) -> list[Hit]:
    """The signs in `earlier` (oldest first) that this change goes back and forth, oldest first.

    One for each patch that makes the same change, or exactly undoes it, or before which a region had the lines that it
    now gets again; and one for each resubmission: of an identical patch, or of this one (`resubmitted`: its id and by
    how many other attempts). Positions and context do not count, so a change that moved within its file is the same.
    """
    files = regions_of(diff_text)
    mine = _changes(files)
    found = [Hit("identical", resubmitted[0])] * resubmitted[1]
    before = [(patch, regions_of(patch.diff_text)) for patch in earlier]
    left = [(patch, _changes(changed)) for patch, changed in before]
    for number, (patch, theirs) in enumerate(left):
        if theirs == mine:
            found += [Hit("identical", patch.patch_id, _first_lines(files))] * (1 + patch.resubmissions)
        elif theirs == _undone(mine):
            found.append(Hit("inverse", patch.patch_id, _first_lines(files)))
        else:
            where = tuple(
                (file.path, region.new_start)
                for file in files
                for region in file.regions
                if _returns(file.path, region, [set(changes) for _, changes in left[number:]])
            )
            if where:
                found.append(Hit("returning", patch.patch_id, where[:SHOWN_REGIONS]))
    return found


def _returns(path: str, region: Region, since: Sequence[set[_Change]]) -> bool:
    """Whether the first of `since` took away what `region` puts there, and the lines that `region` takes away came to
    be there by it and those after it: A to B to C, and now C to A.
    """
    first, *later = since
    for _, removed, added in (change for change in first if change[0] == path and change[1] == region.added):
        if len([line for line in removed if line.strip()]) >= TELLING_LINES or added == region.removed:
            return True
        present = {added}
        for changes in later:
            present |= {new for place, old, new in changes if place == path and old and old in present}
        if region.removed and region.removed in present:
            return True
    return False


def _changes(files: Iterable[FileRegions]) -> list[_Change]:
    """The change without positions and context, in an order that depends on nothing else."""
    found: list[_Change] = [(file.path, region.removed, region.added) for file in files for region in file.regions]
    found += [(file.path, (file.facts[0],), (file.facts[1],)) for file in files if file.is_whole]
    return sorted(found)


def _undone(changes: Iterable[_Change]) -> list[_Change]:
    return sorted((path, added, removed) for path, removed, added in changes)


def _first_lines(files: Iterable[FileRegions]) -> tuple[tuple[str, int], ...]:
    lines = [(file.path, file.regions[0].new_start if file.regions else 1) for file in files]
    return tuple(lines[:SHOWN_REGIONS])

"""Taking back what has landed: the change that undoes a patch on the present head, and the plan for a set of patches
(domain.md §3.5).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from django.conf import settings
from django.db.models import Q, QuerySet
from django.utils.translation import gettext_lazy as _

from ledger import diff as diffs
from ledger import git, validation
from ledger.models import Patch
from ledger.regions import Region, Span, follow, regions_of
from pipeline import events
from pipeline.crashpoints import crashpoint
from pipeline.ids import is_id, new_id
from pipeline.models import Project
from pipeline.refusals import InvalidField, Refused, need_reason
from pipeline.rows import in_transaction

Outcome = Literal["alone", "after_others", "in_the_way", "nothing_left", "refused", "under_way"]

WORDS: dict[Outcome, Any] = {
    "alone": _("can be taken back"),
    "after_others": _("can be taken back after others"),
    "in_the_way": _("something is in the way"),
    "nothing_left": _("nothing is left of it"),
    "refused": _("its reverse would be refused"),
    "under_way": _("is being taken back already"),
}

LeftOutCode = Literal["undone_already", "brings_back", "not_landed"]

MOST_TOLD = 5

END = 1 << 40
"""Behind the last line of any file."""


class LaterPatchDepends(Refused):
    """What has landed since then builds on it. `patches` are ids, `hunks` the lines in the way, `paths` their files."""

    code = "later_patch_depends"

    def __init__(self, message: str, patches: Sequence[str], hunks: "Sequence[InTheWay]") -> None:
        paths = sorted({hunk.path for hunk in hunks})
        documents = [hunk.document() for hunk in hunks]
        super().__init__(f"Cannot rollback: {message}", patches=list(patches), hunks=documents, paths=paths)


@dataclass(frozen=True)
class InTheWay:
    """Lines that changed after the patch had landed, where it had changed them: the `lines` lines from `start` on
    (counted from 1; 0 lines: some were taken away before it) of `path` as `commit` left it, and whose commit that is
    ("": none of ours). Without a commit: git found a conflict there that no single line tells.
    """

    path: str
    start: int = 0
    lines: int = 0
    commit: str = ""
    patch_id: str = ""

    def document(self) -> dict[str, Any]:
        """As answers and refusals tell it."""
        return {
            "path": self.path, "start": self.start, "lines": self.lines, "commit": self.commit, "patch": self.patch_id,
        }  # fmt: skip

    def __str__(self) -> str:
        if not self.commit:
            return self.path
        by = f"patch {self.patch_id}" if self.patch_id else f"commit {self.commit[:12]}"
        place = f"line {self.start}" if self.lines <= 1 else f"lines {self.start} to {self.start + self.lines - 1}"
        return f"{self.path} {place}, changed by {by}"


@dataclass(frozen=True)
class Objection:
    """What the policy has against a reverse: its rule, the path ("" for the whole), and a sentence."""

    code: str
    path: str
    message: str

    def document(self) -> dict[str, Any]:
        """As answers tell it."""
        return {"code": self.code, "path": self.path or None, "message": self.message}


@dataclass(frozen=True)
class Step:
    """What a plan says about one patch.

    `outcome`: its reverse fits the branch `alone`, or fits `after_others` of the plan; lines are `in_the_way`;
    `nothing_left` of it is there; its reverse would be `refused`, with that `refusal`; or a reverse of it is
    `under_way`. `after` are the patches of the plan whose reverse has to land before, `later` those of its own chain
    that build on it, `reverse` is the one that is under way. `objections` are what the policy has against a reverse
    that can be made: it waits until each is overridden.
    """

    patch: Patch
    outcome: Outcome
    after: tuple[str, ...] = ()
    in_the_way: tuple[InTheWay, ...] = ()
    later: tuple[str, ...] = ()
    reverse: Patch | None = None
    tree_before: str = ""
    tree: str = ""
    refused: Refused | None = None
    objections: tuple[Objection, ...] = ()

    @property
    def is_possible(self) -> bool:
        """Whether its reverse can be made."""
        return self.outcome in ("alone", "after_others")

    @property
    def words(self) -> str:
        """The outcome as people read it."""
        return str(WORDS[self.outcome])

    def document(self) -> dict[str, Any]:
        """As the API answers it."""
        return {
            "patch": self.patch.pk,
            "summary": self.patch.summary,
            "commit": self.patch.commit_sha,
            "outcome": self.outcome,
            "after": list(self.after),
            "later": list(self.later),
            "in_the_way": [hunk.document() for hunk in self.in_the_way],
            "reverse": self.reverse.pk if self.reverse else None,
            "refusal": {"code": self.refused.code, "message": str(self.refused)} if self.refused else None,
            "objections": [objection.document() for objection in self.objections],
        }

    def refusal(self) -> Refused:
        """Why its reverse cannot be made, as the verb refuses."""
        if self.refused is not None:
            return self.refused
        if self.outcome == "nothing_left":
            return LaterPatchDepends(f"nothing is left of patch {self.patch.pk} on the branch", [], [])
        patches = dict.fromkeys([*self.later, *(hunk.patch_id for hunk in self.in_the_way if hunk.patch_id)])
        if self.later:
            return LaterPatchDepends(
                f"patch {', '.join(self.later)} of the same piece of work touches the same files and has landed after "
                f"it; roll that back first",
                list(patches),
                self.in_the_way,
            )
        shown = "; ".join(str(hunk) for hunk in self.in_the_way[:MOST_TOLD])
        more = f" and {len(self.in_the_way) - MOST_TOLD} more" if len(self.in_the_way) > MOST_TOLD else ""
        return LaterPatchDepends(f"what landed later is in the way: {shown}{more}", list(patches), self.in_the_way)


@dataclass(frozen=True)
class LeftOut:
    """A patch that the filter finds, and that a plan leaves as it is; `because_of` is the other patch concerned.

    `undone_already`: it and the patch that it undoes are both meant, so there is nothing left of either.
    `brings_back`: it undoes a patch that is not meant, and without it that one would be there again. `not_landed`: it
    was named, and is not on the branch.
    """

    patch: Patch
    code: LeftOutCode
    because_of: str = ""

    @property
    def words(self) -> str:
        """Why, as people read it."""
        if self.code == "undone_already":
            words = _("it undoes patch %(patch)s, which is meant as well: nothing of the two is left to take back")
        elif self.code == "brings_back":
            words = _("it undoes patch %(patch)s, which would come back: roll this one back by itself if that is meant")
        else:
            words = _("it is not on the branch, but %(state)s")
        return str(words % {"patch": self.because_of, "state": self.patch.get_state_display()})

    def document(self) -> dict[str, Any]:
        """As the API answers it."""
        return {
            "patch": self.patch.pk,
            "summary": self.patch.summary,
            "code": self.code,
            "because_of": self.because_of or None,
            "reason": self.words,
        }


@dataclass(frozen=True)
class Plan:
    """The reverses of a set of patches of one branch, newest first, each on what the ones before it leave; and what of
    the set stays as it is.
    """

    project: Project
    branch: str
    head: str
    steps: tuple[Step, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def possible(self) -> list[Step]:
        """The steps whose reverse can be made."""
        return [step for step in self.steps if step.is_possible]

    @property
    def impossible(self) -> list[Step]:
        """The steps that something stands against."""
        return [step for step in self.steps if step.outcome in ("in_the_way", "nothing_left", "refused")]

    def document(self) -> dict[str, Any]:
        """As the API answers it."""
        return {
            "project": self.project.key,
            "target_branch": self.branch,
            "head": self.head,
            "count": len(self.steps),
            "possible": len(self.possible),
            "steps": [step.document() for step in self.steps],
            "left_out": [one.document() for one in self.left_out],
        }


# --- one patch -------------------------------------------------------------------------------------------------------


def roll_back(patch: Patch, reason: str, *, by: events.Actor) -> tuple[Patch, bool]:
    """Take a patch back: the patch itself, rolled back, when it is applied or verified; when it has landed, its reverse
    and whether that is new.

    Runs git, so never inside a transaction. Raises ReasonRequired, InvalidMove, LaterPatchDepends, and the refusal of a
    reverse that would go nowhere.
    """
    reason = need_reason(reason)
    patch.refresh_from_db()
    if patch.state != Patch.State.COMMITTED:
        patch.rollback(reason, by=by)
        return patch, False
    if patch.custody != Project.Custody.MANAGED:
        raise Refused(
            "Cannot rollback: the project is in recorded custody, so whoever moves its branch undoes the change there "
            "and submits that as a patch",
            code="invalid_move",
            state=patch.state,
        )
    branch = _Branch(patch.project, patch.target_branch)
    under_way = patch.reverse_under_way()
    if under_way is not None and under_way.state != Patch.State.APPLY_FAILED:
        return under_way, False
    step = branch.step(patch, [])
    if not step.is_possible:
        raise step.refusal()
    crashpoint("rollback.planned")
    text = _text(branch.project, step.tree_before, step.tree)
    return Patch.objects.submit_reverse(patch, diff_text=text, base_commit=branch.head, reason=reason, by=by)


def _text(project: Project, tree_before: str, tree: str) -> str:
    """What a reverse that makes `tree` of `tree_before` is entered as."""
    return git.short_diff_text(project.mirror, tree_before, tree, diffs.REVERSED.line)


# --- a set of them ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """Which patches of a project's branch to take back: those that landed from `since` to before `until` and were made
    by `worker` (its id or its name), with `tool`, by `model`, in `run`; what is empty does not matter. At least one of
    them says something.

    What undoes a patch is taken back only when it is one of `patches`, since that brings its original back. Where both
    are meant they cancel each other out. A patch that came back so is taken back by the newest reverse of its line,
    which is what holds it on the branch.
    """

    project: Project
    branch: str = ""
    worker: str = ""
    tool: str = ""
    model: str = ""
    run: str = ""
    since: datetime | None = None
    until: datetime | None = None
    patches: tuple[str, ...] = field(default_factory=tuple)

    @property
    def says_which(self) -> bool:
        """Whether anything but the branch is asked for."""
        return any([self.worker, self.tool, self.model, self.run, self.since, self.until, self.patches])

    def rows(self) -> "QuerySet[Patch]":
        """The committed patches that are to be taken back, newest landing first. Raises InvalidField when nothing is
        said.
        """
        reverses, _left_out = self._reverses()
        rows = self._landed().filter(state=Patch.State.COMMITTED)
        plain = self.narrowed(rows.filter(rollback_of=None), "committed_at").order_by()
        rows = rows.filter(Q(pk__in=plain.values("pk")) | Q(pk__in=reverses))
        return rows.select_related("project").order_by("-committed_at", "-pk")

    def left_out(self) -> list[LeftOut]:
        """What is meant and stays as it is, newest first. Raises InvalidField when nothing is said."""
        reverses, reasons = self._reverses()
        known = self._landed().in_bulk(reasons)
        told = [LeftOut(known[pk], code, other) for pk, (code, other) in reasons.items()]
        if self.patches:
            explained = {*reverses, *reasons, *(other for _code, other in reasons.values())}
            explained.update(pk for line in self._lines() if line[-1] in reverses for pk in line)
            named = Patch.objects.of(self.project).filter(pk__in=self.patches).exclude(pk__in=explained)
            told += [
                LeftOut(patch, "not_landed") for patch in named.exclude(pk__in=self.rows().order_by().values("pk"))
            ]
        return sorted(told, key=lambda one: one.patch.pk, reverse=True)

    def _landed(self) -> "QuerySet[Patch]":
        """What has landed on the branch, also what was taken back since. Raises InvalidField when nothing is said."""
        if not self.says_which:
            raise InvalidField("filter", "say which patches: by worker, tool, model, run, since, until or patches")
        rows = Patch.objects.of(self.project).filter(target_branch=self.branch or self.project.default_branch)
        return rows.filter(state__in=[Patch.State.COMMITTED, Patch.State.ROLLED_BACK]).exclude(commit_sha="")

    def _lines(self) -> list[list[str]]:
        """For each patch that was taken back: itself, what undid it, what undid that, and so on; the last stands."""
        landed = self._landed().exclude(rollback_of=None).values_list("pk", "rollback_of")
        undoes = {pk: undone for pk, undone in landed if undone is not None}
        lines = []
        for pk in sorted(undoes.keys() - set(undoes.values())):
            line = [pk]
            while line[0] in undoes:
                line.insert(0, undoes[line[0]])
            lines.append(line)
        return lines

    def _reverses(self) -> tuple[set[str], dict[str, tuple[LeftOutCode, str]]]:
        """The reverses that are to be taken back; and those that are left out, with why and the other patch."""
        lines = self._lines()
        concerned = (
            self._landed().filter(pk__in={pk for line in lines for pk in line}) if lines else Patch.objects.none()
        )
        meant = set(self.narrowed(concerned, "committed_at").values_list("pk", flat=True))
        taken: set[str] = set()
        left: dict[str, tuple[LeftOutCode, str]] = {}
        for line in lines:
            alone, pairs = set(), set()
            at = len(line) - 1
            while at >= 0:
                if at and line[at] in meant and line[at - 1] in meant:
                    pairs.add(at)
                    at -= 1
                elif line[at] in meant:
                    alone.add(at)
                at -= 1
            last = len(line) - 1
            is_there_again = last % 2 == 0
            if (is_there_again and 0 in alone) or (self.patches and last in alone):
                taken.add(line[last])
                continue
            left |= {line[at]: ("undone_already", line[at - 1]) for at in pairs}
            if last in alone:
                left[line[last]] = ("brings_back", line[last - 1])
        return taken, left

    def narrowed(self, rows: "QuerySet[Patch]", clock: str) -> "QuerySet[Patch]":
        """Those of `rows` that are meant; the times are those of the column `clock`. Raises InvalidField `run`."""
        if self.run and not is_id(self.run):
            raise InvalidField("run", f"“{self.run[:80]}” is no id of a run")
        if self.worker:
            named = {"author_worker_id": self.worker} if is_id(self.worker) else {"author_name": self.worker}
            rows = rows.filter(**named)
        if self.tool:
            rows = rows.filter(tool=self.tool)
        if self.model:
            rows = rows.filter(attempt__tool__model=self.model)
        if self.run:
            rows = rows.filter(run=self.run)
        if self.since:
            rows = rows.filter(**{f"{clock}__gte": self.since})
        if self.until:
            rows = rows.filter(**{f"{clock}__lt": self.until})
        if self.patches:
            rows = rows.filter(pk__in=self.patches)
        return rows.select_related("project")


def plan(wanted: Wanted) -> Plan:
    """What it takes to take these patches back, newest first. Changes nothing that anybody sees.

    Runs git (a few steps for each patch), so never inside a transaction. Raises InvalidField when nothing is said, the
    project is in recorded custody, or more than SIGNALBOX_REWIND_LIMIT patches are meant.
    """
    project = wanted.project
    if project.custody != Project.Custody.MANAGED:
        raise InvalidField("project", f"{project.key} is in recorded custody: whoever moves its branch rewinds there")
    limit = int(settings.SIGNALBOX_REWIND_LIMIT)
    patches = list(wanted.rows()[: limit + 1])
    if len(patches) > limit:
        raise InvalidField("filter", f"it finds more than {limit} patches; narrow it, by time for example")
    branch = _Branch(project, wanted.branch or project.default_branch)
    steps: list[Step] = []
    for patch in patches:
        steps.append(branch.step(patch, steps))
    return Plan(project, branch.name, branch.head, tuple(steps), tuple(wanted.left_out()))


def carry_out(made: Plan, reason: str, *, by: events.Actor, partial: bool = False) -> list[Patch]:
    """Make the reverses of a plan, newest first, each standing on the one before; returns them in that order.

    Raises LaterPatchDepends, or what else refuses one of the plan, and makes none, unless `partial` leaves out those
    whose step says that they cannot be made. All of them are made in one transaction, so who is refused or dies on the
    way leaves none; what they change is worked out before, since that runs git. Each is judged when the one before it
    has landed, so one that fails stops those behind it.
    """
    reason = need_reason(reason)
    if made.impossible and not partial:
        raise made.impossible[0].refusal()
    given = [(step, base, _text(made.project, step.tree_before, step.tree)) for step, base in _bases(made)]
    reverses: list[Patch] = []
    with in_transaction():
        _lock(made)
        for step, base, text in given:
            after = reverses[-1] if reverses else None
            reverse, _is_new = Patch.objects.submit_reverse(
                step.patch, diff_text=text, base_commit=base, reason=reason, by=by, after=after
            )
            crashpoint("rewind.reversed")
            reverses.append(reverse)
    return reverses


def _bases(made: Plan) -> Iterator[tuple[Step, str]]:
    """The possible steps of a plan, each with the commit that its reverse changes: the head, then commits of our own
    beside any branch.
    """
    base, token = made.head, new_id()
    for number, step in enumerate(made.possible, 1):
        yield step, base
        if number < len(made.possible):
            base = git.commit(
                made.project.mirror, step.tree, base, f"Base of a rewind\n\n{token} {number}\n",
                author_name=git.COMMITTER_NAME, author_email=git.COMMITTER_EMAIL, at=datetime.now(UTC),
            )  # fmt: skip


def _lock(made: Plan) -> None:
    """Lock the branch's queue, then the patches of a plan in the order of their keys."""
    originals = sorted(step.patch.pk for step in made.possible)
    if originals:
        made.possible[0].patch.lock_queue()
        list(Patch.objects.select_for_update(no_key=True, of=("self",)).filter(pk__in=originals).order_by("pk"))


# --- what is on the branch -------------------------------------------------------------------------------------------


class _Branch:
    """A branch as it is now, and what each commit on it changed, looked up once."""

    def __init__(self, project: Project, name: str) -> None:
        self.project, self.name = project, name
        self.head = git.head(project.mirror, name)
        self._changed: dict[str, dict[str, tuple[Region, ...]]] = {}

    @cached_property
    def commits(self) -> list[git.Commit]:
        """The branch by first parents, newest first."""
        depth = int(settings.SIGNALBOX_REWIND_COMMITS)
        known = {commit.id: commit for commit in git.log(self.project.mirror, self.name, depth)}
        found, following = [], self.head
        while following in known:
            found.append(known[following])
            following = next(iter(known[following].parents), "")
        return found

    @cached_property
    def patch_of(self) -> dict[str, str]:
        """Commit -> patch, for the commits that are ours."""
        landed = Patch.objects.of(self.project).filter(target_branch=self.name).exclude(commit_sha="")
        return {commit: pk for commit, pk in landed.values_list("commit_sha", "pk") if commit}

    def step(self, patch: Patch, before: Sequence[Step]) -> Step:
        """What the plan says about `patch`, after the steps `before` it (newest first)."""
        reverse = patch.reverse_under_way()
        if reverse is not None and reverse.state != Patch.State.APPLY_FAILED:
            return Step(patch, "under_way", reverse=reverse)
        done = [step for step in before if step.is_possible]
        onto = done[-1].tree if done else git.tree_of(self.project.mirror, self.head)
        later = self._later_of_chain(patch, {step.patch.pk for step in done})
        tree = self._without(patch, onto)
        if tree is None or later:
            return Step(patch, "in_the_way", in_the_way=self._in_the_way(patch, done), later=tuple(later))
        if tree == onto:
            return Step(patch, "nothing_left")
        refused, objections = self._foreseen(patch, onto, tree)
        if refused is not None:
            return Step(patch, "refused", refused=refused)
        after = self._needed(patch, done)
        outcome: Outcome = "after_others" if after else "alone"
        return Step(patch, outcome, after=after, tree_before=onto, tree=tree, objections=objections)

    def _foreseen(self, patch: Patch, onto: str, tree: str) -> tuple[Refused | None, tuple[Objection, ...]]:
        """What becomes of the reverse of `patch` that makes `tree` of `onto` when it is submitted and judged: the
        refusal of one that nobody can let pass, and else what the policy has against it.
        """
        text = _text(self.project, onto, tree)
        try:
            diffs.parse(text, links=True, bounds=diffs.REVERSED)
        except diffs.DiffRefused as refusal:
            return Refused(f"Cannot rollback: {refusal}", code=refusal.code, status=refusal.status), ()
        found = validation.judge(Patch.objects.draft_reverse(patch, diff_text=text, base_commit=onto))
        errors = [
            Objection(error["code"], error.get("path") or "", error["message"]) for error in found["validation_errors"]
        ]
        if not found["format_ok"]:
            shown = "; ".join(error.message for error in errors[:MOST_TOLD])
            return Refused(f"Cannot rollback: {shown}", code=errors[0].code, status=422), ()
        return None, tuple(errors)

    def _without(self, patch: Patch, onto: str) -> str | None:
        """The tree `onto` without the change of `patch`; None when lines of it have changed since then."""
        mirror = self.project.mirror
        try:
            return git.rebase_tree(mirror, patch.commit_sha, git.tree_of(mirror, patch.tested_parent), onto)
        except git.DoesNotApply:
            return None

    def _needed(self, patch: Patch, done: Sequence[Step]) -> tuple[str, ...]:
        """The steps before it without which its reverse would not fit the branch, or not in the same way."""
        if not done:
            return ()
        head_tree = git.tree_of(self.project.mirror, self.head)
        if self._without(patch, head_tree) is not None and not self._later_of_chain(patch, set()):
            return ()
        ids = {step.patch.pk for step in done}
        in_the_way = {hunk.patch_id for hunk in self._in_the_way(patch, [])} & ids
        of_chain = set(self._later_of_chain(patch, set())) & ids
        sharing = {step.patch.pk for step in done if set(step.patch.files_touched) & set(patch.files_touched)}
        return tuple(sorted(in_the_way | of_chain or sharing))

    def _later_of_chain(self, patch: Patch, reversed_: set[str]) -> list[str]:
        """The patches of its chain that landed after it, touch a file of it and are not in `reversed_`."""
        rows = Patch.objects.filter(chain_id=patch.chain_id, state=Patch.State.COMMITTED)
        rows = rows.filter(committed_at__gt=patch.committed_at).exclude(pk__in={patch.pk, *reversed_})
        if not patch.files_touched:
            return []
        return list(rows.touching(sorted(patch.files_touched)).order_by("pk").values_list("pk", flat=True))

    def _in_the_way(self, patch: Patch, done: Sequence[Step]) -> tuple[InTheWay, ...]:
        """The hunks that landed since then on lines of `patch`, but for those of patches that are taken back before it.

        When no line tells (a file that came back under its name, say), the paths of its files that changed since then.
        """
        taken_back = {step.patch.pk for step in done}
        mine = regions_of(git.diff_text(self.project.mirror, patch.tested_parent, patch.commit_sha))
        spans: dict[str, list[Span]] = {}
        for file in mine:
            lines = [(region.new_start, region.new_start + len(region.added)) for region in file.regions]
            spans[file.path] = [(0, END)] if file.is_whole else lines
        found: list[InTheWay] = []
        touched: set[str] = set()
        for commit in self._since(patch):
            changed = self._regions(commit)
            for path in spans.keys() & changed.keys():
                touched.add(path)
                spans[path], touching = follow(spans[path], changed[path])
                owner = self.patch_of.get(commit.id, "")
                if owner not in taken_back or not owner:
                    found += [
                        InTheWay(path, region.new_start, len(region.added), commit.id, owner) for region in touching
                    ]
        if not found:
            found = [InTheWay(path) for path in sorted(touched or spans)]
        return tuple(sorted(found, key=lambda hunk: (hunk.path, hunk.start)))

    def _since(self, patch: Patch) -> Iterator[git.Commit]:
        """The commits of the branch after that of `patch`, oldest first."""
        ids = [commit.id for commit in self.commits]
        place = ids.index(patch.commit_sha) if patch.commit_sha in ids else 0
        yield from reversed(self.commits[:place])

    def _regions(self, commit: git.Commit) -> dict[str, tuple[Region, ...]]:
        if commit.id not in self._changed:
            text = git.diff_text(self.project.mirror, commit.parents[0], commit.id) if commit.parents else ""
            # What happens to a file as a whole, and no line tells, stands before its first line.
            whole = (Region(1, (), 1, ()),)
            self._changed[commit.id] = {file.path: file.regions or whole for file in regions_of(text)}
        return self._changed[commit.id]

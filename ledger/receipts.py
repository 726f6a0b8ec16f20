"""Receipts: what landed, from what, by whom, judged how, for how much; written once, and verified byte by byte.

The form is an in-toto Statement v1 (https://in-toto.io/Statement/v1) as canonical JSON: keys sorted, no blanks, no
floats. `docs/landing.md` says what each field means.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils.translation import gettext as _

from ledger import git
from ledger.git import commit_notes
from ledger.janitor import alone
from ledger.models import MergeQueue, Patch, PatchContent, PatchReview, PolicyOverride, Receipt
from ledger.models.patch import UNIFIED_DIFF
from ledger.models.review import askers_of
from pipeline import events, fold
from pipeline.chain import canonical
from pipeline.crashpoints import crashpoint
from pipeline.events import Event
from pipeline.models import Project
from pipeline.questions import ask_facts
from pipeline.refusals import Refused

log = logging.getLogger(__name__)

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://signalbox.invalid/receipt/v1"
"""A name, not a page: RFC 2606 keeps that domain from ever being anybody's."""

PAGE = 200
NOTED_AT_ONCE = 100


def statement_of(patch: Patch) -> dict[str, Any]:
    """The statement about a committed patch. What other apps know (cost, models, gates) is asked as
    `patch.receipt`.
    """
    attempt, task, prompt = patch.attempt, patch.task, patch.prompt
    tool = attempt.tool if attempt else None
    known = ask_facts("patch.receipt", patch=patch)
    content = PatchContent.objects.values("sha256", "byte_size").get(patch=patch)
    person = patch.author_user
    predicate: dict[str, Any] = {
        "patch": {
            "id": patch.pk,
            "ledger_id": patch.ledger_id,
            "sha256": content["sha256"],
            "bytes": content["byte_size"],
            "summary": patch.summary,
            "files": dict(patch.files_touched),
            "chain": patch.chain_id,
            "replaces": patch.replaces_id,
            "reverses": patch.rollback_of_id,
        },
        "base": {"commit": patch.base_commit, "tree": patch.base_tree},
        "tested": {"tree": patch.tested_tree, "parent": patch.tested_parent},
        "landed": {
            "project": patch.project.key,
            "branch": patch.target_branch,
            "commit": patch.commit_sha,
            "tree": patch.committed_tree,
            "at": patch.committed_at,
        },
        "author": {"name": patch.author_name, "worker": patch.author_worker_id, "user": person and person.username},
        "work": {
            "run": patch.run_id,
            "task": task and task.key,
            "attempt": patch.attempt_id,
            "tool": patch.tool,
            "adapter": tool.adapter if tool else "",
            "model": tool.model if tool else "",
            "models_used": known.pop("models_used", []),
            "prompt": prompt and {"id": prompt.pk, "sha256": prompt.sha256},
        },
        "approvers": approvers(patch),
        "overrides": overrides(patch),
        "policy_sha256": _digest(json.dumps(patch.policy_snapshot, sort_keys=True)),
        **known,
    }
    subject = [
        {"name": f"{patch.project.key}@{patch.target_branch}", "digest": {"gitCommit": patch.commit_sha}},
        {"name": f"{patch.project.key}@{patch.target_branch}:/", "digest": {"gitTree": patch.committed_tree}},
    ]
    plain: dict[str, Any] = events.plain(
        {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": PREDICATE_TYPE, "predicate": predicate}
    )
    return plain


def approvers(patch: Patch) -> list[dict[str, Any]]:
    """Who allowed exactly this revision and did not think otherwise later, in the order of their words. `by` says how:
    `review`; or `rollback`, by asking for this reverse patch.
    """
    newest = {vote.reviewer_id: vote for vote in PatchReview.objects.filter(patch=patch).votes() if vote.reviewer_id}
    said = [
        {"name": vote.reviewer_name, "user": vote.reviewer_id, "at": vote.created_at, "by": "review"}
        for vote in sorted(newest.values(), key=lambda vote: vote.pk)
        if vote.verdict == PatchReview.Verdict.APPROVE
    ]
    asker = askers_of([patch]).get(patch.pk)
    if asker is None or asker.pk in newest:
        return said
    return [{"name": asker.get_username(), "user": asker.pk, "at": patch.created_at, "by": "rollback"}, *said]


def overrides(patch: Patch) -> list[dict[str, Any]]:
    """Who set aside which rule for it, sorted by rule: of those that it broke, or that asked for one more look."""
    asked = {finding["rule"] for finding in patch.findings if finding.get("severity") in ("overridden", "review")}
    rows = PolicyOverride.objects.filter(patch=patch, rule__in=asked, created_at__lte=patch.committed_at).order_by("pk")
    newest = {row.rule: row for row in rows}
    return [
        {"rule": rule, "id": row.pk, "name": row.granted_name, "user": row.granted_by_id, "at": row.created_at}
        for rule, row in sorted(newest.items())
        if row.expires_at > row.created_at  # else it took the one before back
    ]


def write(patch: Patch, *, by: events.Actor = events.SYSTEM) -> Receipt | None:
    """The receipt of a committed patch, written unless it is there; None for a patch that did not land in a mirror."""
    if patch.custody != Project.Custody.MANAGED or not patch.commit_sha:
        return None
    known = Receipt.objects.filter(patch=patch).first()
    if known is not None:
        return known
    receipt, _is_new = Receipt.objects.keep(patch, canonical(statement_of(patch)), by=by)
    return receipt


def note_rest() -> int:
    """Hang the receipts that hang nowhere yet on their commits as git notes; returns how many. Safe to repeat.

    A note that was made by somebody who then died is made again, with the same content.
    """
    done = 0
    rows = list(Receipt.objects.unnoted().select_related("project")[:NOTED_AT_ONCE])
    for project in dict.fromkeys(row.project for row in rows):
        with alone(project) as mine:
            done += note_of(project) if mine else 0
    return done


def note_of(project: Project) -> int:
    """The same for one project, by whoever has its repository to themselves."""
    return sum(_note(project, one) for one in Receipt.objects.unnoted().filter(project=project)[:NOTED_AT_ONCE])


def _note(project: Project, receipt: Receipt) -> int:
    try:
        note = commit_notes.add(project.mirror, receipt.commit_sha, receipt.statement)
    except (git.GitFailed, git.UnknownCommit) as problem:
        log.warning("%s of %s hangs nowhere yet: %s", receipt, project.key, problem)  # one mirror stops no other
        return 0
    crashpoint("receipt.noted")
    return Receipt.objects.filter(pk=receipt.pk, note="").update(note=note)


def send_notes() -> None:
    """The sweep's part: wake somebody when a receipt hangs nowhere yet."""
    if Receipt.objects.unnoted().exists():
        events.nudge("ledger.landing_tasks.note_receipts")


# -- verifying ---------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """One thing that is not what it was: of which patch, what it is, and what is wrong with it."""

    patch_id: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where} of patch {self.patch_id}: {self.what}"


def verify(project: Project | None = None) -> Iterator[Fault]:
    """Hold every landed patch of the project, or of all, against its receipt, its note, its commit and its events.

    Yields what differs; each fault names the one thing that disagrees with the others. The events themselves are the
    matter of `verify-ledger`.
    """
    for one in [project] if project else _with_landed():
        landed = Patch.objects.filter(project=one).exclude(commit_sha="").values_list("pk", flat=True)
        # A row that was taken away, moved to another project or made to look as if it had never landed is missed, too.
        told = Event.objects.filter(kind="receipt.written", project_id=one.pk).values_list("patch_id", flat=True)
        ids = sorted({*landed, *told})
        notes, hung = commit_notes.read(one.mirror), commit_notes.history(one.mirror)
        for start in range(0, len(ids), PAGE):
            yield from _verify_page(one, ids[start : start + PAGE], notes, hung)
        yield from _branch_faults(one, set(ids))


def _branch_faults(project: Project, judged: Collection[str]) -> Iterator[Fault]:
    """Commits on the branches that say they are of a patch, though no patch has landed as them, nor is landing; but for
    those of the patches that are `judged` by their rows.
    """
    if not project.mirror.exists():
        return
    for branch in MergeQueue.objects.filter(project=project).order_by("pk").values_list("target_branch", flat=True):
        on_branch = git.landed(project.mirror, branch)  # before the rows: what lands in between is in both
        rows = Patch.objects.filter(project=project).exclude(commit_sha="", landing_commit="")
        known = {pk: commits for pk, *commits in rows.values_list("pk", "commit_sha", "landing_commit")}
        for pk, commit in on_branch.items():
            if pk not in judged and commit not in known.get(pk, ()):
                what = _("%(commit)s says that it is of this patch, which has not landed as it") % {
                    "commit": commit[:12]
                }
                yield Fault(pk, _("branch %(name)s") % {"name": branch}, what)


def _with_landed() -> QuerySet[Project]:
    """The projects in which patches have landed, whatever their custody is now."""
    managed = Q(custody=Project.Custody.MANAGED)
    return Project.objects.filter(managed | Exists(Receipt.objects.filter(project=OuterRef("pk")))).order_by("pk")


def _verify_page(project: Project, ids: Sequence[str], notes: dict[str, bytes], hung: set[str]) -> Iterator[Fault]:
    patches = Patch.objects.filter(pk__in=ids).select_related("receipt", "content", "prompt").order_by("pk")
    told = Event.objects.filter(kind="receipt.written", patch_id__in=ids).values_list("subject_id", "data")
    sealed = {subject: data["sha256"] for subject, data in told}
    rows = list(patches)
    for gone in sorted(set(ids) - {patch.pk for patch in rows}):
        yield Fault(gone, _("row"), _("there is none"))
    commits = commit_notes.commits(project.mirror, [patch.commit_sha for patch in rows])
    for patch in rows:
        yield from _row_faults(patch)
        yield from _content_faults(patch)
        receipt = getattr(patch, "receipt", None)
        if receipt is None:
            yield Fault(patch.pk, _("receipt"), _("there is none"))
            continue
        yield from _statement_faults(patch, receipt, sealed.get(receipt.pk, ""), notes)
        if receipt.note and receipt.note not in hung:
            what = _("%(commit)s is no commit of the notes") % {"commit": receipt.note}
            yield Fault(patch.pk, _("column note of the receipt"), what)
        yield from _commit_faults(patch, commits.get(patch.commit_sha))


def _row_faults(patch: Patch) -> Iterator[Fault]:
    """Columns of the row that are not what its events say."""
    try:
        row = fold.replay(Patch, fold.tellings(patch.noun(), patch.pk))
    except Refused:
        return  # its beginning went by retention: the receipt is all that is left to hold it against
    for name, value in (row or {}).items():
        found = getattr(patch, name)
        if found != value:
            yield Fault(patch.pk, _("column %(name)s") % {"name": name}, _differs(str(value), str(found)))


def _content_faults(patch: Patch) -> Iterator[Fault]:
    content = getattr(patch, "content", None)
    if content is None:
        yield Fault(patch.pk, _("text"), _("there is none"))
        return
    found = _digest(content.diff_text)
    for where, digest in ((_("text"), content.sha256), (_("column sha256"), patch.sha256)):
        if digest != found:
            yield Fault(patch.pk, where, _("its sha256 is %(found)s, not %(told)s") % {"found": found, "told": digest})
    facts = {
        _("column byte_size of the text"): (len(content.diff_text.encode()), content.byte_size),
        _("column format of the text"): (UNIFIED_DIFF, content.format),
        _("column patch_id_git of the text"): (git.patch_id(content.diff_text), content.patch_id_git),
    }
    for where, (expected, held) in facts.items():
        if held != expected:
            yield Fault(patch.pk, where, _differs(str(expected), str(held)))


def _statement_faults(patch: Patch, receipt: Receipt, sealed: str, notes: dict[str, bytes]) -> Iterator[Fault]:
    """The stored statement, its digest, its event and its note: whichever differs from the other three."""
    found = _digest(receipt.statement)
    note = notes.get(receipt.commit_sha, b"").decode("utf-8", "replace")
    if found != sealed:
        yield Fault(patch.pk, _("statement of the receipt"), _differs(note, receipt.statement))
    if receipt.sha256 != sealed:
        yield Fault(patch.pk, _("column sha256 of the receipt"), _differs(sealed, receipt.sha256))
    if receipt.note and _digest(note) != sealed:
        yield Fault(patch.pk, _("note"), _differs(receipt.statement, note))
    if receipt.project_id != patch.project_id:
        yield Fault(patch.pk, _("project of the receipt"), _differs(patch.project_id, receipt.project_id))
    if receipt.commit_sha != patch.commit_sha:
        yield Fault(patch.pk, _("commit of the receipt"), _differs(patch.commit_sha, receipt.commit_sha))
    try:
        predicate = json.loads(receipt.statement)["predicate"]
    except (ValueError, KeyError):
        return  # told above: it is not what was written
    said = {
        _("text"): (predicate["patch"]["sha256"], patch.sha256),
        _("base"): (predicate["base"]["commit"], patch.base_commit),
        _("commit"): (predicate["landed"]["commit"], patch.commit_sha),
        _("tree"): (predicate["landed"]["tree"], patch.committed_tree),
        _("author"): (predicate["author"]["name"], patch.author_name),
    }
    if patch.prompt and predicate["work"]["prompt"]:
        said[_("prompt")] = (predicate["work"]["prompt"]["sha256"], _digest(patch.prompt.text))
    for where, (told, held) in said.items():
        if told != held:
            yield Fault(patch.pk, where, _differs(told, held))


def _commit_faults(patch: Patch, commit: commit_notes.Landed | None) -> Iterator[Fault]:
    if commit is None:
        yield Fault(patch.pk, _("commit"), _("the mirror does not hold %(commit)s") % {"commit": patch.commit_sha})
        return
    told = {
        _("tree of the commit"): (patch.committed_tree, commit.tree),
        _("parent of the commit"): (patch.tested_parent, " ".join(commit.parents)),
        _("committer of the commit"): (git.COMMITTER_EMAIL, commit.committer),
        _("trailer of the commit"): (
            f"{git.PATCH_TRAILER}: {patch.pk}",
            (commit.message.strip().splitlines() or [""])[-1],
        ),
    }
    for where, (expected, found) in told.items():
        if expected != found:
            yield Fault(patch.pk, where, _differs(expected, found))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _differs(expected: str, found: str) -> str:
    """Where two texts part, with a little of both."""
    at = next((n for n, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        at = min(len(expected), len(found))
    given = {"at": at, "expected": expected[at : at + 20], "found": found[at : at + 20]}
    return _("from character %(at)d on it says “%(found)s”, and not “%(expected)s”") % given


def watch() -> int:
    """Verify everything, and tell each fault once as `receipt.broken`; returns how many there are."""
    count = 0
    for project in _with_landed():
        for fault in verify(project):
            count += 1
            subject: Patch | Project = Patch.objects.filter(pk=fault.patch_id).first() or project
            known = Event.objects.filter(kind="receipt.broken", subject_id=subject.pk, reason=str(fault)[:2000])
            if not known.exists():
                events.record("receipt.broken", subject, by=events.SYSTEM, reason=str(fault)[:2000])
    return count

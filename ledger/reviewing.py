"""What reviewers see and what follows from what they say: requirements, risk, who is asked, what an agent is told."""

import difflib
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from ledger import git, leaks, policy, protected, validation, verdicts
from ledger.models import Patch, PatchPolicy, PatchReview, PolicyOverride
from ledger.models.review import belong_to, facts_of, lapsed_overrides, reviews_of
from pipeline import events
from pipeline.auth import Principal
from pipeline.constraints import Effective
from pipeline.models import Project, Task, User
from pipeline.refusals import InvalidField, Refused

AS_JUDGED = "as it was judged"
FEEDBACK_PATCHES = 3
FEEDBACK_BYTES = 8 * 1024
WAITING_LOOKED_AT = 200
MOST_INTERDIFF_LINES = 4_000


# -- what holds, and what it says --------------------------------------------------------------------------------------


def judged_by(patch: Patch, *, with_layers: bool = True) -> Effective:
    """The policy by which a patch was judged: its snapshot, and for a value that still holds the layer that sets it.

    A patch that was not judged yet has what holds now. `with_layers` asks the database for the latter.
    """
    snapshot = {name: value for name, value in patch.policy_snapshot.items() if value is not None}
    if with_layers or not snapshot:
        now = PatchPolicy.objects.effective(patch.project, patch.phase, patch.workstream, patch.task)
        if not snapshot:
            return now
        layers = {name: now.layer_of[name] for name, value in now.values.items() if snapshot.get(name) == value}
    else:
        layers = {}
    values = {name: value for name, value in snapshot.items() if value != policy.BUILT_IN.get(name)}
    return Effective(values, {**dict.fromkeys(values, AS_JUDGED), **layers}, {})


def requirements(
    patch: Patch, *, reviews: verdicts.Reviews | None = None, effective: Effective | None = None
) -> list[verdicts.Requirement]:
    """What every requirement says of the patch now, in a fixed order; the rest is asked for where it is not known."""
    reviews = reviews or reviews_of([patch])[patch.pk]
    standing = verdicts.Standing(reviews, patch.tests_passed, landed=patch.state == Patch.State.COMMITTED)
    overrides = {rule: row.document() for (_pk, rule), row in patch.overrides.holding().items()}
    return verdicts.requirements(facts_of(patch), effective or judged_by(patch), standing, overrides)


def risk(patch: Patch, *, effective: Effective | None = None) -> verdicts.Risk:
    """How closely the patch should be looked at, and why; `effective` where it is known."""
    replaced = Patch.objects.chain(patch.chain_id).filter(pk__lt=patch.pk).count() if patch.replaces_id else 0
    return verdicts.risk(facts_of(patch), effective or judged_by(patch, with_layers=False), replaced=replaced)


def override(
    patch: Patch,
    rule: str,
    *,
    reason: str,
    by: events.Actor,
    user: User | None = None,
    expires_after: timedelta | None = None,
) -> PolicyOverride:
    """Grant an override, and judge a patch again that failed for want of it. Runs git, so outside any transaction.

    Raises what `grant` raises.
    """
    row = patch.overrides.grant(patch, rule, reason=reason, by=by, user=user, expires_after=expires_after)
    patch.refresh_from_db()
    if patch.state == Patch.State.APPLY_FAILED and any(found.get("rule") == rule for found in patch.validation_errors):
        patch.note_validation(validation.judge(patch), by=by)
    return row


def set_aside_lapsed() -> int:
    """Quarantine patches that are on their way by an override that holds no more; returns how many.

    The sweep's part. A patch that is landing right now is left: the commit guard has looked.
    """
    states = [Patch.State.VALIDATED, Patch.State.QUEUED, Patch.State.APPLIED, Patch.State.VERIFIED]
    over = PolicyOverride.objects.filter(expires_at__lte=Now(), patch__state__in=states)
    done = 0
    for pk in over.order_by("patch").values_list("patch", flat=True).distinct():
        try:
            with transaction.atomic():
                patch = Patch.objects.get(pk=pk)
                if lapsed := lapsed_overrides(patch):
                    done += patch.quarantine(f"the override of {', '.join(lapsed)} holds no more", by=events.SYSTEM)
        except Refused:
            continue
    return done


# -- who is asked ------------------------------------------------------------------------------------------------------


class Waiting(NamedTuple):
    """A patch that waits for a person's look, how it stands, and how closely to look."""

    patch: Patch
    reviews: verdicts.Reviews
    risk: verdicts.Risk


def waiting_for(principal: Principal) -> list[Waiting]:
    """The patches that wait for a review which `principal` may give, the riskiest first, then the oldest.

    Not among them: own ones and those of own agents, and those on which that person has had a say. Of more than 200
    that wait the oldest are looked at. However many they are, a handful of queries.
    """
    places = principal.project_ids("approver")
    rows = Patch.objects.awaiting_review() if places is None else Patch.objects.awaiting_review().filter(
        project__in=places
    )  # fmt: skip
    patches = list(rows.select_related("project", "content").order_by("pk")[:WAITING_LOOKED_AT])
    standing, own = reviews_of(patches), belong_to(patches)
    found = [
        Waiting(patch, standing[patch.pk], verdicts.risk(facts_of(patch), judged_by(patch, with_layers=False)))
        for patch in patches
        if standing[patch.pk].missing
        and principal.id not in standing[patch.pk].heard
        and principal.id not in own[patch.pk]
    ]
    return sorted(found, key=lambda one: (-verdicts.TIERS.index(one.risk.tier), one.patch.pk))


REPORTS: Mapping[str, str] = {
    Patch.State.QUEUED: "whoever moves %(branch)s has to report whether it was applied",
    Patch.State.APPLIED: "whoever moves %(branch)s has to report whether its tests passed",
    Patch.State.VERIFIED: "whoever moves %(branch)s has to report that it holds the change",
}
"""What a patch of recorded custody waits for, by its state."""


def holder(patch: Patch) -> dict[str, Any] | None:
    """The one party that an unfinished patch waits for (domain.md §3.6): `kind`, `label`, `code`, `reason`.

    None for a patch of which nothing more becomes. Of its gates and queue the state alone is told; those who know more
    of them answer for them.
    """
    state = Patch.State
    if patch.state in Patch.FINAL:
        return None
    if patch.state == state.QUARANTINED:
        return _held("user", patch.quarantine_owner, "quarantined", patch.quarantine_reason)
    if patch.state == state.APPLY_FAILED:
        task = patch.task
        if task is not None and task.state not in Task.ENDED:
            return _held("queue", f"task {task.key}", "repair_pending", patch.last_error_message or patch.state_reason)
        return _held("user", "operators", patch.last_error_code or "apply_failed", patch.state_reason)
    if patch.custody == Project.Custody.RECORDED and patch.state in REPORTS:
        return _held("user", "operators", "report_due", REPORTS[patch.state] % {"branch": patch.target_branch})
    if patch.state == state.APPLIED:
        return _held("gate", "gates", "gates_running", "the required gates have not all passed")
    if patch.state in (state.VALIDATED, state.VERIFIED):
        standing = reviews_of([patch])[patch.pk]
        if standing.vetoes:
            return _held("user", standing.vetoes[0], "review_veto", f"{', '.join(standing.vetoes)} objects")
        if standing.missing:
            reason = f"{standing.missing} of {standing.needed} review(s) are missing"
            return _held("user", "approvers", "reviews_missing", reason)
    reasons = {
        state.CREATED: "it is judged when its turn comes",
        state.VALIDATED: "it is queued when its attempt has ended",
        state.QUEUED: "it is built when its turn comes",
        state.VERIFIED: "it lands when it is head of its queue",
    }
    return _held("queue", patch.target_branch, str(patch.state), reasons[state(patch.state)])


def _held(kind: str, label: str, code: str, reason: str) -> dict[str, Any]:
    return {"kind": kind, "label": label, "code": code, "reason": reason}


def feedback(task: Task) -> list[str]:
    """What reviewers said of the task's patches that did not land, newest patch last: for its next attempt, quoted.

    Of the last three patches with a word on them, 8 KiB at most, of which the newest stays.
    """
    rows = PatchReview.objects.filter(patch__task=task).exclude(patch__state=Patch.State.COMMITTED)
    rows = rows.exclude(body="", anchors=[]).order_by("pk")
    told: dict[str, list[str]] = {}
    for review in rows:
        said = [f"{review.get_verdict_display()} by {review.reviewer_name}", *review.lines()]
        told.setdefault(review.patch_id, []).append("\n".join(said))
    newest = [words for pk in sorted(told)[-FEEDBACK_PATCHES:] for words in told[pk]]
    kept: list[str] = []
    left = FEEDBACK_BYTES
    for words in reversed(newest):
        cut = words.encode()[:left].decode(errors="ignore")
        left -= len(cut.encode())
        if cut:
            kept.append(cut)
    return kept[::-1]


# -- interdiff ---------------------------------------------------------------------------------------------------------


class Interdiff(NamedTuple):
    """What changed from one revision to another. `of_trees`: the text is a diff of what they make; else of their diffs,
    and `why_not` says what is in the way.
    """

    text: str
    of_trees: bool
    why_not: str = ""


def interdiff(patch: Patch, against: Patch) -> Interdiff:
    """`_interdiff` without the secrets for which one of the two was refused."""
    found = _interdiff(patch, against)
    hides = validation.hides_secrets(patch) or validation.hides_secrets(against)
    return found._replace(text=leaks.redacted(found.text)) if hides else found


def _interdiff(patch: Patch, against: Patch) -> Interdiff:
    """What `patch` does otherwise than `against`, an earlier revision. Runs git, so outside any transaction.

    Compared is what each makes of the base of `patch`: the earlier one is carried over to it first when it was built
    on another. Where that has conflicts, or there is no mirror, the two diffs themselves are compared, file by file.
    Raises InvalidField `against` for a patch of another project.
    """
    if against.project_id != patch.project_id:
        raise InvalidField("against", "a patch of another project")
    old, new = against.content.diff_text, patch.content.diff_text
    why_not = "the project has no mirror"
    if patch.custody == Project.Custody.MANAGED and against.custody == Project.Custody.MANAGED:
        try:
            text = _of_trees(patch, against)
            # Bytes that are no UTF-8 come as lone surrogates, which no answer can hold.
            return Interdiff(text.encode(errors="surrogateescape").decode(errors="replace"), True)
        except git.GitFailed:
            raise
        except (git.DoesNotApply, git.UnknownCommit) as refusal:
            why_not = str(refusal)
    return Interdiff(_of_texts(old, new), False, why_not)


def _of_trees(patch: Patch, against: Patch) -> str:
    mirror = patch.project.mirror
    new_tree = git.apply(mirror, patch.base_commit, patch.content.diff_text)
    old_tree = git.apply(mirror, against.base_commit, against.content.diff_text)
    if against.base_commit != patch.base_commit:
        old_tree = git.rebase_tree(mirror, against.base_commit, old_tree, patch.base_commit)
    return git.diff_text(mirror, old_tree, new_tree)


def _of_texts(old: str, new: str) -> str:
    """A diff of two diffs, without the numbers of their hunks; `difflib` is quadratic, so only of so many lines."""
    texts = []
    for text in (old, new):
        lines = [_without_numbers(line) for line in text.splitlines()]
        texts.append([f"{line}\n" for line in lines[:MOST_INTERDIFF_LINES]])
    return "".join(difflib.unified_diff(texts[0], texts[1], fromfile="a/earlier.diff", tofile="b/this.diff"))


def _without_numbers(line: str) -> str:
    if line.startswith("@@ "):
        return "@@"
    return "index" if line.startswith("index ") else line


# -- trying a policy out -----------------------------------------------------------------------------------------------


def replay(row: PatchPolicy, last: int) -> dict[str, Any]:
    """What `row` alone would have said of the last patches in its place; writes nothing, whether it is enabled or not.

    Judged are the stored facts, so that a thousand take no longer than the query; a patch from before facts were kept
    is read again from its text. Counts: `patches` looked at, `refused`, `newly_refused` (had met all constraints),
    `would_wait` (fewer approvals than `min_reviewers`), by rule and the first hundred.
    """
    effective = Effective(row.layer().values, dict.fromkeys(row.layer().values, row.layer().name), {})  # type: ignore[arg-type]
    own = set(effective.values)
    patches = list(_in_place(row).order_by("-pk")[:last])
    texts = {patch.pk for patch in patches if not patch.facts}
    with_text = {one.pk: one for one in Patch.objects.filter(pk__in=texts).select_related("content")} if texts else {}
    people: dict[str, set[str]] = {}
    wanted = int(effective.values.get("min_reviewers", 0))
    if wanted:
        approved = PatchReview.objects.filter(patch__in=[patch.pk for patch in patches], verdict="approve")
        for pk, person in approved.exclude(reviewer=None).values_list("patch", "reviewer"):
            people.setdefault(pk, set()).add(person)
    by_rule: dict[str, int] = {}
    shown: list[dict[str, Any]] = []
    refused = newly = waiting = unread = 0
    for patch in patches:
        facts = facts_of(with_text.get(patch.pk, patch))
        if facts is None:
            unread += 1
            continue
        waiting += len(people.get(patch.pk, ())) < wanted
        found = [one for one in policy.check_constraints(facts, effective) if one.rule in own]
        if not found:
            continue
        refused += 1
        newly += patch.constraints_ok
        for rule in {one.rule for one in found}:
            by_rule[rule] = by_rule.get(rule, 0) + 1
        if len(shown) < 100:
            told = [{"rule": one.rule, "path": one.path, "message": one.message} for one in found[:10]]
            shown.append(
                {
                    "patch": patch.pk,
                    "summary": patch.summary,
                    "state": patch.state,
                    "newly": patch.constraints_ok,
                    "findings": told,
                }
            )
    return {
        "policy": row.pk,
        "enabled": row.enabled,
        "patches": len(patches),
        "unread": unread,
        "refused": refused,
        "newly_refused": newly,
        "would_wait": waiting,
        "by_rule": dict(sorted(by_rule.items(), key=lambda pair: (-pair[1], pair[0]))),
        "first": shown,
    }


def _in_place(row: PatchPolicy) -> Any:
    rows = Patch.objects.only("summary", "state", "constraints_ok", "facts", "issue_ref")
    return rows if row.level == PatchPolicy.Level.GLOBAL else rows.filter(**{row.level: row.target})


def most_replayed() -> int:
    """How many patches one replay may look at."""
    return int(settings.SIGNALBOX_REPLAY_MAX)


def explain(effective: Effective) -> dict[str, Mapping[str, Any]]:
    """Every value that holds with the layer that set it: those that layers set, and the built-in ones for the rest.

    Built-in protected and generated paths always hold; what layers add stands in `value`, they in `built_in`.
    """
    told: dict[str, Mapping[str, Any]] = dict(effective.explain())
    for name, value in policy.BUILT_IN.items():
        if name not in told:
            told[name] = {"value": value, "layer": policy.BUILT_IN_LAYER, "fold": ""}
        elif name == "generated_paths":
            told[name] = {**told[name], "built_in": value}
    told["protected_paths"] = {**told["protected_paths"], "built_in": protected.GLOBS}
    return told

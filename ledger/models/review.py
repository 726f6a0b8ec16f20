"""What people say of a patch: reviews with comments on its lines, and overrides of single rules, each with its end."""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Self

from django.conf import settings
from django.db import models
from django.db.models import Exists, ExpressionWrapper, OuterRef, Q
from django.utils.translation import gettext_lazy as _

from ledger import contents, git, policy
from ledger import diff as diffs
from ledger.models.patch import Patch
from ledger.models.policy import PatchPolicy
from ledger.verdicts import OVERRIDABLE, Reviews
from pipeline import events
from pipeline.clock import ClockNow, db_now
from pipeline.models import ROLES, ApiKey, Membership, Project, Run, User
from pipeline.refusals import InvalidField, Refused, need_reason
from pipeline.rows import Told, append_only, in_transaction
from pipeline.scope import check_path, matches
from pipeline.states import InvalidMove
from workers.models import Worker

# What a person does to a run for which agents then work, as the answer to them says it.
_RUN_KINDS = {"run.created": "created", "run.started": "started"}
MAY_APPROVE = ROLES[ROLES.index("approver") :]
MOST_ANCHORS = 200
MOST_BODY = 8_000
MOST_COMMENT = 4_000
MOST_LINE = 10**7
SIDES = ("new", "old")


class SelfReview(Refused):
    """Nobody approves a change that they or their agent made."""

    code = "self_review"
    status = 403


class PatchReviewQuerySet(models.QuerySet["PatchReview"]):
    """The words for giving and counting reviews."""

    def visible_to(self, principal: Any) -> Self:
        """The reviews in the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(patch__project__in=ids)

    def votes(self) -> "list[PatchReview]":
        """Approvals and rejections, oldest first: the last of a reviewer (`voice`) counts. One query, and two more
        where a program spoke before reviews kept its key.

        A person who has left or may not approve in the project any more, and a key that was revoked, have no voice,
        neither for nor against.
        """
        rows = self.exclude(verdict=PatchReview.Verdict.COMMENT).exclude(reviewer__is_active=False)
        rows = rows.exclude(reviewer_key__revoked_at__isnull=False)
        roles = Membership.objects.filter(user=OuterRef("reviewer"), project=OuterRef("patch__project"))
        may = Q(reviewer=None) | Q(reviewer__is_superuser=True) | Exists(roles.filter(role__in=MAY_APPROVE))
        rows = rows.filter(may)
        found = list(rows.defer("body", "anchors").order_by("pk"))
        nameless = {row.pk: row for row in found if row.reviewer_id is None and row.reviewer_key_id is None}
        if not nameless:
            return found
        told = events.Event.objects.filter(subject_id__in=nameless, kind="review.given", actor_kind="integration")
        keys = dict(told.exclude(actor_id="").values_list("subject_id", "actor_id"))
        revoked = set(ApiKey.objects.filter(pk__in=keys.values()).exclude(revoked_at=None).values_list("pk", flat=True))
        for pk, row in nameless.items():
            row.reviewer_key_id = keys.get(pk)
        return [row for row in found if row.reviewer_key_id not in revoked]

    def comments(self) -> "list[PatchReview]":
        """Those that say something to whoever does the work again, oldest first: all but bare approvals."""
        return list(self.exclude(verdict=PatchReview.Verdict.APPROVE, body="", anchors=[]).order_by("pk"))

    def give(
        self,
        patch: Patch,
        verdict: str,
        *,
        by: events.Actor,
        reviewer: User | None = None,
        key: ApiKey | None = None,
        body: str = "",
        anchors: Sequence[Mapping[str, Any]] = (),
    ) -> "PatchReview":
        """Approve, reject or comment on this revision. A program has a `key` and no `reviewer`: its approval does not
        count.

        A rejection is a veto: it owes a reason, and the patch is set aside with the reviewer as its owner, out of its
        queue. Raises SelfReview for an approval by whose own change it is (see `belong_to`), themselves or by a key of
        theirs; InvalidMove when nothing more becomes of the patch, ReasonRequired, InvalidField for an anchor that is
        none. Runs git for anchors, so outside any transaction.
        """
        if verdict not in PatchReview.Verdict.values:
            raise InvalidField("verdict", f"one of {', '.join(PatchReview.Verdict.values)}, not “{verdict}”")
        body = body.strip()
        if len(body) > MOST_BODY:
            raise InvalidField("body", f"{MOST_BODY} characters at most")
        checked = check_anchors(anchors)
        check_places(patch, checked)
        if verdict == PatchReview.Verdict.REJECT or (verdict == PatchReview.Verdict.COMMENT and not checked):
            body = need_reason(body)
        with in_transaction():
            current = _locked(patch)
            if current.state in Patch.FINAL:
                raise InvalidMove(current, current.state, "reviewed", verb="review")
            if verdict == PatchReview.Verdict.APPROVE:
                must_not_be_own(current, reviewer, key)
            review = PatchReview(
                patch=current,
                reviewer=reviewer,
                reviewer_key=key,
                reviewer_name=reviewer.get_username() if reviewer else by.name,
                verdict=verdict,
                body=body,
                anchors=checked,
                for_sha256=current.sha256,
            )
            review.save(force_insert=True)
            events.record("review.given", review, by=by, reason=body[:2000], before={}, after=review.birth())
            if verdict == PatchReview.Verdict.REJECT and current.state != Patch.State.QUARANTINED:
                patch.quarantine(f"rejected: {body}"[:2000], by=by, owner=review.reviewer_name)
        return review


@append_only
class PatchReview(Told):
    """What one reviewer said of one revision. Written once: who thinks otherwise later says so in a new row, and the
    newest approval or rejection of a reviewer counts. Bound to the revision's sha256; a replacement needs new reviews.
    """

    NOUN = "review"
    # Written once, so what its birth tells is all there is.
    UNTOLD: ClassVar[frozenset[str]] = frozenset({"version", "updated_at"})

    class Verdict(models.TextChoices):
        APPROVE = "approve", _("approve")
        REJECT = "reject", _("reject")
        COMMENT = "comment", _("comment")

    patch = models.ForeignKey(Patch, models.PROTECT, related_name="reviews")
    reviewer = models.ForeignKey(User, models.PROTECT, null=True, related_name="reviews")
    reviewer_key = models.ForeignKey(ApiKey, models.PROTECT, null=True, related_name="reviews")
    reviewer_name = models.CharField(max_length=200)
    verdict = models.CharField(max_length=7, choices=Verdict)
    body = models.TextField(blank=True)
    anchors = models.JSONField(default=list)
    for_sha256 = models.CharField(max_length=64)

    objects = PatchReviewQuerySet.as_manager()

    class Meta:
        verbose_name = _("review")
        verbose_name_plural = _("reviews")
        constraints = [
            models.CheckConstraint(
                name="patchreview_veto_says_why", condition=~Q(verdict="reject") | ~Q(body=""),
            ),
            models.CheckConstraint(name="patchreview_names_reviewer", condition=~Q(reviewer_name="")),
            models.CheckConstraint(
                name="patchreview_of_person_or_key", condition=Q(reviewer=None) | Q(reviewer_key=None),
            ),
        ]  # fmt: skip
        indexes = [models.Index(fields=["patch", "id"], name="patchreview_of_patch")]

    def __str__(self) -> str:
        return f"{self.verdict} of {self.patch_id} by {self.reviewer_name}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a review belong to its patch."""
        return self.patch.correlation()

    @property
    def voice(self) -> tuple[str, str]:
        """Whose vote it is: the kind and id of the person or key. Of a name anybody may make a key."""
        if self.reviewer_id:
            return "user", self.reviewer_id
        return ("key", self.reviewer_key_id) if self.reviewer_key_id else ("name", self.reviewer_name)

    def lines(self) -> list[str]:
        """What it says to whoever does the work again: the body, and each comment with its place."""
        told = [self.body] if self.body else []
        for anchor in self.anchors:
            first, last = anchor["first"], anchor["last"]
            where = f"line {first}" if first == last else f"lines {first} to {last}"
            told.append(f"{anchor['path']}, {where} ({anchor['side']} side): {anchor['body']}")
        return told


class PolicyOverrideQuerySet(models.QuerySet["PolicyOverride"]):
    """The words for granting and asking about overrides."""

    def visible_to(self, principal: Any) -> Self:
        """The overrides in the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(patch__project__in=ids)

    def holding(self) -> "dict[tuple[str, str], PolicyOverride]":
        """What holds now, by (patch's id, rule): the newest override, unless that one is past its end. One query."""
        is_over = ExpressionWrapper(Q(expires_at__lte=ClockNow()), models.BooleanField())
        rows: models.QuerySet[Any] = self.annotate(is_over=is_over).order_by("pk")
        newest = {(row.patch_id, row.rule): row for row in rows}
        return {key: row for key, row in newest.items() if not row.is_over}

    def grant(
        self,
        patch: Patch,
        rule: str,
        *,
        reason: str,
        by: events.Actor,
        user: User | None = None,
        expires_after: timedelta | None = None,
    ) -> "PolicyOverride":
        """Let `patch` pass `rule` until the override's end, 7 days from now unless told, 30 at most.

        Whose own change it is may grant it too, or a house of one person would stand still at its first lock file: it
        is no approval, and its event says `own`. Raises ReasonRequired, InvalidField for a rule that nobody may set
        aside or an end out of bounds, InvalidMove when nothing more becomes of the patch.
        """
        reason = need_reason(reason)
        longest = timedelta(days=int(settings.SIGNALBOX_OVERRIDE_MAX_DAYS))
        life = timedelta(days=int(settings.SIGNALBOX_OVERRIDE_DAYS))
        life = life if expires_after is None else expires_after
        if rule not in OVERRIDABLE:
            raise InvalidField("rule", f"one of {', '.join(sorted(OVERRIDABLE))}, not “{rule[:80]}”")
        if not timedelta(0) < life <= longest:
            raise InvalidField("expires_after_seconds", f"more than 0, and {longest.days} days at most")
        return self._add(patch, rule, reason, by, user, life)

    def withdraw(
        self, patch: Patch, rule: str, *, reason: str, by: events.Actor, user: User | None = None
    ) -> "PolicyOverride":
        """End the override of `rule` now, by a newer row. Raises ReasonRequired, Refused `override_not_found`."""
        reason = need_reason(reason)
        if (patch.pk, rule) not in patch.overrides.holding():
            raise Refused(f"No override of {rule} holds for patch {patch.pk}", code="override_not_found", status=404)
        return self._add(patch, rule, reason, by, user, timedelta(0))

    def _add(
        self, patch: Patch, rule: str, reason: str, by: events.Actor, user: User | None, life: timedelta
    ) -> "PolicyOverride":
        with in_transaction():
            current = _locked(patch)
            if current.state in Patch.FINAL:
                raise InvalidMove(current, current.state, "overridden", verb="override")
            acting = {user.pk} if user else {by.id, *owners_of([by.id]).values()} if _is_key(by) else set()
            own = bool(acting & belong_to([current])[current.pk].keys())
            row = PolicyOverride(
                patch=current,
                rule=rule,
                reason=reason,
                granted_by=user,
                granted_name=user.get_username() if user else by.name,
                expires_at=db_now() + life,
            )
            row.save(force_insert=True)
            events.record("override.used", row, by=by, reason=reason, data={"own": own}, before={}, after=row.birth())
        return row


@append_only
class PolicyOverride(Told):
    """A permission for one patch to pass one rule, with reason and end. Written once; the newest of a rule counts."""

    NOUN = "override"
    # Written once, so what its birth tells is all there is.
    UNTOLD: ClassVar[frozenset[str]] = frozenset({"version", "updated_at"})

    patch = models.ForeignKey(Patch, models.PROTECT, related_name="overrides")
    rule = models.CharField(max_length=64)
    reason = models.TextField()
    granted_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="overrides")
    granted_name = models.CharField(max_length=200)
    expires_at = models.DateTimeField()

    objects = PolicyOverrideQuerySet.as_manager()

    class Meta:
        verbose_name = _("policy override")
        verbose_name_plural = _("policy overrides")
        constraints = [
            models.CheckConstraint(
                name="policyoverride_says_why", condition=~Q(reason="") & ~Q(rule="") & ~Q(granted_name="")
            ),
        ]
        indexes = [
            models.Index(fields=["patch", "id"], name="policyoverride_of_patch"),
            models.Index(fields=["expires_at"], name="policyoverride_ends"),
        ]

    def __str__(self) -> str:
        return f"override of {self.rule} for {self.patch_id}"

    def correlation(self) -> dict[str, str | None]:
        """Events about an override belong to its patch."""
        return self.patch.correlation()

    def document(self) -> dict[str, Any]:
        """The override as plain JSON, for a finding that it answers."""
        return {
            "id": self.pk,
            "rule": self.rule,
            "reason": self.reason,
            "granted_by": self.granted_name,
            "expires_at": self.expires_at.isoformat(),
        }


def _locked(patch: Patch) -> Patch:
    """The patch as the database holds it, locked after its queue: the house's order."""
    patch.lock_queue()
    return Patch.objects.select_for_update(no_key=True, of=("self",)).get(pk=patch.pk)


def check_anchors(anchors: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Comments on line ranges, checked: `path`, `first`, `last` (from 1), `body`, and `side` new or old.

    Raises InvalidField naming the comment and what would be right.
    """
    if len(anchors) > MOST_ANCHORS:
        raise InvalidField("anchors", f"{MOST_ANCHORS} comments at most")
    checked = []
    for at, anchor in enumerate(anchors):
        where = f"anchors[{at}]"
        if unknown := set(anchor) - {"path", "first", "last", "side", "body"}:
            raise InvalidField(f"{where}.{min(unknown)}", "unknown; known are path, first, last, side, body")
        path = check_path(anchor.get("path", ""), f"{where}.path")
        first = anchor.get("first")
        last = anchor.get("last", first)
        for name, number in (("first", first), ("last", last)):
            if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MOST_LINE:
                raise InvalidField(f"{where}.{name}", "a line number, from 1")
        if last < first:
            raise InvalidField(f"{where}.last", f"not before the first line, {first}")
        side = anchor.get("side", "new")
        if side not in SIDES:
            raise InvalidField(f"{where}.side", f"one of {', '.join(SIDES)}")
        body = anchor.get("body", "")
        if not isinstance(body, str) or not body.strip() or len(body) > MOST_COMMENT:
            raise InvalidField(f"{where}.body", f"what you say of these lines, {MOST_COMMENT} characters at most")
        checked.append({"path": path, "first": first, "last": last, "side": side, "body": body.strip()})
    return checked


def check_places(patch: Patch, anchors: Sequence[Mapping[str, Any]]) -> None:
    """Raises InvalidField for a comment on a file that the patch does not touch, or on lines that the file has not on
    that side, and names those that it has.
    """
    known: dict[tuple[str, str], int | None] = {}
    for at, anchor in enumerate(anchors):
        path, side, last = anchor["path"], anchor["side"], anchor["last"]
        if path not in patch.files_touched:
            touched = sorted(patch.files_touched)
            listed = ", ".join(touched[:5]) + (" …" if len(touched) > 5 else "")
            raise InvalidField(f"anchors[{at}].path", f"{path} is no file that this patch touches: {listed}")
        if (path, side) not in known:
            known[path, side] = _lines_of(patch, path, side)
        lines = known[path, side]
        if lines is not None and last > lines:
            has = f"lines 1 to {lines}" if lines else "no lines"
            raise InvalidField(f"anchors[{at}].last", f"{path} has {has} on the {side} side, and not line {last}")


def _lines_of(patch: Patch, path: str, side: str) -> int | None:
    """How many lines a touched file has before the patch (side old), or after it; None where nobody can tell: a file
    that is changed, in a project without a mirror or in a patch that was not judged yet.
    """
    kind = patch.files_touched[path]
    if kind == ("add" if side == "old" else "delete"):
        return 0
    tree = patch.base_commit if side == "old" else patch.result_tree
    if patch.custody != Project.Custody.MANAGED or not tree:
        return None
    try:
        text = git.note_file(patch.project.mirror, tree, path)
    except git.UnknownCommit:
        return None
    return text.count(b"\n") + (bool(text) and not text.endswith(b"\n"))


def belong_to(patches: Sequence[Patch]) -> dict[str, dict[str, str]]:
    """Whose change each patch is, by its id: id of a person or key → why that one is no second pair of eyes.

    The author; whoever made the key with which it was submitted, or with which its agent came in; whoever created or
    started the run for which its agent worked, with a key or without. All but the author are known from events, which
    say who acted. A reverse patch is the system's: whoever asked for it is its first pair of eyes. But what it brings
    back, as the reverse of a reverse, is whose it was before. A handful of queries, for any number of patches.
    """
    content_of = _whose_content(patches)
    agents = list(content_of.values())
    told = events.Event.objects.filter(actor_kind__in=["user", "integration"]).exclude(actor_id="")
    runs = {patch.run_id for patch in agents if patch.run_id and patch.attempt_id}
    asked = told.filter(subject_type=Run.noun(), subject_id__in=runs, kind__in=_RUN_KINDS)
    askers: dict[str, dict[str, str]] = {}
    for run, kind, who in asked.order_by("seq").values_list("subject_id", "kind", "actor_id") if runs else ():
        askers.setdefault(run, {})[who] = f"{_RUN_KINDS[kind]} the run in which an agent wrote it"
    workers = {patch.author_worker_id for patch in agents if patch.author_worker_id}
    of_worker = dict(Worker.objects.filter(pk__in=workers).values_list("pk", "api_key")) if workers else {}
    by_keys = {patch.pk for patch in agents if not patch.author_user_id and not patch.author_worker_id}
    sent = told.filter(subject_type=Patch.noun(), subject_id__in=by_keys, kind="patch.created") if by_keys else None
    senders = dict(sent.values_list("subject_id", "actor_id")) if sent is not None else {}
    of_runs = {who for people in askers.values() for who in people}
    owners = owners_of({*of_worker.values(), *senders.values(), *of_runs} - {None})
    found: dict[str, dict[str, str]] = {patch.pk: {} for patch in patches}
    for pk, patch in content_of.items():
        people = found[pk]
        of_run = askers.get(patch.run_id or "", {}) if patch.attempt_id else {}
        for key, why in (
            (of_worker.get(patch.author_worker_id or ""), "made the key of the worker that wrote it"),
            *of_run.items(),
            (senders.get(patch.pk), "made the key that submitted it"),
        ):
            if owner := owners.get(key or ""):
                people[owner] = why
        people |= of_run
        if sender := senders.get(patch.pk):
            people[sender] = "submitted it"
        if patch.author_user_id:
            people[patch.author_user_id] = "submitted it"
        if patch.pk != pk:
            found[pk] = {person: why.removesuffix("it") + "what it brings back" for person, why in people.items()}
    return found


def _whose_content(patches: Sequence[Patch]) -> dict[str, Patch]:
    """The patch whose content each of these brings, by its id: itself, or the one that the reverse of a reverse brings
    back. Without those that only take something away. Without reverses no query, else one for each step back.
    """
    found = {patch.pk: patch for patch in patches if not patch.rollback_of_id}
    left = {patch.pk: patch.rollback_of_id for patch in patches if patch.rollback_of_id}
    takes_away = True
    while left:
        undone = Patch.objects.in_bulk(set(left.values()))
        ends = {pk: undone[of] for pk, of in left.items() if not undone[of].rollback_of_id}
        if not takes_away:
            found |= ends
        left = {pk: undone[of].rollback_of_id for pk, of in left.items() if pk not in ends}
        takes_away = not takes_away
    return found


def _is_key(by: events.Actor) -> bool:
    return by.kind == "integration" and bool(by.id)


def owners_of(keys: Collection[str]) -> dict[str, str]:
    """Whose each key is, by its id: the person who made it, or made the key with which it was made. Without the keys of
    nobody, such as the installation's own. One query for each step back, and none without keys.
    """
    makers: dict[str, tuple[str, str]] = {}
    left = set(keys)
    while left:
        told = events.Event.objects.filter(subject_type=ApiKey.noun(), subject_id__in=left, kind="api_key.added")
        found = {pk: (kind, maker) for pk, kind, maker in told.values_list("subject_id", "actor_kind", "actor_id")}
        makers |= found
        left = {maker for kind, maker in found.values() if kind == "integration" and maker} - makers.keys()
    owners = {}
    for key in keys:
        kind, maker = makers.get(key, ("", ""))
        seen = {key}
        while kind == "integration" and maker not in seen:
            seen.add(maker)
            kind, maker = makers.get(maker, ("", ""))
        if kind == "user" and maker:
            owners[key] = maker
    return owners


def must_not_be_own(patch: Patch, user: User | None, key: ApiKey | None = None) -> None:
    """Raises SelfReview when the change is this person's own, that of an agent or a key of theirs, or the key's."""
    people = belong_to([patch])[patch.pk]
    if user is not None and (why := people.get(user.pk)):
        raise SelfReview(f"Cannot approve: {user.get_username()} {why}, and four eyes are needed", because=why)
    if key is None:
        return
    for one in (key.pk, owners_of([key.pk]).get(key.pk, "")):
        if why := people.get(one):
            whose = "this key" if one == key.pk else "whoever made this key"
            raise SelfReview(f"Cannot approve: {whose} {why}, and four eyes are needed", because=why)


def reviews_of(patches: Sequence[Patch]) -> dict[str, Reviews]:
    """How patches stand with their reviewers, by their ids. Approvals of people count; the word of any is a veto.

    Needed are the policy's `min_reviewers`, and one more when something in a patch asks for a person's look and no
    override answers that. Whoever asked for a rollback has approved its reverse patch by asking, unless it brings back
    a change of their own. Three queries, and where somebody asked for a rollback those of `belong_to`, for any number
    of patches.
    """
    ids = [patch.pk for patch in patches]
    votes: dict[str, dict[tuple[str, str], PatchReview]] = {pk: {} for pk in ids}
    for review in PatchReview.objects.filter(patch__in=ids).votes():
        votes[review.patch_id][review.voice] = review
    holding = PolicyOverride.objects.filter(patch__in=ids).holding() if any(_hints(patch) for patch in patches) else {}
    askers = askers_of(patches)
    found = {}
    for patch in patches:
        given = votes[patch.pk]
        approvals = {
            voice: review.reviewer_name for voice, review in given.items()
            if review.verdict == PatchReview.Verdict.APPROVE and review.reviewer_id
            and review.for_sha256 == patch.sha256
        }  # fmt: skip
        vetoes = {
            voice: review.reviewer_name
            for voice, review in given.items()
            if review.verdict == PatchReview.Verdict.REJECT
        }
        asker = askers.get(patch.pk)
        if asker and ("user", asker.pk) not in vetoes:
            approvals[("user", asker.pk)] = asker.get_username()
        open_hints = {rule for rule in _hints(patch) if (patch.pk, rule) not in holding}
        needed = int(patch.policy_snapshot.get("min_reviewers", 0)) + bool(open_hints)
        found[patch.pk] = Reviews(
            needed,
            tuple(sorted(approvals.values())),
            tuple(sorted(vetoes.values())),
            frozenset(pk for _kind, pk in {**approvals, **vetoes}),
        )
    return found


def _hints(patch: Patch) -> set[str]:
    """The rules by which something in the patch asks for a person's look."""
    return {finding["rule"] for finding in patch.findings if finding.get("severity") == "review"}


def askers_of(patches: Sequence[Patch]) -> dict[str, User]:
    """Who approved a reverse patch by asking for the rollback, by the patch's id, until they object: people who may
    approve there, and whose own change it does not bring back. Without reverse patches no query.
    """
    askers = {patch.pk: _asker_id(patch) for patch in patches if _asker_id(patch)}
    if not askers:
        return {}
    people = {one.pk: one for one in User.objects.filter(pk__in=askers.values(), is_active=True)}
    roles = Membership.objects.filter(user__in=people, role__in=MAY_APPROVE)
    may = set(roles.values_list("user", "project"))
    own = belong_to([patch for patch in patches if patch.pk in askers])
    found = {}
    for patch in patches:
        asker = people.get(askers.get(patch.pk, ""))
        if asker and (asker.is_superuser or (asker.pk, patch.project_id) in may) and asker.pk not in own[patch.pk]:
            found[patch.pk] = asker
    return found


def _asker_id(patch: Patch) -> str:
    """The person who asked for this reverse patch; "" for any other patch."""
    asked = patch.metadata.get("rollback", {}) if patch.rollback_of_id else {}
    return str(asked.get("asked_by", "")) if asked.get("asked_by_kind") == "user" else ""


def must_be_reviewed(patch: Patch, verb: str) -> None:
    """Raises Refused `review_veto` while anybody objects, `reviews_missing` while approvals are missing."""
    standing = reviews_of([patch])[patch.pk]
    if standing.vetoes:
        raise Refused(
            f"Cannot {verb}: {', '.join(standing.vetoes)} objects", code="review_veto", reviewers=list(standing.vetoes)
        )
    if standing.missing:
        raise Refused(
            f"Cannot {verb}: {standing.missing} of {standing.needed} review(s) are missing",
            code="reviews_missing",
            missing=standing.missing,
        )


def facts_of(patch: Patch) -> policy.Facts | None:
    """What the patch was found to do; of one that nobody judged yet what its text says. None when it cannot be read."""
    if patch.facts:
        return policy.Facts.read(patch.facts)
    content = getattr(patch, "content", None)
    if content is None:
        return None
    try:
        parsed = diffs.parse(content.diff_text, links=True, bounds=patch.bounds)
    except diffs.DiffRefused:
        return None
    undoes = patch.rollback_of_id is not None
    return contents.look(parsed, content.diff_text, None, issue_ref=patch.issue_ref, undoes=undoes)


def changed_by_policy(patch: Patch) -> str:
    """Why the policy that holds now judges a valid patch more strictly than the one by which it was judged: what it
    breaks, or the reviews that it needs. "" while it does not; a milder policy takes nothing back.

    One query while the policy is the same, if the patch came by `locked_in_place`; else the stored facts are judged.
    """
    now = PatchPolicy.objects.effective(patch.project, patch.phase, patch.workstream, patch.task)
    snapshot, judged = {**policy.BUILT_IN, **now.values}, patch.policy_snapshot
    if snapshot == judged:
        return ""
    facts = facts_of(patch)
    if facts is None:
        return ""
    overridden = {rule for _pk, rule in patch.overrides.holding()}
    found = [*policy.check_scope(facts, now.scope(), layer="phase"), *policy.check_constraints(facts, now)]
    said = [f"{one.message} ({one.layer})" for one in found if one.rule not in overridden]
    hints = {one.rule for one in policy.check_for_review(facts, now) if one.severity == "review"}
    needed = int(snapshot["min_reviewers"]) + bool(hints - overridden)
    if needed > (before := int(judged.get("min_reviewers", 0)) + bool(_hints(patch) - overridden)):
        said.append(f"it needs {needed} review(s), where it needed {before}")
    tested = [
        glob for glob in snapshot["require_tests_for_paths"] if glob not in judged.get("require_tests_for_paths", [])
    ]
    if tested and (paths := [path for path in facts.paths if policy.is_path(path) and matches(path, sorted(tested))]):
        said.append(f"{', '.join(paths[:3])} has to be tested by a gate")
    window = ("oscillation_window", "oscillation_threshold")
    if not said and any(snapshot[name] != judged.get(name, policy.BUILT_IN[name]) for name in window):
        said = [reason for reason in [patch.swing(snapshot).reason] if reason]
    more = [f"and {len(said) - 3} more"] if len(said) > 3 else []
    return f"the policy has changed since it was judged: {'; '.join(said[:3] + more)}" if said else ""


def lapsed_overrides(patch: Patch) -> list[str]:
    """The rules that were overridden when the patch was judged, and whose override holds no more. One query."""
    relied = {finding["rule"] for finding in patch.findings if finding.get("severity") == "overridden"}
    return sorted(relied - {rule for _pk, rule in patch.overrides.holding()}) if relied else []


def must_hold_overrides(patch: Patch, verb: str) -> None:
    """Raises Refused `override_expired` when the patch was judged by an override that holds no more."""
    if lapsed := lapsed_overrides(patch):
        raise Refused(
            f"Cannot {verb}: the override of {', '.join(lapsed)} holds no more", code="override_expired", rules=lapsed
        )

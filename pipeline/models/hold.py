"""Holds: a recorded "pause and ask" over a scope; while one stands, nothing that it covers is claimed."""

from datetime import datetime
from typing import Any, Self
from uuid import UUID

from django.db import connection, models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from pipeline import events
from pipeline.clock import BirthTimeField, ClockNow
from pipeline.ids import from_uuid, is_id, to_uuid
from pipeline.models.project import Project
from pipeline.refusals import InvalidField, need_reason
from pipeline.rows import in_transaction
from pipeline.states import NOW, Stateful, held_by_postgres

# Claims share this advisory lock and placing a hold takes it alone: a hold waits for the claims under way, and every
# later claim sees it, so that nothing is claimed under a hold (INV-26, reliability.md D17).
CLAIM_LOCK = 0x5B0F1E1D


def stored(scope_id: str) -> str:
    """A scope's id as the column holds it: the text of the uuid for a row, or a key."""
    return str(to_uuid(scope_id)) if is_id(scope_id) else scope_id


class HoldQuerySet(models.QuerySet["Hold"]):
    """The words for placing and finding holds."""

    def visible_to(self, principal: Any) -> Self:
        """The holds over projects in which `principal` may read, and those over the whole installation."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(Q(project__in=ids) | Q(scope_kind="installation"))

    def active(self) -> Self:
        """Those that stand."""
        return self.filter(state=Hold.State.ACTIVE)

    def over_run(self, run: Any) -> Self:
        """The active holds over `run` or over what it is in."""
        return self.active().filter(
            Q(scope_kind="installation")
            | Q(scope_kind="project", scope_id=stored(run.project_id))
            | Q(scope_kind="workstream", scope_id=stored(run.workstream_id or ""))
            | Q(scope_kind="run", scope_id=stored(run.pk))
        )

    def covering(self, task: Any) -> Self:
        """The active holds that keep `task` (with its run loaded) from being claimed."""
        return self.over_run(task.run) | self.active().filter(scope_kind="task", scope_id=stored(task.pk))

    def place(
        self,
        scope_kind: str,
        scope_id: str = "",
        *,
        reason: str,
        by: events.Actor,
        kind: str = "manual",
        ref: str = "",
        holder_kind: str = "user",
        holder: str = "operators",
        until: datetime | None = None,
        project: Project | None = None,
        question: dict[str, Any] | None = None,
        suggested_action: dict[str, Any] | None = None,
    ) -> "Hold":
        """Pause everything in the scope and say why. One active hold per (scope, kind, ref): a repeat answers with it.

        Raises ReasonRequired, or InvalidField for an unknown scope or kind.
        """
        reason = need_reason(reason)
        if scope_kind not in Hold.Scope.values:
            raise InvalidField("scope_kind", f"one of {', '.join(Hold.Scope.values)}, not “{scope_kind}”")
        if not scope_id and scope_kind != Hold.Scope.INSTALLATION:
            raise InvalidField("scope_id", f"a hold over a {scope_kind} names it")
        if kind not in Hold.Kind.values:
            raise InvalidField("kind", f"one of {', '.join(Hold.Kind.values)}, not “{kind}”")
        with in_transaction():
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [CLAIM_LOCK])
            hold, created = self.get_or_create(
                scope_kind=scope_kind,
                scope_id=stored(scope_id),
                kind=kind,
                ref=ref,
                state=Hold.State.ACTIVE,
                defaults={
                    "reason": reason,
                    "holder_kind": holder_kind,
                    "holder": holder,
                    "until": until,
                    "project": project,
                    "question": question,
                    "suggested_action": suggested_action,
                },
            )
            if created:
                hold.born(by=by, reason=reason, kind="hold.placed")
        return hold


@held_by_postgres
class Hold(Stateful):
    """A recorded "pause and ask" over a scope.

        initial -> active -> released

    The kill switch is a hold on the installation or a project.
    """

    NOUN = "hold"

    class State(models.TextChoices):
        ACTIVE = "active", _("active")
        RELEASED = "released", _("released")

    class Scope(models.TextChoices):
        INSTALLATION = "installation", _("installation")
        PROJECT = "project", _("project")
        WORKSTREAM = "workstream", _("workstream")
        RUN = "run", _("run")
        TASK = "task", _("task")
        TOOL = "tool", _("tool")
        ACCOUNT = "account", _("account")
        WORKER = "worker", _("worker")

    class Kind(models.TextChoices):
        MANUAL = "manual", _("manual")
        BUDGET = "budget", _("budget")
        QUOTA = "quota", _("quota")
        QUESTION = "question", _("question")
        APPROVAL = "approval", _("approval")
        BREAKER = "breaker", _("breaker")
        POLICY = "policy", _("policy")
        LOOP = "loop", _("loop")

    MOVES = {State.ACTIVE: {State.RELEASED}, State.RELEASED: set()}
    INITIAL = {State.ACTIVE}

    scope_kind = models.CharField(max_length=12, choices=Scope)
    scope_id = models.CharField(max_length=64, blank=True)
    project = models.ForeignKey(Project, models.PROTECT, null=True, blank=True, related_name="holds")
    kind = models.CharField(max_length=8, choices=Kind)
    ref = models.CharField(max_length=64, blank=True)
    state = models.CharField(max_length=8, choices=State, default=State.ACTIVE)
    reason = models.TextField()
    holder_kind = models.CharField(max_length=10, default="user")
    holder = models.CharField(max_length=200)
    since = BirthTimeField(db_default=ClockNow())
    until = models.DateTimeField(null=True, blank=True)
    question = models.JSONField(null=True, blank=True)
    answer = models.JSONField(null=True, blank=True)
    released_at = models.DateTimeField(null=True)
    released_by = models.CharField(max_length=200, blank=True)
    release_cause = models.CharField(max_length=200, blank=True)
    suggested_action = models.JSONField(null=True, blank=True)

    objects = HoldQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["scope_kind", "scope_id", "kind", "ref"], condition=Q(state="active"), name="hold_one_active"
            ),
            models.CheckConstraint(name="hold_says_why", condition=~Q(reason="")),
            models.CheckConstraint(name="hold_names_holder", condition=~Q(holder="")),
            models.CheckConstraint(
                name="hold_released_has_time",
                condition=Q(state="released", released_at__isnull=False) | Q(state="active", released_at=None),
            ),
        ]
        indexes = [models.Index(fields=["scope_kind", "scope_id"], name="hold_active", condition=Q(state="active"))]

    def __str__(self) -> str:
        return f"hold on {self.scope_kind} {self.scope_ref}: {self.reason}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a hold belong to its project, and to the run or task that it is over."""
        named = {"run": "run_id", "task": "task_id", "workstream": "workstream_id", "worker": "worker_id"}
        ids: dict[str, str | None] = {"project_id": self.project_id}
        if self.scope_kind in named:
            ids[named[self.scope_kind]] = self.scope_ref
        return ids

    @property
    def scope_ref(self) -> str:
        """The scope's id as it is shown: a ULID for a row, or a key."""
        return from_uuid(UUID(self.scope_id)) if len(self.scope_id) == 36 else self.scope_id

    def release(self, *, by: events.Actor, reason: str = "", cause: str = "released", answer: Any = None) -> bool:
        """End the pause; False when it has ended already."""
        return self.move(
            self.State.RELEASED,
            by=by,
            reason=reason,
            verb="release",
            released_at=NOW,
            released_by=by.name,
            release_cause=cause,
            answer=answer,
        )

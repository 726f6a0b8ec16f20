"""The merge queue of a branch: patches in the order in which they land, each tested on what lands before it."""

from datetime import timedelta
from typing import Any, Self

from django.conf import settings
from django.db import models
from django.db.models import F, Max, Q
from django.utils.translation import gettext_lazy as _

from ledger.models.patch import Patch
from pipeline import events
from pipeline.clock import db_now
from pipeline.models import Hold, Project
from pipeline.models.hold import stored
from pipeline.rows import in_transaction
from pipeline.states import NOW, Plus, Stateful, held_by_postgres


class MergeQueueQuerySet(models.QuerySet["MergeQueue"]):
    """The words for making and asking about queues."""

    def visible_to(self, principal: Any) -> Self:
        """The queues of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)

    def open_for(self, project: Project, branch: str, head_commit: str, *, by: events.Actor) -> "MergeQueue":
        """The queue of this branch, made when there is none."""
        with in_transaction():
            queue, created = self.get_or_create(
                project=project,
                target_branch=branch,
                defaults={
                    "head_commit": head_commit,
                    "window_size": 1,
                    "window_floor": 1,
                    "window_ceiling": 1,
                    "head_limit_seconds": settings.SIGNALBOX_HEAD_OF_LINE_SECONDS,
                },
            )
            if created:
                queue.born(by=by, kind="merge_queue.added")
        return queue


@held_by_postgres
class MergeQueue(Stateful):
    """The queue of one branch.

        initial -> running <-> paused
        running -> draining -> paused | running

    `head_commit` is the branch's commit in the mirror, kept by landing and fetch; claims read it.
    """

    NOUN = "merge_queue"

    class State(models.TextChoices):
        RUNNING = "running", _("running")
        PAUSED = "paused", _("paused")
        DRAINING = "draining", _("draining")

    MOVES = {
        State.RUNNING: {State.PAUSED, State.DRAINING},
        State.PAUSED: {State.RUNNING},
        State.DRAINING: {State.PAUSED, State.RUNNING},
    }
    KINDS = {
        (State.PAUSED, State.RUNNING): "merge_queue.resumed",
        (State.DRAINING, State.RUNNING): "merge_queue.resumed",
    }
    INITIAL = {State.RUNNING}

    project = models.ForeignKey(Project, models.PROTECT, related_name="merge_queues")
    target_branch = models.CharField(max_length=255)
    head_commit = models.CharField(max_length=64)
    state = models.CharField(max_length=8, choices=State, default=State.RUNNING)
    window_size = models.PositiveSmallIntegerField()
    window_floor = models.PositiveSmallIntegerField()
    window_ceiling = models.PositiveSmallIntegerField()
    head_limit_seconds = models.PositiveIntegerField()
    blocked_reason = models.TextField(blank=True)
    blocked_tries = models.PositiveIntegerField(default=0)
    blocked_until = models.DateTimeField(null=True)

    objects = MergeQueueQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "target_branch"], name="mergequeue_once_per_branch"),
            models.CheckConstraint(
                name="mergequeue_window_keeps_bounds",
                condition=Q(
                    window_floor__gte=1, window_size__gte=F("window_floor"), window_size__lte=F("window_ceiling")
                ),
            ),
        ]

    def __str__(self) -> str:
        return f"queue of {self.project.key} {self.target_branch}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a queue belong to its project."""
        return {"project_id": self.project_id}

    def pause(self, *, by: events.Actor, reason: str = "") -> bool:
        """Build and land nothing. Quiet."""
        return self.move(self.State.PAUSED, by=by, reason=reason, verb="pause")

    def resume(self, *, by: events.Actor, reason: str = "") -> bool:
        """Go on. Quiet."""
        return self.move(self.State.RUNNING, by=by, reason=reason, verb="resume")

    def note(self, *, by: events.Actor, reason: str = "", **columns: Any) -> bool:
        """Write what landing, or a look at the branch, found (`head_commit`, `window_size`), recorded as
        `merge_queue.changed`; False when nothing differs.
        """
        with in_transaction():
            current = MergeQueue.objects.select_for_update(no_key=True).filter(pk=self.pk).values(*columns).get()
            changes = {name: value for name, value in columns.items() if current[name] != value}
            if changes:
                MergeQueue.objects.filter(pk=self.pk).update(**changes)
                before = self.tellable({name: current[name] for name in changes})
                after = self.tellable(changes)
                events.record("merge_queue.changed", self, by=by, reason=reason, before=before, after=after)
        for name, value in columns.items():
            setattr(self, name, value)
        return bool(changes)

    @property
    def remote_ref(self) -> str:
        """What the hold refers to that stands while the remote's branch and this one have gone different ways."""
        return f"remote:{self.target_branch}"[:64]

    @property
    def has_diverged(self) -> bool:
        """Whether that hold stands: what lands now would only be one more commit to bring together. One query."""
        holds = Hold.objects.active().filter(scope_kind="project", scope_id=stored(self.project_id))
        return holds.filter(kind="question", ref=self.remote_ref).exists()

    @property
    def is_blocked(self) -> bool:
        """Whether the machine failed it, and it waits before it tries again."""
        return self.blocked_until is not None and self.blocked_until > db_now()

    def block(self, reason: str, *, by: events.Actor) -> timedelta:
        """Try again later, since the machine failed and no patch is to blame; each time in a row later, at most 5 min.

        Returns how long it waits.
        """
        wait = min(timedelta(seconds=5 * 2 ** min(self.blocked_tries, 10)), timedelta(minutes=5))
        self.note(
            by=by,
            reason=reason,
            blocked_reason=reason[:2000],
            blocked_tries=self.blocked_tries + 1,
            blocked_until=db_now() + wait,
        )
        return wait

    def unblock(self, *, by: events.Actor) -> bool:
        """Forget that the machine failed: something went well again."""
        return self.note(by=by, blocked_reason="", blocked_tries=0, blocked_until=None)

    def take_in(self, patch: Patch, *, by: events.Actor) -> "QueueItem":
        """A waiting item for `patch` at the tail. The caller holds this row's lock."""
        last = QueueItem.objects.filter(queue=self).aggregate(last=Max("position"))["last"] or 0
        item = QueueItem(queue=self, patch=patch, position=last + 1)
        item.save(force_insert=True)
        item.born(by=by, kind="queue_item.waiting")
        return item


class QueueItemQuerySet(models.QuerySet["QueueItem"]):
    """The words for asking about items."""

    def visible_to(self, principal: Any) -> Self:
        """The items of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(queue__project__in=ids)

    def live(self) -> Self:
        """Neither landed, evicted nor withdrawn, head first."""
        return self.exclude(state__in=QueueItem.ENDED).order_by("position")

    def due_in(self, queue: MergeQueue) -> Self:
        """The live items of `queue` at which a step looks, head first: those inside its window, and of the others those
        that are past waiting, or whose patch went another way. However many wait, it is a handful.
        """
        rows = self.live().filter(queue=queue)
        window = rows.values("pk")[: queue.window_size]
        is_idle = Q(state=QueueItem.State.WAITING, patch__state__in=Patch.IN_QUEUE)
        return rows.filter(Q(pk__in=window) | ~is_idle)


@held_by_postgres
class QueueItem(Stateful):
    """One patch's place in the queue.

    initial -> waiting -> building -> testing -> passing -> landed
    building, testing -> failing -> evicted
    waiting -> failing
    building, testing, passing, failing -> waiting
    waiting, building, testing, passing, failing -> withdrawn
    """

    NOUN = "queue_item"

    class State(models.TextChoices):
        WAITING = "waiting", _("waiting")
        BUILDING = "building", _("building")
        TESTING = "testing", _("testing")
        PASSING = "passing", _("passing")
        FAILING = "failing", _("failing")
        LANDED = "landed", _("landed")
        EVICTED = "evicted", _("evicted")
        WITHDRAWN = "withdrawn", _("withdrawn")

    MOVES = {
        State.WAITING: {State.BUILDING, State.FAILING, State.WITHDRAWN},
        State.BUILDING: {State.TESTING, State.FAILING, State.WAITING, State.WITHDRAWN},
        State.TESTING: {State.PASSING, State.FAILING, State.WAITING, State.WITHDRAWN},
        State.PASSING: {State.LANDED, State.WAITING, State.WITHDRAWN},
        State.FAILING: {State.EVICTED, State.WAITING, State.WITHDRAWN},
        State.LANDED: set(),
        State.EVICTED: set(),
        State.WITHDRAWN: set(),
    }
    KINDS = {
        (State.BUILDING, State.WAITING): "queue_item.restarted",
        (State.TESTING, State.WAITING): "queue_item.restarted",
        (State.PASSING, State.WAITING): "queue_item.restarted",
        (State.FAILING, State.WAITING): "queue_item.restarted",
    }
    INITIAL = {State.WAITING}
    ENDED = (State.LANDED, State.EVICTED, State.WITHDRAWN)

    queue = models.ForeignKey(MergeQueue, models.PROTECT, related_name="items")
    patch = models.ForeignKey(Patch, models.PROTECT, related_name="queue_items")
    position = models.PositiveBigIntegerField()
    ahead = models.ForeignKey("self", models.PROTECT, null=True, related_name="behind")
    state = models.CharField(max_length=9, choices=State, default=State.WAITING)
    base_commit = models.CharField(max_length=64, blank=True)
    candidate_commit = models.CharField(max_length=64, blank=True)
    candidate_tree = models.CharField(max_length=64, blank=True)
    builds = models.PositiveIntegerField(default=0)
    failing_reason = models.TextField(blank=True)
    failing_code = models.CharField(max_length=64, blank=True)
    culprit = models.ForeignKey("self", models.PROTECT, null=True, related_name="blamed_by")
    restarts = models.PositiveIntegerField(default=0)
    restart_reason = models.TextField(blank=True)
    finished_at = models.DateTimeField(null=True)

    objects = QueueItemQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["patch"],
                condition=~Q(state__in=["landed", "evicted", "withdrawn"]),
                name="queueitem_one_live_per_patch",
            ),
            models.UniqueConstraint(fields=["queue", "position"], name="queueitem_one_per_place"),
            models.CheckConstraint(
                name="queueitem_ended_has_time",
                condition=Q(state__in=["landed", "evicted", "withdrawn"], finished_at__isnull=False)
                | (~Q(state__in=["landed", "evicted", "withdrawn"]) & Q(finished_at=None)),
            ),
        ]
        indexes = [
            models.Index(
                fields=["queue", "position"],
                name="queueitem_live",
                condition=~Q(state__in=["landed", "evicted", "withdrawn"]),
            )
        ]

    def __str__(self) -> str:
        return f"item {self.position} of {self.queue_id}"

    def correlation(self) -> dict[str, str | None]:
        """Events about an item belong to its patch."""
        return self.patch.correlation()

    def build(self, *, base_commit: str, by: events.Actor, ahead: "QueueItem | None" = None) -> bool:
        """waiting -> building on `base_commit`, which is the candidate of `ahead`, or the branch's own."""
        return self.move(
            self.State.BUILDING,
            by=by,
            verb="build",
            working=True,
            base_commit=base_commit,
            ahead=ahead,
            builds=Plus(1),
        )

    def test(self, *, candidate_commit: str, candidate_tree: str, by: events.Actor) -> bool:
        """building -> testing: the candidate stands."""
        return self.move(
            self.State.TESTING,
            by=by,
            verb="test",
            working=True,
            candidate_commit=candidate_commit,
            candidate_tree=candidate_tree,
        )

    def become_passing(self, *, by: events.Actor) -> bool:
        """testing -> passing: every required gate passed for its tree."""
        return self.move(self.State.PASSING, by=by, verb="pass", working=True)

    def become_failing(self, code: str, reason: str, *, by: events.Actor, culprit: "QueueItem | None" = None) -> bool:
        """waiting, building, testing -> failing, with the item at fault (itself unless told)."""
        return self.move(
            self.State.FAILING,
            by=by,
            reason=reason,
            verb="fail",
            working=True,
            failing_code=code,
            failing_reason=reason,
            culprit=culprit or self,
        )

    def restart(self, *, by: events.Actor, reason: str) -> bool:
        """Back to waiting: what it was built on is no longer what lands before it."""
        return self.move(
            self.State.WAITING,
            by=by,
            reason=reason,
            verb="restart",
            restarts=Plus(1),
            restart_reason=reason,
            base_commit="",
            candidate_commit="",
            candidate_tree="",
            failing_reason="",
            failing_code="",
            culprit=None,
        )

    def land(self, *, by: events.Actor) -> bool:
        """passing -> landed: it was head, and the branch moved."""
        return self.move(self.State.LANDED, by=by, verb="land", working=True, finished_at=NOW)

    def evict(self, *, by: events.Actor) -> bool:
        """failing -> evicted: it is head, so the fault is its own."""
        return self.move(
            self.State.EVICTED, by=by, reason=self.failing_reason, verb="evict", working=True, finished_at=NOW
        )

    def withdraw(self, *, by: events.Actor, reason: str) -> bool:
        """Out of the queue: its patch went another way. Quiet."""
        return self.move(self.State.WITHDRAWN, by=by, reason=reason, verb="withdraw", finished_at=NOW)

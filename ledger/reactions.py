"""A patch's way through the ledger, and what the ledger answers to those below it."""

import json
from typing import Any

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Coalesce

from ledger import blockers as blockers
from ledger import heads, queue, validation
from ledger import landing_reactions as landing_reactions
from ledger import review_reactions as review_reactions
from ledger.models import MergeQueue, Patch
from ledger.serving import path_of
from pipeline import events, prepared
from pipeline.events import Event, nudge_later, on
from pipeline.ids import from_uuid, to_uuid
from pipeline.models import Project, Run, Task, Tool
from pipeline.orchestrate import READY, Verdict, strategy
from pipeline.questions import answers
from pipeline.refusals import InvalidField, Refused
from workers.models import Lease, Worker


@on("patch.created", "patch.released", "patch.rejudged")
def start_validation(event: Event) -> None:
    """Validation runs git, so it is a task of its own."""
    nudge_later("ledger.tasks.validate", event.subject_id)


@on("patch.validated")
def enqueue(event: Event) -> None:
    """A valid patch with its reviews goes to the tail of its queue, once the attempt that made it has ended."""
    patch = Patch.objects.select_related("attempt").get(pk=event.subject_id)
    outcome = patch.attempt.outcome if patch.attempt else "success"
    if outcome == "success" or (outcome and Event.objects.filter(kind="patch.released", subject_id=patch.pk).exists()):
        patch.queue(by=events.SYSTEM)


@on(
    "patch.queued", "patch.applied", "queue_item.passing", "queue_item.failing", "queue_item.landed",
    "queue_item.evicted", "queue_item.withdrawn", "queue_item.restarted", "merge_queue.resumed",
    "gate_run.passed", "gate_run.failed", "gate_run.error", "gate_run.waived", "gate_run.waiver_revoked",
)  # fmt: skip
def advance_queue(event: Event) -> None:
    """Whatever changed for a patch in a queue: look at that queue again."""
    if event.subject_type == "merge_queue":
        nudge_later("ledger.tasks.advance", event.subject_id)
        return
    patch = Patch.objects.filter(pk=event.patch_id).first() if event.patch_id else None
    if patch is None:
        return
    found = MergeQueue.objects.filter(project=patch.project_id, target_branch=patch.target_branch).first()
    if found is not None:
        nudge_later("ledger.tasks.advance", found.pk)


@on("patch.committed")
def queue_those_behind(event: Event) -> None:
    """The patches that stood on it may go to the queue now."""
    for patch in Patch.objects.filter(depends_on=event.subject_id, state=Patch.State.VALIDATED).order_by("pk"):
        try:
            patch.queue(by=events.SYSTEM)
        except Refused:
            continue  # it stands on another one as well, or waits for a review


@on("patch.dropped", "patch.rolled_back")
def drop_those_behind(event: Event) -> None:
    """What stood on it can never land as it was judged."""
    for patch in Patch.objects.open().filter(depends_on=event.subject_id).order_by("pk"):
        patch.drop(f"patch {event.subject_id}, on which it stands, will not land", by=events.SYSTEM)


@on("lease.ended", "task.failed", "task.cancelled")
def follow_the_task(event: Event) -> None:
    """An attempt or a task has ended: its patches may land now, or never will.

    After the commit, since another reaction to this event may hold the run, which the house locks after the queue.
    """
    # No partial: Django names what failed by its __qualname__, and one that has none ends what comes after it too.
    transaction.on_commit(lambda: place_patches(event.task_id), robust=True)


# What most tasks are asked, and answered at once.
_HAS_PATCHES = "SELECT 1 FROM ledger_patch WHERE task_id = %s LIMIT 1"


def place_patches(task_id: str | None = None) -> int:
    """Put patches where their attempt and task want them, of one task or of all; returns how many went there.

    What a successful attempt submitted is queued. What another left behind is dropped, since the task is tried again. A
    task that will not complete leaves no patch on its way: quarantined when it failed its workstream, else dropped.
    What a person released or submitted since then goes its own way.
    """
    if task_id is not None and not prepared.execute(_HAS_PATCHES, [to_uuid(task_id)]):
        return 0
    released = Event.objects.filter(kind="patch.released", subject_id=OuterRef("pk"))
    rows = Patch.objects.open().exclude(task=None).alias(ended_at=Coalesce("attempt__ended_at", "task__completed_at"))
    rows = rows.exclude(Exists(released.filter(created_at__gt=OuterRef("ended_at"))))
    rows = rows.select_related("attempt", "task__run__workstream")
    if task_id is not None:
        rows = rows.filter(task=task_id)
    given_up = Q(task__state__in=[Task.State.FAILED, Task.State.CANCELLED], created_at__lte=F("task__completed_at"))
    left_behind = ~Q(attempt__outcome=None) & ~Q(attempt__outcome="success")
    delivered = Q(state=Patch.State.VALIDATED, attempt__outcome="success")
    done = 0
    for patch in rows.filter(given_up | left_behind | delivered).order_by("pk"):
        try:
            done += _place(patch)
        except Refused:
            continue  # it is landing right now, or waits for a review: looked at again when that is over
    return done


def _place(patch: Patch) -> bool:
    task, attempt = patch.task, patch.attempt
    if task is not None and task.state in (Task.State.FAILED, Task.State.CANCELLED):
        reason = f"task {task.key} {task.state}: {task.last_error or task.state_reason}"[:2000]
        if task.state == Task.State.FAILED and strategy(task) != "skip_task":
            return patch.quarantine(reason, by=events.SYSTEM)
        return patch.drop(reason, by=events.SYSTEM)
    if attempt is not None and attempt.outcome != "success":
        return patch.drop(f"its attempt ended as {attempt.outcome}", by=events.SYSTEM)
    return patch.queue(by=events.SYSTEM)


_HEAD = "SELECT head_commit FROM ledger_mergequeue WHERE project_id = %s AND target_branch = %s LIMIT 1"


@answers("task.claim", order=10)
def base_and_checkout(*, task: Task, worker: Worker, tool: Tool, by: events.Actor) -> dict[str, Any]:
    """The head of the target branch, and where the worker can fetch it."""
    project: Project = task.run.project
    if project.custody != Project.Custody.MANAGED:
        return {"checkout": None}
    found = prepared.execute(_HEAD, [to_uuid(project.pk), project.default_branch])
    if not found:
        raise Refused(
            f"Project {project.key} has no merge queue yet; register it with addproject", code="not_claimable"
        )
    return {
        "checkout": {
            "url": str(project.mirror),
            "commit": found[0][0],
            "branch": project.default_branch,
            "address": path_of(project),
        },
    }


_OF_ATTEMPT = "SELECT id FROM ledger_patch WHERE attempt_id = %s"


@answers("lease.report")
def check_patches(*, lease: Lease, patch_ids: list[str]) -> dict[str, Any]:
    """The patches of this attempt; those named must be of its task, or the known patch that a submission of this
    attempt was answered with. Raises InvalidField for another's.
    """
    own = {from_uuid(pk) for (pk,) in prepared.execute(_OF_ATTEMPT, [to_uuid(lease.attempt_id)])}
    known = Event.objects.filter(kind="patch.resubmitted", data__attempt=lease.attempt_id)
    for pk in set(patch_ids) - own:
        of_task = Patch.objects.filter(pk=pk, task=lease.task_id).exists()
        if not of_task and not known.filter(subject_id=pk).exists():
            raise InvalidField("patch_ids", f"{pk} is not a patch of this task")
    return {"patch_ids": sorted(own | set(patch_ids))}


_DELIVERED = """
SELECT output_patch_ids::text FROM pipeline_stepattempt
WHERE task_id = %s AND outcome = 'success' ORDER BY sequence DESC LIMIT 1
"""


@answers("task.complete", order=10)
def are_patches_landed(*, task: Task) -> Verdict:
    """Ready when the last successful attempt's patches have landed, failed when one cannot, else waiting. What somebody
    replaced is judged by what came in its place.
    """
    found = prepared.execute(_DELIVERED, [to_uuid(task.pk)])
    named = json.loads(found[0][0]) if found else []
    patches = list(Patch.objects.filter(pk__in=named)) if named else []
    if not patches:
        if task.requires_patch:
            return Verdict("failed", "the patch that the task requires is missing", code="patch_missing")
        return READY
    for patch in (given.in_its_place() for given in patches):
        landed = patch.state == Patch.State.COMMITTED or (
            patch.custody == Project.Custody.RECORDED and patch.state == Patch.State.VERIFIED
        )
        if landed:
            continue
        if patch.state == Patch.State.APPLY_FAILED:
            return Verdict("failed", patch.last_error_message or patch.state_reason, code=patch.last_error_code)
        if patch.state in (Patch.State.DROPPED, Patch.State.ROLLED_BACK):
            return Verdict(
                "failed", f"its patch was {patch.state.replace('_', ' ')}: {patch.state_reason}", code=patch.state
            )
        return Verdict("waiting", f"patch {patch.pk} is {patch.state}")
    return READY


@answers("run.complete")
def is_a_patch_open(*, run: Run, status: str) -> str | None:
    """A run ends when none of its patches is on its way; one in quarantine makes it end quarantined."""
    tested = Q(custody=Project.Custody.RECORDED, state=Patch.State.VERIFIED)  # what others then do is not awaited
    if Patch.objects.open().filter(run=run).exclude(tested).exists():
        return "patch_open"
    return "patch_quarantined" if Patch.objects.parked().filter(run=run).exists() else None


def _send_work() -> None:
    """The sweep's part: wake whoever works on patches and queues that something is due for."""
    for pk in Patch.objects.filter(state="created", custody="managed").order_by("pk").values_list("pk", flat=True)[:50]:
        events.nudge("ledger.tasks.validate", pk)
    for pk in (
        MergeQueue.objects.filter(items__finished_at=None, items__isnull=False).distinct().values_list("pk", flat=True)
    ):
        events.nudge("ledger.tasks.advance", pk)


def expire_quarantines() -> int:
    """Tell the owners of patches that have been set aside for too long; returns how many."""
    return sum(patch.expire_quarantine(by=events.SYSTEM) for patch in Patch.objects.expired_quarantine().order_by("pk"))


events.chore(place_patches)
events.chore(expire_quarantines)
events.chore(validation.validate_created, send=_send_work)
events.chore(queue.advance_all, send=lambda: None)
events.chore(heads.watch_heads)

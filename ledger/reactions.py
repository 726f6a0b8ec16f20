"""A patch's way through the ledger, and what the ledger answers to those below it."""

from typing import Any

from ledger import queue, validation
from ledger.models import MergeQueue, Patch
from pipeline import events
from pipeline.events import Event, nudge_later, on
from pipeline.models import Project, Run, Task
from pipeline.orchestrate import READY, Verdict
from pipeline.questions import answers
from pipeline.refusals import InvalidField, Refused
from workers.models import Lease, Worker


@on("patch.created", "patch.released")
def start_validation(event: Event) -> None:
    """Validation runs git, so it is a task of its own."""
    nudge_later("ledger.tasks.validate", event.subject_id)


@on("patch.validated")
def enqueue(event: Event) -> None:
    """A valid patch with its reviews goes to the tail of its queue."""
    Patch.objects.get(pk=event.subject_id).queue(by=events.SYSTEM)


@on(
    "patch.queued", "patch.applied", "queue_item.passing", "queue_item.failing", "queue_item.landed",
    "queue_item.evicted",
    "queue_item.withdrawn", "queue_item.restarted", "merge_queue.resumed", "gate_run.passed", "gate_run.failed",
    "gate_run.error", "gate_run.waived",
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


@on("task.failed", "task.cancelled")
def set_aside_open_patches(event: Event) -> None:
    """A task that will not complete leaves no patch on its way: quarantined when it failed the workstream, else
    dropped.
    """
    task = Task.objects.select_related("run__workstream").get(pk=event.subject_id)
    strategy = (task.spec.get("error_handling") or {}).get("on_failure") or (
        task.run.workstream.strategy if task.run.workstream else "fail_fast"
    )
    keep = task.state == Task.State.FAILED and strategy in (
        "fail_workstream",
        "fail_fast",
        "route_error_phase",
        "escalate",
    )
    for patch in Patch.objects.open().filter(task=task).order_by("pk"):
        reason = f"task {task.key} {task.state}: {task.last_error or task.state_reason}"[:2000]
        if keep:
            patch.quarantine(reason, by=events.SYSTEM)
        else:
            patch.drop(reason, by=events.SYSTEM)


@answers("task.claim", order=10)
def base_and_checkout(*, task: Task, worker: Worker, by: events.Actor) -> dict[str, Any]:
    """The head of the target branch, and where the worker can fetch it."""
    project: Project = task.run.project
    if project.custody != Project.Custody.MANAGED:
        return {"checkout": None}
    found = MergeQueue.objects.filter(project=project, target_branch=project.default_branch).first()
    if found is None:
        raise Refused(
            f"Project {project.key} has no merge queue yet; register it with addproject", code="not_claimable"
        )
    return {
        "checkout": {"url": str(project.mirror), "commit": found.head_commit, "branch": found.target_branch},
    }


@answers("lease.report")
def check_patches(*, lease: Lease, patch_ids: list[str]) -> dict[str, Any]:
    """The patches of this attempt; those named must be of its task. Raises InvalidField for another's."""
    own = set(Patch.objects.filter(attempt=lease.attempt_id).values_list("pk", flat=True))
    for pk in patch_ids:
        if pk not in own and not Patch.objects.filter(pk=pk, task=lease.task_id).exists():
            raise InvalidField("patch_ids", f"{pk} is not a patch of this task")
    return {"patch_ids": sorted(own | set(patch_ids))}


@answers("task.complete", order=10)
def are_patches_landed(*, task: Task) -> Verdict:
    """Ready when the last successful attempt's patches have landed, failed when one cannot, else waiting."""
    attempt = task.attempts.filter(outcome="success").order_by("-sequence").first()
    patches = list(Patch.objects.filter(pk__in=attempt.output_patch_ids)) if attempt else []
    if not patches:
        if task.requires_patch:
            return Verdict("failed", "the patch that the task requires is missing", code="patch_missing")
        return READY
    for patch in patches:
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
    if Patch.objects.open().filter(run=run).exists():
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


events.chore(validation.validate_created, send=_send_work)
events.chore(queue.advance_all, send=lambda: None)

"""Gates open when a candidate stands, answer for its tree, and are asked again when the machine failed them."""

from django.conf import settings

from gates import blockers as blockers
from gates import external, running
from gates import receipts as receipts
from gates.models import FlakyTest, Gate, GateRun
from gates.models.gate_run import untested_paths
from ledger.models import Patch, QueueItem
from pipeline import events
from pipeline.events import Event, nudge_later, on
from pipeline.questions import answers

SHOWN_TESTS = 20
SHOWN_OUTPUT = 1000


@on("patch.applied")
def open_gates(event: Event) -> None:
    """One pending run of each gate that judges the candidate, unless its verdict is known."""
    patch = Patch.objects.get(pk=event.subject_id)
    item = QueueItem.objects.live().filter(patch=patch, state=QueueItem.State.TESTING).first()
    if item is not None:
        GateRun.objects.open_for(patch, item, by=events.SYSTEM)


def open_missing_gates() -> int:
    """Open what a standing candidate lacks: a gate that was added or edited since, or a run that was skipped."""
    testing = QueueItem.objects.filter(state=QueueItem.State.TESTING).select_related("patch__project").order_by("pk")
    return sum(len(GateRun.objects.open_for(item.patch, item, by=events.SYSTEM)) for item in testing)


@on("gate_run.created", "gate_run.passed", "gate_run.waived")
def start_runner(event: Event) -> None:
    """A run waits, or one that another depends on passed: wake a runner."""
    nudge_later("gates.tasks.run_pending", queue="gates")


@on("gate_run.error")
def run_again(event: Event) -> None:
    """What the machine failed is not the patch's fault: run it again, twice; then a person is asked."""
    gate_run = GateRun.objects.get(pk=event.subject_id)
    if gate_run.error_kind != GateRun.ErrorKind.INFRA or gate_run.gate is None:
        return
    if gate_run.baseline:
        GateRun.objects.measure_base(gate_run.gate, gate_run.tree_hash, by=events.SYSTEM)
        return
    newest = GateRun.objects.newest(
        gate_run.gate, gate_run.tree_hash, base_tree=gate_run.base_tree, patch=gate_run.patch
    )
    if newest is None or newest.pk != gate_run.pk:
        return
    tries = GateRun.objects.filter(
        gate=gate_run.gate, gate_version=gate_run.gate_version, tree_hash=gate_run.tree_hash, error_kind="infra"
    ).count()
    if tries <= settings.SIGNALBOX_GATE_INFRA_RERUNS:
        gate_run.rerun(by=events.SYSTEM)


@on("gate_run.passed", "gate_run.failed")
def count_passes(event: Event) -> None:
    """Tests in quarantine that pass long enough leave it."""
    FlakyTest.objects.recount(GateRun.objects.get(pk=event.subject_id))


@on("queue_item.restarted", "queue_item.withdrawn", "queue_item.evicted")
def skip_what_is_left(event: Event) -> None:
    """The candidate is no more: the runs that have not ended judge nothing."""
    item = QueueItem.objects.get(pk=event.subject_id)
    left = GateRun.objects.open().filter(queue_item=item)
    if item.state not in QueueItem.ENDED:
        left = left.exclude(tree_hash=item.candidate_tree)  # built again meanwhile
    for gate_run in left.order_by("pk"):
        gate_run.skip("superseded", by=events.SYSTEM)


@answers("tree.verdict")
def verdict_of_tree(*, patch: Patch, tree: str) -> tuple[str, str]:
    """(passed, failed, unknown or none; why) of the required gates that judge this patch, for this tree."""
    verdict = GateRun.objects.verdict(patch, tree)
    if verdict == "none" and (paths := _untested(patch)):
        return verdict, f"The policy asks for tests of {paths}, and no required gate tests that: an admin adds one"
    if verdict != "failed":
        return verdict, ""
    reasons = []
    required = [gate for gate in Gate.objects.judging(patch) if gate.required]
    for gate, run in GateRun.objects.judged_by(patch, tree, required).items():
        if run is not None and run.verdict == "failed":
            reasons.append(f"{gate.key}: {run.decision_reason or run.state_reason}{_details(run)}")
    return verdict, "\n".join(reasons)


def _untested(patch: Patch) -> str:
    """The first paths that the policy wants tested and no required gate tests, in words."""
    paths = untested_paths(patch, [gate for gate in Gate.objects.judging(patch) if gate.required])
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _details(run: GateRun) -> str:
    """What the next attempt has to know: the failing tests with what they said, or how the output ends."""
    failing = run.results.filter(outcome__in=["fail", "error"]).order_by("pk")[:SHOWN_TESTS]
    lines = [f"{test.name}: {(test.message.strip().splitlines() or [''])[0][:200]}" for test in failing]
    return "".join(f"\n{line}" for line in lines or run.output_tail[-SHOWN_OUTPUT:].strip().splitlines())


@answers("patch.commit")
def is_verdict_fresh(*, patch: Patch) -> str | None:
    """An objection when the tested tree's verdict is not, or no longer, passed. In recorded custody, where others test,
    none is needed where no required gate judges.
    """
    verdict = GateRun.objects.verdict(patch, patch.tested_tree)
    if verdict == "passed" or (verdict == "none" and patch.custody == "recorded"):
        return None
    return f"the verdict of the tested tree is {verdict}"


def wake_owners() -> int:
    """Tell of quarantines that have expired."""
    return FlakyTest.objects.wake_owners()


def _send_work() -> None:
    """The sweep's part: wake a runner when something waits."""
    if GateRun.objects.filter(state=GateRun.State.PENDING, external=False).exists():
        events.nudge("gates.tasks.run_pending", queue="gates")


events.chore(running.close_lost)
events.chore(external.close_unheard)
events.chore(open_missing_gates)
events.chore(wake_owners)
events.chore(running.run_pending, send=_send_work)

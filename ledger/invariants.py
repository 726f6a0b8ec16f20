"""What must hold between patches, their queue, their text and the branch that they land on (domain.md §6)."""

import shutil
import subprocess
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from ledger import audit, git
from ledger.models import MergeQueue, Patch, PatchPolicy, Push, QueueItem
from pipeline.clock import db_now
from pipeline.constraints import Layer, resolve
from pipeline.invariants import Finding, invariant, probe, query, told
from pipeline.models import Phase, Project, Workstream
from pipeline.refusals import Refused
from pipeline.rows import Row

R = TypeVar("R", bound=Row)

LANDING = timedelta(seconds=60)
"""Between the branch's move and the row's there is a moment; recovery after a crash takes no longer than this."""

VERSION_SECONDS = 5.0

query(
    13,
    "a succeeded run leaves no patch open or parked",
    """
    SELECT p.id FROM ledger_patch p JOIN pipeline_run r ON r.id=p.run_id WHERE r.state='succeeded'
        AND p.state NOT IN ('committed','rolled_back','dropped') AND NOT (p.custody='recorded' AND p.state='verified')
    """,
)
query(
    30,
    "run counters equal their rows",
    """
    SELECT r.id FROM pipeline_run r
        WHERE r.count_steps<>(SELECT count(*) FROM pipeline_stepattempt a WHERE a.run_id=r.id)
            OR r.count_patches_created<>(SELECT count(*) FROM ledger_patch p WHERE p.run_id=r.id)
    """,
)
query(
    32,
    "past validation all three flags hold",
    """
    SELECT id FROM ledger_patch WHERE state IN ('validated','queued','applied','verified','committed')
        AND NOT (format_ok AND scope_ok AND constraints_ok)
    """,
)
query(
    33,
    "verified and committed work was tested",
    "SELECT id FROM ledger_patch WHERE state IN ('verified','committed') AND NOT (tests_ran AND tests_passed)",
)
query(
    34,
    "what was tested is what was committed",
    """
    SELECT id FROM ledger_patch WHERE custody='managed' AND state='committed'
        AND (commit_sha='' OR tested_tree='' OR committed_tree<>tested_tree)
    """,
)
query(
    36,
    "quarantine has reason, time, owner",
    """
    SELECT id FROM ledger_patch WHERE state='quarantined'
        AND (quarantine_reason='' OR quarantined_at IS NULL OR quarantine_owner='')
    """,
)
query(
    37,
    "apply attempts are bounded",
    """
    SELECT id FROM ledger_patch WHERE attempts<0 OR reapplies<0
        OR attempts>COALESCE((policy_snapshot->>'max_apply_attempts')::int,3)
    """,
)
query(
    38,
    "rolled-back landed work has a landed reverse",
    """
    SELECT p.id FROM ledger_patch p WHERE p.state='rolled_back' AND p.commit_sha<>'' AND NOT EXISTS (
        SELECT 1 FROM ledger_patch q WHERE q.rollback_of_id=p.id AND q.state IN ('committed','rolled_back'))
    """,
)
query(
    39,
    "a landed reverse has rolled back its original",
    """
    SELECT q.id FROM ledger_patch q JOIN ledger_patch p ON p.id=q.rollback_of_id
        WHERE q.state='committed' AND p.state<>'rolled_back'
    """,
)
query(
    40,
    "a landed replacement has closed what it replaces",
    """
    SELECT o.id FROM ledger_patch p JOIN ledger_patch o ON o.id=p.replaces_id
        WHERE p.state='committed' AND o.state NOT IN ('dropped','rolled_back')
    """,
)
query(
    41,
    "linked patches share a chain",
    """
    SELECT p.id FROM ledger_patch p JOIN ledger_patch o ON o.id IN (p.replaces_id,p.rollback_of_id)
        WHERE p.chain_id IS DISTINCT FROM o.chain_id
    """,
)
query(
    42,
    "content is what it was",
    """
    SELECT patch_id FROM ledger_patchcontent
        WHERE sha256<>encode(sha256(convert_to(diff_text,'UTF8')),'hex')
    """,
)
query(
    43,
    "nobody approved their own patch",
    """
    SELECT r.id FROM ledger_patchreview r JOIN ledger_patch p ON p.id=r.patch_id
        WHERE r.verdict='approve' AND r.reviewer_id=p.author_user_id
    """,
)
query(
    44,
    "a managed patch is queued, applied or verified iff it has one live queue item",
    """
    SELECT p.id FROM ledger_patch p LEFT JOIN ledger_queueitem i
        ON i.patch_id=p.id AND i.state NOT IN ('landed','evicted','withdrawn')
        WHERE p.custody='managed' AND (p.state IN ('queued','applied','verified'))<>(i.id IS NOT NULL)
    """,
)
query(
    45,
    "one item per place and per patch",
    """
    SELECT queue_id FROM ledger_queueitem WHERE state NOT IN ('landed','evicted','withdrawn')
        GROUP BY queue_id, position HAVING count(*)>1
    UNION ALL SELECT patch_id FROM ledger_queueitem WHERE state NOT IN ('landed','evicted','withdrawn')
        GROUP BY patch_id HAVING count(*)>1
    """,
)
query(
    46,
    "items and patches agree",
    """
    SELECT i.id FROM ledger_queueitem i JOIN ledger_patch p ON p.id=i.patch_id
        WHERE (i.state='landed' AND p.state NOT IN ('committed','rolled_back'))
            OR (i.state='passing' AND (p.state<>'verified' OR p.tested_tree<>i.candidate_tree))
    """,
)
query(
    47,
    "the window keeps its bounds",
    """
    SELECT id FROM ledger_mergequeue WHERE window_floor<1 OR window_size<window_floor OR window_size>window_ceiling
    """,
)
told(Patch, MergeQueue, QueueItem, Push)


@invariant(71, "each managed committed patch is one commit with its trailer on the branch, and each trailer one patch")
def _landed() -> list[str]:
    wrong: list[str] = []
    for project in Project.objects.filter(custody=Project.Custody.MANAGED).order_by("pk"):
        # Branches whose queue is gone are asked as well: the patches remember where they landed.
        branches = set(Patch.objects.of(project).filter(state="committed").values_list("target_branch", flat=True))
        branches |= set(MergeQueue.objects.filter(project=project).values_list("target_branch", flat=True))
        for branch in sorted(branches):
            wrong += _landed_on(project, branch)
    return wrong


def _landed_on(project: Project, branch: str) -> list[str]:
    """The disagreements between the mirror's branch and the ledger's rows."""
    # The mirror first: a patch that lands in between is then missing here only, and is looked for by itself.
    on_branch = git.landed(project.mirror, branch) if project.mirror.exists() else {}
    rows = Patch.objects.of(project).filter(target_branch=branch).exclude(commit_sha="", landing_commit="")
    fields = ("id", "state", "commit_sha", "landing_commit", "updated_at")
    known = {row["id"]: row for row in rows.values(*fields)}
    now = db_now()
    wrong = []
    for pk, row in known.items():
        if row["state"] == "committed" and on_branch.get(pk) != row["commit_sha"]:
            there = project.mirror.exists() and git.contains(project.mirror, branch, row["commit_sha"])
            if pk in on_branch or not there:
                wrong.append(f"{pk}: commit {row['commit_sha'][:12]} is not its commit on {project.key} {branch}")
    for pk, commit in on_branch.items():
        of = known.get(pk)
        if of is None or commit not in (of["landing_commit"], of["commit_sha"]):
            wrong.append(f"{pk}: commit {commit[:12]} on {project.key} {branch} is of no patch")
        elif of["state"] not in ("committed", "rolled_back") and now - of["updated_at"] > LANDING:
            wrong.append(f"{pk}: commit {commit[:12]} is on {project.key} {branch}, but the patch is {of['state']}")
    return wrong


@invariant(72, "no saved constraint is looser than its wider layer")
def _tighter_only() -> list[str]:
    """As it was when each was saved: a wider layer may be tightened later, and then holds, whatever stands below."""
    phases = Phase.objects.select_related("project").order_by("pk")
    workstreams = Workstream.objects.select_related("phase__project").order_by("pk")
    policies = PatchPolicy.objects.filter(enabled=True).order_by("pk")
    return [
        *_refused(phases, lambda phase: resolve(phase.layers())),
        *_refused(workstreams, lambda row: resolve(_at_its_saving(row))),
        *_refused(policies, lambda row: row.check_tightens(saved_before=row.updated_at)),
    ]


def _at_its_saving(workstream: Workstream) -> list[Layer]:
    """Its layers, without that of a phase which was changed since."""
    layers = workstream.layers()
    return layers if workstream.phase.updated_at < workstream.updated_at else layers[-1:]


@invariant(73, "the seals verify: the newest here, all of them by verify-ledger")
def _sealed() -> list[str]:
    return [str(problem) for problem in audit.check_newest()]


def _refused(rows: Iterable[R], attempt: Callable[[R], object]) -> list[str]:
    """The ids of the rows for which the attempt is refused, each with the refusal."""
    wrong = []
    for row in rows:
        try:
            attempt(row)
        except Refused as refusal:
            wrong.append(f"{row.pk}: {refusal}")
    return wrong


@probe("git")
def _git() -> Finding:
    program = shutil.which("git")
    if program is None:
        return Finding(False, "no git on the path")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS, check=True)
    return Finding(True, done.stdout.strip())


@probe("mirrors")
def _mirrors() -> Finding:
    projects = list(Project.objects.live().filter(custody=Project.Custody.MANAGED).order_by("key"))
    missing = [project.key for project in projects if not Path(project.mirror, "HEAD").is_file()]
    if missing:
        return Finding(False, f"missing for {', '.join(missing)}")
    return Finding(True, f"there for {len(projects)} managed project(s)")

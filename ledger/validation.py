"""Whether a patch may go on: what its text says, what it makes of its base, and what the policy allows (domain.md
§2.3.1).
"""

from typing import Any

from ledger import diff as diffs
from ledger import git, policy
from ledger.models import Patch, PatchPolicy
from pipeline import constraints, events, taskspec
from pipeline.crashpoints import crashpoint
from pipeline.models import Project
from pipeline.refusals import Refused

ROUTES = ("apply_failed", "quarantined", "dropped")


def effective(patch: Patch) -> constraints.Effective:
    """What a patch in this place may be: phase, workstream, task and the policies over each, the layer of every
    value.
    """
    task, workstream, phase = patch.task, patch.workstream, patch.phase
    policies = {row.level: row.layer() for row in PatchPolicy.objects.covering(patch.project, phase, workstream, task)}
    plans = {layer.name: layer for layer in (workstream.layers() if workstream else phase.layers() if phase else [])}
    layers = [policies.get("global"), policies.get("project")]
    for level in ("phase", "workstream", "task"):
        layers += [plans.get(level), policies.get(level)]
    if task is not None:
        layers.append(constraints.Layer("task", taskspec.delta_values(task.spec)))
    return constraints.resolve([layer for layer in layers if layer is not None], strict=False)


def judge(patch: Patch) -> dict[str, Any]:
    """What is found about a patch: the three flags, errors with their code, findings for people, the policy's snapshot.

    Runs git, so never inside a transaction. Judges the resulting tree difference, which must equal what the text says.
    """
    bounds = effective(patch)
    errors: list[dict[str, Any]] = []
    found: dict[str, Any] = {
        "format_ok": False, "scope_ok": False, "constraints_ok": False, "findings": [], "validation_errors": errors,
        "policy_snapshot": {**policy.BUILT_IN, **bounds.values}, "route": "apply_failed",
    }  # fmt: skip
    text = patch.content.diff_text
    try:
        parsed = diffs.parse(text)
        if patch.custody == Project.Custody.MANAGED:
            tree = git.apply(patch.project.mirror, patch.base_commit, text)
            changes = git.changes(patch.project.mirror, patch.base_commit, tree)
            for finding in policy.check_tree(parsed, changes):
                errors.append({**finding.document(), "code": "header_mismatch"})
    except git.GitFailed:
        raise
    except Refused as refusal:
        errors.append({"rule": "format", "code": refusal.code, "message": str(refusal)})
        return found
    found["format_ok"] = not errors
    facts = policy.Facts.of(parsed, issue_ref=patch.issue_ref)
    request_scope = {k: v for k, v in (patch.request.resource_scope if patch.request else {}).items() if k != "type"}
    outside = [
        *policy.check_scope(facts, request_scope, layer="request"),
        *policy.check_scope(facts, bounds.scope(), layer="phase"),
    ]
    seen: set[tuple[str, str | None]] = set()
    for finding in outside:
        if (finding.rule, finding.path) not in seen:
            seen.add((finding.rule, finding.path))
            errors.append({**finding.document(), "code": "files_scope_violation"})
    found["scope_ok"] = not outside
    broken = policy.check_constraints(facts, bounds)
    errors.extend({**finding.document(), "code": finding.rule} for finding in broken)
    found["constraints_ok"] = not broken
    found["findings"] = [finding.document() for finding in policy.check_protected(facts, bounds)]
    route = bounds.values.get("on_validation_failure", {})
    if errors and isinstance(route, dict):
        kind = (
            "scope"
            if found["format_ok"] and not found["scope_ok"]
            else "constraints"
            if found["format_ok"]
            else "format"
        )
        if route.get(kind) in ROUTES:
            found["route"] = route[kind]
    return found


def validate(patch_id: str, *, by: events.Actor = events.SYSTEM) -> bool:
    """Judge one created patch, outside any transaction, and note what was found; False when another did."""
    patch = (
        Patch.objects.select_related(
            "project", "phase__project", "workstream__phase__project", "task__run", "request", "content"
        )
        .filter(pk=patch_id, state=Patch.State.CREATED)
        .first()
    )
    if patch is None:
        return False
    found = judge(patch)
    crashpoint("validate.judged")
    try:
        return patch.note_validation(found, by=by, only_from=(Patch.State.CREATED,))
    except Refused:
        return False  # somebody was faster, or took it another way


def validate_created() -> int:
    """Judge every patch that waits for it; returns how many went on."""
    waiting = Patch.objects.filter(state=Patch.State.CREATED, custody=Project.Custody.MANAGED)
    return sum(validate(pk) for pk in waiting.order_by("pk").values_list("pk", flat=True))

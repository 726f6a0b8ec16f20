"""Whether a patch may go on: what its text says, what it makes of its base, and what the policy allows (domain.md
§2.3.1).
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from ledger import contents, git, leaks, policy, trees
from ledger import diff as diffs
from ledger.models import Patch, PatchPolicy
from pipeline import constraints, events
from pipeline.crashpoints import crashpoint
from pipeline.models import Project
from pipeline.refusals import Refused

MOST_ALIKE = 20


def effective(patch: Patch) -> constraints.Effective:
    """What a patch in this place may be, with the layer of every value."""
    return PatchPolicy.objects.effective(patch.project, patch.phase, patch.workstream, patch.task)


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
    tree = ""
    overridden = {rule for _pk, rule in patch.overrides.holding()}
    # What undoes a landed patch may put back a link that it took away; the constraint below judges that.
    links = policy.takes_links(bounds) or "forbid_symlinks" in overridden or patch.rollback_of_id is not None
    try:
        parsed = diffs.parse(text, links=links, bounds=patch.bounds)
        if patch.custody == Project.Custody.MANAGED:
            tree = git.apply(patch.project.mirror, patch.base_commit, text)
            found["result_tree"] = tree
            for finding in trees.judge(patch.project.mirror, patch.base_commit, tree, parsed, links=links):
                # What a link leads to is text of the patch.
                message = leaks.redacted(finding.message)
                errors.append({**finding.document(), "code": finding.rule, "message": message})
    except git.GitFailed:
        raise
    except Refused as refusal:
        errors.append({"rule": "format", "code": refusal.code, "message": leaks.redacted(patch.why_unfit(refusal))})
        return found
    found["format_ok"] = not errors
    read = partial(_read, patch, tree) if tree else None
    undoes = patch.rollback_of_id is not None
    facts = contents.look(parsed, text, read, issue_ref=patch.issue_ref, undoes=undoes)
    found["facts"] = facts.document()
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
    errors.extend({**one.document(), "code": one.rule} for one in broken if one.rule not in overridden)
    found["constraints_ok"] = all(one.rule in overridden for one in broken)
    answered = [{**one.document(), "severity": "overridden"} for one in broken if one.rule in overridden]
    found["findings"] = [one.document() for one in policy.check_for_review(facts, bounds)] + answered
    found["findings"] += [one.document() for one in _alike(patch, tree)]
    swing = patch.swing(found["policy_snapshot"])
    found["findings"] += [hit.document() for hit in swing.hits]
    found["oscillating"] = swing.reason
    route = bounds.values.get("on_validation_failure", {})
    if errors and isinstance(route, dict):
        kind = (
            "scope"
            if found["format_ok"] and not found["scope_ok"]
            else "constraints"
            if found["format_ok"]
            else "format"
        )
        if route.get(kind) in constraints.ROUTES:
            found["route"] = route[kind]
    return found


def hides_secrets(patch: Patch) -> bool:
    """Whether nobody is shown the secrets in its text: until it is found valid, by that rule or an override of it."""
    return not patch.is_valid


def shown(patch: Patch, text: str) -> str:
    """`text`, which is the diff of `patch`, as people and programs are shown it. What is stored stays as it came.

    Who overrides the rule for this patch is shown what the secrets were, as everybody then is.
    """
    return leaks.redacted(text, sees=lambda line: line.startswith("+")) if hides_secrets(patch) else text


def _alike(patch: Patch, tree: str) -> Iterator[policy.Finding]:
    """A note on the patches that make the same change on another base, or the same tree in other words."""
    same_change = list(Patch.objects.same_change(patch).values_list("pk", flat=True)[:MOST_ALIKE])
    same_tree = list(Patch.objects.same_tree(patch, tree).values_list("pk", flat=True)[:MOST_ALIKE])
    for rule, ids, words in (
        ("same_change", same_change, "makes the same change"),
        ("same_tree", [pk for pk in same_tree if pk not in same_change], "makes the same tree of this base"),
    ):
        if ids:
            message = f"Patch {', '.join(ids)} {words}"
            yield policy.Finding(rule, policy.BUILT_IN_LAYER, None, ids, None, message, "note")


def _read(patch: Patch, tree: str, side: str, path: str) -> bytes | None:
    """A file as it was in the base, or as it is in what the patch makes of it; None when it is not there."""
    try:
        return git.note_file(patch.project.mirror, patch.base_commit if side == "old" else tree, path)
    except git.UnknownCommit:
        return None


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

"""What the gates say in a receipt: every verdict of the landed tree, and the digest of what it rests on."""

import hashlib
import json
from typing import Any

from gates.models import GateRun
from gates.models.gate_run import base_of
from ledger.models import Patch
from pipeline.questions import answers


@answers("patch.receipt", order=50)
def gates_of_patch(*, patch: Patch) -> dict[str, Any]:
    """{"gates": […]}: of each gate, the newest run that judged the tree that landed, as it came from its base."""
    base = base_of(patch, patch.tested_tree)
    rows = GateRun.objects.answering(patch.tested_tree, patch=patch).filter(project=patch.project_id)
    runs = rows.filter(state__in=GateRun.ENDED).select_related("gate").order_by("pk")
    newest = {
        run.gate_id or run.name: run
        for run in runs
        if run.gate is None or not run.gate_as_asked().needs_base or run.base_tree == base
    }
    return {"gates": [_line(run) for run in sorted(newest.values(), key=lambda run: (run.name, run.pk))]}


def _line(run: GateRun) -> dict[str, Any]:
    evidence = json.dumps(run.evidence, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {
        "gate": run.name,
        "version": run.gate_version,
        "run": run.pk,
        "required": run.required,
        "state": run.state,
        "verdict": run.verdict,
        "waived": run.waived_at is not None,
        "waived_by": run.waived_by,
        "exit_code": run.exit_code,
        "tests": {"total": run.total_tests, "passed": run.passed_tests, "failed": run.failed_tests},
        "evidence_sha256": hashlib.sha256(evidence.encode()).hexdigest(),
    }

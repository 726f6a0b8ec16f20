"""What the gates say in a receipt: every verdict of the landed tree, and the digest of what it rests on."""

import hashlib
import json
from typing import Any

from gates.models import GateRun
from ledger.models import Patch
from pipeline.questions import answers


@answers("patch.receipt", order=50)
def gates_of_patch(*, patch: Patch) -> dict[str, Any]:
    """{"gates": […]}: of each gate, the newest run that judged the tree that landed."""
    runs = GateRun.objects.filter(project=patch.project_id, tree_hash=patch.tested_tree).order_by("pk")
    newest = {run.gate_id or run.name: run for run in runs if run.state in GateRun.ENDED}
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

"""What must hold between gate runs, their verdicts, their tests and the trees that landed (domain.md §6)."""

from gates import runner
from gates.models import Gate, GateRun, RunnerHost
from gates.models.gate import ring_of
from gates.pages import ISOLATED_FROM
from pipeline.invariants import Finding, invariant, probe, query, told

query(
    35,
    "no landed tree has a required gate neither passed nor waived",
    """
    SELECT p.id FROM ledger_patch p JOIN LATERAL (
        SELECT DISTINCT ON (g.gate_id) g.gate_id, g.state, g.waived_at FROM gates_gaterun g
        WHERE g.required AND g.tree_hash=p.tested_tree AND g.created_at<=p.committed_at
        ORDER BY g.gate_id, g.created_at DESC) n ON true
    WHERE p.custody='managed' AND p.state='committed' AND n.state<>'passed' AND n.waived_at IS NULL
    """,
)
query(
    48,
    "a finished gate run says how it ended",
    """
    SELECT id FROM gates_gaterun WHERE (state IN ('passed','failed')
            AND (exit_code IS NULL OR completed_at IS NULL OR decision_passed IS NULL))
        OR (state='skipped' AND skip_reason='') OR (state='error')<>(error_kind<>'')
        OR (waived_at IS NOT NULL AND (waive_reason='' OR waived_by=''))
    """,
)
query(
    49,
    "passed means every criterion passed",
    """
    SELECT id FROM gates_gaterun WHERE state='passed' AND (decision_passed IS NOT TRUE OR EXISTS (
        SELECT 1 FROM jsonb_each(verdicts) v WHERE v.value->>'status' IS DISTINCT FROM 'pass'))
    """,
)
query(
    50,
    "counts add up and percentages are percentages",
    """
    SELECT id FROM gates_gaterun WHERE passed_tests+failed_tests+skipped_tests<>total_tests
        OR coverage_percent NOT BETWEEN 0 AND 100 OR patch_coverage_percent NOT BETWEEN 0 AND 100
    """,
)
query(
    51,
    "parsed counts equal the stored results",
    """
    SELECT g.id FROM gates_gaterun g WHERE g.parsed AND g.total_tests<>(
        SELECT count(DISTINCT r.test_key) FROM gates_testresult r WHERE r.gate_run_id=g.id)
    """,
)
query(
    52,
    "a running gate has a living runner",
    """
    SELECT id FROM gates_gaterun WHERE state='running' AND (
        (NOT external AND seen_at < clock_timestamp() - interval '60 seconds')
        OR deadline_at < clock_timestamp() - interval '60 seconds')
    """,
)


@invariant(75, "an enabled gate depends on gates that are there and enabled, and on none that waits for it")
def _dependencies() -> list[str]:
    gates: dict[str, dict[str, Gate]] = {}
    for gate in Gate.objects.order_by("pk"):
        gates.setdefault(gate.project_id, {})[gate.key] = gate
    found = []
    for siblings in gates.values():
        edges = {key: gate.depends_on for key, gate in siblings.items()}
        for gate in siblings.values():
            if not gate.enabled:
                continue
            lacking = [key for key in gate.depends_on if key not in siblings or not siblings[key].enabled]
            if lacking:
                found.append(f"{gate.pk} ({gate.key} depends on {', '.join(lacking)})")
            elif gate.key in (ring := ring_of(gate.key, edges)):
                found.append(f"{gate.pk} ({' → '.join(ring)})")
    return found


told(GateRun)


@probe("sandbox")
def _sandbox() -> Finding:
    found = runner.probe()
    why = f" ({'; '.join(found.missing)})" if found.missing else ""
    if found.level == 0:
        return Finding(False, f"level 0: a gate's command cannot be run on this machine{why}")
    hosts = ", ".join(RunnerHost.objects.not_isolated().values_list("host", flat=True)[:10])
    if found.level < ISOLATED_FROM:
        return Finding(
            False, f"level {found.level}, NOT ISOLATED: a gate's command sees the network and other files{why}"
        )
    if hosts:
        return Finding(False, f"level {found.level} here, but NOT ISOLATED on {hosts}")
    return Finding(True, f"level {found.level}{why}")

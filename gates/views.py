"""Pages of the gates: each execution of a check, and what every test in it said."""

from collections.abc import Callable

from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from gates.evidence import KINDS
from gates.models import Finding, Gate, GateRun, RunnerHost, TestResult
from gates.pages import BULK_OF_GATE_RUN, ISOLATED_FROM, evidence_rows
from pipeline import pages
from pipeline.auth import SignedInRequest, signed_in
from pipeline.models import Event
from pipeline.refusals import need_reason

FAILURES_SHOWN = 50
FINDINGS_SHOWN = 50
PROPOSALS_OFFERED = 8
FAILED_OUTCOMES = ("fail", "error", "infra")


@require_safe
@signed_in
def gate_runs(request: SignedInRequest) -> HttpResponse:
    """The executions, newest first. No output is loaded."""
    filters = pages.Filters(request)
    rows = GateRun.objects.visible_to(request.principal).select_related("project", "patch")
    rows = rows.only(*_columns(), "patch__summary", "project__key").with_waivers()
    if state := filters.one_of("state", GateRun.State.values):
        rows = rows.filter(state=state)
    if project := filters.project():
        rows = rows.filter(project=project)
    gate = filters.id("gate")
    if gate:
        rows = rows.filter(gate=gate)
    page = pages.page_of(rows, filters)
    gates = Gate.objects.visible_to(request.principal).order_by("project__key", "key")
    projects = pages.project_choices(request.principal)
    proposed = [key for pk, key in projects if not project or pk == project]
    return render(
        request,
        "gates/gate_runs.html",
        {
            "gate_runs": page.rows,
            "next_cursor": page.next_cursor,
            "filters": filters,
            "states": GateRun.State.choices,
            "projects": projects,
            "chosen_gate": gate,
            "proposals_of": proposed[:PROPOSALS_OFFERED],
            "more_proposals": len(proposed) > PROPOSALS_OFFERED,
            "gates": [(pk, f"{project}/{key}") for pk, project, key in gates.values_list("pk", "project__key", "key")],
            "isolated_from": ISOLATED_FROM,
            "runners": RunnerHost.objects.all()[:50],
        },
        status=filters.status,
    )


def _columns() -> list[str]:
    """The columns of a gate run that a list shows: all but the bulk."""
    return [field.name for field in GateRun._meta.fields if field.name not in BULK_OF_GATE_RUN]


@require_safe
@signed_in
def gate_run(request: SignedInRequest, pk: str) -> HttpResponse:
    """One execution: its verdict by criterion, what every test said, and the end of its output."""
    rows = GateRun.objects.visible_to(request.principal).select_related("project", "gate", "patch", "retry_of")
    shown = get_object_or_404(rows, pk=pk)
    filters = pages.Filters(request)
    results = TestResult.objects.filter(gate_run=shown)
    failures = list(results.filter(outcome__in=FAILED_OUTCOMES).order_by("pk")[:FAILURES_SHOWN])
    if outcome := filters.one_of("outcome", TestResult.Outcome.values):
        results = results.filter(outcome=outcome)
    page = pages.page_of(results.defer("trace", "message"), filters)
    findings = list(Finding.objects.filter(gate_run=shown).order_by("-is_new", "pk")[: FINDINGS_SHOWN + 1])
    return render(
        request,
        "gates/gate_run.html",
        {
            "gate_run": shown,
            "may": pages.roles_in(request.principal, shown.project_id),
            "failures": failures,
            "findings": findings[:FINDINGS_SHOWN],
            "more_findings": len(findings) > FINDINGS_SHOWN,
            "reports": evidence_rows(shown.evidence, KINDS),
            "notes": shown.evidence.get("notes") or [],
            "moved": [
                dict(zip(("kind", "path", "line", "what"), one, strict=True))
                for one in shown.evidence.get("goalposts") or []
            ],
            "results": page.rows,
            "next_cursor": page.next_cursor,
            "filters": filters,
            "outcomes": TestResult.Outcome.choices,
            "isolated_from": ISOLATED_FROM,
            "live": shown.state == GateRun.State.RUNNING and not shown.external,
            "waiting_for": [one.why for one in shown.hindrances()] if shown.state == GateRun.State.PENDING else [],
            "events": pages.with_addresses(
                Event.objects.about(shown).defer("canonical", "before", "after", "data").reverse()[:20]
            ),
            "trail": [
                (_("Gates"), reverse("gates:list")),
                *([(shown.gate.name, reverse("gates:gate", args=[shown.gate_id]))] if shown.gate else []),
                (_("Run"), ""),
            ],
        },
        status=filters.status,
    )


@require_POST
@signed_in
def gate_run_rerun(request: SignedInRequest, pk: str) -> HttpResponse:
    """Run the check again on the same tree, as a new record."""
    made: list[GateRun] = []
    answer = _act(
        request,
        pk,
        "operator",
        lambda run: made.append(run.rerun(by=request.principal.actor)),
        _("The check runs again, as a new record."),
    )
    return redirect("gates:run", made[0].pk) if made else answer


@require_POST
@signed_in
def gate_run_skip(request: SignedInRequest, pk: str) -> HttpResponse:
    """Do not run the check, with a reason; it then satisfies no requirement."""
    reason = request.POST.get("reason", "")
    return _act(
        request, pk, "approver", lambda run: run.skip(need_reason(reason), by=request.principal.actor), _("Skipped.")
    )


@require_POST
@signed_in
def gate_run_waive(request: SignedInRequest, pk: str) -> HttpResponse:
    """Let the patch pass although the check did not, with a reason, and for some hours if `hours` are given."""
    reason, hours = request.POST.get("reason", ""), request.POST.get("hours", "")
    return _act(
        request,
        pk,
        "approver",
        lambda run: run.waive(reason, by=request.principal.actor, expires_at=pages.end_after(hours)),
        _("Waived: it counts as passed."),
    )


@require_POST
@signed_in
def gate_run_revoke_waiver(request: SignedInRequest, pk: str) -> HttpResponse:
    """End the waiver that stands, with a reason: the check counts as what it is again."""
    reason = request.POST.get("reason", "")
    return _act(
        request,
        pk,
        "approver",
        lambda run: run.revoke_waiver(reason, by=request.principal.actor),
        _("The waiver has ended."),
    )


def _act(request: SignedInRequest, pk: str, role: str, verb: Callable[[GateRun], object], done: str) -> HttpResponse:
    rows = GateRun.objects.visible_to(request.principal).select_related("gate", "patch", "queue_item", "project")
    run = get_object_or_404(rows, pk=pk)
    request.principal.must(role, run.project_id)
    return pages.act(request, lambda: verb(run), done=done, to=reverse("gates:run", args=[pk]))

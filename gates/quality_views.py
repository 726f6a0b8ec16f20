"""Pages on how dependable the checks are: one gate over time, flaky tests in quarantine, gates that would suit."""

from datetime import timedelta

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from gates import bootstrap, reports
from gates.models import FlakyTest, Gate, TestResult
from gates.models.flaky_test import LONGEST_DAYS
from gates.pages import ISOLATED_FROM
from pipeline import pages
from pipeline.auth import SignedInRequest, signed_in
from pipeline.clock import db_now
from pipeline.models import Project
from pipeline.refusals import NotFound, Refused, need_reason


@require_safe
@signed_in
def gate(request: SignedInRequest, pk: str) -> HttpResponse:
    """One gate: how often it passes, how long it takes, its slowest and its flakiest tests, and those in quarantine."""
    shown = get_object_or_404(Gate.objects.visible_to(request.principal).select_related("project"), pk=pk)
    return render(
        request,
        "gates/gate.html",
        {
            "gate": shown,
            "report": reports.of_gate(shown),
            "quarantined": reports.quarantine_of(shown),
            "may": pages.roles_in(request.principal, shown.project_id),
            "isolated_from": ISOLATED_FROM,
            "quarantine_days": _quarantine_days(),
            "trail": [(_("Gates"), reverse("gates:list")), (shown.name, "")],
        },
    )


def _quarantine_days() -> int:
    """How long a test is put aside by the button: as long as the installation says, and no longer than any may be."""
    return min(settings.SIGNALBOX_QUARANTINE_DAYS, LONGEST_DAYS)


@require_POST
@signed_in
def quarantine(request: SignedInRequest, pk: str) -> HttpResponse:
    """Put one of the gate's tests into quarantine, with a reason; whoever does it owns it."""
    shown = get_object_or_404(Gate.objects.visible_to(request.principal), pk=pk)
    request.principal.must("approver", shown.project_id)
    key, reason = request.POST.get("test_key", ""), request.POST.get("reason", "")
    days = _quarantine_days()

    def mark() -> FlakyTest:
        if not TestResult.objects.filter(test_key=key, gate_run__project=shown.project_id).exists():
            raise NotFound.of("test_result", key[:80])
        return FlakyTest.objects.add(
            by=request.principal.actor,
            project=shown.project,
            test_key=key,
            owner=request.principal.actor.name,
            reason=need_reason(reason),
            expires_at=db_now() + timedelta(days=days),
        )

    done = _("In quarantine for %(days)d days: it runs, and its failure is not judged.") % {"days": days}
    return pages.act(request, mark, done=done, to=reverse("gates:gate", args=[pk]))


@require_POST
@signed_in
def flaky_release(request: SignedInRequest, pk: str) -> HttpResponse:
    """End a quarantine, with a reason: the test is judged again."""
    row = get_object_or_404(FlakyTest.objects.visible_to(request.principal), pk=pk)
    request.principal.must("approver", row.project_id)
    reason = request.POST.get("reason", "")
    to = request.POST.get("gate", "")
    known = Gate.objects.visible_to(request.principal).filter(pk=to).exists() if len(to) == 26 else False
    return pages.act(
        request,
        lambda: row.release(reason, by=request.principal.actor),
        done=_("Released: it is judged again."),
        to=reverse("gates:gate", args=[to]) if known else reverse("gates:list"),
    )


@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
def proposals(request: SignedInRequest, key: str) -> HttpResponse:
    """Gates that would suit a project, from its files; those that an admin chooses are saved, and no others."""
    project = get_object_or_404(Project.objects.visible_to(request.principal), key=key)
    here = reverse("gates:proposals", args=[key])
    if request.method == "POST":
        request.principal.must("admin", project.pk)
        chosen = request.POST.getlist("keys")
        if not chosen:
            messages.error(request, _("Nothing was ticked, so nothing was saved: tick the gates that you want."))
            return redirect(here)
        return pages.act(
            request,
            lambda: bool(bootstrap.save(project, chosen, by=request.principal.actor)),
            done=_("Saved: they judge the patches from now on."),
            to=here,
        )
    try:
        offered = bootstrap.proposals(project)
    except Refused as refusal:
        messages.error(request, str(refusal))
        return redirect("gates:list")
    return render(
        request,
        "gates/proposals.html",
        {
            "project": project,
            "proposals": offered,
            "may_save": request.principal.may("admin", project.pk),
            "trail": [(_("Gates"), reverse("gates:list")), (_("Proposals for %(key)s") % {"key": key}, "")],
        },
    )

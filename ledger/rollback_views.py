"""Pages about taking back: the button of one patch, and the plan of a rewind before it is done."""

from datetime import UTC, datetime

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from ledger import rollback
from ledger.models import Patch
from pipeline.auth import Denied, SignedInRequest, signed_in
from pipeline.models import Project
from pipeline.refusals import InvalidField, Refused

FIELDS = ("worker", "tool", "model", "run", "since", "until")


@require_POST
@signed_in
def patch_rollback(request: SignedInRequest, pk: str) -> HttpResponse:
    """Take one patch back, with a reason, and show the patch that undoes it when it had landed."""
    patch = get_object_or_404(Patch.objects.visible_to(request.principal).select_related("project"), pk=pk)
    request.principal.must("approver", patch.project_id)
    try:
        found, is_new = rollback.roll_back(patch, request.POST.get("reason", ""), by=request.principal.actor)
    except Denied:
        raise
    except Refused as refusal:
        messages.error(request, str(refusal))
        return redirect("ledger:patch", pk=pk)
    if found.pk == patch.pk:
        messages.success(request, _("Rolled back. It will not land."))
    elif is_new:
        messages.success(request, _("This patch undoes it. It lands like any other, once its gates pass."))
    else:
        messages.info(request, _("It is being taken back already, by this patch."))
    return redirect("ledger:patch", pk=found.pk)


@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
def rewind(request: SignedInRequest) -> HttpResponse:
    """What it takes to take back a set of landed patches; POST, with a reason, makes the patches that do it."""
    given = request.POST if request.method == "POST" else request.GET
    asked = {name: given.get(name, "").strip()[:200] for name in FIELDS}
    project, plan = None, None
    if key := given.get("project", ""):
        project = get_object_or_404(Project.objects.visible_to(request.principal), key=key)
        request.principal.must("approver", project)
        try:
            plan = rollback.plan(_wanted(project, asked))
            if request.method == "POST":
                return _carry_out(request, plan)
        except Denied:
            raise
        except Refused as refusal:
            messages.error(request, str(refusal))
    return render(
        request,
        "ledger/rewind.html",
        {
            "plan": plan,
            "project": project,
            "asked": asked,
            "projects": [
                (row.key, row.name)
                for row in Project.objects.visible_to(request.principal).live().order_by("key")
                if request.principal.may("approver", row)
            ],
            "trail": [(_("Ledger"), reverse("ledger:list")), (_("Rewind"), "")],
        },
    )


def _carry_out(request: SignedInRequest, plan: rollback.Plan) -> HttpResponse:
    is_partial = request.POST.get("partial") == "yes"
    made = rollback.carry_out(plan, request.POST.get("reason", ""), by=request.principal.actor, partial=is_partial)
    messages.success(
        request, _("%(count)s patches undo what was chosen. They land one after the other.") % {"count": len(made)}
    )
    return redirect(f"{reverse('ledger:list')}?project={plan.project.pk}")


def _wanted(project: Project, asked: dict[str, str]) -> rollback.Wanted:
    """What the form asks for. Raises InvalidField for a time that is none."""
    return rollback.Wanted(
        project=project,
        worker=asked["worker"],
        tool=asked["tool"],
        model=asked["model"],
        run=asked["run"],
        since=_time("since", asked["since"]),
        until=_time("until", asked["until"]),
    )


def _time(name: str, text: str) -> datetime | None:
    """A time as a browser's field writes it, in UTC; None for an empty one."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidField(name, f"“{text[:40]}” is no time such as 2026-11-22T08:00") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)

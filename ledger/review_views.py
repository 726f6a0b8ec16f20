"""Pages of reviewing: the buttons of a patch's review box, what changed between revisions, and the policy explained."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.core.exceptions import BadRequest
from django.db.models import Q
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from ledger import rendering, review_words, reviewing
from ledger.api.policies import place_in
from ledger.models import Patch, PatchPolicy
from pipeline import pages, taskspec
from pipeline.auth import SignedInRequest, signed_in
from pipeline.events import Event
from pipeline.models import Phase, Project, Task, Workstream
from pipeline.refusals import Refused
from pipeline.rest import BadQuery

DEFAULT_DAYS = "7"
LISTED = 8
"""So many built-in entries of a constraint are shown at once; more are folded away."""


@require_POST
@signed_in
def patch_approve(request: SignedInRequest, pk: str) -> HttpResponse:
    """Approve a patch."""
    return _say(request, pk, "approve", "approver", _("Approved."))


@require_POST
@signed_in
def patch_reject(request: SignedInRequest, pk: str) -> HttpResponse:
    """Veto a patch, with a reason: it is set aside."""
    return _say(request, pk, "reject", "approver", _("Rejected. It is set aside, and you own it now."))


@require_POST
@signed_in
def patch_comment(request: SignedInRequest, pk: str) -> HttpResponse:
    """Comment on a patch, on the whole or on lines of a file."""
    return _say(request, pk, "comment", "operator", _("Said. The next attempt of its task is told."))


def _say(request: SignedInRequest, pk: str, verdict: str, role: str, done: str) -> HttpResponse:
    given = request.POST
    body, path = given.get("body", given.get("reason", "")), given.get("path", "")

    def give(patch: Patch) -> object:
        anchors: list[dict[str, Any]] = []
        words = body
        if path:
            first = given.get("first", "").strip()
            last = given.get("last", "").strip() or first
            anchors = [{"path": path, "first": _line(first), "last": _line(last), "body": body}]
            words = ""
        who = request.principal
        return patch.reviews.give(patch, verdict, by=who.actor, reviewer=who.user, body=words, anchors=anchors)

    return _act(request, pk, role, give, done)


def _line(text: str) -> int | str:
    """The number, or the text as it is, which the verb refuses in words."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text


@require_POST
@signed_in
def patch_override(request: SignedInRequest, pk: str) -> HttpResponse:
    """Set one rule aside for a patch, with a reason and for some days."""
    given, who = request.POST, request.principal
    days = given.get("days", DEFAULT_DAYS)
    if not (days.isascii() and days.isdigit() and len(days) < 4):
        raise BadRequest("days: a whole number")

    def grant(patch: Patch) -> object:
        rule, reason = given.get("rule", ""), given.get("reason", "")
        life = timedelta(days=int(days))
        return reviewing.override(patch, rule, reason=reason, by=who.actor, user=who.user, expires_after=life)

    return _act(request, pk, "admin", grant, _("Set aside for this patch."))


def _act(request: SignedInRequest, pk: str, role: str, verb: Callable[[Patch], object], done: str) -> HttpResponse:
    who = request.principal
    patch = get_object_or_404(Patch.objects.visible_to(who).select_related("project"), pk=pk)
    who.must(role, patch.project_id)
    to = f"{reverse('ledger:patch', args=[pk])}#reviews"
    return pages.act(request, lambda: verb(patch), done=done, to=to)


@require_safe
@signed_in
def patch_interdiff(request: SignedInRequest, pk: str, against: str) -> HttpResponse:
    """What a revision does otherwise than an earlier one."""
    rows = Patch.objects.visible_to(request.principal).select_related("project", "content")
    patch, earlier = get_object_or_404(rows, pk=pk), get_object_or_404(rows, pk=against)
    if not all(hasattr(one, "content") for one in (patch, earlier)):
        raise Http404
    problem, found = "", None
    try:
        found = reviewing.interdiff(patch, earlier)
    except Refused as refusal:
        problem = str(refusal)
    title = patch.summary or _("Patch without a summary")
    return render(
        request,
        "ledger/interdiff.html",
        {
            "patch": patch,
            "against": earlier,
            "found": found,
            "problem": problem,
            "files": rendering.render(found.text) if found else [],
            "trail": [
                (_("Ledger"), reverse("ledger:list")),
                (title, reverse("ledger:patch", args=[pk])),
                (_("Since the earlier revision"), ""),
            ],
        },
    )


@require_safe
@signed_in
def policy(request: SignedInRequest, key: str) -> HttpResponse:
    """The effective policy of a project, or of a phase, workstream or task in it: what each layer sets, who set it and
    when, and each value that holds with the layer that it is from.
    """
    who = request.principal
    project = get_object_or_404(Project.objects.visible_to(who), key=key)
    filters = pages.Filters(request)
    filters.id("phase")
    filters.id("workstream")
    filters.id("task")
    try:
        place = place_in(project, {} if filters.errors else filters)
    except BadQuery as problem:
        raise BadRequest(str(problem)) from problem
    except Refused as problem:
        raise Http404 from problem
    effective = PatchPolicy.objects.effective(project, *place)
    layers = _layers(project, *place)
    values = [
        {
            "name": name,
            "words": review_words.RULES.get(name, ""),
            "shown": review_words.value(told["value"]),
            "entries_hidden": told["value"] if isinstance(told["value"], list) and len(told["value"]) > LISTED else [],
            **told,
            "source": _source(layers, name, told["layer"]),
        }
        for name, told in reviewing.explain(effective).items()
    ]
    return render(
        request,
        "ledger/policy.html",
        {
            "project": project,
            "filters": filters,
            "values": values,
            "layers": layers,
            "chosen_task": place[2],
            "may_admin": who.may("admin", project),
            "phases": Phase.objects.filter(project=project).order_by("key").values_list("pk", "key"),
            "workstreams": Workstream.objects.filter(phase__project=project).order_by("key").values_list("pk", "key"),
            "trail": [(_("Ledger"), reverse("ledger:list")), (_("Policy"), "")],
        },
        status=filters.status,
    )


def _layers(
    project: Project, phase: Phase | None, workstream: Workstream | None, task: Task | None
) -> list[dict[str, Any]]:
    """What stands over this place, wide to narrow, with what each sets, and who wrote that last."""
    plans = {
        layer.name: layer.values for layer in (workstream.layers() if workstream else phase.layers() if phase else [])
    }
    if task is not None:
        plans["task"] = taskspec.delta_values(task.spec)
    policies = PatchPolicy.objects.over(project, phase, workstream, task)
    found: list[dict[str, Any]] = []
    for level, word in PatchPolicy.Level.choices:
        target: Any = {"phase": phase, "workstream": workstream, "task": task}.get(level)
        if level in plans:
            found.append({"level": word, "name": level, "row": target, "target": target, "values": plans[level]})
        found += [
            {
                "level": word, "name": row.layer().name, "row": row, "target": row.target, "values": row.layer().values,
                "policy": row,
            }
            for row in policies
            if row.level == level
        ]  # fmt: skip
    written = Event.objects.filter(subject_id__in=[one["row"].pk for one in found])
    written = written.filter(Q(kind__endswith=".added") | Q(kind__endswith=".changed") | Q(kind="task.created"))
    told = written.values_list("subject_id", "actor_name", "created_at").order_by("id")
    newest = {subject: (name, at) for subject, name, at in told}
    for one in found:
        by, at = newest.get(one["row"].pk, ("", one["row"].created_at))
        one |= {"sets": {name: review_words.value(value) for name, value in one["values"].items()}, "by": by, "at": at}
    return found


def _source(layers: list[dict[str, Any]], constraint: str, layer: str) -> dict[str, Any] | None:
    """The narrowest of these layers that has this name, holds, and sets the constraint; None for what is built in."""

    def says(one: dict[str, Any]) -> bool:
        holds = "policy" not in one or one["policy"].enabled
        return holds and one["name"] == layer and constraint in one["sets"]

    return next((one for one in reversed(layers) if says(one)), None)


@require_safe
@signed_in
def policy_replay(request: SignedInRequest, key: str, pk: str) -> HttpResponse:
    """What one policy would have refused of the last thousand patches in its place."""
    who = request.principal
    project = get_object_or_404(Project.objects.visible_to(who), key=key)
    row = get_object_or_404(PatchPolicy.objects.visible_to(who), pk=pk)
    found = reviewing.replay(row, 1_000)
    by_rule = [(review_words.rule(name), count) for name, count in found["by_rule"].items()]
    return render(
        request,
        "ledger/policy_replay.html",
        {
            "project": project,
            "policy": row,
            "found": found,
            "by_rule": by_rule,
            "trail": [(_("Policy"), reverse("ledger:policy", args=[key])), (_("Replay"), "")],
        },
    )


@require_safe
@signed_in
def waiting(request: SignedInRequest) -> HttpResponse:
    """What waits for the viewer's review, the riskiest first."""
    return render(
        request,
        "ledger/reviews_waiting.html",
        {"trail": [(_("Ledger"), reverse("ledger:list")), (_("Waits for your review"), "")]},
    )

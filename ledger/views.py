"""Pages of the ledger: patches with what was changed and what became of them, and the queues in which they land."""

from collections.abc import Callable
from functools import partial
from typing import Any

from django.contrib import messages
from django.core.exceptions import BadRequest
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from ledger import bulk, rendering, validation
from ledger.models import MergeQueue, Patch, PatchContent, QueueItem
from ledger.pages import BULK_OF_PATCH, trains
from pipeline import pages
from pipeline.auth import SignedInRequest, signed_in
from pipeline.ids import is_id
from pipeline.models import Event
from pipeline.refusals import Refused

HISTORY_SHOWN = 60
COMMENTED = 200
REFUSED_SHOWN = 10
# The main road, and how a patch may leave it.
ROAD = ("created", "validated", "queued", "applied", "verified", "committed")


@require_safe
@signed_in
def patches(request: SignedInRequest) -> HttpResponse:
    """The patches, newest first. No diff is loaded."""
    filters = pages.Filters(request)
    rows = Patch.objects.visible_to(request.principal).select_related("project", "task")
    rows = rows.defer("task__spec", *BULK_OF_PATCH)
    state = filters.one_of("state", ["open", *Patch.State.values])
    if state == "open":
        rows = rows.open()
    elif state:
        rows = rows.filter(state=state)
    for name, value in (("project", filters.project()), ("run", filters.id("run"))):
        if value:
            rows = rows.filter(**{name: value})
    page = pages.page_of(rows, filters)
    return render(
        request,
        "ledger/patches.html",
        {
            "patches": page.rows,
            "next_cursor": page.next_cursor,
            "filters": filters,
            "bulk": list(bulk.LABELS.items()) if request.principal.project_ids("operator") != set() else [],
            "states": [("open", _("on its way")), *Patch.State.choices],
            "projects": pages.project_choices(request.principal),
        },
        status=filters.status,
    )


@require_safe
@signed_in
def patch(request: SignedInRequest, pk: str) -> HttpResponse:
    """One patch: where it stands, what it changes, what was found, what happened."""
    patch = _patch(request, pk)
    content = getattr(patch, "content", None)
    told = Event.objects.about(patch).defer("canonical", "before", "data")
    history = list(told.reverse()[:HISTORY_SHOWN])
    chain = Patch.objects.visible_to(request.principal).chain(patch.chain_id).exclude(pk=patch.pk)
    title = patch.summary or _("Patch without a summary")
    text = validation.shown(patch, content.diff_text) if content else ""
    files = rendering.render(text)
    rendering.annotate(files, _comments(patch))
    return render(
        request,
        "ledger/patch.html",
        {
            "patch": patch,
            "title": title,
            "may": pages.roles_in(request.principal, patch.project_id),
            "may_go": {to: Patch.can_move(patch.state, to) for to in ("quarantined", "dropped", "queued")},
            "steps": _rail(patch, history),
            "files": files,
            "content": content,
            "is_redacted": content is not None and text != content.diff_text,
            "judged": patch.is_valid or bool(patch.validation_errors),
            "item": QueueItem.objects.filter(patch=patch).order_by("-pk").first(),
            "receipt": getattr(patch, "receipt", None),
            "push": getattr(patch, "push", None),
            "chain": chain.defer(*BULK_OF_PATCH)[:20],
            "events": pages.with_addresses(history),
            "trail": [(_("Ledger"), reverse("ledger:list")), (title, "")],
        },
    )


# Long texts of what is read with a patch.
BULK_BESIDE = (
    "attempt__output_tail", "attempt__input_prompt", "attempt__error_log", "receipt__statement", "push__request_text",
)  # fmt: skip


def _patch(request: SignedInRequest, pk: str) -> Patch:
    rows = Patch.objects.visible_to(request.principal).select_related(
        "project", "phase", "workstream__phase", "content", "run__workstream", "run__phase", "task", "attempt",
        "receipt", "push",
    )  # fmt: skip
    return get_object_or_404(rows.defer(*BULK_BESIDE), pk=pk)


def _comments(patch: Patch) -> list[rendering.Comment]:
    """What reviewers said of lines, oldest first. Of lines that the diff does not show, the review box tells alone."""
    reviews = patch.reviews.exclude(anchors=[]).order_by("pk")[:COMMENTED]
    return [
        rendering.Comment(one["path"], one["side"], one["first"], one["last"], review.reviewer_name, one["body"])
        for review in reviews
        for one in review.anchors
    ]


def _rail(patch: Patch, newest_first: list[Event]) -> list[dict[str, Any]]:
    """The main road with the time of each state's last entry, and the state off the road in which the patch is."""
    entered: dict[str, Any] = {}
    for event in newest_first:
        state = (event.after or {}).get("state")
        if state:
            entered.setdefault(state, event.created_at)
    on_road = patch.state in ROAD
    reached = ROAD.index(patch.state) if on_road else max((ROAD.index(s) for s in entered if s in ROAD), default=0)
    steps = [
        {
            "state": state,
            "at": entered.get(state) if place <= reached else None,
            "past": place < reached or (not on_road and place == reached),
            "current": state == patch.state,
        }
        for place, state in enumerate(ROAD)
        if on_road or place <= reached
    ]
    if not on_road:
        steps.append({"state": patch.state, "at": entered.get(patch.state), "past": False, "current": True})
    return steps


@require_safe
@signed_in
def patch_diff(request: SignedInRequest, pk: str) -> HttpResponse:
    """The diff as it came, as plain text; without the secrets for which it was refused."""
    patch = get_object_or_404(Patch.objects.visible_to(request.principal), pk=pk)
    content = get_object_or_404(PatchContent, patch=patch)
    return HttpResponse(validation.shown(patch, content.diff_text), content_type="text/plain; charset=utf-8")


@require_POST
@signed_in
def patch_quarantine(request: SignedInRequest, pk: str) -> HttpResponse:
    """Set a patch aside, with a reason."""
    return _act(
        request,
        pk,
        "operator",
        lambda patch, reason: patch.quarantine(reason, by=request.principal.actor),
        _("Set aside. It can be released or dropped."),
    )


@require_POST
@signed_in
def patch_release(request: SignedInRequest, pk: str) -> HttpResponse:
    """Let a patch out of quarantine, with a reason; it is validated from the start."""
    return _act(
        request,
        pk,
        "approver",
        lambda patch, reason: patch.release(by=request.principal.actor, reason=reason),
        _("Released. It is validated from the start."),
    )


@require_POST
@signed_in
def patch_drop(request: SignedInRequest, pk: str) -> HttpResponse:
    """Close a patch for good, with a reason."""
    return _act(
        request,
        pk,
        "operator",
        lambda patch, reason: patch.drop(reason, by=request.principal.actor),
        _("Dropped. It will not land."),
    )


@require_POST
@signed_in
def patch_requeue(request: SignedInRequest, pk: str) -> HttpResponse:
    """Give a patch that failed to apply another try at the tail of its queue."""
    return _act(
        request, pk, "operator", lambda patch, _reason: patch.queue(by=request.principal.actor), _("Queued again.")
    )


def _act(request: SignedInRequest, pk: str, role: str, verb: Callable[[Patch, str], object], done: str) -> HttpResponse:
    patch = get_object_or_404(Patch.objects.visible_to(request.principal).select_related("project"), pk=pk)
    request.principal.must(role, patch.project_id)
    reason = request.POST.get("reason", "")
    return pages.act(request, lambda: verb(patch, reason), done=done, to=reverse("ledger:patch", args=[pk]))


@require_POST
@signed_in
def patches_bulk(request: SignedInRequest) -> HttpResponse:
    """One verb for the patches that were ticked, with a reason; those that refuse are left out, and named."""
    given = request.POST
    ids = [pk for pk in given.getlist("patch") if is_id(pk)][: bulk.MOST]
    verb = bulk.VERBS.get(given.get("verb", ""))
    if verb is None:
        raise BadRequest("verb: unknown")
    back = reverse("ledger:list")
    if not ids:
        messages.error(request, _("Tick the patches first."))
        return redirect(back)
    patches = bulk.chosen(Patch.objects.visible_to(request.principal).filter(pk__in=ids))
    for project in {patch.project_id for patch in patches}:
        request.principal.must(verb.role, project)
    by, reason = request.principal.actor, given.get("reason", "")
    try:
        outcome = bulk.carry_out(given["verb"], patches, reason, by=by, partial=True)
    except Refused as refusal:
        messages.error(request, str(refusal))
        return redirect(back)
    words = {"verb": bulk.LABELS[given["verb"]], "done": outcome.done, "count": len(patches)}
    messages.success(request, _("%(verb)s: %(done)d of %(count)d patches.") % words)
    for one in outcome.refused[:REFUSED_SHOWN]:
        messages.warning(request, one.message)
    return redirect(back)


@require_POST
@signed_in
def queue_pause(request: SignedInRequest, pk: str) -> HttpResponse:
    """Have a queue build and land nothing, with a reason."""
    return _of_queue(request, pk, MergeQueue.pause, _("Paused. Nothing lands until it is resumed."))


@require_POST
@signed_in
def queue_resume(request: SignedInRequest, pk: str) -> HttpResponse:
    """Let a queue go on."""
    return _of_queue(request, pk, MergeQueue.resume, _("Goes on."))


def _of_queue(request: SignedInRequest, pk: str, verb: Callable[..., bool], done: str) -> HttpResponse:
    queue = get_object_or_404(MergeQueue.objects.visible_to(request.principal), pk=pk)
    request.principal.must("operator", queue.project_id)
    reason = request.POST.get("reason", "")
    call = partial(verb, queue, by=request.principal.actor, reason=reason)
    return pages.act(request, call, done=done, to=reverse("ledger:merge_queue"))


@require_safe
@signed_in
def merge_queues(request: SignedInRequest) -> HttpResponse:
    """The queue of every branch: what lands next, and on what it is tested."""
    return render(request, "ledger/merge_queue.html", {"trains": trains(request)})

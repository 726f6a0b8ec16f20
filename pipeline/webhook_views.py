"""The delivery log: which webhooks there are, what was sent to each, what it answered, and sending again."""

import json

from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from pipeline import pages, webhooks
from pipeline.auth import SignedInRequest, signed_in
from pipeline.models import Delivery, WebhookEndpoint


@require_safe
@signed_in
def endpoints(request: SignedInRequest) -> HttpResponse:
    """Every webhook that the person administers, newest first."""
    rows = WebhookEndpoint.objects.visible_to(request.principal).select_related("subscription__project")
    filters = pages.Filters(request)
    page = pages.page_of(rows, filters)
    trail = [(_("Events"), reverse("events:list")), (_("Webhooks"), "")]
    shown = {"endpoints": page.rows, "next_cursor": page.next_cursor, "filters": filters, "trail": trail}
    return render(request, "pipeline/webhooks.html", shown, status=filters.status)


@require_safe
@signed_in
def deliveries(request: SignedInRequest, pk: str) -> HttpResponse:
    """One webhook's deliveries, newest first, by state."""
    known = WebhookEndpoint.objects.visible_to(request.principal).select_related("subscription__project")
    endpoint = get_object_or_404(known, pk=pk)
    filters = pages.Filters(request)
    rows = Delivery.objects.with_kind().filter(endpoint=endpoint).defer("response_tail")
    if state := filters.one_of("state", Delivery.State.values):
        rows = rows.filter(state=state)
    page = pages.page_of(rows, filters)
    return render(
        request,
        "pipeline/deliveries.html",
        {
            "endpoint": endpoint,
            "deliveries": page.rows,
            "next_cursor": page.next_cursor,
            "filters": filters,
            "states": Delivery.State.choices,
            "trail": [
                (_("Events"), reverse("events:list")),
                (_("Webhooks"), reverse("webhooks:list")),
                (endpoint.subscription.key, ""),
            ],
        },
        status=filters.status,
    )


@require_safe
@signed_in
def delivery(request: SignedInRequest, pk: str) -> HttpResponse:
    """One delivery: the body that was sent, and the receiver's last answer."""
    shown = _delivery(request, pk)
    sent = webhooks.preview(shown)
    endpoint = shown.endpoint
    return render(
        request,
        "pipeline/delivery.html",
        {
            "delivery": shown,
            "body": None if sent is None else json.dumps(sent, indent=2, ensure_ascii=False),
            "redeliveries": shown.redeliveries.order_by("-pk")[:20],
            "trail": [
                (_("Events"), reverse("events:list")),
                (_("Webhooks"), reverse("webhooks:list")),
                (endpoint.subscription.key, reverse("webhooks:deliveries", args=[endpoint.pk])),
                (shown.kind or _("Delivery"), ""),
            ],
        },
    )


@require_POST
@signed_in
def redeliver(request: SignedInRequest, pk: str) -> HttpResponse:
    """Send the same event again."""
    row = _delivery(request, pk)

    def verb() -> object:
        request.principal.must("admin", row.endpoint.subscription.project_id)
        return row.redeliver(by=request.principal.actor, reason=request.POST.get("reason", ""))

    to = reverse("webhooks:deliveries", args=[row.endpoint_id])
    return pages.act(request, verb, done=_("It is sent again within seconds."), to=to)


def _delivery(request: SignedInRequest, pk: str) -> Delivery:
    visible = Delivery.objects.with_kind().visible_to(request.principal)
    return get_object_or_404(visible.select_related("endpoint__subscription__project"), pk=pk)

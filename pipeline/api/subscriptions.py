"""Being told, over HTTP: subscriptions that programs pull from, webhooks that they feed, and every delivery."""

from typing import Any

import django_filters
from django.conf import settings
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from pipeline.api.events import EventSerializer
from pipeline.kinds import CHANNELS
from pipeline.models import Delivery, Project, Subscription, WebhookEndpoint
from pipeline.rest import (
    BadQuery,
    DefinitionEndpoint,
    Endpoint,
    Filters,
    IdFilter,
    Listed,
    ProjectFilter,
    Reason,
    Strict,
    StrictModel,
    etag,
    read_limit,
)
from pipeline.selection import MAX_PATTERN_LENGTH, MAX_PATTERNS

MAX_CURSOR_LENGTH = 64


class SubscriptionSerializer(StrictModel):
    """Which events a reader wants, and how far it has read."""

    patterns = serializers.ListField(
        child=serializers.CharField(max_length=MAX_PATTERN_LENGTH),
        min_length=1,
        max_length=MAX_PATTERNS,
        help_text="Kinds, or with * for any text: run.*, *.failed, *.",
    )
    channels = serializers.ListField(
        child=serializers.ChoiceField(choices=list(CHANNELS.values())),
        required=False,
        max_length=len(CHANNELS),
        help_text="Only these; none given is all.",
    )

    class Meta:
        model = Subscription
        fields = (
            "id", "version", "created_at", "updated_at", "key", "project", "patterns", "channels", "min_severity",
            "cursor", "state",
        )  # fmt: skip
        read_only_fields = ("cursor", "state")


class SubscriptionFilters(Filters):
    """By project, key and state."""

    project = ProjectFilter("project")

    class Meta:
        model = Subscription
        fields = ("key", "state")


class PlaceRequest(Strict):
    """A place in the log: `read_to` of an answer to pull, or the `cursor` of an event; 0-0-0 is the beginning."""

    cursor = serializers.CharField(max_length=MAX_CURSOR_LENGTH)


class ReplayRequest(PlaceRequest):
    """Where to read again from, and why."""

    reason = serializers.CharField(required=False, allow_blank=True, default="", max_length=2000)


class PulledSerializer(serializers.Serializer[Any]):
    """The next events. Acknowledge `read_to` once they are dealt with."""

    results = EventSerializer(many=True)
    read_to = serializers.CharField()


class SubscriptionEndpoint(DefinitionEndpoint):
    """Subscriptions: pull answers the next events and moves nothing, ack moves on, replay goes back."""

    queryset = Subscription.objects.all()
    serializer_class = SubscriptionSerializer
    filterset_class = SubscriptionFilters
    ordering_fields = ("key", "created_at")
    needs = {
        **DefinitionEndpoint.needs,
        "pull": "viewer",
        "ack": "operator",
        "replay": "admin",
        "pause": "admin",
        "resume": "admin",
    }

    @extend_schema(
        parameters=[OpenApiParameter("limit", int, description="Events at most.")], responses=PulledSerializer
    )
    @action(detail=True, methods=["get"])
    def pull(self, request: Request, id: str) -> Response:
        """The next events that it wants, in the order of commits; the same again until they are acknowledged.

        An empty answer may have passed many events: acknowledge its `read_to`, and pull again while that moves.
        """
        for name in request.query_params:
            if name != "limit":
                raise BadQuery(name, "unknown parameter; known is limit", code="unknown_filter")
        batch = self.get_object().pull(read_limit(request, settings.SIGNALBOX_EVENTS_LIMIT))
        return Response({"results": EventSerializer(batch, many=True).data, "read_to": str(batch.read_to)})

    @extend_schema(request=PlaceRequest, responses=SubscriptionSerializer)
    @action(detail=True, methods=["post"])
    def ack(self, request: Request, id: str) -> Response:
        """Everything up to `cursor` is dealt with. Quiet when it is there or further already."""
        row: Subscription = self.get_object()
        row.ack(self.body(PlaceRequest)["cursor"])
        return self.reply(row)

    @extend_schema(request=ReplayRequest, responses=SubscriptionSerializer)
    @action(detail=True, methods=["post"])
    def replay(self, request: Request, id: str) -> Response:
        """Go back to `cursor` and read again from there; what a webhook had is delivered to it again."""
        row: Subscription = self.get_object()
        given = self.body(ReplayRequest)
        row.replay(given["cursor"], by=self.by, reason=given["reason"])
        return self.reply(row)

    @extend_schema(request=Reason, responses=SubscriptionSerializer)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, id: str) -> Response:
        """Feed nobody until it is resumed; its place stays. Quiet."""
        row: Subscription = self.get_object()
        row.pause(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(row)

    @extend_schema(request=Reason, responses=SubscriptionSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, id: str) -> Response:
        """Go on where it was paused. Quiet."""
        row: Subscription = self.get_object()
        row.resume(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(row)


class WebhookSerializer(StrictModel):
    """An address outside that is told what its subscription selects; without its secrets."""

    is_rotating = serializers.SerializerMethodField(help_text="Whether two secrets sign.")

    class Meta:
        model = WebhookEndpoint
        fields: tuple[str, ...] = (
            "id", "version", "created_at", "updated_at", "subscription", "url", "is_rotating", "disabled_at",
            "disabled_reason", "dead_in_row", "failing_since",
        )  # fmt: skip
        read_only_fields = ("disabled_at", "disabled_reason", "dead_in_row", "failing_since")

    def get_is_rotating(self, row: WebhookEndpoint) -> bool:
        """Whether two secrets sign."""
        return bool(row.old_seed)


class NewSecretSerializer(WebhookSerializer):
    """A webhook at the only moment when its newest secret is shown."""

    secret = serializers.CharField(read_only=True, help_text="whsec_ and 32 bytes in base 64, shown this once.")

    class Meta(WebhookSerializer.Meta):
        fields = (*WebhookSerializer.Meta.fields, "secret")


class WebhookFilters(Filters):
    """By project, subscription, and whether it is disabled."""

    project = ProjectFilter("subscription__project")
    disabled = django_filters.BooleanFilter("disabled_at", lookup_expr="isnull", exclude=True)

    class Meta:
        model = WebhookEndpoint
        fields = ("subscription",)


class WebhookEndpointEndpoint(DefinitionEndpoint):
    """Webhooks: deliveries signed as Standard Webhooks has it. For admins alone: an address may open a door."""

    queryset = WebhookEndpoint.objects.select_related("subscription")
    serializer_class = WebhookSerializer
    filterset_class = WebhookFilters
    ordering_fields = ("created_at",)
    fixed = ("subscription",)
    secret_fields = ("secret",)
    needs = {
        "list": "admin",
        "retrieve": "admin",
        "create": "admin",
        "partial_update": "admin",
        "destroy": "admin",
        "rotate": "admin",
        "retire_old": "admin",
        "enable": "admin",
        "disable": "admin",
    }

    def project_for(self, fields: Any) -> Project | str | None:
        """The subscription's."""
        found: str | None = fields["subscription"].project_id
        return found

    @extend_schema(request=WebhookSerializer, responses={201: NewSecretSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Add a webhook: 201 with its secret, which nothing shows again, not even a repeat with the same
        Idempotency-Key.
        """
        response = super().create(request, *args, **kwargs)
        if response.status_code == 201:
            row = WebhookEndpoint.objects.get(pk=response.data["id"])
            response.data = {**response.data, "secret": row.secrets()[0]}
        return response

    @extend_schema(request=Reason, responses=NewSecretSerializer)
    @action(detail=True, methods=["post"])
    def rotate(self, request: Request, id: str) -> Response:
        """A new secret, shown in this answer only; the old one signs beside it until it is retired."""
        row: WebhookEndpoint = self.get_object()
        secret = row.rotate(by=self.by, reason=self.body(Reason)["reason"])
        fresh = self.get_queryset().get(pk=row.pk)
        return Response({**self.get_serializer(fresh).data, "secret": secret}, headers={"ETag": etag(fresh)})

    @extend_schema(request=Reason, responses=WebhookSerializer)
    @action(detail=True, methods=["post"], url_path="retire-old")
    def retire_old(self, request: Request, id: str) -> Response:
        """Sign with the newest secret only. Quiet when it is the only one."""
        row: WebhookEndpoint = self.get_object()
        row.retire_old(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(row)

    @extend_schema(request=Reason, responses=WebhookSerializer)
    @action(detail=True, methods=["post"])
    def enable(self, request: Request, id: str) -> Response:
        """Send again, beginning with what has waited. Quiet."""
        row: WebhookEndpoint = self.get_object()
        row.enable(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(row)

    @extend_schema(request=Reason, responses=WebhookSerializer)
    @action(detail=True, methods=["post"])
    def disable(self, request: Request, id: str) -> Response:
        """Send nothing more until it is enabled again; with a reason. Quiet."""
        row: WebhookEndpoint = self.get_object()
        row.disable(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(row)


class DeliverySerializer(StrictModel):
    """One event on its way to one webhook, and what the receiver said at the last attempt."""

    kind = serializers.SerializerMethodField(help_text="The event's kind; empty when the event is kept no longer.")

    class Meta:
        model = Delivery
        fields = (
            "id", "version", "created_at", "updated_at", "endpoint", "event", "kind", "state", "attempt_count",
            "next_attempt_at", "last_attempt_at", "last_status", "last_error", "response_tail", "redelivery_of",
        )  # fmt: skip
        read_only_fields = fields

    def get_kind(self, row: Delivery) -> str:
        """The event's kind."""
        return str(getattr(row, "kind", ""))


class DeliveryFilters(Filters):
    """By webhook (`endpoint`), event, project, state, status and time."""

    project = ProjectFilter("endpoint__subscription__project")
    event = IdFilter("event_id")

    class Meta:
        model = Delivery
        fields = ("endpoint", "state", "last_status", "created_at")


class DeliveryEndpoint(Listed, Endpoint):
    """The delivery log of all webhooks that the caller administers."""

    queryset = Delivery.objects.with_kind().select_related("endpoint__subscription")
    serializer_class = DeliverySerializer
    filterset_class = DeliveryFilters
    heavy = ("response_tail",)
    needs = {"list": "admin", "retrieve": "admin", "redeliver": "admin"}

    @extend_schema(request=Reason, responses={201: DeliverySerializer})
    @action(detail=True, methods=["post"])
    def redeliver(self, request: Request, id: str) -> Response:
        """Send the same event again: 201 with the new delivery, which carries the same `webhook-id`."""
        row: Delivery = self.get_object()
        again = row.redeliver(by=self.by, reason=self.body(Reason)["reason"])
        here = request.path.removesuffix(f"{row.pk}/redeliver/")
        return self.reply(again, 201, Location=f"{here}{again.pk}/")

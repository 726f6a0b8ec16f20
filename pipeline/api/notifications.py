"""Who is told by chat or mail, over HTTP: notification rules. What a rule's target is can be written, never read."""

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from pipeline.models import NotificationRule
from pipeline.notify import MAX_LENGTH
from pipeline.rest import DefinitionEndpoint, Filters, IdFilter, Nothing, ProjectFilter, Reason, StrictModel


class NotificationRuleSerializer(StrictModel):
    """Which events are told to whom, and how often at most."""

    target = serializers.CharField(
        write_only=True,
        max_length=MAX_LENGTH,
        help_text="An Apprise URL, or env:SIGNALBOX_NOTIFY_… for a variable that holds one. It is never shown again.",
    )
    sends_to = serializers.CharField(read_only=True, help_text="What may be shown of the target: its scheme and host.")

    class Meta:
        model = NotificationRule
        fields = (
            "id", "version", "created_at", "updated_at", "key", "project", "subscription", "target", "sends_to", "text",
            "at_most_every_seconds", "max_per_day", "digest_above", "state", "due_at", "last_sent_at", "sent_on",
            "sent_today", "failures", "last_error",
        )  # fmt: skip
        read_only_fields = (
            "state", "due_at", "last_sent_at", "sent_on", "sent_today", "failures", "last_error",
        )  # fmt: skip


class NotificationRuleFilters(Filters):
    """By project, key, subscription and state."""

    project = ProjectFilter("project")
    subscription = IdFilter("subscription")

    class Meta:
        model = NotificationRule
        fields = ("key", "state")


class NotificationRuleEndpoint(DefinitionEndpoint):
    """Notification rules, for those who administer their project; without a project, the installation."""

    queryset = NotificationRule.objects.all()
    serializer_class = NotificationRuleSerializer
    filterset_class = NotificationRuleFilters
    fixed = ("project", "subscription")
    # A test waits for somebody outside; an answer that is stored would hold a transaction open for so long.
    unstored = ("test",)
    needs = {
        "list": "admin", "retrieve": "admin", "create": "admin", "partial_update": "admin", "destroy": "admin",
        "pause": "admin", "resume": "admin", "test": "admin",
    }  # fmt: skip

    @extend_schema(request=Reason, responses=NotificationRuleSerializer)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, id: str) -> Response:
        """Say nothing until it is resumed; what happens meanwhile waits. Quiet when it is paused already."""
        rule = self.get_object()
        rule.pause(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(rule)

    @extend_schema(request=Reason, responses=NotificationRuleSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, id: str) -> Response:
        """Speak again, beginning with what has waited. Quiet when it is active already."""
        rule = self.get_object()
        rule.resume(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(rule)

    @extend_schema(request=Nothing, responses=NotificationRuleSerializer)
    @action(detail=True, methods=["post"])
    def test(self, request: Request, id: str) -> Response:
        """Send one test message now, and wait for it: 502 `not_sent` with what the target said if it is not taken."""
        rule = self.get_object()
        self.body(Nothing)
        rule.send_test(by=self.by)
        return self.reply(rule)

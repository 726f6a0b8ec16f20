"""Being told, in the admin: subscriptions and webhooks to edit, deliveries to look at and to send again."""

import json
import re
from contextlib import suppress
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.http import HttpRequest
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.widgets import UnfoldAdminTextareaWidget

from pipeline.admin_site import DefinitionAdmin, LookOnlyAdmin, move_action
from pipeline.auth import Principal, principal_of
from pipeline.models import Delivery, Subscription, WebhookEndpoint
from pipeline.refusals import Refused


class LinesField(forms.Field):
    """A list of words, one a line or parted by commas; a list in JSON, as programs write it, is one too."""

    widget = UnfoldAdminTextareaWidget

    def prepare_value(self, value: Any) -> Any:
        """The list as lines; what was typed as it is."""
        return "\n".join(map(str, value)) if isinstance(value, list) else value

    def to_python(self, value: Any) -> list[Any]:
        """The words, without blanks around them and without empty ones."""
        if isinstance(value, list):
            return value
        text = str(value or "").strip()
        if text.startswith("["):
            with suppress(ValueError, RecursionError):
                return list(json.loads(text))
        return [word for word in re.split(r"[\s,]+", text) if word]

    def has_changed(self, initial: Any, data: Any) -> bool:
        """Whether the words are others."""
        return self.to_python(initial) != self.to_python(data)


@admin.register(Subscription)
class SubscriptionAdmin(DefinitionAdmin):
    """Who is told what, and how far each has read."""

    list_display = ["key", "project", "patterns", "min_severity", "state", "cursor"]
    list_filter = ["state", ("project", admin.RelatedOnlyFieldListFilter)]
    list_select_related = ["project"]
    search_fields = ["key"]
    ordering = ["key"]
    fixed = ("project",)
    help = {
        "patterns": gettext_lazy("One kind or pattern a line: run.*, *.failed, patch.committed; * for all."),
        "channels": gettext_lazy("One channel a line, such as task_events; nothing for all."),
    }
    actions = [
        move_action("pause", gettext_lazy("Pause"), role="admin", reason=True),
        move_action("resume", gettext_lazy("Resume"), role="admin"),
    ]

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """The lists as lines, with a word on what they hold."""
        if db_field.name in self.help:
            return LinesField(
                label=capfirst(db_field.verbose_name), required=not db_field.blank, help_text=self.help[db_field.name]
            )
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """A new one selects everything until somebody says otherwise."""
        return {"patterns": ["*"], **super().get_changeform_initial_data(request)}


@admin.register(WebhookEndpoint)
class WebhookAdmin(DefinitionAdmin):
    """Addresses outside that are told. A secret is shown once, when it is made."""

    list_display = ["subscription", "shown_url", "disabled_at", "disabled_reason", "dead_in_row", "failing_since"]
    list_filter = [("disabled_at", admin.EmptyFieldListFilter)]
    list_select_related = ["subscription__project"]
    search_fields = ["subscription__key"]
    hidden = ("seed", "old_seed")
    fixed = ("subscription",)
    project_path = "subscription__project"
    actions = [
        "rotate",
        move_action("retire_old", gettext_lazy("Retire the old secret of"), role="admin"),
        move_action("disable", gettext_lazy("Disable"), role="admin", reason=True),
        move_action("enable", gettext_lazy("Enable"), role="admin"),
    ]

    def add(self, request: HttpRequest, obj: WebhookEndpoint, given: dict[str, Any], principal: Principal) -> None:
        """Add the webhook, and show its secret in a message: nobody can read it again."""
        row = WebhookEndpoint.objects.add(by=principal.actor, id=obj.pk, **given)
        self._show(request, row, row.secrets()[0])

    @admin.action(
        description=gettext_lazy("Make a new secret for the selected %(verbose_name_plural)s"),
        permissions=["act_as_admin"],
    )
    def rotate(self, request: HttpRequest, queryset: Any) -> None:
        """A new secret for each, shown in a message; what one refuses is a message, too."""
        principal = principal_of(request)
        for row in queryset.select_related("subscription").order_by("pk")[:20]:
            try:
                principal.must("admin", self.project_of(row))
                self._show(request, row, row.rotate(by=principal.actor))
            except Refused as refusal:
                self.message_user(request, f"{row}: {refusal}", messages.WARNING)

    def _show(self, request: HttpRequest, row: WebhookEndpoint, secret: str) -> None:
        text = _("The secret of %(webhook)s is %(secret)s. Copy it now: it cannot be shown again.")
        self.message_user(request, text % {"webhook": row, "secret": secret}, messages.WARNING)


@admin.register(Delivery)
class DeliveryAdmin(LookOnlyAdmin):
    """Events on their way to webhooks, and what was answered."""

    list_display = ["created_at", "endpoint", "event_id", "state", "attempt_count", "last_status", "next_attempt_at"]
    list_filter = ["state", "last_status"]
    list_select_related = ["endpoint__subscription"]
    heavy = ("response_tail",)
    project_path = "endpoint__subscription__project"
    actions = [move_action("redeliver", gettext_lazy("Redeliver"), role="admin", reason=True)]

"""Notification rules in the admin: edited as every definition, but for the target, which is written and never shown."""

from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from unfold.widgets import UnfoldAdminPasswordWidget

from pipeline.admin_site import DefinitionAdmin, DefinitionForm, move_action
from pipeline.models import NotificationRule
from pipeline.notify import MAX_LENGTH


class NotificationRuleForm(DefinitionForm):
    """The form of a rule. An empty target keeps the one that is there."""

    target = forms.CharField(
        required=False,
        max_length=MAX_LENGTH,
        # Not Django's own: the admin's style takes every border from an input that is not one of its widgets.
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "off"}),
        help_text=_(
            "An Apprise URL, or env:SIGNALBOX_NOTIFY_… for a variable that holds one. It is not shown again;"
            " leave this empty to keep it."
        ),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Nothing of the secret is handed to the page, whatever its widget does.
        self.kept = "" if self.instance._state.adding else self.instance.target
        self.initial.pop("target", None)
        if "target" in self.fields:
            self.fields["target"].required = self.instance._state.adding

    def clean_target(self) -> str:
        """What was typed, or else what is there."""
        return str(self.cleaned_data.get("target") or self.kept)


@admin.register(NotificationRule)
class NotificationRuleAdmin(DefinitionAdmin):
    """Who is told by chat or mail."""

    form = NotificationRuleForm
    list_display = ["key", "project", "sends_to", "state", "last_sent_at", "sent_today", "failures"]
    list_filter = ["state", ("project", admin.RelatedOnlyFieldListFilter)]
    list_select_related = ["project"]
    search_fields = ["key"]
    fixed = ("project", "subscription")
    hidden = ("lease", "leased_until")
    actions = [
        move_action("pause", _("Pause"), role="admin", reason=True),
        move_action("resume", _("Resume"), role="admin", reason=True),
    ]

    def fields_shown(self) -> list[str]:
        """Every column but the hidden ones and the target."""
        return [name for name in super().fields_shown() if name != "target"]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """Who may not write the target sees no field of it either: a field that is only shown would show it."""
        names = super().get_fields(request, obj)
        may = obj is None or self.has_change_permission(request, obj)
        return names if may else [name for name in names if name != "target"]

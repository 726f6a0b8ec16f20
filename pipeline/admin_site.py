"""Building blocks of the admin: look at everything that machines own, change definitions only by their verbs."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from django import forms
from django.contrib import messages
from django.contrib.admin import action as admin_action
from django.contrib.admin import display as admin_display
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import ValidationError
from django.db import Error, IntegrityError, models, transaction
from django.db.models import JSONField, QuerySet
from django.forms.fields import InvalidJSONInput
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.text import format_lazy
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from unfold.admin import ModelAdmin

from pipeline import events
from pipeline.auth import Principal, principal_of
from pipeline.definitions import Conflict, Definition, PreconditionFailed, diff
from pipeline.ids import is_id
from pipeline.pages import end_after
from pipeline.readable import words
from pipeline.refusals import Refused
from pipeline.storable import MAX_DEPTH, WHY, is_too_deep, unstorable_paths

log = logging.getLogger(__name__)

MOST_AT_ONCE = 500
SHOWN_CHARACTERS = 80
LONGEST_HASH = 16
FACTS = ("id", "version", "created_at", "updated_at")


def words_of(problem: Refused | Error) -> str:
    """The sentence for people: the refusal's own, or what the database's guard said, without its context."""
    if isinstance(problem, Refused):
        return str(problem)
    said = str(problem).strip().splitlines() or [type(problem).__name__]
    return _("The database refused: %(what)s") % {"what": said[0]}


class HouseAdmin(ModelAdmin):
    """What every page of the admin keeps to: short lists, only rows that the person may see, roles for every act.

    `hidden` fields are shown nowhere, `heavy` ones on a row's own page only. Rows are narrowed by their QuerySet's
    `visible_to`, else by the project at `project_path`, else they are the installation's alone.
    """

    list_per_page = 25
    show_full_result_count = False
    heavy: ClassVar[tuple[str, ...]] = ()
    hidden: ClassVar[tuple[str, ...]] = ()
    project_path: ClassVar[str] = ""
    list_select_related: Any = ()
    ordering: ClassVar[Any] = ("-pk",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """The rows that the person may see, without their heavy columns."""
        rows: QuerySet[Any] = super().get_queryset(request).defer(*self.deferred())
        principal = principal_of(request)
        visible_to: Callable[[Principal], QuerySet[Any]] | None = getattr(rows, "visible_to", None)
        if visible_to is not None:
            return visible_to(principal)
        ids = principal.project_ids()
        if ids is None:
            return rows
        return rows.filter(**{f"{self.project_path}__in": ids}) if self.project_path else rows.none()

    def deferred(self) -> list[str]:
        """The heavy columns of these rows, and of the rows that their list joins."""
        names = [*self.heavy, *self.hidden]
        for path in self.list_select_related or ():
            model: Any = self.model
            parts = path.split("__")
            for depth, part in enumerate(parts, start=1):
                model = model._meta.get_field(part).related_model
                other = self.admin_site._registry.get(model)
                if isinstance(other, HouseAdmin):
                    names += [f"{'__'.join(parts[:depth])}__{name}" for name in (*other.heavy, *other.hidden)]
        return names

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """An id finds its row; other words are looked for in `search_fields`."""
        term = search_term.strip().upper()
        if is_id(term):
            return queryset.filter(pk=term), False
        found: tuple[QuerySet[Any], bool] = super().get_search_results(request, queryset, search_term)
        return found

    def project_of(self, row: Any) -> str | None:
        """The id of the project whose roles decide about `row`; None for what belongs to the installation."""
        found: str | None = row.correlation().get("project_id")
        return found

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Whether the person may enter the admin at all."""
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Staff may look: `get_queryset` shows nothing that they may not see."""
        return bool(request.user.is_active and request.user.is_staff)

    def has_act_as_operator_permission(self, request: HttpRequest) -> bool:
        """Whether the person is operator somewhere; each row's project is asked again when the action runs."""
        return self._is_somewhere(request, "operator")

    def has_act_as_approver_permission(self, request: HttpRequest) -> bool:
        """Whether the person is approver somewhere."""
        return self._is_somewhere(request, "approver")

    def has_act_as_admin_permission(self, request: HttpRequest) -> bool:
        """Whether the person is admin somewhere."""
        return self._is_somewhere(request, "admin")

    def _is_somewhere(self, request: HttpRequest, role: str) -> bool:
        ids = principal_of(request).project_ids(at_least=role)
        return self.has_view_permission(request) and (ids is None or bool(ids))

    def get_actions(self, request: HttpRequest) -> Any:
        """Without Django's bulk deletion, which knows no verbs."""
        actions = super().get_actions(request)
        actions.pop("delete_selected", None)
        return actions

    def response_action(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        """A selection with a malformed id selects nothing."""
        try:
            return super().response_action(request, queryset)
        except ValidationError as problem:
            self.message_user(request, " ".join(problem.messages), messages.ERROR)
            return None

    def fields_shown(self) -> list[str]:
        """Every column of the table but the hidden ones."""
        return [field.name for field in self.opts.concrete_fields if field.name not in self.hidden]


def shortened(name: str, label: Any) -> Callable[[Any], str]:
    """A column of a list that shows the ends of a hash, the whole on hover; the row's own page shows all of it."""

    @admin_display(description=label, ordering=name)
    def column(row: Any) -> str:
        whole = str(getattr(row, name) or "")
        if len(whole) <= LONGEST_HASH:
            return whole or "-"
        return format_html('<code title="{}">{}…{}</code>', whole, whole[:8], whole[-6:])

    column.__name__ = f"short_{name}"
    return column


class LookOnlyAdmin(HouseAdmin):
    """Rows that machines own: every column can be read, none can be written; their verbs are the actions."""

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        """Nobody."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """Every column that is not hidden."""
        return self.fields_shown()

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """The same: also those that Django calls not editable are shown."""
        return self.fields_shown()


class InstallationAdmin(LookOnlyAdmin):
    """Look-only, and for administrators of the installation alone: these rows belong to no project."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Staff who administer the installation."""
        return super().has_view_permission(request, obj) and principal_of(request).is_installation_admin


class Finite(json.JSONDecoder):
    """JSON as RFC 8259 has it: without NaN and numbers beyond what one can be, which no table takes."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**{**how, "parse_constant": _no_number, "parse_float": _finite})


def _no_number(name: str) -> Any:
    raise ValidationError(_("%(name)s is not a number of JSON.") % {"name": name})


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValidationError(_("%(number)s is beyond what a number can be.") % {"number": text[:20]})
    return number


class DocumentField(forms.JSONField):
    """JSON that can be stored; what cannot is an error of the field, which shows it again as it was typed."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**{**how, "decoder": how.get("decoder") or Finite})

    def to_python(self, value: Any) -> Any:
        """The document. Raises ValidationError for what is not JSON or too deep, and for the first text that cannot be
        stored.
        """
        deep = _("The document is nested deeper than %(most)d levels.") % {"most": MAX_DEPTH}
        try:
            document = super().to_python(value)
        except RecursionError:
            raise ValidationError(deep) from None
        except ValueError as problem:  # a number with thousands of digits
            raise ValidationError(_("Enter a valid JSON: %(what)s.") % {"what": problem}) from problem
        if is_too_deep(document):
            raise ValidationError(deep)
        for path in unstorable_paths(document):
            raise ValidationError(f"{path}: {WHY}".removeprefix(": "))
        return document

    def bound_data(self, data: Any, initial: Any) -> Any:
        """What the field shows after an error."""
        try:
            document = super().bound_data(data, initial)
        except (RecursionError, ValueError, ValidationError):
            return InvalidJSONInput(data)
        return InvalidJSONInput(data) if is_too_deep(document) or any(unstorable_paths(document)) else document


class DefinitionForm(forms.ModelForm):  # type: ignore[type-arg]  # Django's form takes no parameters at run time
    """A definition's form: it remembers the version that it showed, and shows what a verb refused as its own error."""

    seen_version = forms.IntegerField(widget=forms.HiddenInput)
    refusal: ClassVar[Refused | Error | None] = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance._state.adding:
            self.fields.pop("seen_version", None)
        else:
            self.initial["seen_version"] = self.instance.version

    def clean(self) -> dict[str, Any]:
        """JSON of the wrong shape is an error of its field; an empty field has its default."""
        cleaned = super().clean() or self.cleaned_data
        for field in self._meta.model._meta.concrete_fields:
            if isinstance(field, JSONField) and field.name in cleaned and field.has_default():
                default = field.get_default()
                if cleaned[field.name] is None:
                    cleaned[field.name] = default
                elif default is not None and type(cleaned[field.name]) is not type(default):
                    shape = _("an object {…}") if isinstance(default, dict) else _("a list […]")
                    self.add_error(field.name, _("This must be %(shape)s.") % {"shape": shape})
        if self.refusal is not None:
            self.refuse(self.refusal)
        return cleaned

    def _post_clean(self) -> None:
        try:
            super()._post_clean()  # type: ignore[misc]  # Django's hook; the stubs leave out what begins with _
        except Refused as refusal:
            self.refuse(refusal)

    def refuse(self, problem: Refused | Error) -> None:
        """Show `problem` at the field that it names, or above the form."""
        parts: Mapping[str, Any] = problem.parts if isinstance(problem, Refused) else {}
        field = str(parts.get("field", "")).partition(".")[0].partition("[")[0]
        self.add_error(field if field in self.fields else None, words_of(problem))


class DefinitionAdmin(HouseAdmin):
    """Rows that people own: added, edited and removed by the verbs of their model, each recorded with its actor.

    What a verb refuses is an error of the form. A form that shows an older version than the row's is refused with what
    changed in between. Only an admin of the row's project may write, before and after the edit.
    """

    form = DefinitionForm
    model: type[Definition]
    fixed: ClassVar[tuple[str, ...]] = ()
    """Fields that are given at birth and never edited."""

    def written(self, obj: Any = None) -> list[str]:
        """The fields that people write; of a row that is there already, without the fixed ones."""
        names = [f.name for f in self.opts.concrete_fields if f.editable and not f.primary_key]
        return [name for name in names if obj is None or name not in self.fixed]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """What people write, then the row's own facts."""
        if obj is None:
            return self.written()
        version = ["seen_version"] if self.has_change_permission(request, obj) else []
        return [*version, *self.written(), *self.facts()]

    def facts(self) -> list[str]:
        """What is shown and not written."""
        return [name for name in self.fields_shown() if name in FACTS or not self.opts.get_field(name).editable]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """The row's facts, and the fields fixed at birth."""
        return [] if obj is None else [*self.fixed, *self.facts()]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Admins of some project; whether of this one is asked when the row is saved."""
        return self.has_act_as_admin_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Admins of the row's project."""
        if obj is None:
            return self.has_act_as_admin_permission(request)
        return self.has_view_permission(request) and principal_of(request).may("admin", self.project_of(obj))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Admins of the row's project."""
        return self.has_change_permission(request, obj)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """The form, with the refusal that the same request met before."""
        made = super().get_form(request, obj, change=change, **kwargs)
        return type(made.__name__, (made,), {"refusal": getattr(request, "_refusal", None)})

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """A field of the form; JSON is checked for what cannot be stored."""
        if isinstance(db_field, JSONField):
            kwargs["form_class"] = DocumentField
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Only rows that the person may see can be chosen."""
        rows = db_field.remote_field.model._default_manager.all()
        if "queryset" not in kwargs and hasattr(rows, "visible_to"):
            kwargs["queryset"] = rows.visible_to(principal_of(request))
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> Any:
        """The form; saved by a verb, or shown again with what the verb, or a guard of the database, refused."""
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except PreconditionFailed as stale:
            refusal: Refused | IntegrityError = Conflict(self.what_changed(request, object_id, stale))
        except (Refused, IntegrityError) as problem:
            refusal = problem
        request._refusal = refusal  # type: ignore[attr-defined]  # for get_form
        # What the verb began is undone; the second pass stops at the form's own error and writes nothing.
        return super().changeform_view(request, object_id, form_url, extra_context)

    def what_changed(self, request: HttpRequest, object_id: str | None, stale: PreconditionFailed) -> str:
        """The refusal of a stale form in words: who has changed which field from what to what since it was opened."""
        row = self.get_object(request, str(object_id))
        seen = str(request.POST.get("seen_version", ""))
        missed = max(int(stale.parts["version"]) - int(seen), 1) if seen.isdecimal() else 1
        edits = events.Event.objects.about(row).filter(kind=f"{row.noun()}.changed").order_by("-stream_seq")[:missed]
        told = [_("%(who)s changed %(fields)s") % {"who": edit.actor_name, "fields": _changes(edit)} for edit in edits]
        return _("Somebody else changed this in between, so nothing was saved. %(what)s. Open it again to go on.") % {
            "what": "; ".join(told) or _("Its version is %(version)s") % {"version": stale.parts["version"]}
        }

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Add or edit by the model's verb. Raises Denied, and what the verb refuses."""
        principal = principal_of(request)
        given = {name: form.cleaned_data[name] for name in self.written(obj if change else None)}
        principal.must("admin", self.project_of(obj))
        try:
            if change:
                principal.must("admin", self.project_of(self.model._base_manager.get(pk=obj.pk)))
                obj.edit(by=principal.actor, expected_version=form.cleaned_data["seen_version"], **given)
            else:
                self.add(request, obj, given, principal)
                obj._state.adding = False
                obj.refresh_from_db()
        except (TypeError, AttributeError, KeyError, ValueError) as problem:
            # People write any JSON here; a rule that stumbles over its shape refuses it no less.
            log.warning("a rule of %s stumbled over a form", self.opts.label, exc_info=True)
            shape = _("A document does not have the shape that it needs: %(what)s") % {"what": problem}
            raise Refused(shape, code="invalid_field", status=422) from problem

    def add(self, request: HttpRequest, obj: Any, given: dict[str, Any], principal: Principal) -> None:
        """The verb that makes the row, under the id that the form's object has."""
        rows: Any = self.model._default_manager
        rows.add(by=principal.actor, id=obj.pk, **given)

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> Any:
        """Django's confirmation; what the verb refuses is a message on the row's page."""
        try:
            return super().delete_view(request, object_id, extra_context)
        except (Refused, IntegrityError) as problem:
            self.message_user(request, words_of(problem), messages.ERROR)
            page = reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_change", args=[object_id])
            return HttpResponseRedirect(page)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        """Remove by the model's verb."""
        obj.remove(by=principal_of(request).actor)


def _changes(edit: events.Event) -> str:
    """`name from “a” to “b”, …` for each field that an edit changed."""
    rows = diff(edit.before or {}, edit.after or {})
    return ", ".join(
        _("%(field)s from “%(old)s” to “%(new)s”") % {"field": name, "old": _short(old), "new": _short(new)}
        for name, old, new in rows
    )


def _short(value: Any) -> str:
    text = words(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def move_action(
    verb: str,
    label: Any,
    *,
    role: str,
    reason: bool = False,
    ends: bool = False,
    figure: tuple[str, Any] | None = None,
    **given: Any,
) -> Callable[..., Any]:
    """An admin action that calls the rows' own `verb` with `by=` the person, `given`, and a reason where one is owed.

    Offered to whoever has `role` somewhere, and refused for each row in whose project they have not. Each row is a
    transaction of its own: what one refuses is a message, and the others go on. With `reason` an intermediate page asks
    for it; with `ends` also for how long, and the verb gets `expires_at`; with `figure`, an argument's name and label,
    also for a number.
    """

    @admin_action(
        description=format_lazy(gettext_lazy("{verb} the selected %(verbose_name_plural)s"), verb=label),
        permissions=[f"act_as_{role}"],
    )
    def action(modeladmin: HouseAdmin, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        rows = list(queryset.order_by("pk")[: MOST_AT_ONCE + 1])
        if len(rows) > MOST_AT_ONCE:
            most = _("Select at most %(most)d at a time; nothing was done.") % {"most": MOST_AT_ONCE}
            modeladmin.message_user(request, most, messages.WARNING)
            return None
        facts = dict(given)
        if reason:
            words = request.POST.get("reason", "").strip()
            number = request.POST.get("figure", "").strip()
            if not words or (figure and not number):
                return _ask_reason(modeladmin, request, rows, verb, str(label), ends=ends, figure=figure)
            facts["reason"] = words
            if figure:
                facts[figure[0]] = number
        if ends:
            try:
                facts["expires_at"] = end_after(request.POST.get("hours", ""))
            except Refused as problem:
                modeladmin.message_user(request, words_of(problem), messages.WARNING)
                return None
        done = _each(modeladmin, request, rows, verb, role, facts)
        quiet = ngettext("%(done)d of %(all)d row changed.", "%(done)d of %(all)d rows changed.", len(rows))
        modeladmin.message_user(
            request, quiet % {"done": done, "all": len(rows)}, messages.SUCCESS if done else messages.INFO
        )
        return None

    action.__name__ = verb
    return action


def _each(
    modeladmin: HouseAdmin,
    request: HttpRequest,
    rows: Iterable[models.Model],
    verb: str,
    role: str,
    facts: Mapping[str, Any],
) -> int:
    """Call the verb on each row; returns how many said that something was done."""
    principal = principal_of(request)
    done = 0
    for row in rows:
        try:
            principal.must(role, modeladmin.project_of(row))
            with transaction.atomic():
                done += bool(getattr(row, verb)(by=principal.actor, **facts))
        except (Refused, IntegrityError) as problem:
            modeladmin.message_user(request, f"{row}: {words_of(problem)}", messages.WARNING)
    return done


def _ask_reason(
    modeladmin: HouseAdmin,
    request: HttpRequest,
    rows: list[models.Model],
    verb: str,
    title: str,
    *,
    ends: bool,
    figure: tuple[str, Any] | None,
) -> TemplateResponse:
    """The page between the list and the action, which asks why, with `ends` for how long, with `figure` how much."""
    return TemplateResponse(
        request,
        "admin/move_reason.html",
        {
            **modeladmin.admin_site.each_context(request),
            "title": _("%(verb)s %(what)s")
            % {"verb": title, "what": modeladmin.opts.verbose_name_plural if len(rows) > 1 else rows[0]},
            "opts": modeladmin.opts,
            "rows": rows,
            "action_name": verb,
            "action_label": title,
            "action_checkbox_name": ACTION_CHECKBOX_NAME,
            "asked_before": "reason" in request.POST,
            "ends": ends,
            "figure_label": figure and figure[1],
            "given": request.POST,
        },
    )

"""Definitions: rows that people own and edit, every edit checked, versioned and recorded with before and after."""

from collections.abc import Mapping
from typing import Any, Self, TypeVar

from django.core.exceptions import ValidationError
from django.db import IntegrityError, models, transaction
from django.db.models.deletion import CASCADE, SET_NULL

from pipeline import events
from pipeline.refusals import InvalidField, NotFound, Refused
from pipeline.rows import Told, in_transaction
from pipeline.telling import written

D = TypeVar("D", bound="Definition")


class Conflict(Refused):
    """Somebody else changed the row in between; `current` is what it holds now."""

    code = "conflict"


class PreconditionFailed(Refused):
    """The version quoted is not the row's version."""

    code = "precondition_failed"
    status = 412


class DefinitionQuerySet(models.QuerySet[D]):
    """The words for making definitions."""

    def add(self, *, by: events.Actor, **fields: Any) -> D:
        """A new checked row, recorded as `<noun>.added`. Raises InvalidField, or Refused `duplicate_key`."""
        row = self.model(**fields)
        with in_transaction():
            row.check_fields()
            _save(row, force_insert=True)
            events.record(f"{row.noun()}.added", row, by=by, before={}, after=row.story())
        return row


class Definition(Told):
    """A row that people own: `add` it, `edit` it, `remove` it, each with an Event that carries the changed fields."""

    class Meta:
        abstract = True

    def document(self) -> dict[str, Any]:
        """Every editable column by its field name, ids for foreign keys."""
        return {f.name: getattr(self, f.attname) for f in self._meta.concrete_fields if f.editable}

    def story(self) -> dict[str, Any]:
        """What events tell of this row, by field name: its document, and the told columns that people do not edit."""
        fields = {field.name: field for field in self._meta.concrete_fields}
        told = self.told()
        unedited = {field.name: told[field.attname] for field in self.told_fields() if not field.editable}
        return {**{name: written(fields[name], value) for name, value in self.document().items()}, **unedited}

    def editable(self) -> set[str]:
        """The names of the fields that people may edit."""
        return {f.name for f in self._meta.concrete_fields if f.editable}

    def check_fields(self) -> None:
        """Check the row against its fields and rules. Raises InvalidField naming the first field that is wrong."""
        try:
            self.full_clean(validate_constraints=False)
        except ValidationError as problem:
            field, errors = next(iter(problem.error_dict.items()))
            if any(error.code in ("unique", "unique_together") for error in errors):
                raise _taken(self, " ".join(problem.message_dict[field])) from problem
            raise InvalidField(field, " ".join(problem.message_dict[field])) from problem
        self.check_rules()

    def check_rules(self) -> None:
        """What this noun's document must obey beyond its fields; the default asks nothing."""

    def edit(self, *, by: events.Actor, expected_version: int | None = None, **fields: Any) -> bool:
        """Write `fields` if they differ; False when nothing differs. Recorded as `<noun>.changed`.

        Raises PreconditionFailed when `expected_version` is not the row's, NotFound when the row is gone.
        """
        with in_transaction():
            current = self.lock_fresh()
            if expected_version is not None and current.version != expected_version:
                raise PreconditionFailed(
                    f"If-Match says version {expected_version}, but the row has version {current.version}",
                    version=current.version,
                )
            before, was = current.document(), current.story()
            for name, value in fields.items():
                if name not in current.editable():
                    raise InvalidField(name, f"no field of a {current.noun()} that can be edited")
                setattr(current, name, value)
            changed = [name for name, value in current.document().items() if value != before[name]]
            if not changed:
                return False
            current.check_fields()
            _save(current, update_fields=changed)
            now = current.story()
            told = [name for name in now if now[name] != was[name]]
            events.record(
                f"{self.noun()}.changed",
                self,
                by=by,
                before={name: was[name] for name in told},
                after={name: now[name] for name in told},
            )
        self.refresh_from_db()
        return True

    def remove(self, *, by: events.Actor) -> None:
        """Delete the row, recorded as `<noun>.removed`, and before it the definitions that go with it.

        Raises Refused `in_use` while others point to it or to one of those.
        """
        with transaction.atomic():  # a savepoint: what is refused below leaves the whole family as it was
            current = self.lock_fresh()
            current._let_go(by)
            try:
                type(self)._base_manager.filter(pk=self.pk).delete()
            except (models.ProtectedError, models.RestrictedError) as problem:
                raise Refused(f"{self} is in use, so it cannot be removed", code="in_use") from problem
            events.record(f"{self.noun()}.removed", current, by=by, before=current.story(), after={})

    def _let_go(self, by: events.Actor) -> None:
        """Take away, with an event each, what the database would take away in silence: rows that hang on this one, and
        references to it that become null.
        """
        for relation in self._meta.get_fields(include_hidden=True):
            if not isinstance(relation, models.ManyToOneRel) or not issubclass(relation.related_model, Definition):
                continue
            model, field = relation.related_model, relation.field
            for row in model._base_manager.filter(**{field.name: self.pk}).order_by("pk"):
                if relation.on_delete is CASCADE:
                    row.remove(by=by)
                elif relation.on_delete is SET_NULL:
                    row.edit(by=by, **{field.name: None})

    def lock_fresh(self) -> Self:
        """This row as the database holds it, locked. Raises NotFound when it is gone."""
        row = type(self)._base_manager.select_for_update(no_key=True, of=("self",)).filter(pk=self.pk).first()
        if row is None:
            raise NotFound.of(self.noun(), self.pk)
        return row


def _taken(row: Definition, which: str = "") -> Refused:
    """`which` are Django's words for the fields that are taken together."""
    return Refused(which or f"{row.noun().replace('_', ' ').capitalize()} already exists", code="duplicate_key")


def _save(row: Definition, **how: Any) -> None:
    """Save, and say in the house's words what the database refuses; a savepoint keeps the caller's transaction."""
    try:
        with transaction.atomic():
            row.save(**how)
    except IntegrityError as problem:
        told = getattr(problem.__cause__, "diag", None)
        name = getattr(told, "constraint_name", "") or ""
        if getattr(problem.__cause__, "sqlstate", "") in ("23505", "23P01"):
            raise _taken(row) from problem
        raise InvalidField(name or "row", "the database refuses this combination of values") from problem


def diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, old, new) for every field that differs, for a readable history."""
    return [
        (name, before.get(name), after.get(name))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]

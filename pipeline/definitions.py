"""Definitions: rows that people own and edit, every edit checked, versioned and recorded with before and after."""

from collections.abc import Mapping
from typing import Any, Self, TypeVar

from django.core.exceptions import ValidationError
from django.db import IntegrityError, models

from pipeline import events
from pipeline.refusals import InvalidField, NotFound, Refused
from pipeline.rows import Row, in_transaction

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
            row.check_fields(creating=True)
            try:
                row.save(force_insert=True)
            except IntegrityError as problem:
                raise Refused(f"{row.noun().capitalize()} already exists", code="duplicate_key") from problem
            events.record(f"{row.noun()}.added", row, by=by, before={}, after=row.document())
        return row


class Definition(Row):
    """A row that people own: `add` it, `edit` it, `remove` it, each with an Event that carries the changed fields."""

    class Meta:
        abstract = True

    def document(self) -> dict[str, Any]:
        """Every editable column by its field name, ids for foreign keys."""
        return {f.name: getattr(self, f.attname) for f in self._meta.concrete_fields if f.editable}

    def check_fields(self, *, creating: bool = False) -> None:
        """Check the row against its fields and rules. Raises InvalidField naming the first field that is wrong."""
        try:
            self.full_clean(validate_constraints=False, validate_unique=creating)
        except ValidationError as problem:
            field, messages = next(iter(problem.message_dict.items()))
            code = (
                "duplicate_key"
                if any(e.code in ("unique", "unique_together") for e in problem.error_dict[field])
                else None
            )
            name = "key" if field == "__all__" else field
            refusal = InvalidField(name, " ".join(messages), code=code)
            if code:
                refusal.status = 409
            raise refusal from problem
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
            before = current.document()
            for name, value in fields.items():
                setattr(current, name, value)
            changed = [name for name, value in current.document().items() if value != before[name]]
            if not changed:
                return False
            current.check_fields()
            current.save(update_fields=changed)
            after = current.document()
            events.record(
                f"{self.noun()}.changed",
                self,
                by=by,
                before={name: before[name] for name in changed},
                after={name: after[name] for name in changed},
            )
        self.refresh_from_db()
        return True

    def remove(self, *, by: events.Actor) -> None:
        """Delete the row, recorded as `<noun>.removed`. Raises Refused `in_use` while others point to it."""
        with in_transaction():
            events.record(f"{self.noun()}.removed", self, by=by, before=self.document(), after={})
            try:
                self.delete()
            except (models.ProtectedError, models.RestrictedError) as problem:
                raise Refused(f"{self} is in use, so it cannot be removed", code="in_use") from problem

    def lock_fresh(self) -> Self:
        """This row as the database holds it, locked. Raises NotFound when it is gone."""
        row = type(self)._base_manager.select_for_update(no_key=True, of=("self",)).filter(pk=self.pk).first()
        if row is None:
            raise NotFound.of(self.noun(), self.pk)
        return row


def diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, old, new) for every field that differs, for a readable history."""
    return [
        (name, before.get(name), after.get(name))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]

"""Seals: each binds a stretch of the log, in the order of commits, to all that came before it."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import pgtrigger
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from ledger import proof
from pipeline import events
from pipeline.chain import canonical
from pipeline.events import START, Cursor
from pipeline.rows import Guard, Immutable, Kept, NoDelete, NoTruncate

SEALER = events.Actor("system", "", "sealer")


class FilledOnce(Guard):
    """BEFORE UPDATE: what is filled in later is filled in once."""

    when = pgtrigger.Before
    operation = pgtrigger.Update

    def __init__(self, *, name: str, empty: Mapping[str, str]) -> None:
        super().__init__(name=name)
        self.empty = dict(empty)

    def get_func(self, model: Any) -> str:
        """Refuse when a column that is no longer empty (`empty` holds the SQL that says so) would change."""
        changes = [
            f'(NOT (OLD."{column}" {is_empty}) AND OLD."{column}" IS DISTINCT FROM NEW."{column}")'
            for column, is_empty in self.empty.items()
        ]
        refuse = self.refuse("Cannot change %: what is filled in is filled in once", "TG_TABLE_NAME")
        return f"IF {' OR '.join(changes)} THEN {refuse} END IF; RETURN NEW;"


class SealQuerySet(models.QuerySet["Seal"]):
    """The words for asking about seals and writing the next."""

    def visible_to(self, principal: Any) -> Self:
        """All of them: a seal belongs to no project, and tells of an event no more than that there was one."""
        return self

    def light(self) -> Self:
        """Without the leaves, which are 32 bytes an event."""
        return self.defer("leaves")

    def timeless(self) -> Self:
        """Without their times, which no proof holds, and of which somebody may have made what no program can read;
        `is_dropped` says whether `dropped_at` is filled in.
        """
        is_dropped = models.ExpressionWrapper(Q(dropped_at__isnull=False), models.BooleanField())
        return self.defer("created_at", "dropped_at").annotate(is_dropped=is_dropped)

    def last_written(self) -> "Seal | None":
        """The newest; None before the first."""
        return self.light().order_by("-number").first()

    def unanchored(self) -> Self:
        """Those whose commit is not known yet, in the order in which it is made."""
        return self.filter(anchor="").order_by("number")

    def write(self, after: "Seal | None", to_cursor: Cursor, month: str, leaves: Sequence[bytes]) -> "Seal":
        """Write the seal behind `after` and its event, in the caller's transaction, which holds the sealer's lock."""
        seal = Seal(
            number=after.number + 1 if after else 1,
            from_cursor=after.to_cursor if after else str(START),
            to_cursor=str(to_cursor),
            month=month,
            count=len(leaves),
            prev_root=after.root_hash if after else "",
            leaves=b"".join(leaves),
        )
        seal.root_hash = proof.root(seal.sealed(), bytes(seal.leaves))
        seal.save(force_insert=True)
        seal.refresh_from_db(fields=["created_at"])
        told = {"number": seal.number, "count": seal.count, "root_hash": seal.root_hash}
        events.record("seal.written", seal, by=SEALER, data=told)
        return seal


class Seal(Kept):
    """All events behind `from_cursor` up to and with `to_cursor`, in the order of commits: their leaves and a root.

    Written once; `anchor` (the commit on the audit repository's ref) and `dropped_at` (the tombstone: the month's
    events are gone by retention, the seal stays) are filled in once. A seal never reaches over the end of a month.
    """

    number = models.BigIntegerField(unique=True)
    from_cursor = models.CharField(max_length=64)
    to_cursor = models.CharField(max_length=64)
    month = models.CharField(max_length=7, help_text=_("of its events' ids, in UTC: 2026-11"))
    count = models.PositiveIntegerField()
    root_hash = models.CharField(max_length=64)
    prev_root = models.CharField(max_length=64, blank=True)
    leaves = models.BinaryField()
    anchor = models.CharField(max_length=64, blank=True, default="")
    dropped_at = models.DateTimeField(null=True)
    is_dropped: bool  # of `timeless` seals

    objects = SealQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(name="seal_numbers_from_one", condition=Q(number__gte=1)),
            models.CheckConstraint(name="seal_holds_something", condition=Q(count__gte=1)),
            models.CheckConstraint(
                name="seal_first_has_no_previous",
                condition=Q(number=1, prev_root="") | (Q(number__gt=1) & ~Q(prev_root="")),
            ),
            models.CheckConstraint(name="seal_dropped_is_anchored", condition=Q(dropped_at=None) | ~Q(anchor="")),
        ]
        indexes = [
            models.Index(F("number"), name="seal_unanchored", condition=Q(anchor="")),
            models.Index(fields=["month", "number"], name="seal_of_month"),
        ]
        triggers = [
            Immutable(name="written_once", except_for=("anchor", "dropped_at")),
            FilledOnce(name="filled_once", empty={"anchor": "= ''", "dropped_at": "IS NULL"}),
            NoDelete(name="never_deleted"),
            NoTruncate(name="never_truncated"),
        ]

    def __str__(self) -> str:
        return f"seal {self.number}"

    def sealed(self) -> dict[str, Any]:
        """What the root is made of besides the leaves."""
        names = ("number", "from_cursor", "to_cursor", "month", "count", "prev_root")
        return {name: getattr(self, name) for name in names}

    def document(self) -> str:
        """The seal as canonical JSON: what its anchor says."""
        return canonical({**self.sealed(), "root_hash": self.root_hash})

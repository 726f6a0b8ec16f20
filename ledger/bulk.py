"""One verb for many patches: tried on each of them, told one by one, and written for all of them or for none."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.utils.translation import gettext_lazy as _

from ledger.models import Patch
from pipeline import events
from pipeline.refusals import InvalidField, Refused, need_reason

MOST = 500
"""So many patches at once: they are locked together, and landing waits for that."""


@dataclass(frozen=True)
class Verb:
    """What may be done to many: the role that it needs, whether it needs a reason, and the verb of one patch."""

    role: str
    needs_reason: bool
    call: Callable[[Patch, str, events.Actor], bool]


VERBS = {
    "requeue": Verb("operator", False, lambda patch, _reason, by: patch.queue(by=by)),
    "quarantine": Verb("operator", True, lambda patch, reason, by: patch.quarantine(reason, by=by)),
    "drop": Verb("operator", True, lambda patch, reason, by: patch.drop(reason, by=by)),
    "release": Verb("approver", True, lambda patch, reason, by: patch.release(by=by, reason=reason)),
}
LABELS = {
    "requeue": _("Requeue"),
    "quarantine": _("Quarantine"),
    "drop": _("Drop"),
    "release": _("Release"),
}


@dataclass(frozen=True)
class Result:
    """What became, or would become, of one patch: `done`, or the `code` and the words of the refusal.

    `state` is the one that it has then; a declaring verb that had happened before is neither done nor refused.
    """

    patch: str
    state: str
    done: bool
    code: str = ""
    message: str = ""

    def document(self) -> dict[str, Any]:
        """The result as plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What a bulk verb did: its results, oldest patch first, and whether they are written."""

    results: list[Result]
    written: bool

    @property
    def done(self) -> int:
        """How many patches the verb changed, or would change."""
        return sum(one.done for one in self.results)

    @property
    def refused(self) -> list[Result]:
        """Those that refuse."""
        return [one for one in self.results if one.code]


def chosen(rows: "QuerySet[Patch]") -> list[Patch]:
    """The patches that `rows` finds, oldest first. Raises InvalidField `filter` for more than MOST, or none at all."""
    found = list(rows.order_by("pk").select_related("project")[: MOST + 1])
    if not found:
        raise InvalidField("filter", "it finds no patch")
    if len(found) > MOST:
        raise InvalidField("filter", f"it finds more than {MOST} patches: narrow it")
    return found


def carry_out(
    verb: str, patches: Sequence[Patch], reason: str, *, by: events.Actor, dry_run: bool = False, partial: bool = False
) -> Outcome:
    """Call `verb` on each patch, in one transaction. Nothing is written by a dry run, nor when one of them refuses,
    unless `partial` says to leave those out. The caller has checked the role.

    Raises InvalidField for an unknown verb, ReasonRequired.
    """
    known = VERBS.get(verb)
    if known is None:
        raise InvalidField("verb", f"one of {', '.join(VERBS)}, not “{verb[:40]}”")
    if known.needs_reason and not dry_run:
        reason = need_reason(reason)
    results = []
    with transaction.atomic():
        for patch in patches:
            results.append(_try(known, patch, reason or "tried out", by))
        written = not dry_run and (partial or not any(one.code for one in results))
        if not written:
            transaction.set_rollback(True)
    return Outcome(results, written)


def _try(verb: Verb, patch: Patch, reason: str, by: events.Actor) -> Result:
    try:
        with transaction.atomic():
            done = verb.call(patch, reason, by)
    except Refused as refusal:
        return Result(patch.pk, patch.state, False, refusal.code, str(refusal))
    return Result(patch.pk, patch.state, done)

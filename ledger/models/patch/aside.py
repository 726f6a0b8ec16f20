"""Patches that are set aside or closed: quarantine with an owner and an expiry, drop."""

from datetime import timedelta
from typing import Any

from django.conf import settings

from ledger.models.patch.base import PatchBase
from pipeline import events
from pipeline.clock import db_now
from pipeline.refusals import need_reason
from pipeline.rows import in_transaction
from pipeline.states import NOW


class SetAside(PatchBase):
    """A patch can be taken out of the way, for a while or for good."""

    class Meta:
        abstract = True

    def quarantine(
        self,
        reason: str,
        *,
        by: events.Actor,
        owner: str = "approvers",
        path: str = "",
        expires_after: timedelta | None = None,
        **columns: Any,
    ) -> bool:
        """Set it aside with a reason, an owner and an expiry, out of its queue, and write `columns`. Quiet."""
        reason = need_reason(reason)
        with in_transaction():
            self._leave_queue(by, reason)
            return self.move(
                self.State.QUARANTINED,
                by=by,
                reason=reason,
                verb="quarantine",
                state_reason=reason,
                quarantine_reason=reason,
                quarantine_path=path,
                quarantine_owner=owner,
                quarantined_at=NOW,
                quarantine_expires_at=db_now() + (expires_after or timedelta(days=settings.SIGNALBOX_QUARANTINE_DAYS)),
                **columns,
            )

    def expire_quarantine(self, *, by: events.Actor) -> bool:
        """Send it back to its owner's inbox: it stays aside, for as long again, and `patch.quarantine_expired` says so.

        False when it is not set aside any more, or its time is not over.
        """
        with in_transaction():
            rows = type(self).objects.select_for_update(no_key=True, of=("self",)).expired_quarantine()
            current = rows.filter(pk=self.pk).first()
            if current is None:
                return False
            until = db_now() + timedelta(days=settings.SIGNALBOX_QUARANTINE_DAYS)
            current._note(
                "patch.quarantine_expired",
                by=by,
                reason=current.quarantine_reason,
                data={"owner": current.quarantine_owner},
                quarantine_expires_at=until,
            )
        self.quarantine_expires_at = until
        return True

    def drop(self, reason: str, *, by: events.Actor, **columns: Any) -> bool:
        """Close it for good, out of its queue; `columns` are written with it. Quiet. Raises ReasonRequired,
        InvalidMove.
        """
        reason = need_reason(reason)
        with in_transaction():
            self._leave_queue(by, reason)
            return self.move(
                self.State.DROPPED,
                by=by,
                reason=reason,
                verb="drop",
                state_reason=reason,
                quarantine_reason="",
                quarantine_path="",
                quarantine_owner="",
                quarantined_at=None,
                quarantine_expires_at=None,
                **columns,
            )

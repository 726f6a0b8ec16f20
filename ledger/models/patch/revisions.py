"""Patches that stand for one another: newer revisions, and reverses of what has landed."""

from typing import Self

from django.db.models import Q, QuerySet

from ledger.models.patch.aside import SetAside
from pipeline import events
from pipeline.refusals import Refused


class Revised(SetAside):
    """A patch gives way to a newer revision, and to what undoes it."""

    class Meta:
        abstract = True

    def revisions(self) -> QuerySet[Self]:
        """What was submitted in its place, whatever became of it."""
        return type(self)._base_manager.filter(replaces=self.pk)

    def reverses(self) -> QuerySet[Self]:
        """What was submitted to undo it, whatever became of it."""
        return type(self)._base_manager.filter(rollback_of=self.pk)

    def must_be_newest(self, verb: str) -> None:
        """Raises Refused `superseded` while a newer revision of it stands. The caller holds its row's lock."""
        gone = (self.State.DROPPED, self.State.ROLLED_BACK)
        newer = self.revisions().exclude(state__in=gone).order_by("-pk").values_list("pk", "state").first()
        if newer is not None:
            raise Refused(
                f"Cannot {verb}: patch {newer[0]}, which is {newer[1]}, was submitted in its place; go on with that "
                f"one, or drop it first",
                code="superseded",
                patches=[newer[0]],
            )

    def give_way(self, newer: SetAside, *, by: events.Actor) -> bool:
        """Close it, out of its queue, since `newer` was submitted in its place; False when it is not on its way.

        What failed or was set aside stays for whoever looks after it, but does not go on while `newer` stands.
        """
        return self.gives_way and self.drop(f"superseded by {newer.pk}", by=by)

    def in_its_place(self) -> Self:
        """The newest revision of a patch that was dropped for one; itself when there is none. One counts only where it
        is of the same task, and so under the same rules.
        """
        found = self
        while found.state == self.State.DROPPED:
            newer = found.revisions().filter(task=self.task_id).order_by("-pk").first()
            if newer is None:
                break
            found = newer
        return found

    def supersede(self, *, by: events.Actor, winner: SetAside) -> None:
        """Drop this patch, and what it replaced in turn, because `winner` landed in its place."""
        if self.state not in self.FINAL:
            self.drop(f"superseded by {winner.pk}", by=by)
        if self.replaces:
            self.replaces.supersede(by=by, winner=winner)

    def reverse_landed(self, reverse: SetAside, *, by: events.Actor) -> bool:
        """committed -> rolled_back, in the transaction that commits `reverse`. False when another one did it before."""
        reason = reverse.metadata.get("rollback", {}).get("reason") or f"patch {reverse.pk} undoes it"
        return self.move(
            self.State.ROLLED_BACK,
            by=by,
            reason=reason,
            key="reverse_landed",
            verb="rollback",
            severity="critical",
            data={"reverse": reverse.pk, "commit": reverse.commit_sha},
            state_reason=reason,
        )

    def reverse_under_way(self) -> Self | None:
        """The newest reverse of this patch that may still land; None when there is none."""
        return self.reverses().filter(state__in=[*self.OPEN, self.State.QUARANTINED]).order_by("-pk").first()

    def came_back_by(self) -> Self | None:
        """The patch that brought this one back after it was rolled back, by undoing what had undone it. None for one
        whose content is not on the branch, or never left it. Two queries for each time that it was undone.
        """
        if self.state != self.State.ROLLED_BACK or not self.commit_sha:
            return None
        landed = Q(state__in=[self.State.COMMITTED, self.State.ROLLED_BACK])
        undone = self.reverses().filter(landed).exclude(commit_sha="").order_by("-pk").first()
        if undone is None or undone.state == self.State.COMMITTED:
            return None
        again = undone.reverses().filter(landed).exclude(commit_sha="").order_by("-pk").first()
        if again is None or again.state == self.State.COMMITTED:
            return again
        return again.came_back_by()

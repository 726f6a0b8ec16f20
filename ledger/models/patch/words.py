"""The words for asking about patches."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Self

from django.db.models import Q

from ledger import oscillation
from ledger.models.patch.submission import Submissions
from pipeline import events
from pipeline.clock import ClockNow
from pipeline.models import Project

if TYPE_CHECKING:
    from ledger.models.patch.patch import Patch


class PatchQuerySet(Submissions):
    """The words for submitting and asking about patches."""

    def visible_to(self, principal: Any) -> Self:
        """The patches of the projects in which `principal` may read; a worker's key sees its own workers' only."""
        if principal.is_worker:
            return self.filter(attempt__lease__worker__api_key=principal.id)
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)

    def open(self) -> Self:
        """On their way."""
        return self.filter(state__in=self.model.OPEN)

    def parked(self) -> Self:
        """Set aside."""
        return self.filter(state=self.model.State.QUARANTINED)

    def final(self) -> Self:
        """Nothing more becomes of them."""
        return self.filter(state__in=self.model.FINAL)

    def of(self, project: Project) -> Self:
        """The patches of one project."""
        return self.filter(project=project)

    def touching(self, paths: list[str]) -> Self:
        """Those that touch any of `paths`."""
        return self.filter(files_touched__has_any_keys=paths)

    def chain(self, chain_id: str) -> Self:
        """Failure, repairs, replacement and reverse of one piece of work, oldest first."""
        return self.filter(chain_id=chain_id).order_by("pk")

    def awaiting_review(self) -> Self:
        """Valid, and not in the queue yet: those of which `ledger.reviewing` tells whose look is missing."""
        return self.filter(state=self.model.State.VALIDATED)

    def same_change(self, patch: "Patch") -> Self:
        """The project's other patches, oldest first, that make the same change, whatever each of them starts from."""
        if not patch.content.patch_id_git:
            return self.none()
        same = self.filter(project=patch.project_id, content__patch_id_git=patch.content.patch_id_git)
        return same.exclude(pk=patch.pk).order_by("pk")

    def same_tree(self, patch: "Patch", tree: str) -> Self:
        """The project's other patches, oldest first, that make `tree` of the same base, in whatever words."""
        if not tree:
            return self.none()
        same = self.filter(project=patch.project_id, base_commit=patch.base_commit, result_tree=tree)
        return same.exclude(pk=patch.pk).order_by("pk")

    def expired_quarantine(self) -> Self:
        """Set aside, and past the date until which somebody wanted to look at them."""
        return self.parked().filter(quarantine_expires_at__lt=ClockNow())

    def before(self, patch: "Patch", window: int) -> list[oscillation.Earlier]:
        """The last `window` patches of its workstream before it that share a file with it, oldest first, as the
        judgement of oscillation reads them; of its project where there is no workstream. Reverse patches are left out.
        A workstream is also that of a task for which a person submitted. Two queries, if the task is at hand.
        """
        if not patch.files_touched:
            return []
        workstream = patch.workstream_id or (patch.task.run.workstream_id if patch.task else None)
        place = Q(workstream=workstream) | Q(workstream=None, task__run__workstream=workstream)
        if workstream is None:
            place = Q(project=patch.project_id, workstream=None, task__run__workstream=None)
        rows = self.filter(place, pk__lt=patch.pk, rollback_of=None)
        rows = rows.touching(sorted(patch.files_touched)).exclude(content=None)
        found = list(rows.order_by("-pk").values_list("pk", "content__diff_text", "attempt")[:window])[::-1]
        again = resubmitters([pk for pk, _, _ in found])
        return [oscillation.Earlier(pk, text, len(again.get(pk, set()) - {own})) for pk, text, own in found]


def resubmitters(patch_ids: Collection[str]) -> dict[str, set[str | None]]:
    """The attempts that submitted each of these patches once more, by the patch's id. One query."""
    told = events.Event.objects.filter(kind="patch.resubmitted", subject_id__in=patch_ids)
    found: dict[str, set[str | None]] = {}
    for pk, attempt in told.exclude(data__attempt=None).values_list("subject_id", "data__attempt"):
        found.setdefault(pk, set()).add(attempt)
    return found

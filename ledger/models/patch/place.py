"""Where in the plan a change belongs: whose rules it is under, and whose work it may do."""

from typing import TYPE_CHECKING, NamedTuple, Self

from pipeline.models import Phase, StepAttempt, Task, Workstream
from pipeline.refusals import InvalidField

if TYPE_CHECKING:
    from ledger.models.patch.patch import Patch


class Place(NamedTuple):
    """A place in the plan; all None for a change of nobody's plan, which is under the project's rules alone."""

    phase: Phase | None = None
    workstream: Workstream | None = None
    task: Task | None = None

    @classmethod
    def of(
        cls,
        *,
        attempt: StepAttempt | None = None,
        task: Task | None = None,
        rollback_of: "Patch | None" = None,
        replaces: "Patch | None" = None,
    ) -> Self:
        """That of its attempt or task; else that of the patch which it undoes or replaces, so that nothing leaves the
        rules over a piece of work by doing it once more.

        Raises InvalidField `task` for a task that is another one than that of what it replaces, or lies elsewhere.
        """
        task = attempt.task if attempt else task
        if task is not None:
            place = cls(task.run.phase, task.run.workstream, task)
            if replaces is not None and attempt is None:
                place._must_hold(replaces)
            return place
        if rollback_of is not None:
            return cls(rollback_of.phase, rollback_of.workstream)
        return cls(replaces.phase, replaces.workstream, replaces.task) if replaces else cls()

    def _must_hold(self, replaced: "Patch") -> None:
        """Raises InvalidField `task` unless every rule over `replaced` is one over this place."""
        for name, own in zip(self._fields, self, strict=True):
            theirs = getattr(replaced, name)
            if theirs is not None and theirs != own:
                raise InvalidField(
                    "task",
                    f"patch {replaced.pk} is of {name} {theirs.key}, and so is what comes in its place: name a task of "
                    f"it, or none; a change for another task replaces nothing",
                )

"""Flaky tests in quarantine: they run and are reported, and until the quarantine ends their failure judges nothing."""

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from django.db import models
from django.db.models import Q

from gates.junit import FAIL, FLAKY_PASS, PASS, final_outcome
from pipeline import events
from pipeline.clock import ClockNow, db_now
from pipeline.definitions import Definition, DefinitionQuerySet
from pipeline.models import Project, User
from pipeline.refusals import InvalidField, need_reason
from pipeline.rows import Told, in_transaction, versioned

if TYPE_CHECKING:
    from gates.models import GateRun

PASSES_TO_RELEASE = 20
LONGEST_DAYS = 90


class FlakyTestQuerySet(DefinitionQuerySet["FlakyTest"]):
    """The words for putting tests aside and asking about them."""

    def visible_to(self, principal: Any) -> Self:
        """The quarantines of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)

    def standing(self) -> Self:
        """Those that have not expired, by the database's clock."""
        return self.filter(expires_at__gt=ClockNow())

    def keys_of(self, project_id: str) -> frozenset[str]:
        """The keys of a project's tests whose failures are not judged now."""
        return frozenset(self.standing().filter(project=project_id).values_list("test_key", flat=True))

    def add(self, *, by: events.Actor, **fields: Any) -> "FlakyTest":
        """Put a test into quarantine, recorded as `flaky_test.added`, and as `flaky_test.marked` for whoever listens to
        warnings. A node id as pytest prints it is kept as the key that its reports have. Raises InvalidField, also for
        a test that no run has reported where runs did report tests, or Refused `duplicate_key`.
        """
        with in_transaction():
            fields["test_key"] = self._as_reported(fields.get("project"), fields.get("test_key"))
            row: FlakyTest = super().add(by=by, **fields)
            events.record("flaky_test.marked", row, by=by, reason=row.reason, data={"test_key": row.test_key})
        return row

    def _as_reported(self, project: Project | None, name: Any) -> Any:
        from gates.models import TestResult

        if project is None or not isinstance(name, str) or "\0" in name:
            return name  # the fields' own checks say what is wrong
        seen = TestResult.objects.seen_as(project.pk, name)
        if not seen and TestResult.objects.filter(gate_run__project=project).exists():
            near = TestResult.objects.near(project.pk, name)
            like = f"; near it are {', '.join(near)}" if near else ""
            raise InvalidField("test_key", f"no run has reported a test {name[:200]!r}{like}", near=near)
        return seen or name

    def recount(self, gate_run: "GateRun") -> int:
        """Look again at the quarantined tests that this run ran: count their passes in a row, and release those that
        have enough. Counted from the results, so that a repeat changes nothing. Returns how many were released.
        """
        ran = set(
            gate_run.results.filter(
                test_key__in=self.filter(project=gate_run.project_id).values("test_key")
            ).values_list("test_key", flat=True)
        )
        released = 0
        for row in self.filter(project=gate_run.project_id, test_key__in=ran).order_by("pk"):
            passes = row.passes_in_a_row()
            if passes >= PASSES_TO_RELEASE:
                released += row.release(f"it passed {passes} times in a row", by=events.SYSTEM)
            else:
                self.filter(pk=row.pk).exclude(consecutive_passes=passes).update(consecutive_passes=passes)
        return released

    def wake_owners(self) -> int:
        """Tell once of each quarantine that has expired: its test is judged again. Returns how many were told."""
        expired = self.filter(expires_at__lte=ClockNow(), expiry_told_at=None).order_by("pk")
        told = 0
        for row in expired[:100]:
            with in_transaction():
                if self.filter(pk=row.pk, expiry_told_at=None).update(expiry_told_at=db_now()):
                    told += 1
                    events.record(
                        "alert.raised",
                        row,
                        by=events.SYSTEM,
                        reason=f"the quarantine of {row.test_key} has expired: its failures are judged again",
                        data={"cause": "flaky_test_expired", "owner": row.owner, "test_key": row.test_key},
                    )
        return told


@versioned(quiet=("consecutive_passes", "expiry_told_at"))
class FlakyTest(Definition):
    """A test that somebody answers for while it is not dependable: who, why, and until when.

    It keeps running and is reported. Its failure is judged again when the quarantine expires, which wakes the owner;
    after 20 passes in a row it is released. A required test is judged in any case.
    """

    NOUN = "flaky_test"
    UNTOLD = Told.UNTOLD | {"consecutive_passes", "expiry_told_at"}

    project = models.ForeignKey(Project, models.PROTECT, related_name="flaky_tests")
    test_key = models.CharField(max_length=500)
    owner = models.CharField(max_length=200)
    reason = models.TextField()
    since = models.DateTimeField(db_default=ClockNow(), editable=False)
    expires_at = models.DateTimeField()
    consecutive_passes = models.PositiveSmallIntegerField(default=0, editable=False)
    expiry_told_at = models.DateTimeField(null=True, editable=False)

    objects = FlakyTestQuerySet.as_manager()

    class Meta:
        ordering = ["project", "test_key"]
        constraints = [
            models.UniqueConstraint(fields=["project", "test_key"], name="flakytest_once_per_project"),
            models.CheckConstraint(
                name="flakytest_says_who_and_why", condition=~Q(owner="") & ~Q(reason="") & ~Q(test_key="")
            ),
        ]

    def __str__(self) -> str:
        return self.test_key

    def correlation(self) -> dict[str, str | None]:
        """Events about a quarantine belong to its project."""
        return {"project_id": self.project_id}

    def check_rules(self) -> None:
        """An owner who is somebody, a reason, and an end that is ahead and not too far."""
        need_reason(self.reason)
        if not self.owner.strip():
            raise InvalidField("owner", "somebody answers for a test in quarantine")
        seeing = Q(is_superuser=True) | Q(memberships__project=self.project_id)
        if not User.objects.filter(seeing, username=self.owner, is_active=True).exists():
            why = f"nobody of that username sees {self.project.key}; the owner is told when the quarantine ends"
            raise InvalidField("owner", f"{self.owner}: {why}")
        now = db_now()
        if not now < self.expires_at <= now + timedelta(days=LONGEST_DAYS):
            raise InvalidField("expires_at", f"a quarantine ends in the future, within {LONGEST_DAYS} days")

    @property
    def warning(self) -> str:
        """What is doubtful about it: that no run has reported such a test; empty when nothing is."""
        from gates.models import TestResult

        if TestResult.objects.seen_as(self.project_id, self.test_key):
            return ""
        return "no run has reported a test of this name yet"

    @property
    def is_standing(self) -> bool:
        """Whether it still excuses the test."""
        return self.expires_at > db_now()

    def passes_in_a_row(self) -> int:
        """How many of the newest runs since it began passed the test without a failure before; at most 20 are read."""
        from gates.models import TestResult

        rows = TestResult.objects.filter(
            test_key=self.test_key, gate_run__project=self.project_id, created_at__gt=self.since
        )
        by_run: dict[str, list[str]] = {}
        newest = rows.order_by("-gate_run", "-attempt").values_list("gate_run", "outcome")
        for run, outcome in newest[: PASSES_TO_RELEASE * 4]:
            by_run.setdefault(run, []).insert(0, outcome)
        passes = 0
        for outcomes in list(by_run.values())[:PASSES_TO_RELEASE]:
            if final_outcome(outcomes) != PASS or {FAIL, "error", FLAKY_PASS} & set(outcomes):
                break
            passes += 1
        return passes

    def release(self, reason: str, *, by: events.Actor) -> bool:
        """End the quarantine: the row goes, its history stays, recorded as `flaky_test.released`. Quiet. Raises
        ReasonRequired.
        """
        reason = need_reason(reason)
        with in_transaction():
            current = FlakyTest.objects.select_for_update(no_key=True, of=("self",)).filter(pk=self.pk).first()
            if current is None:
                return False
            events.record("flaky_test.released", current, by=by, reason=reason, data={"test_key": current.test_key})
            current.remove(by=by)
        return True


def history(keys: Iterable[str], project_id: str) -> dict[str, str]:
    """{test key: owner} of those in quarantine now, for pages."""
    rows = FlakyTest.objects.standing().filter(project=project_id, test_key__in=list(keys))
    return dict(rows.values_list("test_key", "owner"))

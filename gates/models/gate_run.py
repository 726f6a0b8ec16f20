"""Each time that a check was run for a tree."""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_DOWN, Decimal
from functools import lru_cache
from typing import Any, Self

from django.conf import settings
from django.db import models
from django.db.models import ExpressionWrapper, F, Q
from django.utils.translation import gettext_lazy as _

from gates import criteria as rules
from gates import environment
from gates.junit import Results
from gates.models.finding import Finding
from gates.models.gate import Gate, ring_of
from gates.models.test_result import TestResult
from gates.sarif import Found
from ledger import git
from ledger.models import Patch, PatchPolicy, QueueItem
from ledger.policy import is_path
from pipeline import events
from pipeline.clock import ClockNow, db_now
from pipeline.models import ExecutionRequest, Project, Run, Task
from pipeline.refusals import InvalidField, Refused, need_reason
from pipeline.rows import in_transaction
from pipeline.scope import matches
from pipeline.states import NOW, InvalidMove, Stateful, held_by_postgres

RUNNER_SILENCE_SECONDS = 45
READING_SECONDS = 60


class GateRunQuerySet(models.QuerySet["GateRun"]):
    """The words for opening and asking about gate runs."""

    def visible_to(self, principal: Any) -> Self:
        """The runs of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)

    def with_waivers(self) -> Self:
        """Each with `waiver_stands`: what `is_waived` says, asked once for all of a list."""
        stands = Q(waived_at__isnull=False) & (Q(waiver_expires_at=None) | Q(waiver_expires_at__gt=ClockNow()))
        return self.annotate(waiver_stands=ExpressionWrapper(stands, models.BooleanField()))

    def open(self) -> Self:
        """Not ended."""
        return self.filter(state__in=[GateRun.State.PENDING, GateRun.State.RUNNING])

    def forget_logs(self, before: datetime, limit: int = 500) -> int:
        """Empty the logs of up to `limit` runs that ended before then; all else of them stays. Answers how many."""
        old = self.filter(completed_at__lt=before).exclude(output_tail="").order_by("completed_at")
        found = list(old.values_list("pk", flat=True)[:limit])
        return self.filter(pk__in=found).update(output_tail="")

    def overdue(self) -> Self:
        """Running, and either past its deadline or silent: its runner is gone. A system outside does not beat."""
        silence = timedelta(seconds=RUNNER_SILENCE_SECONDS)
        return self.filter(state=GateRun.State.RUNNING).filter(
            Q(deadline_at__lt=ClockNow()) | Q(external=False, seen_at__lt=ClockNow() - silence)
        )

    def open_for(self, patch: Patch, item: QueueItem, *, by: events.Actor) -> "list[GateRun]":
        """A pending run of each gate that judges `patch` on the item's tree, unless that verdict is known or
        under way.
        """
        opened = []
        gates = list(Gate.objects.judging(patch))
        base = base_tree_of(item, patch) if any(gate.needs_base for gate in gates) else ""
        with in_transaction():
            QueueItem.objects.select_for_update(no_key=True).get(pk=item.pk)
            for gate in gates:
                known = self.newest(gate, item.candidate_tree, base_tree=base, patch=patch)
                if known is None or not known.stands_for(item):
                    opened.append(
                        self.ask_for(gate, item.candidate_tree, by=by, patch=patch, item=item, base_tree=base)
                    )
        return opened

    def measure_base(self, gate: Gate, base_tree: str, *, by: events.Actor) -> "GateRun | None":
        """A pending run of `gate` on the base that judges nothing, for others to compare with; None when there is one,
        or a measurement, already.
        """
        known = self.filter(gate=gate, gate_version=gate.gate_version, tree_hash=base_tree)
        if known.filter(state__in=["pending", "running", "passed", "failed"]).exists():
            return None
        if not self.may_measure(known):
            return None  # it cannot be measured: what asks for it says so
        return self.ask_for(gate, base_tree, by=by, baseline=True)

    def may_measure(self, on_base: "GateRunQuerySet") -> bool:
        """Whether a base without a measurement is to be tried (again): its own errors end that, the machine's do not at
        once.
        """
        errors = on_base.filter(baseline=True, state=GateRun.State.ERROR)
        lost = errors.filter(error_kind=GateRun.ErrorKind.INFRA).count()
        return errors.count() == lost <= settings.SIGNALBOX_GATE_INFRA_RERUNS

    def on_base(self, gate_run: "GateRun") -> "GateRun | None":
        """The newest run of the same gate, as it is in this run, that measured the base of this run."""
        if not gate_run.base_tree:
            return None
        same = self.filter(gate=gate_run.gate_id, gate_version=gate_run.gate_version, tree_hash=gate_run.base_tree)
        return same.filter(state__in=["passed", "failed"]).exclude(pk=gate_run.pk).order_by("-pk").first()

    def newest(self, gate: Gate, tree_hash: str, *, base_tree: str, patch: Patch | None) -> "GateRun | None":
        """The newest run of this version of `gate` that answers for this tree of `patch`. Where the gate looks at what
        a patch changes, only one that came from the same base: the tree alone does not say what was taken out of it.
        """
        rows = self.answering(tree_hash, patch=patch).filter(gate=gate, gate_version=gate.gate_version)
        if gate.needs_base:
            rows = rows.filter(base_tree=base_tree)
        return rows.order_by("-pk").first()

    def answering(self, tree_hash: str, *, patch: Patch | None) -> Self:
        """The runs that were to judge this tree, and were not skipped as superseded. A waiver is for one patch, so a
        run that was waived for another does not count. Of which base they came is for the caller to ask.
        """
        rows = self.filter(tree_hash=tree_hash, baseline=False).exclude(state=GateRun.State.SKIPPED, waived_at=None)
        return rows.exclude(Q(waived_at__isnull=False) & ~Q(patch=patch))

    def ask_for(
        self,
        gate: Gate,
        tree_hash: str,
        *,
        by: events.Actor,
        patch: Patch | None = None,
        item: QueueItem | None = None,
        retry_of: "GateRun | None" = None,
        base_tree: str = "",
        baseline: bool = False,
    ) -> "GateRun":
        """A pending run of `gate` on a tree, with a snapshot of its definition.

        A `baseline` judges nothing: it is measured for others to be compared with, and has no criteria. One is asked
        for here, of the same gate on `base_tree`, where the gate compares with it and it was not measured yet.
        """
        base_tree = base_tree or (retry_of.base_tree if retry_of else "")
        if patch is not None and not base_tree:
            base_tree = base_tree_of(item, patch) if item is not None and gate.needs_base else patch.base_tree
        with in_transaction():
            if gate.compares_with_base and base_tree not in ("", tree_hash) and not baseline:
                self.measure_base(gate, base_tree, by=by)
            run = GateRun(
                name=gate.name,
                gate_type=gate.gate_type,
                criteria={} if baseline else rules.asked(gate.criteria),
                required=gate.required and not baseline,
                baseline=baseline,
                gate=gate,
                gate_version=gate.gate_version,
                project=gate.project,
                patch=patch,
                queue_item=item,
                run=patch.run if patch else None,
                task=patch.task if patch else None,
                request=patch.request if patch else None,
                tree_hash=tree_hash,
                base_tree="" if baseline else base_tree,
                command=gate.command,
                definition=gate.kept_by_runs(),
                external=gate.external,
                retry_of=retry_of,
            )
            run.save(force_insert=True)
            run.born(by=by)
        return run

    def verdict(self, patch: Patch, tree_hash: str) -> str:
        """What the required gates say of this tree: passed, failed, unknown, or none when no required gate applies, or
        the policy asks for tests and none that tests does.
        """
        verdicts = []
        required = [gate for gate in Gate.objects.judging(patch) if gate.required]
        for run in self.judged_by(patch, tree_hash, required).values():
            verdicts.append("unknown" if run is None else run.verdict)
        if "failed" in verdicts:
            return "failed"
        if set(verdicts) - {"passed"}:
            return "unknown"
        return "passed" if verdicts and not untested_paths(patch, required) else "none"

    def judged_by(self, patch: Patch, tree_hash: str, gates: Iterable[Gate]) -> "dict[Gate, GateRun | None]":
        """The run of each of these gates that answers for this tree of `patch`; None where there is none."""
        gates = list(gates)
        base = base_of(patch, tree_hash) if any(gate.needs_base for gate in gates) else ""
        return {gate: self.newest(gate, tree_hash, base_tree=base, patch=patch) for gate in gates}


def untested_paths(patch: Patch, gates: Iterable[Gate]) -> list[str]:
    """The touched paths for which its policy asks for tests, and that none of these gates tests."""
    asked = patch.policy_snapshot.get("require_tests_for_paths") or ()
    concerned = [path for path in sorted(patch.files_touched) if asked and is_path(path) and matches(path, asked)]
    tests = [gate for gate in gates if gate.gate_type in Gate.TESTS] if concerned else []
    return [path for path in concerned if not any(gate.concerns([path]) for gate in tests)]


@dataclass(frozen=True, slots=True)
class Hindrance:
    """What a pending run waits for: its key, why in words, its run where there is one; `lasts`: until an admin acts."""

    key: str
    why: str
    run: "GateRun | None" = None
    lasts: bool = False


@held_by_postgres
class GateRun(Stateful):
    """One execution of a gate against one tree.

        initial -> pending -> running -> passed | failed | error
        pending, running -> skipped

    Its results are bound to the tree, its definition is a snapshot. A waiver leaves the state as it is; a rerun is a
    new record.
    """

    NOUN = "gate_run"

    class State(models.TextChoices):
        PENDING = "pending", _("pending")
        RUNNING = "running", _("running")
        PASSED = "passed", _("passed")
        FAILED = "failed", _("failed")
        SKIPPED = "skipped", _("skipped")
        ERROR = "error", _("error")

    class ErrorKind(models.TextChoices):
        INFRA = "infra", _("infrastructure")
        TIMEOUT = "timeout", _("timeout")
        COMMAND = "command", _("command")
        PARSE = "parse", _("unreadable evidence")
        CONTRADICTION = "contradiction", _("contradiction")
        OUTPUT_LIMIT = "output_limit", _("output limit")

    MOVES = {
        State.PENDING: {State.RUNNING, State.SKIPPED},
        State.RUNNING: {State.PASSED, State.FAILED, State.ERROR, State.SKIPPED},
        State.PASSED: set(),
        State.FAILED: set(),
        State.SKIPPED: set(),
        State.ERROR: set(),
    }
    KINDS = {(State.PENDING, State.RUNNING): "gate_run.started"}
    INITIAL = {State.PENDING}
    ENDED = (State.PASSED, State.FAILED, State.SKIPPED, State.ERROR)
    STATE_CLOCKS = ("seen_at",)
    # What its runner's beats move, and a long text with a retention of its own.
    UNTOLD = Stateful.UNTOLD | {*STATE_CLOCKS, "output_tail"}

    name = models.CharField(max_length=200)
    gate_type = models.CharField(max_length=17, choices=Gate.Type)
    criteria = models.JSONField(default=dict)
    required = models.BooleanField(default=True)
    gate = models.ForeignKey(Gate, models.PROTECT, null=True, related_name="gate_runs")
    gate_version = models.PositiveIntegerField(null=True)
    project = models.ForeignKey(Project, models.PROTECT, related_name="gate_runs")
    patch = models.ForeignKey(Patch, models.PROTECT, null=True, related_name="gate_runs")
    queue_item = models.ForeignKey(QueueItem, models.PROTECT, null=True, related_name="gate_runs")
    run = models.ForeignKey(Run, models.PROTECT, null=True, related_name="gate_runs")
    task = models.ForeignKey(Task, models.PROTECT, null=True, related_name="gate_runs")
    request = models.ForeignKey(ExecutionRequest, models.PROTECT, null=True, related_name="gate_runs")
    tree_hash = models.CharField(max_length=64)
    base_tree = models.CharField(max_length=64, blank=True)
    baseline = models.BooleanField(default=False)
    environment = models.CharField(max_length=64, blank=True)
    state = models.CharField(max_length=7, choices=State, default=State.PENDING)
    state_reason = models.TextField(blank=True)
    command = models.JSONField(default=list)
    definition = models.JSONField(default=dict, db_default=models.Value({}, models.JSONField()))
    external = models.BooleanField(default=False, db_default=False)
    started_at = models.DateTimeField(null=True)
    completed_at = models.DateTimeField(null=True)
    duration_seconds = models.DecimalField(max_digits=12, decimal_places=3, null=True)
    exit_code = models.IntegerField(null=True)
    runner = models.CharField(max_length=200, blank=True)
    seen_at = models.DateTimeField(null=True)
    sandbox_level = models.PositiveSmallIntegerField(null=True)
    sandbox_level_min = models.PositiveSmallIntegerField(null=True)
    deadline_at = models.DateTimeField(null=True)
    total_tests = models.PositiveIntegerField(default=0)
    passed_tests = models.PositiveIntegerField(default=0)
    failed_tests = models.PositiveIntegerField(default=0)
    skipped_tests = models.PositiveIntegerField(default=0)
    flaky_tests = models.PositiveIntegerField(default=0)
    coverage_percent = models.DecimalField(max_digits=6, decimal_places=3, null=True)
    patch_coverage_percent = models.DecimalField(max_digits=6, decimal_places=3, null=True)
    parsed = models.BooleanField(default=False)
    decision_passed = models.BooleanField(null=True)
    decision_reason = models.TextField(blank=True)
    decided_by = models.CharField(max_length=200, blank=True)
    decided_at = models.DateTimeField(null=True)
    verdicts = models.JSONField(default=dict)
    error_kind = models.CharField(max_length=13, choices=ErrorKind, blank=True)
    skip_reason = models.TextField(blank=True)
    skipped_by = models.CharField(max_length=200, blank=True)
    waived_at = models.DateTimeField(null=True)
    waived_by = models.CharField(max_length=200, blank=True)
    waive_reason = models.TextField(blank=True)
    waiver_expires_at = models.DateTimeField(null=True)
    retry_of = models.ForeignKey("self", models.PROTECT, null=True, related_name="reruns")
    shards_seen = models.PositiveSmallIntegerField(default=0)
    output_tail = models.TextField(blank=True)
    evidence = models.JSONField(default=dict)
    metadata = models.JSONField(default=dict)

    objects = GateRunQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="gaterun_decided_says_how",
                condition=~Q(state__in=["passed", "failed"])
                | Q(exit_code__isnull=False, completed_at__isnull=False, decision_passed__isnull=False),
            ),
            models.CheckConstraint(name="gaterun_skipped_says_why", condition=~Q(state="skipped") | ~Q(skip_reason="")),
            models.CheckConstraint(
                name="gaterun_error_has_kind",
                condition=(Q(state="error") & ~Q(error_kind="")) | (~Q(state="error") & Q(error_kind="")),
            ),
            models.CheckConstraint(
                name="gaterun_waiver_says_why",
                condition=Q(waived_at=None) | (~Q(waive_reason="") & ~Q(waived_by="")),
            ),
            models.CheckConstraint(
                name="gaterun_counts_add_up",
                condition=Q(total_tests=F("passed_tests") + F("failed_tests") + F("skipped_tests")),
            ),
            models.CheckConstraint(
                name="gaterun_coverage_is_percent",
                condition=(Q(coverage_percent=None) | Q(coverage_percent__gte=0, coverage_percent__lte=100))
                & (Q(patch_coverage_percent=None) | Q(patch_coverage_percent__gte=0, patch_coverage_percent__lte=100)),
            ),
            models.CheckConstraint(
                name="gaterun_running_has_deadline",
                condition=~Q(state="running") | Q(deadline_at__isnull=False, seen_at__isnull=False),
            ),
        ]
        indexes = [
            models.Index(fields=["project", "-id"], name="gaterun_of_project"),
            models.Index(fields=["tree_hash", "gate", "-id"], name="gaterun_of_tree"),
            models.Index(fields=["state", "id"], name="gaterun_open", condition=Q(state__in=["pending", "running"])),
        ]

    def __str__(self) -> str:
        return f"{self.name} on {self.tree_hash[:12]}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a gate run belong to it, its patch, task and run."""
        ids: dict[str, str | None] = self.patch.correlation() if self.patch else {"project_id": self.project_id}
        return {**ids, "gate_run_id": self.pk}

    def gate_as_asked(self) -> Gate:
        """Its gate as it was when this run was asked for: by this it is executed and judged, whatever was edited since.
        Not to be saved. An older row kept no definition, and has that of the gate as it is. Raises Refused
        `gate_not_found`.
        """
        if self.gate is None:
            raise Refused("a run without a gate has nothing to be executed or judged by", code="gate_not_found")
        gate = copy(self.gate)
        for name, value in self.definition.items():
            setattr(gate, name, value)
        gate.gate_version = self.gate_version or gate.gate_version
        gate.gate_type, gate.criteria = self.gate_type, self.criteria
        if not self.external:  # a system outside says what it ran
            gate.command = self.command
        return gate

    @property
    def is_waived(self) -> bool:
        """Whether a waiver stands now."""
        return self.waived_at is not None and (self.waiver_expires_at is None or self.waiver_expires_at > db_now())

    @property
    def verdict(self) -> str:
        """passed (or waived), failed, or unknown: pending, running, skipped, errors that are not the patch's, and what
        waits for a person.
        """
        if self.state == self.State.PASSED or self.is_waived:
            return "passed"
        if self.needs_person:
            return "unknown"
        if self.state == self.State.FAILED:
            return "failed"
        if self.state == self.State.ERROR and self.error_kind != self.ErrorKind.INFRA:
            return "failed"
        return "unknown"

    @property
    def needs_person(self) -> bool:
        """Whether all that it holds against the patch is that its goalposts moved: a person looks at that, and waives
        or drops; the agent that moved them is not asked to mend it.
        """
        if self.state != self.State.FAILED or self.is_waived:
            return False
        missed = {key for key, verdict in self.verdicts.items() if verdict["status"] != "pass"}
        return missed == {"goalposts"} and self.verdicts["goalposts"]["status"] == "fail"

    def stands_for(self, item: QueueItem) -> bool:
        """Whether it answers for this item's tree: it was asked for it, is under way, was waived, or ran where the
        programs and settings were what they are now. An older row does not say where it ran, and stands. What waits for
        a person is about one patch: another has a run of its own, for a person to look at.
        """
        if self.needs_person and self.patch_id != item.patch_id:
            return False
        if self.queue_item_id == item.pk or self.state not in self.ENDED or self.is_waived or not self.environment:
            return True
        return self.gate is not None and self.environment == environment.digest(self.gate, self.sandbox_level)

    @property
    def level_wanted(self) -> int:
        """The sandbox level that it must hold at least: of project, policies, phase and gate the highest wins."""
        place = self.patch or self.gate
        phase, workstream = (place.phase, place.workstream) if place else (None, None)
        task = self.task if self.patch else None
        policies = PatchPolicy.objects.effective(self.project, phase, workstream, task)
        asked: int = policies.values.get("sandbox_level_min", 0)
        # As it was asked for, and as it is: what was made stricter since holds at once.
        gates = [self.gate_as_asked(), self.gate] if self.gate else []
        return max(self.project.sandbox_level_min, asked, *(gate.sandbox_level_min or 0 for gate in gates))

    def start(
        self,
        *,
        by: events.Actor,
        runner: str = "",
        sandbox_level: int | None = None,
        sandbox_level_min: int | None = None,
        command: list[str] | None = None,
    ) -> bool:
        """pending -> running, with a deadline and a runner that beats, or that reports from outside.

        Raises Refused `gate_blocked`.
        """
        waiting = self.hindrances()
        if waiting:
            told = "; ".join(one.why for one in waiting)
            raise Refused(f"Cannot start gate: {told}", code="gate_blocked", waiting_for=[one.key for one in waiting])
        limit = settings.SIGNALBOX_GATE_TIMEOUT_SECONDS
        if self.gate is not None:
            asked = self.gate_as_asked()
            limit = asked.limit_seconds if self.external else asked.limit_of_all_seconds
        given: dict[str, Any] = {} if command is None else {"command": command}
        return self.move(
            self.State.RUNNING,
            by=by,
            verb="start gate",
            working=True,
            started_at=NOW,
            seen_at=NOW,
            # Our runner ends the command at the limit, and then reads what it left; a system outside reports in time.
            deadline_at=db_now() + timedelta(seconds=limit + (0 if self.external else READING_SECONDS)),
            runner=runner,
            sandbox_level=sandbox_level,
            sandbox_level_min=sandbox_level_min,
            **given,
        )

    def blocking(self) -> list[str]:
        """The keys of what it waits for, as `hindrances` says it."""
        return [one.key for one in self.hindrances()]

    def hindrances(self) -> "list[Hindrance]":
        """The gates that it depends on and that have no passed or waived run on this tree; and its own, while the base
        that it is compared with is being measured.

        A gate that does not apply to the patch holds nobody up. One that is disabled, is not there, or waits for this
        one in turn does, and the reason says that it will for ever.
        """
        if not self.gate or self.baseline:
            return []
        found = []
        if self._waits_for_base():
            key = self.gate.key
            found.append(Hindrance(f"{key} on the base", f"{key} is being measured on the base"))
        if not self.gate.depends_on:
            return found
        gates = {gate.key: gate for gate in Gate.objects.filter(project=self.project_id)}
        for key in sorted(set(self.gate.depends_on)):
            hindrance = self._hindrance(key, gates)
            if hindrance is not None:
                found.append(hindrance)
        return found

    def _hindrance(self, key: str, gates: "Mapping[str, Gate]") -> "Hindrance | None":
        gate = gates.get(key)
        if gate is None:
            return Hindrance(key, f"the project has no gate {key}: take it out of depends_on", lasts=True)
        if self.patch is not None and not gate.is_for(self.patch):
            return None
        run = self._beside(gate)
        if run is not None and run.verdict == "passed":
            return None
        if not gate.enabled or gate.judges != Gate.Judges.PATCH:
            return Hindrance(key, f"{key} is disabled: enable it, or take it out of depends_on", lasts=True)
        if ring := ring_of(key, {gate.key: gate.depends_on for gate in gates.values()}):
            return Hindrance(key, f"gates wait for each other: {' → '.join(ring)}", lasts=True)
        if run is None:
            return Hindrance(key, f"{key} has no run on this tree")
        return Hindrance(key, f"{key} is {run.get_state_display()}", run)

    def _beside(self, gate: Gate) -> "GateRun | None":
        """The run of another gate for the same tree, base and patch."""
        return GateRun.objects.newest(gate, self.tree_hash, base_tree=self.base_tree, patch=self.patch)

    def _waits_for_base(self) -> bool:
        if not self.base_tree or self.gate is None or not self.gate.compares_with_base:
            return False
        on_base = GateRun.objects.filter(gate=self.gate, gate_version=self.gate_version, tree_hash=self.base_tree)
        on_base = on_base.exclude(pk=self.pk)
        if on_base.filter(state__in=["passed", "failed"]).exists():
            return False
        lost = on_base.filter(baseline=True, state=self.State.ERROR).exists()
        return on_base.open().exists() or (lost and GateRun.objects.may_measure(on_base))

    def beat(self, runner: str) -> bool:
        """Note that its runner lives. False when it is not running, or another runs it: that runner is to stop."""
        return (
            GateRun.objects.filter(pk=self.pk, state=self.State.RUNNING, runner=runner).update(seen_at=ClockNow()) == 1
        )

    def complete(
        self,
        judgement: rules.Judgement,
        *,
        by: events.Actor,
        results: Results | None = None,
        exit_code: int | None = None,
        duration_seconds: Any = None,
        output_tail: str = "",
        sandbox_level: int | None = None,
        evidence: Mapping[str, Any] | None = None,
        runner: str | None = None,
        shards_seen: int | None = None,
        environment: str = "",
        findings: Sequence[Found] = (),
    ) -> bool:
        """running -> passed, failed or error, with the results of every test and the findings. Raises InvalidMove.

        `runner` fences it: a runner whose run was given to another is refused as `stale_claim`.
        """
        with in_transaction():
            current = GateRun.objects.select_for_update(no_key=True, of=("self",)).get(pk=self.pk)
            if runner is not None and current.state == self.State.RUNNING and current.runner != runner:
                raise Refused(f"Stale claim: gate run {self.pk} belongs to another runner", code="stale_claim")
            columns: dict[str, Any] = {}
            if results is not None:
                columns = {
                    "total_tests": results.total,
                    "passed_tests": results.passed,
                    "failed_tests": results.failed,
                    "skipped_tests": results.skipped,
                    "flaky_tests": results.flaky,
                    "parsed": results.parsed,
                    "coverage_percent": _percentage(results.coverage_percent),
                    "patch_coverage_percent": _percentage(results.patch_coverage_percent),
                }
            told_shards = 1 if results is not None and results.counted else 0
            columns |= {"shards_seen": told_shards if shards_seen is None else shards_seen, "environment": environment}
            if sandbox_level is not None:
                columns["sandbox_level"] = sandbox_level
            moved = self.move(
                judgement.state,
                by=by,
                reason=judgement.reason,
                verb="complete gate",
                working=True,
                only_from=(self.State.RUNNING,),
                state_reason=judgement.reason,
                completed_at=NOW,
                duration_seconds=duration_seconds,
                exit_code=exit_code,
                decision_passed=judgement.decision_passed,
                decision_reason=judgement.reason,
                decided_by=by.name,
                decided_at=NOW,
                verdicts=judgement.verdicts,
                error_kind=judgement.error_kind,
                output_tail=output_tail,
                evidence=dict(evidence or {}),
                **columns,
            )
            if results is not None:
                TestResult.objects.keep(self, results)
            Finding.objects.keep(self, findings)
        return moved

    def skip(self, reason: str, *, by: events.Actor) -> bool:
        """pending, running -> skipped. It satisfies no requirement. Quiet. Raises ReasonRequired."""
        reason = need_reason(reason)
        reason = reason if reason.startswith("Skipped: ") else f"Skipped: {reason}"
        return self.move(
            self.State.SKIPPED,
            by=by,
            reason=reason,
            verb="skip gate",
            state_reason=reason,
            skip_reason=reason,
            skipped_by=by.name,
            completed_at=NOW,
            decision_passed=False,
            decision_reason=reason,
        )

    def waive(self, reason: str, *, by: events.Actor, expires_at: Any = None) -> bool:
        """A recorded permission to pass although it did not, until `expires_at`: no move. One that stands is replaced,
        so made longer or shorter; quiet when it says the same.

        Raises ReasonRequired, InvalidMove, and InvalidField for an end that has passed.
        """
        reason = need_reason(reason)
        if expires_at is not None and expires_at <= db_now():
            raise InvalidField("expires_at", "a waiver ends in the future")
        with in_transaction():
            current = GateRun.objects.select_for_update(no_key=True, of=("self",)).get(pk=self.pk)
            if current.state not in (self.State.FAILED, self.State.ERROR, self.State.SKIPPED):
                raise InvalidMove(
                    current, current.state, "waived", verb="waive gate", allowed=self.MOVES[current.state]
                )
            if current.is_waived and (current.waive_reason, current.waiver_expires_at) == (reason, expires_at):
                return False
            columns = {
                "waived_at": db_now(),
                "waived_by": by.name,
                "waive_reason": reason,
                "waiver_expires_at": expires_at,
            }
            self._note_waiver("gate_run.waived", current, columns, by=by, reason=reason)
        return True

    def revoke_waiver(self, reason: str, *, by: events.Actor) -> bool:
        """End the waiver that stands, now; who gave it and why stays with the run. Quiet where none stands, and of no
        effect on what has landed by it. Raises ReasonRequired.
        """
        reason = need_reason(reason)
        with in_transaction():
            current = GateRun.objects.select_for_update(no_key=True, of=("self",)).get(pk=self.pk)
            if not current.is_waived:
                return False
            self._note_waiver("gate_run.waiver_revoked", current, {"waiver_expires_at": db_now()}, by=by, reason=reason)
        return True

    def _note_waiver(
        self, kind: str, current: "GateRun", columns: dict[str, Any], *, by: events.Actor, reason: str
    ) -> None:
        GateRun.objects.filter(pk=self.pk).update(**columns)
        before = {name: getattr(current, name) for name in columns}
        events.record(kind, self, by=by, reason=reason, before=before, after=columns)
        self.refresh_from_db()

    def rerun(self, *, by: events.Actor) -> "GateRun":
        """A new pending record with retry_of this one. Raises InvalidMove while this one is open, and Refused
        `rerun_open` while another run of the gate on this tree is: its id is `gate_run`.
        """
        if self.state not in self.ENDED or self.gate is None:
            raise InvalidMove(self, self.state, "pending", verb="rerun gate", allowed=self.MOVES[self.state])
        with in_transaction():
            same = GateRun.objects.filter(gate=self.gate, tree_hash=self.tree_hash, baseline=self.baseline)
            if self.gate.needs_base:
                same = same.filter(base_tree=self.base_tree)
            # Who asks at the same time waits here for the first, and then finds its run.
            list(same.filter(state__in=self.ENDED).select_for_update(no_key=True).order_by("pk").values_list("pk"))
            if (other := same.open().order_by("pk").first()) is not None:
                raise Refused(
                    f"Cannot rerun gate: {other} is {other.get_state_display()} already ({other.pk})",
                    code="rerun_open",
                    gate_run=other.pk,
                )
            return GateRun.objects.ask_for(
                self.gate,
                self.tree_hash,
                by=by,
                patch=self.patch,
                item=self.queue_item,
                retry_of=self,
                baseline=self.baseline,
            )


def base_of(patch: Patch, tree_hash: str) -> str:
    """The tree onto which the patch came to give `tree_hash`; its own base where no queue built that."""
    item = QueueItem.objects.filter(patch=patch, candidate_tree=tree_hash).order_by("-pk").first()
    return base_tree_of(item, patch) if item is not None else patch.base_tree


def base_tree_of(item: QueueItem, patch: Patch) -> str:
    """The tree onto which the queue puts the patch: what lands before it, and what it is compared with."""
    if not item.base_commit or not patch.project.mirror.exists():
        return patch.base_tree
    return _tree_of(str(patch.project.mirror), item.base_commit)


@lru_cache(maxsize=1024)
def _tree_of(mirror: str, commit: str) -> str:
    """The tree of a commit, which never becomes another: the queue asks at each of its steps."""
    return git.tree_of(mirror, commit)


def _percentage(value: Any) -> Decimal | None:
    """As the column holds it; cut and not rounded, so that only a whole hundred reads as one."""
    return None if value is None else Decimal(str(value)).quantize(Decimal("0.001"), ROUND_DOWN)

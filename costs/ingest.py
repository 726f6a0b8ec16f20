"""OTLP taken in: what its signals tell of money is booked once, all else is counted (costs/otlp.py decides)."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from django.db import OperationalError, connection, transaction
from django.db.models import F

from costs import otlp
from costs.models import CostRecord, OtlpMark, OtlpMeter, SignalCount, booking
from costs.otlp import Mark, Sighting, Sightings
from pipeline.auth import Principal
from pipeline.clock import ClockNow
from pipeline.ids import is_id, new_id, to_uuid
from pipeline.models import Project, Run, StepAttempt, Task
from pipeline.refusals import Refused
from workers.models import Lease, Worker

MOST_BYTES = 16 * 1024 * 1024
MOST_SIGNALS = 50_000
REPORT = "report"
"""Of a meter: the agent's own report at the end of its lease counts, and its telemetry is counted only."""

DEADLOCK, TRIES = "40P01", 3


def take_metrics(body: bytes, content_type: str, encoding: str, principal: Principal) -> bytes:
    """Take in an ExportMetricsServiceRequest; the body of the answer. Raises what otlp.read_metrics and inflate do."""
    batch = otlp.read_metrics(otlp.inflate(body, encoding, MOST_BYTES), content_type)
    _bound(batch)
    cumulative = sorted({otlp.series(one) for one in batch.signals if one.temporality == "cumulative"})
    before = (batch.rejected, list(batch.reasons))

    def take() -> Sightings:
        batch.rejected, batch.reasons = before[0], list(before[1])
        told = otlp.sight_metrics(batch, _marks(cumulative))
        _take(told, principal)
        _keep_marks(told.marks)
        return told

    _whole(take)
    return otlp.answer(batch, content_type, metrics=True)


def take_logs(body: bytes, content_type: str, encoding: str, principal: Principal) -> bytes:
    """Take in an ExportLogsServiceRequest; the body of the answer. Raises what otlp.read_logs and inflate do."""
    batch = otlp.read_logs(otlp.inflate(body, encoding, MOST_BYTES), content_type)
    _bound(batch)
    before = (batch.rejected, list(batch.reasons))

    def take() -> Sightings:
        batch.rejected, batch.reasons = before[0], list(before[1])
        told = otlp.sight_logs(batch)
        _take(told, principal)
        return told

    _whole(take)
    return otlp.answer(batch, content_type, metrics=False)


def take_traces(body: bytes, content_type: str, encoding: str) -> bytes:
    """Count an ExportTraceServiceRequest and forget it: spans of agents' tools tell nothing of money that holds."""
    otlp.inflate(body, encoding, MOST_BYTES)
    kind = otlp.encoding_of(content_type)
    SignalCount.add({"traces": 1})
    return b"{}" if kind == otlp.JSON else b""


def _bound(batch: otlp.Batch) -> None:
    if len(batch.signals) > MOST_SIGNALS:
        raise Refused(f"At most {MOST_SIGNALS} signals at once", code="too_large", status=413)


def _whole(take: Callable[[], Sightings]) -> Sightings:
    """All of it in one transaction, or nothing; once more where two senders waited for each other in a circle."""
    for tried in range(TRIES):
        try:
            with transaction.atomic():
                return take()
        except OperationalError as problem:
            if getattr(problem.__cause__, "sqlstate", "") != DEADLOCK or tried == TRIES - 1:
                raise
    raise AssertionError


# -- cumulative series ---------------------------------------------------------------------------------------------


def _marks(series: Sequence[str]) -> dict[str, Mark]:
    """How far these series were counted; whoever else counts them waits until this transaction ends."""
    if not series:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(s, 7)) FROM (SELECT unnest(%s::text[]) AS s) x",
            [list(series)],
        )
    rows = OtlpMark.objects.filter(series__in=series).values_list("series", "value", "at_ns")
    return {name: Mark(Decimal(value), int(at_ns)) for name, value, at_ns in rows}


def _keep_marks(marks: dict[str, Mark]) -> None:
    if marks:
        OtlpMark.objects.bulk_create(
            [OtlpMark(series=name, value=mark.value, at_ns=mark.at_ns) for name, mark in sorted(marks.items())],
            update_conflicts=True,
            unique_fields=["series"],
            update_fields=["value", "at_ns"],
        )


# -- whose it is ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """What a sighting was spent on; without any of them it is the installation's overhead."""

    attempt: StepAttempt | None = None
    task: Task | None = None
    run: Run | None = None
    project: Project | None = None
    worker: Worker | None = None

    @property
    def project_id(self) -> str | None:
        """The project of the narrowest of them."""
        run = self.attempt.run if self.attempt else self.run
        return run.project_id if run else self.project.pk if self.project else None


class _Places:
    """Finds the place of each sighting, each distinct set of ids once. Raises Refused for what the key may not."""

    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self._known: dict[tuple[tuple[str, str], ...], Place | Refused] = {}

    def of(self, house: dict[str, str]) -> Place:
        key = tuple(sorted(house.items()))
        if key not in self._known:
            try:
                self._known[key] = self._find(house)
            except Refused as refusal:
                self._known[key] = refusal
        found = self._known[key]
        if isinstance(found, Refused):
            raise found
        return found

    def _find(self, house: dict[str, str]) -> Place:
        if "lease" in house:
            leases = Lease.objects.visible_to(self.principal).select_related("attempt__run", "attempt__task__run")
            lease = leases.select_related("worker", "attempt__tool").filter(pk=self._id(house, "lease")).first()
            if lease is None:
                raise Refused("signalbox.lease is no lease of this key", code="lease_not_found")
            lease.attempt.task = lease.attempt.task or lease.task
            return Place(attempt=lease.attempt, worker=lease.worker)
        if self.principal.is_worker:
            raise Refused("a worker's key names its lease as signalbox.lease", code="lease_not_found")
        place = self._of_ids(house)
        # The last resort is a bucket that the pages show: the key's project, else the installation.
        key = self.principal.key
        if place is None:
            place = Place(project=key.project) if key is not None and key.project is not None else Place()
        if not self.principal.may("operator", place.project_id):
            raise Refused("this key may not book there", code="permission_denied")
        return place

    def _of_ids(self, house: dict[str, str]) -> Place | None:
        visible = self.principal
        if "attempt" in house:
            ids = visible.project_ids()
            rows = StepAttempt.objects.select_related("run", "task__run", "tool").filter(pk=self._id(house, "attempt"))
            row = (rows if ids is None else rows.filter(run__project__in=ids)).first()
            return self._there(Place(attempt=row) if row else None, "attempt")
        if "task" in house:
            task = Task.objects.visible_to(visible).select_related("run").filter(pk=self._id(house, "task")).first()
            return self._there(Place(task=task, run=task.run) if task else None, "task")
        if "run" in house:
            run = Run.objects.visible_to(visible).filter(pk=self._id(house, "run")).first()
            return self._there(Place(run=run) if run else None, "run")
        if "project" in house:
            named = house["project"]
            rows_of = Project.objects.visible_to(visible)
            project = (rows_of.filter(pk=named) if is_id(named) else rows_of.filter(key=named)).first()
            return self._there(Place(project=project) if project else None, "project")
        return None

    @staticmethod
    def _there(place: Place | None, name: str) -> Place:
        if place is None:
            raise Refused(f"signalbox.{name} is nothing that this key sees", code=f"{name}_not_found")
        return place

    @staticmethod
    def _id(house: dict[str, str], name: str) -> str:
        if not is_id(house[name]):
            raise Refused(
                f"signalbox.{name} is an id of 26 letters and digits, not “{house[name][:40]}”", code="invalid_id"
            )
        return house[name]


# -- booking -------------------------------------------------------------------------------------------------------


def _take(told: Sightings, principal: Principal) -> None:
    SignalCount.add(told.counted)
    places, placed = _Places(principal), []
    for sighting in told.seen:
        try:
            placed.append((sighting, places.of(dict(sighting.house))))
        except Refused as refusal:
            told.batch.reject(str(refusal))
    if not placed:
        return
    meters = _meters(placed)
    counted = Counter(sighting.meter for sighting, _place in placed)
    only: Counter[str] = Counter()
    uses: list[tuple[Sighting, booking.Use]] = []
    for sighting, place in placed:
        meter = meters[sighting.meter]
        step = otlp.COUNT if meter.counts == REPORT else otlp.decide(meter.counts, sighting.signal)
        if step == otlp.COUNT:
            only[sighting.meter] += 1
            continue
        if step == otlp.REPLACE:
            before = CostRecord.objects.live().filter(meter=meter.meter)
            reason = "the requests themselves came: metrics told of the same tokens"
            if ids := list(before.values_list("pk", flat=True)):
                booking.void(ids, reason, by=principal.actor)
        meter.counts = sighting.signal
        uses.append((sighting, _use(sighting, place)))
    _book(told, uses, principal)
    for name, meter in sorted(meters.items()):
        OtlpMeter.objects.filter(pk=meter.pk).update(
            counts=meter.counts,
            sightings=F("sightings") + counted[name],
            counted_only=F("counted_only") + only[name],
            seen_at=ClockNow(),
        )


def _meters(placed: Iterable[tuple[Sighting, Place]]) -> dict[str, OtlpMeter]:
    """The meters of these sightings, made where they are new, locked in the order of their names."""
    first: dict[str, tuple[Sighting, Place]] = {}
    for sighting, place in placed:
        first.setdefault(sighting.meter[:300], (sighting, place))
    names = sorted(first)
    attempts = {place.attempt.pk for _sighting, place in first.values() if place.attempt is not None}
    reported = _reported(attempts)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO costs_otlpmeter (id, meter, tool, counts, project_id, attempt_id, sightings, counted_only) "
            "SELECT *, 0, 0 FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::uuid[], %s::uuid[]) "
            "ON CONFLICT (meter) DO NOTHING",
            [
                [to_uuid(new_id()) for _name in names],
                names,
                [first[name][0].tool for name in names],
                [REPORT if _attempt_of(first[name][1]) in reported else "" for name in names],
                [to_uuid(pk) if (pk := first[name][1].project_id) else None for name in names],
                [to_uuid(pk) if (pk := _attempt_of(first[name][1])) else None for name in names],
            ],
        )
    rows = OtlpMeter.objects.select_for_update().filter(meter__in=names).order_by("meter")
    return {row.meter: row for row in rows}


def _attempt_of(place: Place) -> str | None:
    return place.attempt.pk if place.attempt else None


def _reported(attempts: set[str]) -> set[str]:
    """Of these attempts, those whose agent has told its tokens: that report is the whole of its session."""
    if not attempts:
        return set()
    rows = CostRecord.objects.live().filter(attempt__in=attempts, meter="", resource_type="api_call")
    return set(rows.exclude(basis="estimated").values_list("attempt_id", flat=True))


def _use(sighting: Sighting, place: Place) -> booking.Use:
    use = sighting.use
    return booking.Use(
        resource_type=CostRecord.Type.API_CALL,
        source=f"otlp:{sighting.tool}",
        idempotency_key=sighting.key,
        attempt=place.attempt,
        task=place.task,
        run=place.run,
        project=place.project,
        worker=place.worker,
        tokens=use.tokens,
        model=use.model,
        provider=use.provider,
        reported_at=sighting.at,
        stated_amount=use.reported,
        reasoning=use.reasoning,
        web_searches=use.web_searches,
        flags=use.flags,
        is_request=use.is_request,
        session=use.session,
        meter=sighting.meter[:300],
    )


def _book(told: Sightings, uses: Sequence[tuple[Sighting, booking.Use]], principal: Principal) -> None:
    """All in one statement; where one of them cannot be booked, one by one, and that one is refused."""
    kept = [one for one in uses if any((one[1].tokens or {}).values())]
    if not kept:
        return
    try:
        with transaction.atomic():
            booking.book([use for _sighting, use in kept], by=principal.actor)
            return
    except Refused:
        pass
    for _sighting, use in kept:
        try:
            with transaction.atomic():
                booking.book([use], by=principal.actor)
        except Refused as refusal:
            told.batch.reject(str(refusal))

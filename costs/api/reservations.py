"""Money set aside before work starts."""

from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Q
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from costs import pricing
from costs.models import BudgetExceeded, Reservation, budget, reservation
from pipeline.models import Hold, Project, Run, Task
from pipeline.models.hold import stored
from pipeline.refusals import InvalidField, MissingField, Refused
from pipeline.rest import Endpoint, Filters, Listed, ProjectFilter, ProjectRef, Reason, Ref, Strict, StrictModel
from workers.api import Figure

CLOCKS_APART = 1
"""Fewer seconds than this lie between the readings of the clock for a reservation's end and its birth."""


class ReservationSerializer(StrictModel):
    """Money set aside before work starts."""

    class Meta:
        model = Reservation
        fields = (
            "id", "version", "created_at", "updated_at", "project", "run", "task", "generation", "amount", "used",
            "currency", "key", "state", "expires_at",
        )  # fmt: skip
        read_only_fields = fields


class NewReservation(Strict):
    """How much to set aside, for what, and for how long at most."""

    project = ProjectRef(required=False)
    run = Ref(queryset=Run.objects.select_related("project"), required=False)
    task = Ref(queryset=Task.objects.select_related("run__project"), required=False)
    amount = Figure()
    currency = serializers.CharField(required=False, default="USD", max_length=3)
    seconds = serializers.IntegerField(required=False, default=3600, min_value=1, max_value=reservation.MOST_SECONDS)
    key = serializers.CharField(required=False, default="", allow_blank=True, max_length=200)


class Settlement(Strict):
    """What it came to; the rest is given back."""

    amount = Figure()
    model = serializers.CharField(required=False, allow_blank=True, default="", max_length=100)
    resource_type = serializers.CharField(required=False, default="custom", max_length=20)


class ReservationFilters(Filters):
    """By state and what it is for."""

    project = ProjectFilter("project")

    class Meta:
        model = Reservation
        fields = ("run", "task", "state", "created_at")


def _known(given: dict[str, Any], project: Project, run: Run | None, task: Task | None) -> Reservation | None:
    """The reservation that was made with this key. Raises Refused `duplicate_key`, naming what is another one now."""
    key = given["key"]
    known = Reservation.objects.filter(project=project, key=key).first() if key else None
    if known is None:
        return None
    # The end is reckoned just before the birth, each by its own reading of the clock.
    lasted = (known.expires_at - known.created_at).total_seconds() if known.expires_at else None
    same = {
        "amount": known.amount == pricing.figure("amount", given["amount"]),
        "currency": known.currency == given["currency"],
        "run": known.run_id == (run.pk if run else None),
        "task": known.task_id == (task.pk if task else None),
        "seconds": lasted is not None and 0 <= given["seconds"] - lasted < CLOCKS_APART,
    }
    other = ", ".join(name for name, is_same in same.items() if not is_same)
    if other:
        raise Refused(f"Key {key} was used for another {other}", code="duplicate_key")
    return known


def _must_not_be_held(project: Project, run: Run | None, task: Task | None) -> None:
    """Under a hold nothing is set aside, as nothing is claimed. Raises Refused `held`."""
    if task is not None:
        holds = Hold.objects.covering(task)
    elif run is not None:
        holds = Hold.objects.over_run(run)
    else:
        of_project = Q(scope_kind="project", scope_id=stored(project.pk))
        holds = Hold.objects.active().filter(Q(scope_kind="installation") | of_project)
    hold = holds.order_by("pk").first()
    if hold is not None:
        raise Refused(f"Cannot set money aside: a hold is in force: {hold.reason}", code="held", hold=hold.pk)


class ReservationEndpoint(Listed, Endpoint):
    """Money set aside: by claims for their leases, and here by programs for work that Signalbox does not hand out."""

    queryset = Reservation.objects.select_related("task__run", "run")
    serializer_class = ReservationSerializer
    filterset_class = ReservationFilters
    needs = {
        "list": "viewer", "retrieve": "viewer", "create": "operator", "settle": "operator", "release": "operator",
    }  # fmt: skip

    @extend_schema(request=NewReservation, responses={201: ReservationSerializer, 200: ReservationSerializer})
    def create(self, request: Request) -> Response:
        """Set money aside in every budget over the place: 201. The same `key` in a project again: 200, the first one.

        Refuses with `budget_exceeded`, naming the budget with the least left; under a hold over the place with `held`.
        """
        given = self.body(NewReservation)
        task, run, project = given.get("task"), given.get("run"), given.get("project")
        run = run or (task.run if task else None)
        project = project or (run.project if run else None)
        if project is None:
            raise MissingField("project")
        if run is not None and (run.project_id != project.pk or (task is not None and task.run_id != run.pk)):
            raise InvalidField("project", "project, run and task belong together")
        self.must_in(project)
        if (known := _known(given, project, run, task)) is not None:
            return self.reply(known)
        _must_not_be_held(project, run, task)
        place = {"project": project, "run": run, "task": task}
        if run is not None:
            place.update(phase=run.phase_id, workstream=run.workstream_id, person=run.requested_by)
        scopes = budget.scopes_of(place)
        try:
            with transaction.atomic():
                covers = [one for one in budget.covering(scopes, [project.pk]) if one.covers(scopes, project.pk)]
                row = Reservation.objects.reserve(
                    given["amount"],
                    covers,
                    by=self.by,
                    currency=pricing.check_currency(given["currency"]),
                    project_id=project.pk,
                    run=run,
                    task=task,
                    seconds=given["seconds"],
                    key=given["key"],
                )
        except BudgetExceeded as refusal:
            for pk, asked in refusal.breaches:
                budget.note_refusal(pk, asked, by=self.by)
            raise
        except IntegrityError:
            # The same key at once: the other one was first, and its money is set aside.
            known = _known(given, project, run, task)
            if known is None:
                raise
            return self.reply(known)
        return self.reply(row, 201, Location=f"{request.path}{row.pk}/")

    @extend_schema(request=Settlement, responses=ReservationSerializer)
    @action(detail=True, methods=["post"])
    def settle(self, request: Request, id: str) -> Response:
        """Book what it came to, in full, and give the rest back. Refuses with `invalid_move` once it has ended."""
        seen = self.get_object()
        given = self.body(Settlement)
        with transaction.atomic():
            row = reservation.find_reservation(seen.pk)
            if row.generation is not None:
                raise Refused("A lease's reservation is settled by its lease", code="invalid_move", state=row.state)
            row.settle(given["amount"], by=self.by, model=given["model"], resource_type=given["resource_type"])
        return self.reply(row)

    @extend_schema(request=Reason, responses=ReservationSerializer)
    @action(detail=True, methods=["post"])
    def release(self, request: Request, id: str) -> Response:
        """Give it back unused. Quiet when it has ended; a lease's ends with its lease (`invalid_move`)."""
        row = self.get_object()
        if row.generation is not None and row.state == Reservation.State.HELD:
            raise Refused("A lease's reservation ends with its lease", code="invalid_move", state=row.state)
        row.end(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(row)

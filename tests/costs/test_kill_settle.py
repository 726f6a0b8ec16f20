"""PostgreSQL is killed while money settles: nothing is lost, nothing is booked twice, nothing stays set aside."""

import os
import random
import signal
import threading
import time
from decimal import Decimal
from typing import Any

import pytest
from django.db import DatabaseError, InterfaceError, connection, transaction

from costs.models import BudgetExceeded, CostRecord, Reservation, booking
from pipeline.invariants import check_all
from tests import factories
from tests.factories import BY, make_budget

pytestmark = [pytest.mark.kill, pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

KILLS = 40 if os.environ.get("CHAOS") == "full" else 5
SECONDS = 60.0


def patiently(work: Any) -> Any:
    """The result of `work`, asked for again as long as the server is away: as a client does that got no answer."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return work()
        except (DatabaseError, InterfaceError):
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_a_killed_server_in_mid_settle_neither_loses_nor_doubles() -> None:
    project = factories.make_project()
    of = make_budget(project, limit_amount=Decimal(100_000))
    backends: dict[int, int] = {}
    done: list[Decimal] = []
    gave_up: list[Exception] = []
    over = threading.Event()

    def settle(number: int) -> None:
        """Set money aside and settle it with two records, each under its key, until the kills are over."""
        chance, turn = random.Random(number), 0
        try:
            while not over.is_set():
                turn += 1
                key = f"{number}-{turn}"

                def once(key: str = key) -> Decimal:
                    with connection.cursor() as cursor:
                        # The tests' server answers before it has written; a server of money does not.
                        cursor.execute("SET synchronous_commit TO on")
                        cursor.execute("SELECT pg_backend_pid()")
                        (backends[number],) = cursor.fetchone()
                    with transaction.atomic():
                        row = Reservation.objects.filter(project=project, key=key).first()
                        row = row or factories.make_reservation(project, "1", key=key, seconds=3600)
                    if row.state == Reservation.State.HELD:
                        row.settle("0.75", by=BY)
                    use = booking.Use(
                        resource_type="api_call", source="k", idempotency_key=key, amount="0.5", project=project
                    )
                    booking.book([use], by=BY)
                    return Decimal("1.25")

                try:
                    done.append(patiently(once))
                except BudgetExceeded:
                    return
                except (DatabaseError, InterfaceError) as problem:
                    gave_up.append(problem)  # half of a turn is booked, and nobody repeats it: a test of nothing
                    return
                if chance.random() < 0.1:
                    time.sleep(0.01)
        finally:
            connection.close()

    threads = [threading.Thread(target=settle, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    chance = random.Random(1)
    try:
        for _ in range(KILLS):
            before = len(done)
            deadline = time.monotonic() + SECONDS
            while len(done) < before + 4 and time.monotonic() < deadline:
                time.sleep(chance.random() * 0.02)
            pid = backends.get(chance.randrange(4))
            if pid is not None:
                try:
                    # The death of one backend makes PostgreSQL end all others, and recover from its log.
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
    finally:
        over.set()
        for thread in threads:
            thread.join(SECONDS * 2)
    connection.close()
    patiently(lambda: Reservation.objects.count())

    assert not any(thread.is_alive() for thread in threads)
    assert gave_up == []
    assert len(done) >= 4 * KILLS
    spent = CostRecord.objects.live().total()
    assert spent == sum(done, Decimal(0))
    row = of.running()
    assert (row.spent, row.reserved) == (spent, Decimal(0))
    assert not Reservation.objects.held().exists()
    assert [r for r in check_all() if not r.holds and 53 <= int(r.number.removeprefix("INV-")) <= 61] == []

"""The web process with a planted bug: no report is asked for its lease or generation, as in a queue without fencing.

`uvicorn tests.chaos.unfenced:application` beside the product's own processes, on the same database. Whoever reports on
a task is believed: what is left of a lease that somebody else holds by now is ended with the latecomer's report, and
what nobody holds any more is booked once more.
"""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "pipeline.settings")

from pipeline.asgi import application as application

# isort: split
from pipeline import events
from pipeline.questions import ask
from pipeline.rows import in_transaction
from workers.models import Lease, finishing

_fenced = finishing.finish


def finish(lease: Lease, report: finishing.Report, *, generation: int | None, by: events.Actor) -> bool:
    """`workers.models.finishing.finish` without its check."""
    with in_transaction():
        held, _now = finishing._lock_all(lease)
        current = held if held.is_live else Lease.objects.live().filter(task=held.task).first()
        if current is not None:
            return _fenced(current, report, generation=None, by=by)
        ask("lease.end", lease=held, outcome=report.outcome, usage=report.usage, duration_seconds=None, by=by)
    return True


finishing.finish = finish

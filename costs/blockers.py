"""For whom money that is set aside waits: this app's answer to “why isn't this moving?”"""

from typing import Any

from costs.models import Reservation
from pipeline.blockers import ENGINE, Wait
from pipeline.questions import answers


@answers("blockers")
def who_holds(*, subject: Any) -> Wait | None:
    """For a reservation: it waits for the task for which it was made, or for its end."""
    if not isinstance(subject, Reservation) or subject.state != Reservation.State.HELD:
        return None
    if subject.task is not None:
        reason = (
            f"{subject.amount} {subject.currency} are set aside for {subject.task}, and settled when its lease ends"
        )
        return Wait(code="lease_open", reason=reason, on=subject.task)
    reason = f"{subject.amount} {subject.currency} are set aside until they are settled or released"
    return Wait(code="reserved", reason=reason, holder=ENGINE, eta=subject.expires_at)

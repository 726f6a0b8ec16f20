"""Sending what notification rules have to say: taken one by one, sent side by side, settled as each is done."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from pipeline import events, notify
from pipeline.crashpoints import crashpoint
from pipeline.models import NotificationRule
from pipeline.models.notification import Due

log = logging.getLogger(__name__)

# Each message is a process for a second, or for as long as a target hangs; so many wait for each other at most.
SIDE_BY_SIDE = 4
MOST_ROUNDS = 25


def send_due() -> int:
    """Send what is due; returns how many messages were tried. Hold no transaction open meanwhile.

    The threads only talk to messengers: this one alone speaks with the database. A target that hangs keeps its rule's
    lease and one of the threads until it is ended; the others are settled as they are done.
    """
    tried = 0
    for _round in range(MOST_ROUNDS):
        taken = [rule for rule in (_take() for _n in range(SIDE_BY_SIDE)) if rule is not None]
        saying = [(rule, due) for rule in taken if (due := _compose(rule)) is not None]
        tried += len(saying)
        _send(saying)
        if len(taken) < SIDE_BY_SIDE:
            break
    return tried


def _take() -> NotificationRule | None:
    return NotificationRule.objects.select_related("subscription").take()


def _compose(rule: NotificationRule) -> Due | None:
    """What it has to say; a rule that cannot be put into words is put off as one whose target fails."""
    try:
        return rule.compose()
    except Exception as problem:
        log.exception("%s could not be told", rule)
        rule.failed(f"{type(problem).__name__} while the message was written")
        return None


def _send(saying: list[tuple[NotificationRule, Due]]) -> None:
    """Send all of them side by side, and settle each when it is done."""
    with ThreadPoolExecutor(max_workers=SIDE_BY_SIDE) as pool:
        sending: dict[Future[None], tuple[NotificationRule, Due]] = {}
        for rule, due in saying:
            said = due.message
            future = pool.submit(notify.send, rule.target, title=said.title, body=said.body, severity=said.severity)
            sending[future] = (rule, due)
        for future in as_completed(sending):
            rule, due = sending[future]
            problem = future.exception()
            if problem is None:
                crashpoint("notify.sent")
                rule.sent(due.read_to)
            else:
                log.warning("%s: %s", rule, problem)
                rule.failed(str(problem) if isinstance(problem, notify.NotSent) else type(problem).__name__)


def nudge_if_due() -> None:
    """Ask Celery to send, when some rule is due; the sweep calls it, and sending may take longer than a sweep."""
    if NotificationRule.objects.due().exists():
        events.nudge("pipeline.tasks.notify", queue="webhooks")

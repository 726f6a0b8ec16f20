"""What follows an outcome: counted against what, tried again or not, and after how long."""

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from pipeline.refusals import InvalidField

MODES = ("none", "simple", "exponential")

# Jitter multiplies by a factor out of this range (domain.md §2.1.10), so that what failed together retries apart.
JITTER = (0.5, 1.5)

FINGERPRINT_CHARACTERS = 2000

_JITTER_SOURCE = random.Random()


def wait(
    mode: str,
    failures: int,
    *,
    base_seconds: float = 1,
    factor: float = 2,
    cap_seconds: float = 60,
    delay_seconds: float = 1,
    jitter: bool = True,
    rng: random.Random | None = None,
) -> timedelta:
    """How long to wait before the attempt that follows `failures` failed ones (at least 1; 0 waits nothing).

    none: nothing. simple: `delay_seconds`. exponential: min(base · factor^failures, cap), so the first wait is
    base · factor. With `jitter` the wait is multiplied by 0.5 to 1.5; the cap of exponential holds after it.
    `rng` makes the jitter repeatable. Raises InvalidField for an unknown mode, ValueError for a negative figure.
    """
    if mode not in MODES:
        raise InvalidField("retry.mode", f"must be one of {', '.join(MODES)}, not {mode!r}")
    if failures < 0 or min(base_seconds, factor, cap_seconds, delay_seconds) < 0:
        raise ValueError("failures and durations must not be negative")
    if mode == "none" or failures == 0:
        return timedelta(0)
    spread = (rng or _JITTER_SOURCE).uniform(*JITTER) if jitter else 1.0
    if mode == "simple":
        return timedelta(seconds=delay_seconds * spread)
    try:
        seconds = min(base_seconds * float(factor) ** failures, cap_seconds)
    except OverflowError:
        seconds = cap_seconds if base_seconds else 0
    return timedelta(seconds=min(seconds * spread, cap_seconds))


def fingerprint(error_code: str, message: str) -> str:
    """64 hex digits that are equal for errors that differ in digits and white space only.

    sha256 over the code and the first 2000 characters of the message so normalised (domain.md §2.1.10): line
    numbers, times, ids and the width of a terminal do not make a new error.
    """
    text = re.sub(r"\d+", "0", " ".join(message.split()))[:FINGERPRINT_CHARACTERS]
    return hashlib.sha256(f"{error_code}\n{text}".encode(errors="replace")).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """One line of the table of outcomes; None where the outcome leaves a row as it is, or counts nothing.

    `attempt` is the state its attempt ends in, `task` where the task goes (while its limit allows), `counts` the
    task's column that rises, `limit` the name in Limits that bounds it.
    """

    attempt: str | None
    task: str | None
    counts: str | None = None
    limit: str | None = None


# domain.md §2.1.10. Where `counts` is set and the limit is reached, the task goes to failed instead.
OUTCOMES: Mapping[str, Outcome] = {
    "success": Outcome("succeeded", "validating"),
    "task_failed": Outcome("failed", "retrying", "count_failures", "max_attempts"),
    "infra_lost": Outcome("failed", "retrying", "count_infra", "max_infra_retries"),
    "quota_wait": Outcome("canceled", "retrying"),
    "budget_stop": Outcome("canceled", "retrying"),
    "needs_human": Outcome("canceled", "retrying"),
    "cancelled": Outcome("canceled", "cancelled"),
    "gate_failed": Outcome(None, "retrying", "count_repairs", "max_repairs"),
    "stale_claim": Outcome(None, None),
}

# These wait for their Hold, not for a clock of ours.
_UNDER_HOLD = {
    "quota_wait": "Waits for the provider's quota",
    "budget_stop": "Waits for a budget",
    "needs_human": "Waits for an answer",
}


@dataclass(frozen=True)
class Counts:
    """A task's counters before the outcome is counted.

    `same_fingerprint` is how many failures of the task had this outcome's fingerprint, this one included; 0 without.
    """

    count_failures: int = 0
    count_infra: int = 0
    count_repairs: int = 0
    same_fingerprint: int = 0


@dataclass(frozen=True)
class Limits:
    """What bounds a task's tries (defaults of domain.md §1.11) and how its waits grow."""

    max_attempts: int = 3
    max_infra_retries: int = 3
    max_repairs: int = 2
    fingerprint_trips: int = 3
    mode: str = "exponential"
    base_seconds: float = 1
    factor: float = 2
    cap_seconds: float = 60
    delay_seconds: float = 1
    jitter: bool = True


@dataclass(frozen=True)
class Next:
    """Where the task goes: validating, retrying, failed or cancelled; None leaves it as it is (a stale report).

    `counted` names the counter to raise. `wait` is set for a retry that is due by the clock; a retry without it waits
    for its Hold to be released. `tripped` is true when the same error came once too often: the task's breaker opens.
    """

    state: str | None
    counted: str | None
    wait: timedelta | None
    reason: str
    tripped: bool = False


def after(
    outcome: str,
    *,
    counts: Counts | None = None,
    limits: Limits | None = None,
    shutdown: bool = False,
    quota_wait: timedelta | None = None,
    rng: random.Random | None = None,
) -> Next:
    """What follows `outcome` for a task with these `counts` under these `limits` (domain.md §2.1.10).

    max_attempts bounds the tries, so the third failure of three is the end; max_infra_retries and max_repairs bound
    what comes after the first try, and the loss or gate failure beyond them ends the task uncounted. The same
    fingerprint `fingerprint_trips` times is the end at once. `shutdown`: a cancelled attempt whose worker shut down is
    due again now. `quota_wait`: how long the provider asks to wait.
    Raises InvalidField for an unknown outcome.
    """
    counts, limits = counts or Counts(), limits or Limits()
    if outcome not in OUTCOMES:
        raise InvalidField("outcome", f"must be one of {', '.join(OUTCOMES)}, not {outcome!r}")
    row = OUTCOMES[outcome]
    if outcome == "stale_claim":
        return Next(None, None, None, "The report is stale")
    if outcome == "success":
        return Next("validating", None, None, "The attempt succeeded")
    if outcome == "cancelled":
        if shutdown:
            return Next("retrying", None, timedelta(0), "The worker shut down")
        return Next("cancelled", None, None, "Cancelled")
    if outcome in _UNDER_HOLD:
        return Next("retrying", None, quota_wait if outcome == "quota_wait" else None, _UNDER_HOLD[outcome])
    return _counted(outcome, row, counts, limits, rng)


_WORDS = {"task_failed": "Failed", "infra_lost": "Lost", "gate_failed": "Sent back for repair"}


def _counted(outcome: str, row: Outcome, counts: Counts, limits: Limits, rng: random.Random | None) -> Next:
    used, most = {
        "task_failed": (counts.count_failures + 1, limits.max_attempts),
        "infra_lost": (counts.count_infra + 1, limits.max_infra_retries),
        "gate_failed": (counts.count_repairs + 1, limits.max_repairs),
    }[outcome]
    # A counter never passes its limit: what is refused for the limit's sake is not counted again.
    counted = row.counts if used <= most else None
    # Losing a worker looks the same every time and says nothing about the work; its own limit bounds it.
    if outcome != "infra_lost" and counts.same_fingerprint >= limits.fingerprint_trips:
        reason = f"The same error {counts.same_fingerprint} times"
        return Next("failed", counted, None, reason, tripped=True)
    # An attempt is a try, so the last of three that fails is the end; the other limits count what follows a try.
    if used > most or (outcome == "task_failed" and used == most):
        return Next("failed", counted, None, f"{row.limit} is used up ({most})")
    pause = wait(
        limits.mode,
        used,
        base_seconds=limits.base_seconds,
        factor=limits.factor,
        cap_seconds=limits.cap_seconds,
        delay_seconds=limits.delay_seconds,
        jitter=limits.jitter,
        rng=rng,
    )
    return Next("retrying", row.counts, pause, f"{_WORDS[outcome]}; {used} of {most} for {row.limit}")

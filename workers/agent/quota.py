"""When a provider says "not now": how that is recognised in what tools print, and until when it holds."""

import re
from datetime import UTC, datetime, timedelta

PATIENCE_SECONDS = 60.0
"""A tool that has waited so long for its provider is ended: a lease is not held to wait (outcome quota_wait)."""
LONGEST = timedelta(days=40)
"""A reset that lies further ahead is not believed; the longest known limit is a month."""

# Words of claude 2.1 (result text), codex-rs/protocol/src/error.rs and litellm's exceptions.
_REFUSAL = re.compile(
    r"usage limit|hit your (?:\w+ )?limit|limit reached|quota exceeded|insufficient_quota|RateLimitError"
    r"|rate.?limit(?:ed| exceeded|_error)|\b429\b|Too Many Requests|out of credits",
    re.IGNORECASE,
)
# Looking for these first makes a flood of other text forty times cheaper.
_REFUSAL_HINTS = ("limit", "quota", "429", "too many requests", "credits")
_OUTAGE = re.compile(
    r"overloaded|at capacity|stream disconnected|last status: 5\d\d|InternalServerError|ServiceUnavailableError"
    r"|APIConnectionError|connection (?:refused|reset|error)",
    re.IGNORECASE,
)
_OUTAGE_HINTS = ("error", "overloaded", "capacity", "disconnected", "last status", "refused", "reset")
_EPOCH = re.compile(r"limit reached\|(\d{10})\b")  # claude before 2.1.45
_DATE = re.compile(
    r"try again at ([A-Z][a-z]{2})[a-z]* (\d{1,2})(?:st|nd|rd|th), (\d{4}) (\d{1,2}):(\d{2}) ([AP]M)", re.IGNORECASE
)
_HOUR = re.compile(r"try again at (\d{1,2}):(\d{2}) ([AP]M)", re.IGNORECASE)
_SPAN = re.compile(r"try again in ((?:\d{1,5} (?:day|hour|minute|second)s?,? ?)+)", re.IGNORECASE)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def is_refusal_for_now(message: str) -> bool:
    """Whether a message says that the account has no quota; not that a service is overloaded."""
    plain = message.lower()
    return any(hint in plain for hint in _REFUSAL_HINTS) and _REFUSAL.search(message) is not None


def is_outage(message: str) -> bool:
    """Whether a message says that the provider or the way to it failed, which says nothing of the task."""
    plain = message.lower()
    return any(hint in plain for hint in _OUTAGE_HINTS) and _OUTAGE.search(message) is not None


def moment(seconds: object) -> str:
    """RFC 3339 in UTC for a Unix time in seconds or milliseconds; empty for what is no time soon to come."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return ""
    if seconds > 10**11:  # no count of seconds reaches this before the year 5138: some versions write milliseconds
        seconds = seconds / 1000
    try:
        then = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return ""
    return _stated(then)


def reset_in(message: str) -> str:
    """When a message says that quota comes back (RFC 3339, UTC); empty when it does not say, or not credibly.

    Hours are those of this machine's zone, as the tool on it wrote them.
    """
    if found := _EPOCH.search(message):
        return moment(int(found[1]))
    now = datetime.now().astimezone()
    try:
        if found := _DATE.search(message):
            month = _MONTHS.index(found[1].lower()) + 1
            hour = int(found[4]) % 12 + (12 if found[6].upper() == "PM" else 0)
            return _stated(datetime(int(found[3]), month, int(found[2]), hour, int(found[5])).astimezone())
        if found := _HOUR.search(message):
            hour = int(found[1]) % 12 + (12 if found[3].upper() == "PM" else 0)
            then = now.replace(hour=hour, minute=int(found[2]), second=0, microsecond=0)
            return _stated(then if then > now else then + timedelta(days=1))
        if found := _SPAN.search(message):
            spans = {f"{unit}s": int(count) for count, unit in re.findall(r"(\d+) (day|hour|minute|second)", found[1])}
            return _stated(now + timedelta(**spans))
    except (ValueError, OverflowError):
        return ""
    return ""


def _stated(then: datetime) -> str:
    if not timedelta(0) < then - datetime.now(UTC) < LONGEST:
        return ""
    return then.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

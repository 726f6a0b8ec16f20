"""Pure: what a notification rule tells now, what later, and in which words (domain.md §2.1.12).

Whatever text came with an event, a worker may have written it: it is told as data, in characters that no chat reads as
a mention, a link or markup.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from pipeline.kinds import SEVERITIES

MAX_CHARACTERS = 4000
MAX_TITLE_CHARACTERS = 120
MAX_REASON_CHARACTERS = 240
MAX_WHERE_CHARACTERS = 120

# Characters that some chat gives a meaning to, and their harmless likenesses.
_LIKENESS = str.maketrans({"@": "＠", "<": "‹", ">": "›", "[": "(", "]": ")", "`": "'", "*": "∗", "|": "¦"})
_ADDRESS = re.compile(r"(?i)([a-z][a-z0-9+.-]*):(?=//)|\b(www)(?=\.)")
# Line and paragraph ends part words; formats (direction marks, joiners, tags), private and broken characters vanish.
_BLANK = {"Cc", "Zl", "Zp", "Zs"}
_GONE = {"Cf", "Cs", "Co", "Cn"}


@dataclass(frozen=True)
class Fact:
    """What a message tells of one event: `where` is its project and run in words, `link` its page or empty."""

    at: datetime
    kind: str
    severity: str
    subject_id: str
    where: str
    reason: str
    link: str = ""


@dataclass(frozen=True)
class Limits:
    """How often a rule speaks: once in `at_most_every`, `max_per_day` times a day (UTC); more than `digest_above`
    waiting events are told as a digest, and with `gather` also fewer, after an interval's wait.
    """

    at_most_every: timedelta
    max_per_day: int
    digest_above: int
    gather: bool


@dataclass(frozen=True)
class Past:
    """When the rule spoke last, and how often on the day (UTC) that it is now."""

    last_sent_at: datetime | None
    sent_today: int


@dataclass(frozen=True)
class Message:
    """What is sent: a title of one line, a body of at most 4,000 characters, and the worst severity that it tells."""

    title: str
    body: str
    severity: str


@dataclass(frozen=True)
class Wait:
    """Nothing may be sent before `until`."""

    until: datetime


def decide(
    facts: Sequence[Fact], limits: Limits, past: Past, now: datetime, *, more: bool = False, console: str = ""
) -> Message | Wait | None:
    """The one message that tells all `facts` (oldest first), or until when to wait; None when nothing happened.

    A rule speaks at once and then keeps silent for an interval; one that gathers waits an interval from the oldest
    fact. `more` says that further events wait behind these; `console` is the address of the page of events, or empty.
    """
    if not facts:
        return None
    if past.sent_today >= limits.max_per_day:
        return Wait(_next_day(now))
    free = [now]
    if past.last_sent_at is not None:
        free.append(past.last_sent_at + limits.at_most_every)
    if limits.gather:
        free.append(facts[0].at + limits.at_most_every)
    if max(free) > now:
        return Wait(max(free))
    tail = [_("More events wait; they follow in the next message.")] if more else []
    if past.sent_today + 1 == limits.max_per_day:
        tail.append(_("This was the last message of today (UTC): %(most)d a day.") % {"most": limits.max_per_day})
    grouped = limits.gather or len(facts) > limits.digest_above
    return Message(_title(facts, more=more), _body(facts, tail, console, grouped=grouped), _worst(facts))


def _next_day(now: datetime) -> datetime:
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def _worst(facts: Sequence[Fact]) -> str:
    return max((fact.severity for fact in facts), key=SEVERITIES.index)


def _title(facts: Sequence[Fact], *, more: bool) -> str:
    """One event by its kind and place; several by their number, in severities from the worst."""
    if len(facts) == 1 and not more:
        fact = facts[0]
        return harmless(f"{fact.severity.upper()} {fact.kind} · {fact.where}", MAX_TITLE_CHARACTERS)
    counts = {severity: sum(fact.severity == severity for fact in facts) for severity in reversed(SEVERITIES)}
    told = ", ".join(f"{count} {severity}" for severity, count in counts.items() if count)
    number = ngettext("%(count)d event", "%(count)d events", len(facts)) % {"count": len(facts)}
    return f"Signalbox: {number} ({told})"


def _body(facts: Sequence[Fact], tail: Sequence[str], console: str, *, grouped: bool) -> str:
    """The lines that fit, the worst and newest first, then what is left out, then `tail`."""
    groups: dict[tuple[str, str] | int, list[Fact]] = {}
    for number, fact in enumerate(facts):
        groups.setdefault((fact.kind, fact.subject_id) if grouped else number, []).append(fact)
    waiting = sorted(groups.values(), key=lambda group: (SEVERITIES.index(_worst(group)), group[-1].at), reverse=True)
    end = "\n".join([_left_out(len(facts), console), *tail])
    room = MAX_CHARACTERS - len(end) - 2
    lines: list[str] = []
    told = 0
    for group in waiting:
        line = _line(group)
        if len(line) + 1 > room:
            break
        lines.append(line)
        room -= len(line) + 1
        told += len(group)
    if told < len(facts):
        lines.append(_left_out(len(facts) - told, console))
    return "\n".join([*lines, *tail])


def _left_out(count: int, console: str) -> str:
    number = ngettext("… and %(count)d event more", "… and %(count)d events more", count) % {"count": count}
    return f"{number}: {console}" if console else number


def _line(group: Sequence[Fact]) -> str:
    """Severity, kind and how often, place, the last reason, and a link to the last one's page."""
    last = group[-1]
    times = f" ×{len(group)}" if len(group) > 1 else ""
    words = [
        f"{_worst(group).upper()} {last.kind}{times}",
        harmless(last.where, MAX_WHERE_CHARACTERS),
        harmless(next((fact.reason for fact in reversed(group) if fact.reason), ""), MAX_REASON_CHARACTERS),
    ]
    line = " · ".join(word for word in words if word)
    return f"{line}\n  {last.link}" if last.link else line


def harmless(text: str, most: int) -> str:
    """`text` on one line of at most `most` characters that mentions nobody, links nowhere and formats nothing."""
    kept: list[str] = []
    for character in unicodedata.normalize("NFC", text[: 8 * most]):
        category = unicodedata.category(character)
        if category not in _GONE:
            kept.append(" " if category in _BLANK else character)
    line = " ".join("".join(kept).split()).translate(_LIKENESS)
    line = _ADDRESS.sub(lambda found: f"{found[1]}: " if found[1] else f"{found[2]} ", line)
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"

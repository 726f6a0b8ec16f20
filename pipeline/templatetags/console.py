"""The console's words and signs in templates: state badges, times, money, ids, progress, sparklines, addresses.

Every tag escapes what it is given (`format_html`), so a worker's or a diff's text is never markup.
Colours, shapes and classes stand in `static/console/console.css`; the components are listed in `docs/console.md`.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any

from django import template
from django.http import HttpRequest
from django.utils import timezone
from django.utils.formats import number_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, pgettext

from pipeline import readable

register = template.Library()

# Shapes are drawn on 12 by 12 and filled with the text's colour, evenodd, so that a state can be told without colour.
SHAPES = {
    "ring": "M6 1a5 5 0 1 0 0 10a5 5 0 0 0 0-10zM6 2.6a3.4 3.4 0 1 1 0 6.8a3.4 3.4 0 0 1 0-6.8z",
    "half": "M6 1a5 5 0 1 0 0 10a5 5 0 0 0 0-10zM6 2.6a3.4 3.4 0 0 1 0 6.8z",
    "dot": "M6 1a5 5 0 1 0 0 10a5 5 0 0 0 0-10z",
    "play": "M2.5 1l8 5l-8 5z",
    "bars": "M2.5 1.5h2.6v9h-2.6zM6.9 1.5h2.6v9h-2.6z",
    "check": "M4.7 10.2L.9 6.4l1.5-1.5l2.3 2.3l4.9-5.4l1.6 1.4z",
    "cross": "M1.2 2.7L2.7 1.2L6 4.5L9.3 1.2l1.5 1.5L7.5 6l3.3 3.3l-1.5 1.5L6 7.5l-3.3 3.3l-1.5-1.5L4.5 6z",
    "square": "M1.5 1.5h9v9h-9z",
    "frame": "M1.5 1.5h9v9h-9zM3.1 3.1h5.8v5.8h-5.8z",
    "diamond": "M6 .5L11.5 6L6 11.5L.5 6z",
    "triangle": "M6 .8L11.6 11h-11.2zM5.3 4.6v3.2h1.4v-3.2zM5.3 8.5v1.4h1.4v-1.4z",
    "lock": "M6 .8a3 3 0 0 0-3 3v1.4h-1v6h8v-6h-1v-1.4a3 3 0 0 0-3-3zM4.5 5.2v-1.4a1.5 1.5 0 0 1 3 0v1.4z",
    "back": "M5.2 1.5L.8 5l4.4 3.5v-2.4h3.2a1.3 1.3 0 0 1 0 2.6h-2v1.8h2a3.1 3.1 0 0 0 0-6.2h-3.2z",
    "dash": "M1.2 5h9.6v2h-9.6z",
    "lines": "M1.5 2h9v1.6h-9zM1.5 5.2h9v1.6h-9zM1.5 8.4h9v1.6h-9z",
}

_WAITING, _QUEUED, _BLOCKED = ("quiet", "ring"), ("wait", "lines"), ("wait", "lock")
_MOVING, _CHECKING, _PAUSED = ("move", "play"), ("move", "half"), ("warn", "bars")
_GOOD, _AGAIN, _BAD = ("good", "check"), ("warn", "triangle"), ("bad", "cross")
_PARKED, _BACK, _CLOSED, _STOPPED = ("park", "diamond"), ("park", "back"), ("quiet", "dash"), ("quiet", "frame")

STATES: dict[str, dict[str, tuple[str, str]]] = {
    "run": {
        "pending": _WAITING,
        "running": _MOVING,
        "succeeded": _GOOD,
        "failed": _BAD,
        "quarantined": _PARKED,
        "canceled": _CLOSED,
    },
    "task": {
        "pending": _WAITING,
        "queued": _QUEUED,
        "blocked": _BLOCKED,
        "running": _MOVING,
        "validating": _CHECKING,
        "retrying": _AGAIN,
        "completed": _GOOD,
        "failed": _BAD,
        "cancelled": _CLOSED,
    },
    "step": {
        "pending": _WAITING,
        "running": _MOVING,
        "succeeded": _GOOD,
        "failed": _BAD,
        "canceled": _CLOSED,
    },
    "hold": {"active": _PAUSED, "released": _CLOSED},
    "worker": {
        "idle": _WAITING,
        "busy": _MOVING,
        "paused": _PAUSED,
        "stopped": _STOPPED,
        "crashed": _BAD,
    },
    "patch": {
        "created": _WAITING,
        "validated": ("wait", "half"),
        "queued": _QUEUED,
        "applied": _CHECKING,
        "apply_failed": _BAD,
        "verified": ("good", "dot"),
        "committed": _GOOD,
        "rolled_back": _BACK,
        "quarantined": _PARKED,
        "dropped": _CLOSED,
    },
    "merge_queue": {"running": _MOVING, "paused": _PAUSED, "draining": ("warn", "half")},
    "push": {"waiting": _QUEUED, "pushed": _GOOD, "held": _PAUSED},
    "queue_item": {
        "waiting": _QUEUED,
        "building": _MOVING,
        "testing": _CHECKING,
        "passing": ("good", "dot"),
        "failing": _BAD,
        "landed": _GOOD,
        "evicted": ("bad", "square"),
        "withdrawn": _CLOSED,
    },
    "gate_run": {
        "pending": _WAITING,
        "running": _MOVING,
        "passed": _GOOD,
        "failed": _BAD,
        "skipped": _CLOSED,
        "error": _AGAIN,
    },
    "reservation": {"held": _PAUSED, "settled": _GOOD, "released": _CLOSED},
    "breaker": {"closed": _GOOD, "half_open": ("warn", "half"), "open": _BAD},
}
"""Noun → state (domain.md §2) → tone and shape. A tone is a class `tone-…` of the style sheet."""

HEALTH = {
    "healthy": ("good", "dot"),
    "late": ("warn", "half"),
    "stalled": ("warn", "triangle"),
    "unresponsive": ("bad", "cross"),
}

SEVERITIES = {
    "debug": ("quiet", "ring"),
    "info": ("quiet", "dot"),
    "warning": ("warn", "triangle"),
    "error": ("bad", "cross"),
    "critical": ("bad", "square"),
}

WORDS = {
    "active": gettext_lazy("active"),
    "applied": gettext_lazy("applied"),
    "apply_failed": gettext_lazy("apply failed"),
    "blocked": gettext_lazy("blocked"),
    "building": gettext_lazy("building"),
    "busy": gettext_lazy("busy"),
    "canceled": gettext_lazy("canceled"),
    "cancelled": gettext_lazy("cancelled"),
    "closed": gettext_lazy("closed"),
    "committed": gettext_lazy("committed"),
    "completed": gettext_lazy("completed"),
    "crashed": gettext_lazy("crashed"),
    "created": gettext_lazy("created"),
    "critical": gettext_lazy("critical"),
    "debug": gettext_lazy("debug"),
    "draining": gettext_lazy("draining"),
    "dropped": gettext_lazy("dropped"),
    "error": gettext_lazy("error"),
    "evicted": gettext_lazy("evicted"),
    "failed": gettext_lazy("failed"),
    "failing": gettext_lazy("failing"),
    "half_open": gettext_lazy("half open"),
    "healthy": gettext_lazy("healthy"),
    "held": gettext_lazy("held"),
    "idle": gettext_lazy("idle"),
    "info": gettext_lazy("info"),
    "landed": gettext_lazy("landed"),
    "late": gettext_lazy("late"),
    "open": gettext_lazy("open"),
    "passed": gettext_lazy("passed"),
    "passing": gettext_lazy("passing"),
    "paused": gettext_lazy("paused"),
    "pending": gettext_lazy("pending"),
    "quarantined": gettext_lazy("quarantined"),
    "pushed": gettext_lazy("pushed"),
    "queued": gettext_lazy("queued"),
    "released": gettext_lazy("released"),
    "retrying": gettext_lazy("retrying"),
    "rolled_back": gettext_lazy("rolled back"),
    "running": gettext_lazy("running"),
    "settled": gettext_lazy("settled"),
    "skipped": gettext_lazy("skipped"),
    "stalled": gettext_lazy("stalled"),
    "stopped": gettext_lazy("stopped"),
    "succeeded": gettext_lazy("succeeded"),
    "testing": gettext_lazy("testing"),
    "unresponsive": gettext_lazy("unresponsive"),
    "validated": gettext_lazy("validated"),
    "validating": gettext_lazy("validating"),
    "verified": gettext_lazy("verified"),
    "waiting": gettext_lazy("waiting"),
    "warning": gettext_lazy("warning"),
    "withdrawn": gettext_lazy("withdrawn"),
}
"""What people read for a state, a health or a severity."""

# Icons of the navigation, drawn as strokes on 16 by 16.
ICONS = {
    "overview": "M2 9.5a6 6 0 0 1 12 0M8 9.5l2.6-3.2M2 12.5h12",
    "runs": "M3 4h3v3H3zM10 9h3v3h-3zM6 5.5h2.5a3 3 0 0 1 3 3V9",
    "workers": "M2.5 3.5h11v7h-11zM5.5 13.5h5M5 6.5l1.5 1.2L5 9M8.5 9h2.5",
    "ledger": "M4 2.5h8.5v11H4a1.5 1.5 0 0 1 0-3h8.5M2.5 12V4A1.5 1.5 0 0 1 4 2.5M6.5 6.5h3.5M8.2 4.8v3.4",
    "gates": "M2.5 14V3M13.5 14V3M2.5 5h11M2.5 8.5h11M6.2 5v3.5M9.8 5v3.5",
    "costs": "M8 2v12M11 5.2C10.5 4.2 9.5 3.8 8 3.8 6.2 3.8 5 4.6 5 5.9 5 8.7 11 7.3 11 10.1"
    " 11 11.4 9.8 12.2 8 12.2 6.5 12.2 5.5 11.8 5 10.8",
    "events": "M2 8h2.5l1.8-4.5 3 9L11.2 8H14",
    "admin": "M2.5 4.5h6M11.5 4.5h2M2.5 11.5h2M7.5 11.5h6M10 3v3M6 10v3",
    "menu": "M2.5 4.5h11M2.5 8h11M2.5 11.5h11",
    "user": "M8 8.2a2.8 2.8 0 1 0 0-5.6 2.8 2.8 0 0 0 0 5.6zM3 13.8C3.4 11.3 5.4 9.9 8 9.9s4.6 1.4 5 3.9",
}


def _shape(name: str) -> SafeString:
    return format_html(
        '<svg class="shape" viewBox="0 0 12 12" width="10" height="10" aria-hidden="true" focusable="false">'
        '<path fill="currentColor" fill-rule="evenodd" d="{}"/></svg>',
        SHAPES[name],
    )


def _badge(kind: str, value: object, signs: dict[str, tuple[str, str]]) -> SafeString:
    """One badge. A value that the table does not know is shown as it is, quiet, with a ring: seen, not hidden."""
    value = str(value)
    tone, shape = signs.get(value, _WAITING)
    return format_html(
        '<span class="badge badge-{} tone-{}" data-value="{}">{}<span>{}</span></span>',
        kind,
        tone,
        value,
        _shape(shape),
        _word(value),
    )


def _word(value: str) -> str:
    return str(WORDS.get(value) or value.replace("_", " "))


@register.simple_tag
def state_badge(noun: str, state: object) -> SafeString:
    """The state of a `noun` (run, task, step, hold, worker, patch, merge_queue, queue_item, gate_run …) as colour,
    shape and word. An unknown noun raises KeyError, so that a page's mistake is found; an unknown state is shown."""
    return _badge("state", state, STATES[noun])


@register.simple_tag
def state_tone(noun: str, state: object) -> str:
    """The class that gives an element the colour of this state, such as `tone-good`. Unknown noun: KeyError."""
    return f"tone-{STATES[noun].get(str(state), _WAITING)[0]}"


@register.simple_tag
def state_word(state: object) -> str:
    """What people read for a state, a health or a severity; an unknown one as it is, without underscores."""
    return _word(str(state))


@register.simple_tag
def health_badge(health: object) -> SafeString:
    """A worker's derived health: healthy, late, stalled or unresponsive."""
    return _badge("health", health, HEALTH)


@register.simple_tag
def severity_badge(severity: object) -> SafeString:
    """The severity of an event: debug, info, warning, error or critical."""
    return _badge("severity", severity, SEVERITIES)


@register.simple_tag
def severity_sign(severity: object) -> SafeString:
    """The severity as its shape alone, in its colour, with the word for those who do not see it."""
    tone, shape = SEVERITIES.get(str(severity), _WAITING)
    return format_html(
        '<svg class="shape tone-{}" viewBox="0 0 12 12" width="10" height="10" role="img" aria-label="{}">'
        '<path fill="currentColor" fill-rule="evenodd" d="{}"/></svg>',
        tone,
        _word(str(severity)),
        SHAPES[shape],
    )


@register.simple_tag
def icon(name: str) -> SafeString:
    """A 16 by 16 line icon of ICONS; decoration only, the words stand beside it."""
    return format_html(
        '<svg class="icon" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true" focusable="false">'
        '<path fill="none" stroke="currentColor" stroke-width="1.3" stroke-linecap="round" stroke-linejoin="round"'
        ' d="{}"/></svg>',
        ICONS[name],
    )


def _nothing() -> SafeString:
    return format_html('<span class="nothing" title="{}">—</span>', _("none"))


@register.simple_tag
def ago(value: datetime | None, now: datetime | None = None) -> SafeString:
    """`<time>` that says how far `value` lies from `now` (default: this moment) and tells exact UTC on hover.

    A naive time is an error (ValueError): what is shown to the second must be known to the second. None is a dash.
    """
    if not value:  # a template's missing variable arrives as empty text
        return _nothing()
    if timezone.is_naive(value):
        raise ValueError("ago needs an aware time")
    exact = value.astimezone(UTC)
    seconds = ((now or timezone.now()) - value).total_seconds()
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        exact.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        exact.strftime("%Y-%m-%d %H:%M:%S UTC"),
        _distance(seconds, exact),
    )


def _distance(seconds: float, exact: datetime) -> str:
    """`3 min ago`, `in 2 h`; beyond 30 days the date itself."""
    size = abs(seconds)
    if size < 5:
        return _("now")
    if size >= 30 * 86400:
        return exact.strftime("%Y-%m-%d")
    if size < 60:
        words = _("%(n)d s") % {"n": size}
    elif size < 3600:
        words = _("%(n)d min") % {"n": size // 60}
    elif size < 2 * 86400:
        words = _("%(n)d h") % {"n": size // 3600}
    else:
        words = ngettext("%(n)d day", "%(n)d days", int(size // 86400)) % {"n": size // 86400}
    return (_("%(time)s ago") if seconds > 0 else _("in %(time)s")) % {"time": words}


@register.simple_tag
def duration(seconds: float | Decimal | timedelta | None) -> SafeString:
    """A length of time in at most two units: `850 ms`, `4.2 s`, `3 min 05 s`, `1 h 03 min`, `2 d 04 h`, or a dash."""
    if seconds is None or seconds == "":
        return _nothing()
    size = seconds.total_seconds() if isinstance(seconds, timedelta) else float(seconds)
    whole = int(size)
    if size < 0.9995:
        words = _("%(n)d ms") % {"n": max(0, round(size * 1000))}
    elif size < 9.95:
        words = _("%(n)s s") % {"n": number_format(Decimal(str(size)), decimal_pos=1)}
    elif size < 60:
        words = _("%(n)d s") % {"n": whole}
    elif size < 3600:
        words = _("%(minutes)d min %(seconds)02d s") % {"minutes": whole // 60, "seconds": whole % 60}
    elif size < 86400:
        words = _("%(hours)d h %(minutes)02d min") % {"hours": whole // 3600, "minutes": whole % 3600 // 60}
    else:
        words = _("%(days)d d %(hours)02d h") % {"days": whole // 86400, "hours": whole % 86400 // 3600}
    return format_html('<span class="number" title="{} s">{}</span>', f"{size:.3f}".rstrip("0").rstrip("."), words)


_SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£"}


@register.simple_tag
def money(amount: Decimal | float | str | None, currency: str = "USD") -> SafeString:
    """An amount to two places, below one unit to four, with the exact amount and currency on hover. None is a dash.

    A positive amount too small for four places is shown as `<$0.0001`: what cost something is never shown as nothing.
    """
    if amount is None or amount == "":
        return _nothing()
    try:
        exact = Decimal(str(amount))
    except InvalidOperation as error:
        raise ValueError(f"{amount!r} is no amount") from error
    size = abs(exact)
    places = 4 if 0 < size < 1 else 2
    below = "<" if 0 < size < Decimal("0.0001") else ""
    shown = max(size, Decimal("0.0001")) if below else size
    rounded = shown.quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_EVEN)
    text = number_format(rounded, decimal_pos=places, use_l10n=True, force_grouping=True)
    sign = "-" if exact < 0 else ""
    symbol = _SYMBOLS.get(currency, f"{currency}\u00a0")
    return format_html(
        '<span class="number money" title="{} {}">{}{}{}{}</span>', f"{exact:f}", currency, below, sign, symbol, text
    )


@register.simple_tag
def number(value: float | Decimal | None, places: int | None = None) -> SafeString:
    """A number with grouped thousands and, if given, `places` decimals. None is a dash."""
    if value is None or value == "":
        return _nothing()
    return format_html('<span class="number">{}</span>', number_format(value, decimal_pos=places, force_grouping=True))


@register.simple_tag(name="bytes")
def byte_size(value: int | str | None) -> SafeString:
    """A size in decimal units (1 kB = 1,000 bytes), the exact count on hover. None is a dash."""
    if value is None or value == "":
        return _nothing()
    size, unit = float(value), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(size) < 999.5:
            break
        size, unit = size / 1000, larger
    places = 0 if unit == "B" or abs(size) >= 99.95 else 1
    text = number_format(Decimal(str(size)), decimal_pos=places)
    exact = number_format(value, force_grouping=True)
    return format_html('<span class="number" title="{} B">{} {}</span>', exact, text, unit)


@register.simple_tag
def ulid(value: object, href: str = "") -> SafeString:
    """An id in its short form (four characters, the last six), the whole on hover, with a button that copies the whole;
    a link when `href` is given. Ids of 14 characters and less, such as keys, are shown whole. None is a dash."""
    if value is None or value == "":
        return _nothing()
    whole = str(value)
    short = whole if len(whole) <= 14 else f"{whole[:4]}…{whole[-6:]}"
    shown = format_html('<code title="{}">{}</code>', whole, short)
    if href:
        shown = format_html('<a href="{}">{}</a>', href, shown)
    return format_html('<span class="id">{}{}</span>', shown, copy_button(whole))


@register.simple_tag(name="value")
def readable_value(value: object) -> SafeString:
    """A value of JSON as people read it: items, rows, yes and no, a dash for null; long texts and lists are folded."""
    return readable.shown(value)


@register.simple_tag
def differences(found: Sequence[readable.Difference]) -> SafeString:
    """What `readable.differences` found inside two values, one line each."""
    return readable.shown_differences(found)


@register.simple_tag
def copy_button(text: object) -> SafeString:
    """A small button that copies `text`; hidden where there is no script to do it."""
    return format_html(
        '<button type="button" class="copy" data-copy="{}" aria-label="{}">'
        '<svg viewBox="0 0 12 12" width="12" height="12" aria-hidden="true" focusable="false">'
        '<path class="copy-sheets" fill="none" stroke="currentColor" d="M4.5 4.5h6v6h-6zM2.5 7.5h-1v-6h6v1"/>'
        '<path class="copy-done" fill="none" stroke="currentColor" stroke-width="1.6" d="M1.5 6.5l3 3l6-7"/>'
        "</svg></button>",
        str(text),
        _("Copy %(text)s") % {"text": text},
    )


@register.simple_tag
def progress(done: float, total: float, failed: float = 0, running: float = 0, label: str = "") -> SafeString:
    """A progress bar: `done` good, `failed` bad and `running` moving of `total`, in one bar, and `3/8` beside it.

    `done` counts what ended well. A total of 0 is complete (domain.md §2.1.14); parts beyond the total are cut.
    """
    parts, start = [], 0.0
    shares = [("good", done), ("bad", failed), ("move", running)] if total else [("good", 1)]
    for tone, part in shares:
        width = min(max(float(part), 0) / float(total or 1) * 100, 100 - start)
        if width > 0:
            parts.append((tone, f"{start:.2f}", f"{width:.2f}"))
            start += width
    ended = min(float(done) + float(failed), float(total)) if total else 0
    percent = round(ended / float(total) * 100) if total else 100
    return format_html(
        '<span class="progress"><svg class="progress-bar" viewBox="0 0 100 6" preserveAspectRatio="none"'
        ' role="progressbar" aria-label="{}" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{}">'
        '<rect class="progress-track" width="100" height="6"/>{}</svg><span class="number">{}/{}</span></span>',
        label or pgettext("progress of a run", "Progress"),
        percent,
        format_html_join("", '<rect class="fill-{}" x="{}" width="{}" height="6"/>', parts),
        number_format(done, force_grouping=True),
        number_format(total, force_grouping=True),
    )


@register.simple_tag
def sparkline(values: Iterable[float | Decimal | None], label: str = "") -> SafeString:
    """A small line of `values`, oldest first, on a scale from 0 (or the least, if negative) to the greatest.

    None is a gap that is bridged. Fewer than two numbers give nothing: a line needs two points. With `label` it is an
    image with that name, without it decoration.
    """
    points = [(place, float(value)) for place, value in enumerate(values) if value is not None]
    if len(points) < 2:
        return format_html("{}", "")
    low = min(0.0, *(value for _place, value in points))
    high = max(value for _place, value in points)
    span = (high - low) or 1.0
    first, last = points[0][0], points[-1][0]
    across = 100 / (last - first)
    line = " ".join(f"{(place - first) * across:.1f},{22 - (value - low) / span * 20:.1f}" for place, value in points)
    name = format_html('role="img" aria-label="{}"', label) if label else format_html('aria-hidden="{}"', "true")
    return format_html(
        '<svg class="sparkline" viewBox="0 0 100 24" preserveAspectRatio="none" focusable="false" {}>'
        '<polygon points="0,24 {} 100,24"/><polyline points="{}"/></svg>',
        name,
        line,
        line,
    )


_CHANGES = {
    "added": gettext_lazy("added"),
    "deleted": gettext_lazy("deleted"),
    "renamed": gettext_lazy("renamed"),
    "copied": gettext_lazy("copied"),
    "modified": gettext_lazy("modified"),
    "raw": gettext_lazy("raw text"),
}


@register.simple_tag
def diff_change(change: str) -> str:
    """The word for what a diff does with a file (`ledger.rendering.FileView.change`)."""
    return str(_CHANGES[change])


_ROW_SIGNS = {"added": "+", "removed": "-"}


@register.simple_tag
def diff_rows(rows: Iterable[Any]) -> SafeString:
    """The `<tr>`s of one file of a diff (`ledger.rendering.Row`): two line numbers, sign, code.

    A tag and not a template loop, because a diff has up to 20,000 rows. Numbers are attributes, so that copied code
    holds code alone. The row's `html` says itself that it is escaped (`__html__`); anything else would be escaped here.
    """
    return format_html_join(
        "",
        '<tr class="row-{}"><td class="no" data-no="{}"></td><td class="no" data-no="{}"></td>'
        '<td class="sign">{}</td><td class="code">{}</td></tr>',
        (
            (
                row.kind,
                "" if row.old_no is None else row.old_no,
                "" if row.new_no is None else row.new_no,
                _ROW_SIGNS.get(row.kind, ""),
                row.html,
            )
            for row in rows
        ),
    )


@register.simple_tag
def wrong(filters: Any, name: str) -> str:
    """What is wrong with one filter of a list (`pipeline.pages.Filters`); empty when nothing is."""
    return str(getattr(filters, "errors", {}).get(name, ""))


@register.simple_tag
def query_replace(request: HttpRequest, **changes: object) -> str:
    """The query string of this page with `changes`, beginning with `?`: the filters stay. None or "" removes a name.

    The place in the list (`cursor`) goes too unless it is named: another filter begins at its first page.
    """
    query = request.GET.copy()
    query.pop("cursor", None)
    for name, value in changes.items():
        if value is None or value == "":
            query.pop(name, None)
        else:
            query[name] = str(value)
    return f"?{query.urlencode()}"


@register.simple_tag(takes_context=True)
def section(context: template.Context) -> str:
    """The part of the console that this page belongs to: the namespace of its address (`runs`, `workers` …) or, without
    one, its name (`overview`); empty where no address was resolved. A page that another app shows below a section's
    address belongs to that section."""
    match = getattr(context.get("request"), "resolver_match", None)
    if not match:
        return ""
    above = (getattr(match, "route", None) or "").partition("/")[0]
    return BELONGS_TO.get(above) or match.namespace or match.url_name or ""


BELONGS_TO = {"events": "events", "webhooks": "events"}
"""The first part of an address -> the section of the console that its pages belong to, whoever shows them."""

"""Values of JSON as people read them, lists as items and objects as rows, and what differs inside two of them."""

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.formats import number_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

LONG_TEXT = 400
LONG_LINES = 8
LONG_LIST = 20
MOST_SHOWN = 500
# Below this many levels a value is shown as indented JSON, and compared as a whole.
DEEPEST = 5
MOST_LINES = 2000
# What tells the objects of a list apart, the first that all of them have.
NAMES = ("key", "id", "name", "path", "metric", "kind")
BEGINNING = 100

WORDS = {
    "added": gettext_lazy("added"),
    "removed": gettext_lazy("removed"),
    "changed": gettext_lazy("changed"),
    "moved": gettext_lazy("in another order"),
}


# -- what differs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One thing that an edit did inside a value: `what` is one of WORDS, `path` the names that lead to the place."""

    what: str
    path: tuple[str, ...] = ()
    old: Any = None
    new: Any = None


def differences(before: Any, after: Any) -> list[Difference]:
    """What was added, removed and changed inside two objects, two lists or two texts of several lines.

    Empty for values that are the same, for those in which there is no inside (a number, a short text, an object that
    became a list), and where there was nothing before or is nothing after.
    """
    if not before or not after or not _have_insides(before, after):
        return []
    return list(_between(before, after, ()))


def _have_insides(before: Any, after: Any) -> bool:
    if isinstance(before, str) and isinstance(after, str):
        lines = [text.count("\n") for text in (before, after)]
        return 0 < max(lines) < MOST_LINES
    return any(isinstance(before, kind) and isinstance(after, kind) for kind in (dict, list))


def _between(before: Any, after: Any, path: tuple[str, ...]) -> Iterable[Difference]:
    if _written(before) == _written(after):
        return
    if not _have_insides(before, after) or len(path) >= DEEPEST:
        yield Difference("changed", path, before, after)
    elif isinstance(before, dict):
        yield from _of_objects(before, after, path)
    elif isinstance(before, list):
        yield from _of_lists(before, after, path)
    else:
        yield from _of_lines(before.splitlines(), after.splitlines(), path)


def _of_objects(before: Mapping[str, Any], after: Mapping[str, Any], path: tuple[str, ...]) -> Iterable[Difference]:
    for name, old in before.items():
        if name in after:
            yield from _between(old, after[name], (*path, name))
        else:
            yield Difference("removed", (*path, name), old=old)
    for name, new in after.items():
        if name not in before:
            yield Difference("added", (*path, name), new=new)


def _of_lists(before: list[Any], after: list[Any], path: tuple[str, ...]) -> Iterable[Difference]:
    """Objects that have names are compared by name, all else by what stands in it, wherever it stands."""
    named = _by_name(before, after)
    if named:
        old, new = named
        yield from _of_objects(old, new, path)
        if old.keys() == new.keys() and list(old) != list(new):
            yield Difference("moved", path, list(old), list(new))
        return
    gone, come = _left_over(before, after), _left_over(after, before)
    if not gone and not come:
        yield Difference("moved", path, before, after)
    yield from (Difference("removed", path, old=item) for item in gone)
    yield from (Difference("added", path, new=item) for item in come)


def _by_name(*lists: list[Any]) -> list[dict[str, Any]] | None:
    """Each list as an object from its items' names; None where the items have no names that tell them apart."""
    if not all(isinstance(item, dict) for items in lists for item in items):
        return None
    for word in NAMES:
        names = [[item.get(word) for item in items] for items in lists]
        if all(isinstance(name, str) for some in names for name in some) and all(
            len(set(some)) == len(some) for some in names
        ):
            return [dict(zip(some, items, strict=True)) for some, items in zip(names, lists, strict=True)]
    return None


def _left_over(these: list[Any], others: list[Any]) -> list[Any]:
    """The items of `these` without one partner each in `others`."""
    partners = Counter(_written(item) for item in others)
    left = []
    for item in these:
        written = _written(item)
        if partners[written]:
            partners[written] -= 1
        else:
            left.append(item)
    return left


def _of_lines(before: Sequence[str], after: Sequence[str], path: tuple[str, ...]) -> Iterable[Difference]:
    for tag, first, last, begin, end in difflib.SequenceMatcher(None, before, after).get_opcodes():
        if tag == "equal":
            continue
        for number in range(first, last):
            yield Difference("removed", (*path, _line(number)), old=before[number])
        for number in range(begin, end):
            yield Difference("added", (*path, _line(number)), new=after[number])


def _line(number: int) -> str:
    return _("line %(number)d") % {"number": number + 1}


def _written(value: Any, indent: int | None = None) -> str:
    """The value as JSON; what is nested deeper than Python goes is only said to be so."""
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=indent is None, indent=indent)
    except RecursionError:
        return _("nested too deeply to be shown")


# -- in words ----------------------------------------------------------------------------------------------------


def words(value: Any) -> str:
    """The value in one line of text, for a sentence: `yes`, `—`, `*.py, docs/**`, `max_failures: 3`."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    if isinstance(value, str):
        return value
    if not value and isinstance(value, dict | list):
        return _("nothing")
    if isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        return ", ".join(words(item) for item in value)
    if isinstance(value, dict) and not any(isinstance(item, dict | list) for item in value.values()):
        return ", ".join(f"{name}: {words(item)}" for name, item in value.items())
    return _written(value)


# -- as markup ---------------------------------------------------------------------------------------------------


def shown(value: Any, depth: int = 0) -> SafeString:
    """The value as markup for a page, everything in it escaped; long texts, lists and objects are folded."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict | list):
        if not value:
            return format_html('<span class="dim">{}</span>', _("nothing"))
        if depth >= DEEPEST:
            return format_html('<pre class="log">{}</pre>', _written(value, indent=2))
        return _list(value, depth) if isinstance(value, list) else _object(value, depth)
    if value is None:
        return format_html('<span class="nothing" title="{}">—</span>', _("none"))
    if isinstance(value, bool):
        return format_html("{}", words(value))
    return format_html('<span class="number">{}</span>', value)


def _text(value: str) -> SafeString:
    if not value:
        return format_html('<span class="dim">{}</span>', _("empty"))
    if len(value) > LONG_TEXT or value.count("\n") >= LONG_LINES:
        size = _("%(count)s characters") % {"count": number_format(len(value), force_grouping=True)}
        begin = value.strip().partition("\n")[0][:BEGINNING]
        return _folded(
            format_html("{}… <small>{}</small>", begin, size), format_html('<pre class="log">{}</pre>', value)
        )
    return format_html('<span class="as-written">{}</span>' if "\n" in value else "{}", value)


def _list(value: list[Any], depth: int) -> SafeString:
    items = format_html_join("", "<li>{}</li>", ((shown(item, depth + 1),) for item in value[:MOST_SHOWN]))
    whole = format_html('<ul class="items">{}{}</ul>', items, _rest(len(value), "<li>{}</li>"))
    if len(value) <= LONG_LIST:
        return whole
    return _folded(ngettext("%(n)d item", "%(n)d items", len(value)) % {"n": len(value)}, whole)


def _object(value: dict[str, Any], depth: int) -> SafeString:
    rows = format_html_join(
        "",
        "<div><dt><code>{}</code></dt><dd>{}</dd></div>",
        ((name, shown(item, depth + 1)) for name, item in list(value.items())[:MOST_SHOWN]),
    )
    whole = format_html('<dl class="entries">{}{}</dl>', rows, _rest(len(value), "<div><dt>{}</dt><dd></dd></div>"))
    if len(value) <= LONG_LIST:
        return whole
    return _folded(ngettext("%(n)d entry", "%(n)d entries", len(value)) % {"n": len(value)}, whole)


def _rest(count: int, markup: str) -> SafeString:
    """How many are left out; the API tells them all."""
    more = count - MOST_SHOWN
    said = _("and %(n)d more, which the API shows") % {"n": more}
    return format_html(markup, said) if more > 0 else SafeString("")


def _folded(summary: str, inside: SafeString) -> SafeString:
    return format_html('<details class="fold"><summary>{}</summary>{}</details>', summary, inside)


def shown_differences(found: Sequence[Difference]) -> SafeString:
    """The differences as a list: what was done, where, and the value or both values."""
    rows = format_html_join(
        "", '<li class="is-{}"><strong>{}</strong> {}{}</li>', (_difference(one) for one in found[:MOST_SHOWN])
    )
    return format_html('<ul class="differences">{}{}</ul>', rows, _rest(len(found), "<li>{}</li>"))


def _difference(one: Difference) -> tuple[str, str, SafeString, SafeString]:
    place = format_html("<code>{}</code> ", " › ".join(one.path)) if one.path else SafeString("")
    if one.what == "removed":
        told = shown(one.old, 1)
    elif one.what == "added":
        told = shown(one.new, 1)
    else:
        told = format_html("{} {} {} {}", _("from"), shown(one.old, 1), _("to"), shown(one.new, 1))
    return one.what, str(WORDS[one.what]), place, told

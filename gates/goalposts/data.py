"""Pure: the data of tests before and after a patch: what tests are fed with, and what results are held against."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from gates.goalposts.moves import Change, Moved, added_lines, moved
from gates.goalposts.paths import is_data, is_expected

_SNAPSHOT = re.compile(r"^exports\[`(.+?)`\] = `(.*?)`;", re.MULTILINE | re.DOTALL)
_AMBER = re.compile(r"^# name: (.+?)\n(.*?)^# ---$", re.MULTILINE | re.DOTALL)


def judge(changes: Sequence[Change]) -> Iterator[Moved]:
    """Where data of the tests that stood at the base is gone or says something else.

    Formatting alone, a snapshot more, and a case more at the end of a list of cases are no moves.
    """
    new = {(change.path.rpartition("/")[2], change.after) for change in changes if change.before is None}
    for change in changes:
        if not is_data(change.path) or change.before is None:
            continue
        if change.before == change.after and "\ufffd" not in change.before:
            continue
        if change.after is None:
            if (change.path.rpartition("/")[2], change.before) not in new:  # else it only lies elsewhere
                yield moved("expectation_changed", change.path, 0, "data of the tests is gone")
        elif told := _changed(change.path, change.before, change.after):
            line = next((number for number, _ in added_lines(change.before, change.after)), 0)
            yield moved("expectation_changed", change.path, line, told)


def _changed(path: str, before: str, after: str) -> str:
    """What is different about the data, in words; "" for what only adds."""
    if before == after:
        return "data of the tests changed, which is no text"
    for entries in (_SNAPSHOT, _AMBER):
        was, now = dict(entries.findall(before)), dict(entries.findall(after))
        if was:
            names = [name for name in was if now.get(name) != was[name]]
            return f"the snapshot {names[0]} changed" if names else ""
    if path.endswith((".json", ".webmanifest")):
        try:
            held, holds = json.loads(before), json.loads(after)
        except (ValueError, RecursionError):
            return "data of the tests changed"
        if _same(held, holds) or (not is_expected(path) and _is_longer(held, holds)):
            return ""
        return f"data of the tests changed: {_first_difference(held, holds)}"
    is_list = path.endswith((".jsonl", ".ndjson", ".csv", ".tsv")) and not is_expected(path)
    if is_list and before.strip() and after.startswith(before.rstrip("\r\n")):
        return ""
    if [line.rstrip() for line in before.rstrip().splitlines()] == [
        line.rstrip() for line in after.rstrip().splitlines()
    ]:
        return ""
    return "data of the tests changed"


def _same(one: Any, other: Any) -> bool:
    """Whether two documents are the same in JSON, where 1 is not true."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _is_longer(was: Any, now: Any) -> bool:
    """Whether a list of cases has all that it had, and more after it."""
    return isinstance(was, list) and isinstance(now, list) and bool(was) and _same(now[: len(was)], was)


def _first_difference(was: Any, now: Any, place: str = "$", depth: int = 0) -> str:
    """The place of the first difference between two documents, and both values."""
    if isinstance(was, dict) and isinstance(now, dict) and depth < 20:
        for key in [*was, *now]:
            if key not in was or key not in now or not _same(was[key], now[key]):
                gone = "…"
                return _first_difference(was.get(key, gone), now.get(key, gone), f"{place}.{key}", depth + 1)
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now) and depth < 20:
        for number, (one, other) in enumerate(zip(was, now, strict=True)):
            if not _same(one, other):
                return _first_difference(one, other, f"{place}[{number}]", depth + 1)
    return f"{place}: {json.dumps(was)[:60]} → {json.dumps(now)[:60]}"

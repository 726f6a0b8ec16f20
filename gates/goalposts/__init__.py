"""Pure: the files that a patch changed, before and after, in; where it moved its own goalposts out.

What stood in the tests, in what they stand on and in what decides about checks may change only where it can be shown
to ask for no less; everything else goes to a person (decision 0027). Nothing here says that a patch cheats. What only
adds tests moves nothing.

One module for each kind of file: Python is read by its syntax tree (`goalposts.python`, and `goalposts.reach` for what
code reaches beyond itself), other languages by their tokens (`goalposts.text`), data by its content
(`goalposts.data`), configuration by the parts that decide (`goalposts.config`). Runs in evidence.py's bounded child:
standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

from gates.goalposts import config, data, python, text
from gates.goalposts.ends import programs_of
from gates.goalposts.moves import KINDS, Change, Moved, moved
from gates.goalposts.paths import is_configuration, is_test_path, shadowed

__all__ = [
    "KINDS", "Change", "Moved", "from_lines", "is_configuration", "is_test_path", "judge", "moved", "read_changes",
    "to_lines", "told",
]  # fmt: skip

MAX_MOVED = 200
MAX_TEXT_CHARS = 2_000_000  # of one file; a longer one of tests is told, not read


def judge(changes: Sequence[Change], tree: Collection[str] = ()) -> tuple[Moved, ...]:
    """Where the patch moved its goalposts; empty means clean. Never raises for what a file holds.

    `tree` holds the paths of the base's files, where they are known: what a new file stands before is told by it. A
    makefile or package.json that the patch leaves alone may be among the changes: what it calls is told by it.
    """
    readable, found = [], []
    for change in changes:
        if max(len(change.before or ""), len(change.after or "")) > MAX_TEXT_CHARS:
            if is_test_path(change.path):
                found.append(moved("unreadable", change.path, 0, "a test file that is too long to be read"))
        elif change.before != change.after or "\ufffd" in (change.before or ""):  # bytes that are no text may differ
            readable.append(change)
    for change in readable:
        found += _bounded(partial(config.judge, change), [change])
    found += _bounded(lambda: config.together(changes, tree), changes)
    left = frozenset(tree) - {change.path for change in changes if change.after is None}
    for change in readable:
        if change.before is None and not change.path.endswith(".py") and (module := shadowed(change.path, left)):
            found.append(moved("module_shadowed", change.path, 0, f"it stands before the module {module} of that name"))
    of_python = [change for change in readable if change.path.endswith((".py", ".pyi"))]
    found += _bounded(lambda: python.judge(of_python, tree), of_python)
    found += _bounded(lambda: text.judge(readable, programs_of(changes)), readable)
    found += _bounded(lambda: data.judge(readable), readable)
    order = {kind: place for place, kind in enumerate(KINDS)}
    once = dict.fromkeys(found)
    return tuple(sorted(once, key=lambda one: (order[one.kind], one.path, one.line, one.what)))[:MAX_MOVED]


def _bounded(look: Callable[[], Iterable[Moved]], changes: Sequence[Change]) -> list[Moved]:
    """What a look finds; where it breaks on what an agent wrote, that is told: nobody knows what else is in there."""
    try:
        return list(look())
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as problem:
        told = f"what changed cannot be read: {type(problem).__name__}"
        return [moved("unreadable", change.path, 0, told) for change in changes[:20]]


def told(found: Sequence[Moved]) -> str:
    """One sentence for people."""
    if not found:
        return "clean: no test, threshold or configuration asks for less than it did"
    first = "; ".join(f"{one.path}{f':{one.line}' if one.line else ''}: {one.what}" for one in found[:5])
    return f"moved: {first}" + (f"; and {len(found) - 5} more" if len(found) > 5 else "")


# --- between the child and us -------------------------------------------------------------------------------------


def to_lines(found: Sequence[Moved]) -> Iterator[Any]:
    """The moves as documents of a line each; `from_lines` is the inverse."""
    yield {"moved": len(found)}
    for one in found:
        yield astuple(one)


def from_lines(documents: list[Any]) -> tuple[Moved, ...]:
    """What `to_lines` wrote. Raises TypeError, KeyError or ValueError for anything else."""
    found = tuple(Moved(*one) for one in documents[1:])
    if len(found) != documents[0]["moved"]:
        raise ValueError("moves are missing")
    return found


def read_changes(documents: Iterable[Any]) -> list[Change]:
    """Changes from a list of [path, before, after]."""
    return [Change(*each) for each in documents]

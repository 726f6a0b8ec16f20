"""The program of evidence.py's bounded child: one report, or a patch's files, from standard input, what it holds out.

Started by its path, isolated and without the site's packages, so it has the standard library and the readers beside it,
which import nothing else. The first line of its input says which tree the report is about. It answers in lines of JSON:
{"refused": why}, or what the reader writes, and {"end": number of lines} last, so that a half answer is none.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

CHILD_MEMORY_BYTES = 256 * 1024 * 1024
CHILD_CPU_SECONDS = 20


def bound() -> None:
    """Gives up what a reader does not need, for good."""
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_MEMORY_BYTES, CHILD_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CHILD_CPU_SECONDS, CHILD_CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def read(kind: str, header: dict[str, Any], source: BinaryIO) -> Iterator[Any]:
    """What the reader of this kind finds, as documents. Raises gates.reading.Unreadable."""
    from gates import coverage, goalposts, junit, sarif, tap
    from gates.goalposts import declared
    from gates.reading import Tree

    tree = Tree(header["lines"], tuple(header["roots"]), header["cwd"])
    readers: dict[str, Callable[[], Iterable[Any]]] = {
        "junit": lambda: junit.to_lines(junit.read(source)),
        "tap": lambda: junit.to_lines(tap.read(source.read())),
        "coverage": lambda: coverage.to_lines(coverage.read(source.read(), tree)),
        "sarif": lambda: sarif.to_lines(sarif.read(source.read(), tree)),
        "goalposts": lambda: goalposts.to_lines(
            goalposts.judge(goalposts.read_changes(json.loads(source.read())), frozenset(tree.lines))
        ),
        "declared": lambda: declared.to_lines(list(declared.look(goalposts.read_changes(json.loads(source.read()))))),
    }
    yield from readers[kind]()


def main() -> int:
    """Reads, answers, ends; whatever it meets, what it says is one of the two forms, or cut off."""
    package = types.ModuleType("gates")
    package.__path__ = [str(Path(__file__).parent)]
    sys.modules.setdefault("gates", package)
    # Before the limits: importing needs files and memory.
    from gates import coverage, goalposts, junit, sarif, tap  # noqa: F401
    from gates.goalposts import declared  # noqa: F401
    from gates.reading import Unreadable

    bound()
    gc.disable()  # it ends soon, and looking through large trees for cycles is half of the time
    count = 0
    try:
        header = json.loads(sys.stdin.buffer.readline())
        for document in read(sys.argv[1], header, sys.stdin.buffer):
            sys.stdout.write(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n")
            count += 1
    except Unreadable as refused:
        _say({"refused": str(refused)})
    except MemoryError:
        _say({"refused": f"the report takes more than {CHILD_MEMORY_BYTES >> 20} MiB of memory to read"})
    else:
        _say({"end": count})
    return 0


def _say(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogatepass")  # type: ignore[union-attr]
    sys.exit(main())

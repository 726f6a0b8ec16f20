"""Pure: a coverage report in (Cobertura XML, coverage.py's JSON, LCOV), per line of the tree whether it ran out.

Runs in evidence.py's bounded child: standard library only. What a report says of rates and totals is not read; every
percentage is counted again from its lines. Sources: coverage-04.dtd with what coverage.py, gcovr and c8 write;
coverage.py's JSON format 2 and 3; geninfo(1) for LCOV.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

from gates.reading import MAX_BYTES, MAX_DEPTH, UNKNOWN_LENGTH, Tree, Unreadable, load_json, need, whole

MAX_FILES = 100_000
MAX_LINES = 2_000_000
MAX_LINE = 10**7
SHOWN = 5

Lines = Mapping[int, bool]


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a report says of the tree's files: path -> line -> whether it ran; lines that cannot run are absent.

    `unknown` counts the files named that the tree does not have: they measure nothing.
    """

    files: Mapping[str, Lines] = field(default_factory=dict)
    unknown: int = 0

    @property
    def covered(self) -> int:
        """The lines that ran."""
        return sum(sum(lines.values()) for lines in self.files.values())

    @property
    def executable(self) -> int:
        """The lines that can run."""
        return sum(len(lines) for lines in self.files.values())

    @property
    def percent(self) -> float | None:
        """Covered of executable lines, 0 to 100; None when there are none."""
        return percent_of(self.covered, self.executable)


def percent_of(part: int, all_of_it: int) -> float | None:
    """A percentage that reaches 100 only when all of it is there; None of nothing."""
    if not all_of_it:
        return None
    return 100.0 if part == all_of_it else min(100 * part / all_of_it, 99.999)


def join(reports: list[Coverage]) -> Coverage:
    """What several reports of one tree say together: a line ran when it ran in one of them."""
    made = _Lines(Tree({}))
    for report in reports:
        for path, lines in report.files.items():
            for line, ran in lines.items():
                made.add(path, line, ran)
    return Coverage(made.files, sum(report.unknown for report in reports))


@dataclass(frozen=True, slots=True)
class PatchCoverage:
    """Of the lines that a patch added, how many the report calls executable, and how many of these ran.

    `unreported` are files in which the patch added code, in a language that the report speaks of, and of which it is
    silent: then nothing is known, and `percent` is None. A patch without executable lines has nothing to cover: 100.
    """

    covered: int
    executable: int
    missed: tuple[tuple[str, int], ...] = ()
    unreported: tuple[str, ...] = ()

    @property
    def percent(self) -> float | None:
        """0 to 100, or None when it is not known."""
        if self.unreported:
            return None
        return 100.0 if not self.executable else percent_of(self.covered, self.executable)


def of_patch(coverage: Coverage, added: Mapping[str, frozenset[int]], code: frozenset[str]) -> PatchCoverage:
    """The coverage of `added` (path -> line numbers in the patched tree), by the lines the report calls executable.

    `code` are those of the paths in which the additions are code that should be covered: tests, data and texts without
    a statement are left out by the caller.
    """
    covered = executable = 0
    missed: list[tuple[str, int]] = []
    unreported = []
    languages = {_language(path) for path in coverage.files}
    for path, lines in sorted(added.items()):
        said = coverage.files.get(path)
        if said is None:
            if path in code and _language(path) in languages:
                unreported.append(path)
            continue
        judged = sorted(lines & said.keys())
        executable += len(judged)
        covered += sum(said[line] for line in judged)
        missed += [(path, line) for line in judged if not said[line]]
    return PatchCoverage(covered, executable, tuple(missed), tuple(unreported))


_FAMILIES = (
    frozenset({"js", "jsx", "ts", "tsx", "mjs", "cjs", "mts", "cts", "vue", "svelte"}),
    frozenset({"c", "cc", "cpp", "cxx", "h", "hpp"}),
    frozenset({"java", "kt", "scala", "groovy"}),
)


def _language(path: str) -> frozenset[str]:
    """The endings of the files that call each other with this one."""
    ending = path.rpartition("/")[2].rpartition(".")[2]
    return next((family for family in _FAMILIES if ending in family), frozenset({ending}))


# --- reading ------------------------------------------------------------------------------------------------------


def read(data: bytes, tree: Tree) -> Coverage:
    """The lines of a report in whichever of the formats it is in. Raises Unreadable, also where no file is the tree's.

    A file that the tree does not have is counted in `unknown` and measures nothing; a path that leaves the tree, or a
    line behind a file's end, makes the whole report unreadable.
    """
    if len(data) > MAX_BYTES:
        raise Unreadable(f"the report has more than {MAX_BYTES // 1024 // 1024} MiB")
    begin = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    made = _Lines(tree)
    if begin.startswith(b"{"):
        _coverage_py(load_json(data, "coverage report"), made)
    elif begin.startswith((b"TN:", b"SF:")):
        _lcov(data, made)
    else:
        _Cobertura(made).read(data)
    if made.named and not made.files:
        raise Unreadable(f"the report names {made.named} files, and none of them is in the tree")
    return Coverage(made.files, made.unknown)


class _Lines:
    """Collects what a report says, held against the tree."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.files: dict[str, dict[int, bool]] = {}
        self.named = self.unknown = self.count = 0

    def file(self, name: str, sources: list[str]) -> str | None:
        """The tree's path for a file of the report; None when the tree has none."""
        self.named += 1
        if self.named > MAX_FILES:
            raise Unreadable(f"the report names more than {MAX_FILES} files")
        path = self.tree.find(name, sources)
        if path is None:
            self.unknown += 1
        else:
            self.files.setdefault(path, {})
        return path

    def add(self, path: str, line: int, ran: bool) -> None:
        """One line; said twice, it ran when it ran once."""
        if not 1 <= line <= MAX_LINE:
            raise Unreadable(f"line {line} of {path} cannot be")
        length = self.tree.lines.get(path, UNKNOWN_LENGTH)
        if length != UNKNOWN_LENGTH and line > length:
            raise Unreadable(f"line {line} of {path}, which has {length} lines")
        lines = self.files.setdefault(path, {})
        if line not in lines:
            self.count += 1
            if self.count > MAX_LINES:
                raise Unreadable(f"the report has more than {MAX_LINES} lines")
        lines[line] = lines.get(line, False) or ran


def _coverage_py(document: Any, made: _Lines) -> None:
    if not isinstance(document, dict) or "files" not in document:
        raise Unreadable("the report is no document of coverage.py: it has no files")
    for name, said in need(document["files"], dict, "files").items():
        need(said, dict, f"the entry of {name[:200]}")
        path = made.file(name, [])
        for key, ran in (("executed_lines", True), ("missing_lines", False)):
            if key not in said:
                raise Unreadable(f"the entry of {name[:200]} has no {key}")
            lines = need(said[key], list, key)
            if path is not None:
                for line in lines:
                    made.add(path, need(line, int, f"a line of {name[:200]}"), ran)


def _lcov(data: bytes, made: _Lines) -> None:
    path: str | None = None
    inside = False
    for raw in data.split(b"\n"):
        line = raw.strip().decode("utf-8", "replace")
        if line.startswith("SF:"):
            path, inside = made.file(line[3:], []), True
        elif line == "end_of_record":
            path, inside = None, False
        elif line.startswith("DA:"):
            number, _, rest = line[3:].partition(",")
            if not inside or not rest:
                raise Unreadable("a line of the report belongs to no file, or says nothing")
            hits = whole(rest.partition(",")[0])
            if hits < 0:
                raise Unreadable("a line that ran less than never")
            if path is not None:
                made.add(path, whole(number), hits > 0)
            else:
                whole(number)
    if inside:
        raise Unreadable("the report is cut off: its last record has no end")


class _Cobertura:
    """Follows expat's events. Class and method name the same lines, so the union is taken, never a sum.

    A DOCTYPE that names the format's own document type is let by, as gcovr and others write it; one that brings
    declarations with it is refused before any of them could be used, and nothing is ever fetched.
    """

    def __init__(self, made: _Lines) -> None:
        self.made = made
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.EntityDeclHandler = self._declared
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.depth = 0
        self.sources: list[str] = []
        self.source: list[str] | None = None
        self.file: str | None = None

    def read(self, data: bytes) -> None:
        try:
            self.parser.Parse(data, True)
        except expat.ExpatError as problem:
            raise Unreadable(f"the report is not well-formed XML: {problem}") from problem
        except (LookupError, UnicodeError) as problem:
            raise Unreadable(f"the report's encoding cannot be read: {problem}") from problem

    def _doctype(self, name: str, _system: str | None, _public: str | None, has_internal_subset: int) -> None:
        if has_internal_subset or name != "coverage":
            raise Unreadable("the report has a DOCTYPE with declarations, which reports do not need and bombs do")

    def _declared(self, *_: Any) -> None:
        raise Unreadable("the report declares an entity, which reports do not need and bombs do")

    def _start(self, element: str, attributes: dict[str, str]) -> None:
        if not self.depth and element != "coverage":
            raise Unreadable(f"the report begins with <{element[:80]}>, not with coverage")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable(f"the report is nested more than {MAX_DEPTH} deep")
        if element == "source":
            self.source = []
        elif element == "class":
            if "filename" not in attributes:
                raise Unreadable("a class of the report names no file")
            self.file = self.made.file(attributes["filename"], self.sources)
        elif element == "line":
            number, hits = whole(attributes.get("number", "")), whole(attributes.get("hits", ""))
            if hits < 0:
                raise Unreadable("a line that ran less than never")
            if self.file is not None:
                self.made.add(self.file, number, hits > 0)

    def _text(self, text: str) -> None:
        if self.source is not None and sum(map(len, self.source)) < 4096:
            self.source.append(text)

    def _end(self, element: str) -> None:
        self.depth -= 1
        if element == "source" and self.source is not None:
            if len(self.sources) >= 1000:
                raise Unreadable("the report names more than 1000 sources")
            self.sources.append("".join(self.source).strip())
            self.source = None
        elif element == "class":
            self.file = None


# --- between the child and us -------------------------------------------------------------------------------------


def to_lines(coverage: Coverage) -> Iterator[Any]:
    """The report as documents of a line each; `from_lines` is the inverse."""
    yield {"unknown": coverage.unknown}
    for path, lines in coverage.files.items():
        yield [path, [line for line, ran in lines.items() if ran], [line for line, ran in lines.items() if not ran]]


def from_lines(documents: list[Any]) -> Coverage:
    """What `to_lines` wrote. Raises TypeError, KeyError or ValueError for anything else."""
    files = {}
    for path, ran, missed in documents[1:]:
        files[str(path)] = {**dict.fromkeys(map(int, ran), True), **dict.fromkeys(map(int, missed), False)}
    return Coverage(files, int(documents[0]["unknown"]))

"""Pure: the goalposts of tests in other languages than Python, by rules over their text.

A test is the text from its declaration to the next one; its assertions are the statements that ask something. Every
assertion that stood in a test must still stand in it, in the same words: what is merely rewritten is told too, since
text rules cannot see that it asks the same.
"""

# ruff: noqa: E501 - a pattern is read best in one piece

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gates.goalposts import Change, Moved, moved

_STATEMENT_LINES = 20


@dataclass(frozen=True, slots=True)
class Language:
    """How one language declares tests (group `name`), asserts, skips, singles out, and ends a run."""

    files: re.Pattern[str]
    test: re.Pattern[str]
    assertion: re.Pattern[str]
    weak: re.Pattern[str]
    skip: re.Pattern[str]
    focus: re.Pattern[str] | None = None
    exit: re.Pattern[str] | None = None
    exit_anywhere: bool = False


_NEVER = re.compile(r"(?!)")

LANGUAGES = (
    Language(  # JavaScript, TypeScript: jest, vitest, mocha, node:test, jasmine
        files=re.compile(r".*[._-](?:test|spec)\.[cm]?[jt]sx?\Z|(?:.*/)?(?:__tests__|tests?|spec)/.*\.[cm]?[jt]sx?\Z"),
        test=re.compile(
            r"^[ \t]*(?:[xf])?(?:it|test)(?:\.\w+)*(?:\(\s*\[[^\]]*\]\s*\)|`[^`]*`)?\s*\(\s*(?P<q>['\"`])(?P<name>.*?)(?P=q)", re.MULTILINE
        ),
        assertion=re.compile(r"\bexpect\s*\(|\bassert(?:\.\w+)?\s*\(|\bshould\.|\bt\.(?:is|true|false|deepEqual|equal)\("),
        weak=re.compile(
            r"toBeTruthy|toBeDefined|not\.toBeNull|not\.toBeUndefined|expect\.anything|toBeInstanceOf|toHaveProperty"
            r"|assert\.ok|assert\(\s*true|toBeGreaterThan|toMatchObject|expect\(true\)"
        ),
        skip=re.compile(r"\b(?:it|test|describe|suite)\.(?:skip|todo|fixme|failing)\b|\bx(?:it|describe|test)\s*\(|\bskip:\s*true|\bt\.skip\(|this\.skip\("),
        focus=re.compile(r"\b(?:it|test|describe|suite)\.only\b|\bf(?:it|describe)\s*\(|\bonly:\s*true"),
        exit=re.compile(r"\bprocess\.(?:exit|abort|kill)\s*\(|process\.exitCode\s*="),
    ),
    Language(  # Go
        files=re.compile(r".*_test\.go\Z"),
        test=re.compile(r"^func\s+(?P<name>(?:Test|Fuzz|Example|Benchmark)\w*)\s*\(", re.MULTILINE),
        assertion=re.compile(r"\bt\.(?:Error|Errorf|Fatal|Fatalf|Fail|FailNow)\(|\b(?:assert|require|is|qt|cmp)\.\w+\("),
        weak=re.compile(r"\.(?:NotNil|NotEmpty|True|NoError|Contains|InDelta|InEpsilon|t\.Log)\b"),
        skip=re.compile(r"\b[tb]\.Skip(?:f|Now)?\(|testing\.Short\(\)|^//go:build\s+(?:ignore|never)|^// \+build\s+ignore", re.MULTILINE),
        exit=re.compile(r"\bos\.Exit\(\s*0?\s*\)|\bsyscall\.Exit\("),
    ),
    Language(  # Rust: tests stand beside what they test
        files=re.compile(r".*\.rs\Z"),
        test=re.compile(
            r"(?P<attributes>(?:^[ \t]*#\[[^\n]*\]\s*\n)*^[ \t]*#\[(?:\w+::)*(?:test|rstest|test_case)\b[^\n]*\]\s*\n(?:^[ \t]*#\[[^\n]*\]\s*\n)*)"
            r"[ \t]*(?:pub\s+)?(?:async\s+)?fn\s+(?P<name>\w+)", re.MULTILINE
        ),
        assertion=re.compile(r"\b(?:debug_)?assert(?:_\w+)?!\s*\(|\bpanic!\(|\bunreachable!\(|\.(?:unwrap_err|expect_err)\("),
        weak=re.compile(r"assert!\s*\((?:true|.*\.is_(?:ok|some|err|none)\(\))"),
        skip=re.compile(r"#\[\s*ignore|#\[should_panic|#\[cfg\(any\(\)\)\]|#!?\[cfg\(not\(test\)\)\]"),
        exit=re.compile(r"\bstd::process::(?:exit|abort)\(|\bprocess::exit\("),
    ),
    Language(  # Java, Kotlin, Scala: JUnit, TestNG
        files=re.compile(r".*(?:Test|Tests|IT|Spec|TestCase)\.(?:java|kt|scala|groovy)\Z|(?:.*/)?src/test/.*\.(?:java|kt|scala|groovy)\Z"),
        test=re.compile(
            r"(?P<attributes>(?:^[ \t]*@[^\n]*\n)*^[ \t]*@(?:Test|ParameterizedTest|RepeatedTest|Property)\b[^\n]*?(?:\n(?:[ \t]*@[^\n]*\n)*)?)"
            r"[ \t]*(?:(?:public|private|protected|internal|static|final|suspend|void|fun)\s+|@\w+\s+)*`?(?P<name>\w[\w ]*)`?\s*\(", re.MULTILINE
        ),
        assertion=re.compile(r"\b(?:Assert(?:ions)?\.)?(?:assert\w+|fail|verify)\s*\(|\bassertThat\s*\(|\.should\w*\("),
        weak=re.compile(r"assert(?:NotNull|True|DoesNotThrow|InstanceOf)\s*\(|isNotNull\(\)|isNotEmpty\(\)"),
        skip=re.compile(r"@(?:Disabled|Ignore)\b|\bassum(?:e|ing)\w*\s*\(|enabled\s*=\s*false|@(?:Disabled|Enabled)(?:If|On)"),
        exit=re.compile(r"\bSystem\.exit\s*\(|\bexitProcess\s*\(|Runtime\.getRuntime\(\)\.halt"),
    ),
    Language(  # Ruby: RSpec, Minitest
        files=re.compile(r".*_(?:spec|test)\.rb\Z|(?:.*/)?test_[^/]*\.rb\Z"),
        test=re.compile(r"^[ \t]*(?:(?:x|f)?(?:it|specify|example|test|scenario)\s*\(?\s*(?P<q>['\"])(?P<name>.*?)(?P=q)|def\s+(?P<def>test_\w+[?!]?))", re.MULTILINE),
        assertion=re.compile(r"\bexpect\b\s*[({]|\bassert(?:_\w+)?\b|\brefute(?:_\w+)?\b|\.should(?:_not)?\b|\bmust_\w+"),
        weak=re.compile(r"be_truthy|not_to be_nil|be_present|assert_not_nil|refute_nil|\bassert\s+true|be_a\b"),
        skip=re.compile(r"^[ \t]*x(?:it|describe|context|specify)\b|^[ \t]*(?:skip|pending)\b|\bskip:\s*true|,\s*:(?:skip|pending)\b", re.MULTILINE),
        focus=re.compile(r"^[ \t]*f(?:it|describe|context)\b|,\s*(?::focus\b|focus:\s*true)", re.MULTILINE),
        exit=re.compile(r"\bexit!|\bat_exit\b|\babort\b\s*\(?['\"]?|\bProcess\.exit|^[ \t]*exit(?:\s|\(|$)", re.MULTILINE),
    ),
    Language(  # shell: bats, and plain test scripts
        files=re.compile(r".*\.bats\Z"),
        test=re.compile(r"^@test\s+(?P<q>['\"])(?P<name>.*?)(?P=q)", re.MULTILINE),
        assertion=re.compile(r"^\s*(?:\[\[?\s|assert_\w+|test\s|refute_\w+)", re.MULTILINE),
        weak=_NEVER,
        skip=re.compile(r"^\s*skip\b", re.MULTILINE),
        exit=re.compile(r"^\s*exit\s+0", re.MULTILINE),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Test:
    path: str
    name: str
    line: int
    text: str
    assertions: tuple[str, ...]
    skips: int


def judge(changes: Sequence[Change]) -> list[Moved]:
    """Where tests in the languages above ask for less."""
    found: list[Moved] = []
    for language in LANGUAGES:
        mine = [change for change in changes if language.files.match(change.path)]
        if mine:
            found += _of_language(language, mine)
    return found


def _of_language(language: Language, changes: Sequence[Change]) -> Iterator[Moved]:
    before = [test for change in changes for test in _tests(language, change.path, change.before or "")]
    after = [test for change in changes for test in _tests(language, change.path, change.after or "")]
    by_place = {(test.path, test.name): test for test in after}
    known = {(test.path, test.name) for test in before}
    new = [test for test in after if (test.path, test.name) not in known]
    for test in before:
        now = by_place.get((test.path, test.name)) or _elsewhere(test, new)
        if now is None:
            yield moved("test_deleted", test.path, 0, f"the test “{test.name}” is gone")
            continue
        yield from _compared(language, test, now)
    for change in changes:
        yield from _of_file(language, change, new)


def _elsewhere(test: _Test, new: list[_Test]) -> _Test | None:
    """A test under another name or in another file that asks all that this one asked."""
    for other in new:
        if other.name == test.name or (test.assertions and not Counter(test.assertions) - Counter(other.assertions)):
            new.remove(other)
            return other
    return None


def _compared(language: Language, test: _Test, now: _Test) -> Iterator[Moved]:
    if now.skips > test.skips:
        yield moved("test_skipped", now.path, now.line, f"the test “{now.name}” is skipped")
    gone = list((Counter(test.assertions) - Counter(now.assertions)).elements())
    came = list((Counter(now.assertions) - Counter(test.assertions)).elements())
    if not gone:
        return
    if len(now.assertions) < len(test.assertions):
        yield moved("assertion_removed", now.path, now.line, f"“{now.name}” no longer asks: {gone[0]}")
    elif any(language.weak.search(one) for one in came) and not all(language.weak.search(one) for one in gone):
        yield moved("assertion_weakened", now.path, now.line, f"“{now.name}” asks less: {gone[0]} → {came[0]}")
    else:
        yield moved("expectation_changed", now.path, now.line, f"“{now.name}” asks something else: {gone[0]}")


def _of_file(language: Language, change: Change, new: Sequence[_Test]) -> Iterator[Moved]:
    before, after = _code(change.before or ""), _code(change.after or "")
    if not after:
        return
    # Skips of whole suites stand outside the tests; those of tests that are new with the patch take nothing away.
    outside = _count(language.skip, after) - _count(language.skip, before)
    within = sum(test.skips for test in _tests(language, change.path, change.after or ""))
    within -= sum(test.skips for test in _tests(language, change.path, change.before or ""))
    if change.before is not None and outside > within:
        yield moved("test_skipped", change.path, _line(language.skip, after), "a suite of tests is skipped")
    if language.focus is not None and _count(language.focus, after) > _count(language.focus, before):
        yield moved("test_skipped", change.path, _line(language.focus, after), "only some tests are run")
    is_test = language.test.search(after) is not None or "_test" in change.path or "spec" in change.path
    if language.exit is not None and is_test and not change.path.endswith(".rs"):
        if _count(language.exit, after) > _count(language.exit, before):
            yield moved("exit_trick", change.path, _line(language.exit, after), "the test program is ended from within")
    elif language.exit is not None and change.path.endswith(".rs"):
        was = sum(_count(language.exit, test.text) for test in _tests(language, change.path, change.before or ""))
        now = sum(_count(language.exit, test.text) for test in _tests(language, change.path, change.after or ""))
        if now > was:
            yield moved("exit_trick", change.path, 0, "the test program is ended from within")
    yield from _mocked(change)


def _mocked(change: Change) -> Iterator[Moved]:
    """jest.mock or vi.mock of a module whose functions the same file expects something of."""
    if not re.search(r"\.[cm]?[jt]sx?\Z", change.path):
        return
    mock = re.compile(r"\b(?:jest|vi)\.(?:mock|doMock)\(\s*(['\"])(.+?)\1")
    was = {match[2] for match in mock.finditer(change.before or "")}
    after = change.after or ""
    for match in mock.finditer(after):
        if match[2] in was:
            continue
        module = re.escape(match[2])
        named = re.findall(
            rf"import\s+(?:\*\s+as\s+)?([^'\"]*?)\s+from\s+['\"]{module}['\"]"
            rf"|(?:const|let|var)\s+([^=]+?)\s*=\s*require\(\s*['\"]{module}['\"]",
            after,
        )
        names = {name for pair in named for part in pair for name in re.findall(r"[A-Za-z_$][\w$]*", part)} - {"as"}
        for name in sorted(names):
            if re.search(rf"\bexpect\s*\(\s*(?:await\s+)?{re.escape(name)}\s*[(.]", after):
                line = after.count("\n", 0, match.start()) + 1
                yield moved("subject_mocked", change.path, line, f"{name} is what is tested, and it is mocked")
                break


def _tests(language: Language, path: str, text: str) -> list[_Test]:
    code = _code(text)
    matches = list(language.test.finditer(code))
    seen: Counter[str] = Counter()
    found = []
    for place, match in enumerate(matches):
        end = matches[place + 1].start() if place + 1 < len(matches) else len(code)
        body = code[match.start() : end]
        groups = match.groupdict()
        name = " ".join((groups.get("name") or groups.get("def") or "").split())
        seen[name] += 1
        key = name if seen[name] == 1 else f"{name} ({seen[name]})"
        assertions = tuple(_statements(language, body))
        found.append(
            _Test(path, key, code.count("\n", 0, match.start()) + 1, body, assertions, _count(language.skip, body))
        )
    return found


def _statements(language: Language, body: str) -> Iterator[str]:
    """The assertions of a test, each on one line without needless blanks."""
    lines = body.split("\n")
    number = 0
    while number < len(lines):
        if not language.assertion.search(lines[number]):
            number += 1
            continue
        statement, taken = lines[number], 1
        while _open(statement) and taken < _STATEMENT_LINES and number + taken < len(lines):
            statement += " " + lines[number + taken]
            taken += 1
        while number + taken < len(lines) and lines[number + taken].lstrip().startswith("."):
            statement += lines[number + taken].strip()
            taken += 1
        yield "".join(statement.split()).rstrip(";,")
        number += taken


def _open(text: str) -> bool:
    return text.count("(") + text.count("[") > text.count(")") + text.count("]")


_COMMENTS = re.compile(
    r"(?P<keep>\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`|//go:build[^\n]*|// \+build[^\n]*)"
    r"|(?<![:\\])//[^\n]*|/\*.*?\*/",
    re.DOTALL,
)


def _code(text: str) -> str:
    """The text without comments of the C family, lines kept: an assertion in a comment asks nothing."""
    return _COMMENTS.sub(lambda found: found["keep"] or "\n" * found[0].count("\n"), text)


def _count(pattern: re.Pattern[str], text: str) -> int:
    return sum(1 for _ in pattern.finditer(text))


def _line(pattern: re.Pattern[str], text: str) -> int:
    """The line of the last match, from 1; 0 for none."""
    places = [found.start() for found in pattern.finditer(text)]
    return text.count("\n", 0, places[-1]) + 1 if places else 0

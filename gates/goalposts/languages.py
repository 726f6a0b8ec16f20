"""Pure: how languages other than Python declare tests, assert, skip, single out, and end a run: patterns of their text."""

# ruff: noqa: E501 - a pattern is read best in one piece

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Language:
    """How one language declares tests (group `name`), asserts, skips, singles out, and ends a run.

    `files` are those of the language; `round` is what runs round tests that it does not name; `detects` what the product
    asks when it wants to know whether it is under test.
    """

    name: str
    files: re.Pattern[str]
    test: re.Pattern[str]
    assertion: re.Pattern[str]
    weak: re.Pattern[str]
    skip: re.Pattern[str]
    focus: re.Pattern[str] | None = None
    exit: re.Pattern[str] | None = None
    round: re.Pattern[str] | None = None
    detects: re.Pattern[str] | None = None


_NEVER = re.compile(r"(?!)")

LANGUAGES = (
    Language(  # JavaScript, TypeScript: jest, vitest, mocha, node:test, jasmine
        name="javascript",
        files=re.compile(r".*\.[cm]?[jt]sx?\Z"),
        test=re.compile(
            r"^[ \t]*(?:[xf])?(?:it|test)(?:\.\w+)*(?:\(\s*\[(?:[^\[\]]|\[[^\[\]]*\])*\]\s*\)|`[^`]*`)?\s*\(\s*(?P<q>['\"`])(?P<name>.*?)(?P=q)", re.MULTILINE
        ),
        assertion=re.compile(r"\bexpect\s*\(|\bassert(?:\.\w+)?\s*\(|\bshould\.|\bt\.(?:is|true|false|deepEqual|equal)\("),
        weak=re.compile(
            r"toBeTruthy|toBeDefined|not\.toBeNull|not\.toBeUndefined|expect\.anything|toBeInstanceOf|toHaveProperty"
            r"|assert\.ok|assert\(\s*true|toBeGreaterThan|toMatchObject|expect\(true\)"
        ),
        skip=re.compile(r"\b(?:it|test|describe|suite)\.(?:skip|todo|fixme|failing)\b|\bx(?:it|describe|test)\s*\(|\bskip:\s*true|\bt\.skip\(|this\.skip\("),
        focus=re.compile(r"\b(?:it|test|describe|suite)\.only\b|\bf(?:it|describe)\s*\(|\bonly:\s*true"),
        exit=re.compile(
            r"\bprocess\.(?:exit|abort|reallyExit)\s*\(|process\[['\"](?:exit|abort|reallyExit)|process\.kill\(\s*process\.pid"
            r"|process\.(?:on|once|prependListener|addListener)\(\s*['\"](?:exit|beforeExit|uncaughtException)"
        ),
        round=re.compile(r"\b(?:before|after)(?:Each|All)?\s*\(|\b(?:jest|vi)\.(?:mock|doMock|spyOn|useFakeTimers|setMock)\(|\bsetup\(|\bmock\.(?:module|method)\("),
        detects=re.compile(r"JEST_WORKER_ID|VITEST\b|VITEST_|NODE_TEST_CONTEXT|typeof\s+(?:jest|describe|it|vi)\b|NODE_ENV['\"\]]*\s*={2,3}\s*['\"]test['\"]"),
    ),
    Language(  # Go
        name="go",
        files=re.compile(r".*\.go\Z"),
        test=re.compile(r"^func\s+(?P<name>(?:Test|Fuzz|Example|Benchmark)\w*)\s*\(", re.MULTILINE),
        assertion=re.compile(r"\bt\.(?:Error|Errorf|Fatal|Fatalf|Fail|FailNow)\(|\b(?:assert|require|is|qt|cmp)\.\w+\("),
        weak=re.compile(r"\.(?:NotNil|NotEmpty|True|NoError|Contains|InDelta|InEpsilon|t\.Log)\b"),
        skip=re.compile(r"\b[tb]\.Skip(?:f|Now)?\(|testing\.Short\(\)|^//go:build\b|^// \+build\b", re.MULTILINE),
        exit=re.compile(r"\bos\.Exit\((?!\s*m\.Run\(\)\s*\))|\bsyscall\.(?:Exit|Kill)\(|\bruntime\.Goexit\(|\bunix\.Exit\("),
        round=re.compile(r"\bfunc\s+(?:TestMain|init)\s*\("),
        detects=re.compile(r"\btesting\.Testing\(\)|flag\.Lookup\(\"test\.|HasSuffix\(os\.Args\[0\],\s*\"\.test"),
    ),
    Language(  # Rust: tests stand beside what they test
        name="rust",
        files=re.compile(r".*\.rs\Z"),
        test=re.compile(
            r"(?P<attributes>(?:^[ \t]*#\[[^\n]*\]\s*\n)*^[ \t]*#\[(?:\w+::)*(?:test|rstest|test_case)\b[^\n]*\]\s*\n(?:^[ \t]*#\[[^\n]*\]\s*\n)*)"
            r"[ \t]*(?:pub\s+)?(?:async\s+)?fn\s+(?P<name>\w+)", re.MULTILINE
        ),
        assertion=re.compile(r"\b(?:debug_)?assert(?:_\w+)?!\s*\(|\bpanic!\(|\bunreachable!\(|\.(?:unwrap_err|expect_err)\("),
        weak=re.compile(r"assert!\s*\((?:true|.*\.is_(?:ok|some|err|none)\(\))"),
        skip=re.compile(r"#\[\s*ignore|#\[should_panic|#!?\[cfg\((?:any\(\)|not\(test\)|all\(test,[^\n]*|feature[^\n]*)\)\]"),
        exit=re.compile(r"\bprocess::(?:exit|abort)\b|\blibc::_?exit\b|use\s+std::process::\{?[^;]*\b(?:exit|abort)\b"),
        detects=re.compile(r"\bcfg!\(\s*(?:not\()?test\b|#\[cfg\(not\(test\)\)\]"),
    ),
    Language(  # Java, Kotlin, Scala: JUnit, TestNG
        name="java",
        files=re.compile(r".*\.(?:java|kts?|scala|groovy)\Z"),
        test=re.compile(
            r"(?P<attributes>(?:^[ \t]*@[^\n]*\n)*^[ \t]*@(?:Test|ParameterizedTest|RepeatedTest|Property)\b[^\n]*?(?:\n(?:[ \t]*@[^\n]*\n)*)?)"
            r"[ \t]*(?:(?:public|private|protected|internal|static|final|suspend|void|fun)\s+|@\w+\s+)*`?(?P<name>\w[\w ]*)`?\s*\(", re.MULTILINE
        ),
        assertion=re.compile(r"\b(?:Assert(?:ions)?\.)?(?:assert\w+|fail|verify)\s*\(|\bassertThat\s*\(|\.should\w*\("),
        weak=re.compile(r"assert(?:NotNull|True|DoesNotThrow|InstanceOf)\s*\(|isNotNull\(\)|isNotEmpty\(\)"),
        skip=re.compile(r"@(?:Disabled|Ignore)\b|\bassum(?:e|ing)\w*\s*\(|enabled\s*=\s*false|@(?:Disabled|Enabled)(?:If|On)"),
        round=re.compile(r"@(?:Before|After)\w*\b|@ExtendWith|@RunWith|^\s*static\s*\{", re.MULTILINE),
        exit=re.compile(r"\bSystem\.exit\s*\(|\bexitProcess\s*\(|Runtime\.getRuntime\(\)\.halt"),
    ),
    Language(  # Ruby: RSpec, Minitest
        name="ruby",
        files=re.compile(r".*\.rb\Z"),
        test=re.compile(r"^[ \t]*(?:(?:x|f)?(?:it|specify|example|test|scenario)\s*\(?\s*(?P<q>['\"])(?P<name>.*?)(?P=q)|def\s+(?P<def>test_\w+[?!]?))", re.MULTILINE),
        assertion=re.compile(r"\bexpect\b\s*[({]|\bassert(?:_\w+)?\b|\brefute(?:_\w+)?\b|\.should(?:_not)?\b|\bmust_\w+"),
        weak=re.compile(r"be_truthy|not_to be_nil|be_present|assert_not_nil|refute_nil|\bassert\s+true|be_a\b"),
        skip=re.compile(r"^[ \t]*x(?:it|describe|context|specify)\b|^[ \t]*(?:skip|pending)\b|\bskip:\s*true|,\s*:(?:skip|pending)\b", re.MULTILINE),
        focus=re.compile(r"^[ \t]*f(?:it|describe|context)\b|,\s*(?::focus\b|focus:\s*true)", re.MULTILINE),
        round=re.compile(r"^[ \t]*(?:before|after|around|prepend_before|append_after)\b|\bRSpec\.configure\b|^[ \t]*def\s+(?:setup|teardown)\b", re.MULTILINE),
        exit=re.compile(r"\bexit!|\bat_exit\b|\babort\b\s*\(?['\"]?|\bProcess\.exit|^[ \t]*exit(?:\s|\(|$)", re.MULTILINE),
    ),
    Language(  # shell: bats, and plain test scripts
        name="shell",
        files=re.compile(r".*\.(?:bats|sh|bash)\Z"),
        test=re.compile(r"^@test\s+(?P<q>['\"])(?P<name>.*?)(?P=q)", re.MULTILINE),
        assertion=re.compile(r"^\s*(?:\[\[?\s|assert_\w+|test\s|refute_\w+)", re.MULTILINE),
        weak=_NEVER,
        skip=re.compile(r"^\s*skip\b", re.MULTILINE),
        exit=re.compile(r"^\s*exit\s+0", re.MULTILINE),
    ),
)  # fmt: skip


def language_of(path: str) -> Language | None:
    """The language that a file is written in, by its name; None for others."""
    return next((language for language in LANGUAGES if language.files.match(path)), None)


_COMMENTS = re.compile(
    r"(?P<keep>\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`|//go:build[^\n]*|// \+build[^\n]*)"
    r"|(?<![:\\])//[^\n]*|/\*.*?\*/",
    re.DOTALL,
)


def code_of(text: str) -> str:
    """The text without comments of the C family, lines kept: an assertion in a comment asks nothing."""
    return _COMMENTS.sub(lambda found: found["keep"] or "\n" * found[0].count("\n"), text)

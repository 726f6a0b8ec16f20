"""Pure: the goalposts of tests in other languages than Python, by the outlines of their files before and after.

What stood in a file of tests may only be laid out differently; between it may come whole tests, assertions, cases,
imports and names that were not there (`outline`, `languages`). A test that changed beyond that is held
against what it was by patterns of its assertions, so that the move can be named: text rules cannot see that other words
ask the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property

from gates.goalposts import ends
from gates.goalposts.languages import Language, code_of, language_of
from gates.goalposts.moves import Change, Moved, added_lines, moved
from gates.goalposts.outline import Group, Item, Unmatched, outline
from gates.goalposts.paths import is_data, is_run, is_test_path

_STATEMENT_LINES = 20
_MAX_DIFFERENCES = 5


@dataclass(frozen=True, slots=True)
class _Difference:
    """One thing in a file of tests that changed; `gone` is its form at the base where it only may have moved away."""

    line: int
    what: str
    gone: str = ""


def judge(changes: Sequence[Change], programs: Collection[str] = ()) -> list[Moved]:
    """Where tests in other languages than Python, and what they stand on, ask for less. `programs` are the files of the
    product that are started and not loaded, as far as they are named somewhere.
    """
    found: list[Moved] = []
    by_language: dict[str, tuple[Language, list[Change]]] = {}
    for change in changes:
        language = language_of(change.path)
        if change.path.endswith((".py", ".pyi")):
            continue
        if language is not None:
            by_language.setdefault(language.name, (language, []))[1].append(change)
        elif is_test_path(change.path) and not is_data(change.path) and not change.path.endswith((".md", ".gitkeep")):
            found += _of_other(change)
    for language, mine in by_language.values():
        found += _of_language(language, mine, programs)
    return found


def _of_language(language: Language, changes: Sequence[Change], programs: Collection[str]) -> Iterator[Moved]:
    ours = [change for change in changes if is_test_path(change.path) or language.name == "rust"]
    came = _Came(ours, language)
    odd = {change.path: _differences(language, change, came) for change in ours if change.before is not None}
    changed = [change for change in ours if change.before is None or odd[change.path]]
    before = [test for change in changed for test in _tests(language, change.path, change.before or "")]
    after = [test for change in changed for test in _tests(language, change.path, change.after or "")]
    by_place = {(test.path, test.name): test for test in after}
    known = {(test.path, test.name) for test in before}
    new = [test for test in after if (test.path, test.name) not in known]
    named = set()
    for test in before:
        now = by_place.get((test.path, test.name)) or _elsewhere(test, new)
        moves = [moved("test_deleted", test.path, 0, f"the test “{test.name}” is gone")] if now is None else []
        if now is not None:
            moves = list(_compared(language, test, now))
        named |= {test.path} if moves else set()
        yield from moves
    if language.name == "rust":
        yield from _modules_left_out(changes)
    yield from _moved_out(language, ours)
    for change in ours:
        # What could not be named by its kind is told in its own words.
        if change.path not in named:
            for one in odd.get(change.path, [])[:_MAX_DIFFERENCES]:
                kind = "test_changed" if language.test.search(change.before or "") else "support_changed"
                yield moved(kind, change.path, one.line, one.what)
        yield from _of_file(language, change)
    for change in changes:
        if not is_test_path(change.path) and language.detects is not None and change.after is not None:
            for line, text in added_lines(change.before or "", change.after):
                if language.detects.search(text):
                    yield moved(
                        "tests_detected", change.path, line, f"the code asks whether it is tested: {text.strip()}"
                    )
        if not is_test_path(change.path):
            yield from ends.judge(language, change, programs)
            yield from _reaches_of_product(language, change)


# What code of the product says that reaches into its tests, by language: each with its kind and words for it.
_ASSERTS_OF_RUST = r"(?:debug_)?assert(?:_eq|_ne|_matches)?|panic|unreachable|todo|unimplemented"
_TOOLS_OF_SHELL = (
    r"\[\[?|test|run|assert\w*|refute\w*|exit|set|return|trap|diff|cmp|grep|true|false|command|builtin|eval|bats|load|fail|skip"
    r"|pytest|python3?|node|npm|npx|cargo|go|make"
)
_REACHES: dict[str, tuple[tuple[str, str, re.Pattern[str]], ...]] = {
    "javascript": (
        ("tests_detected", "the code looks for its tests", re.compile(
            r"\.stack\b.*(?:\btest|spec\b|node:internal|jest|vitest|mocha)|process\.argv.*['\"`/](?:--test|mocha|jest|vitest|ava)\b"
            r"|process\.execArgv.*test")),
        ("exit_trick", "the end of the process is changed", re.compile(
            r"process\.exitCode\s*=\s*(?:0|undefined|null)\b|process\.on(?:ce)?\(\s*['\"]exit['\"].*exitCode|defineProperty\(\s*process\b")),
        ("framework_patched", "what the tests stand on is replaced", re.compile(
            r"^\s*(?:globalThis|global|window)\.(?:expect|assert|describe|it|test|suite|before\w*|after\w*|jest|vi)\s*=(?!=)"
            r"|^\s*(?:Object|Array|JSON|Number|Reflect|Symbol|Math)\.\w+\s*=(?!=)")),
    ),
    "go": (
        ("tests_detected", "the code reaches for the flags of its tests", re.compile(
            r"flag\.(?:CommandLine\.)?(?:Set|Lookup|Parse)\(\s*\"test\.")),
        ("exit_trick", "loading the code ends the process", re.compile(r"^var\b.*\b(?:os|syscall)\.Exit\(")),
    ),
    "rust": (
        ("framework_patched", "an assertion means something else", re.compile(
            rf"macro_rules!\s*(?:{_ASSERTS_OF_RUST})\b|\buse\b.*\bas (?:{_ASSERTS_OF_RUST})\s*[;,}}]")),
        ("exit_trick", "code runs before the tests do", re.compile(
            r"link_section\b|\.(?:init|fini|ctors)(?:_array)?\b|#\[(?:\w+::)*(?:ctor|dtor)\b|no_mangle.*\bmain\b")),
    ),
    "shell": (
        ("exit_trick", "the end of whoever reads this file is changed", re.compile(
            r"\btrap\b.*\b(?:exit\s+0|exit\s*['\"]|true\b|:).*\b(?:EXIT|ERR|DEBUG|RETURN|0)\b")),
        ("framework_patched", "a tool of the tests means something else", re.compile(
            rf"^\s*(?:function\s+)?(?:{_TOOLS_OF_SHELL})\s*\(\s*\)\s*(?:\{{|\(|$)|^\s*function\s+(?:{_TOOLS_OF_SHELL})\b"
            rf"|\balias\s+(?:{_TOOLS_OF_SHELL})=|^\s*enable\s+-n\b")),
    ),
}  # fmt: skip
_ALWAYS_EQUAL = re.compile(
    r"\bfn\s+eq\s*\([^)]*\)\s*->\s*bool\s*\{\s*(?:return\s+)?true\s*;?\s*\}"
    r"|\bfn\s+ne\s*\([^)]*\)\s*->\s*bool\s*\{\s*(?:return\s+)?false\s*;?\s*\}"
)
_ASSERTING = re.compile(
    r"^(?:node:)?(?:assert(?:/strict)?|test)$|^(?:chai|vitest|mocha|expect|sinon|should|tap|ava|uvu)(?:/.*)?$|^@jest/"
)


def _reaches_of_product(language: Language, change: Change) -> Iterator[Moved]:
    """Where the product changes what its tests stand on."""
    before, after = change.before or "", change.after or ""
    if not after:
        return
    for kind, what, pattern in _REACHES.get(language.name, ()):
        for line, text in (
            added_lines(code_of(before), code_of(after)) if language.name != "shell" else added_lines(before, after)
        ):
            if pattern.search(text):
                yield moved(kind, change.path, line, f"{what}: {text.strip()}")
    if language.name == "shell" and not after.startswith("#!"):  # it is read by another, and its options stay
        for line, text in added_lines(before, after):
            if re.match(r"\s*set\s+(?:\+e|\+o\s+errexit)\b", text):
                yield moved(
                    "exit_trick", change.path, line, f"errors no longer end whoever reads this file: {text.strip()}"
                )
    if language.name == "rust" and _count(_ALWAYS_EQUAL, code_of(after)) > _count(_ALWAYS_EQUAL, code_of(before)):
        yield moved(
            "framework_patched", change.path, _line(_ALWAYS_EQUAL, code_of(after)), "equality says the same of anything"
        )
    if language.name == "javascript":
        yield from _changed_assertions(change.path, before, after)


def _changed_assertions(path: str, before: str, after: str) -> Iterator[Moved]:
    """Members of an imported module of assertions or tests that the product sets."""
    imported = re.findall(
        r"import\s+([^'\";]*?)\s+from\s+['\"]([^'\"]+)['\"]|(?:const|let|var)\s+([^=;]+?)\s*=\s*(?:await\s+import|require)\(\s*['\"]([^'\"]+)['\"]",
        after,
    )
    names = {
        name
        for one, module, other, required in imported
        if _ASSERTING.match(module or required)
        for name in re.findall(r"[A-Za-z_$][\w$]*", one or other)
    } - {"as", "type"}
    for inline in re.finditer(r"require\(\s*['\"]([^'\"]+)['\"]\s*\)(?:\.\w+)+\s*=(?!=)", after):
        if _ASSERTING.match(inline[1]) and inline[0] not in before:
            line = after.count("\n", 0, inline.start()) + 1
            yield moved("framework_patched", path, line, f"a module of the tests is changed: {inline[0]}")
    for name in sorted(names):
        mine = re.escape(name)
        sets = re.compile(
            rf"(?<![\w$.]){mine}(?:\.\w+|\[[^\]]+\])+\s*=(?!=)|Object\.(?:assign|defineProperty|defineProperties)\(\s*{mine}\b"
            rf"|Reflect\.set\(\s*{mine}\b|delete\s+{mine}\b"
        )
        for line, text in added_lines(code_of(before), code_of(after)):
            if sets.search(text):
                yield moved("framework_patched", path, line, f"a module of the tests is changed: {text.strip()}")


def _modules_left_out(changes: Sequence[Change]) -> Iterator[Moved]:
    """Modules of Rust that are no longer named, and whose files are still there: nobody compiles their tests."""
    declared = re.compile(r"^[ \t]*(?:pub(?:\([^)]*\))?\s+)?mod\s+(\w+)\s*;", re.MULTILINE)
    gone = {change.path for change in changes if change.after is None}
    came = {name for change in changes for name in declared.findall(code_of(change.after or ""))}
    for change in changes:
        if change.before is None or change.after is None:
            continue
        for name in declared.findall(code_of(change.before)):
            files = (f"/{name}.rs", f"/{name}/mod.rs")
            if name not in came and not any(f"/{path}".endswith(files) for path in gone):
                yield moved("test_uncollected", change.path, 0, f"the module {name} is no longer part of the crate")


def _of_other(change: Change) -> Iterator[Moved]:
    """A program of the tests in a language that nobody here reads: lines may come at its end only."""
    if change.before is None or change.before == change.after:
        return
    was = [line.strip() for line in change.before.splitlines() if line.strip()]
    now = [line.strip() for line in (change.after or "").splitlines() if line.strip()]
    if change.after is None:
        yield moved("test_deleted", change.path, 0, "a file of the tests is gone")
    elif now[: len(was)] != was:
        line = next((number for number, _ in added_lines(change.before, change.after)), 0)
        yield moved("support_changed", change.path, line, "a file of the tests changed, in a language that is not read")


# --- an outline against what it was -------------------------------------------------------------------------------


def _outline_of(text: str | None, language: Language) -> Group:
    try:
        return outline(text or "", language.name)
    except Unmatched:
        return Group("")


class _Came:
    """The forms of all that the patched files hold, read when somebody misses something."""

    def __init__(self, changes: Sequence[Change], language: Language) -> None:
        self.changes = changes
        self.language = language

    @cached_property
    def forms(self) -> frozenset[str]:
        """Every statement's form, at whatever depth."""
        outlines = (_outline_of(change.after, self.language) for change in self.changes)
        return frozenset(item.form() for group in outlines for item in _all_items(group))

    def __contains__(self, form: str) -> bool:
        return form in self.forms


def _all_items(group: Group) -> Iterator[Item]:
    for item in group.items:
        yield item
        for inner in item.groups():
            if inner.opener in {"{", "("}:
                yield from _all_items(inner)


def _differences(language: Language, change: Change, came: _Came) -> list[_Difference]:
    """What changed in a file that stood, and is not known to be harmless."""
    assert change.before is not None
    if change.after is None:
        gone = [item for item in _outline_of(change.before, language).items if _is_worth(item, language, change.path)]
        missed = [item for item in gone if item.form() not in came]
        return [_Difference(0, f"this is gone: {_shown(missed[0])}")] if missed else []
    try:
        was, now = outline(change.before, language.name), outline(change.after, language.name)
    except Unmatched as problem:
        old = [line.strip() for line in change.before.splitlines() if line.strip()]
        new = [line.strip() for line in change.after.splitlines() if line.strip()]
        if old == new or (language.name == "rust" and not language.test.search(change.before)):
            return []
        return [_Difference(0, f"the file changed and cannot be read: {problem}")]
    if not is_test_path(change.path):  # Rust keeps tests beside what they test
        was, now = (_only_tests(group) for group in (was, now))
    if was.form() == now.form():
        return []
    used = frozenset(re.findall(r"[A-Za-z_]\w*", change.before))
    found = list(_Outlines(language, used).groups(was, now, ""))
    return [one for one in found if not one.gone or one.gone not in came]


def _only_tests(group: Group) -> Group:
    """The items of a Rust file that belong to its tests."""
    mine = [item for item in group.items if re.search(r"# \[(?:cfg \([^)]*\btest\b|(?:\w+ :: )*test\b)", item.form())]
    return Group("", mine, group.line)


def _is_worth(item: Item, language: Language, path: str) -> bool:
    if language.name == "rust" and not is_test_path(path):
        return bool(_only_tests(Group("", [item])).items)
    return not re.match(r"(?:import|package|use|require)\b", item.form())


class _Outlines:
    """Holds an outline against what it was."""

    def __init__(self, language: Language, used: frozenset[str]) -> None:
        self.language = language
        self.used = used

    def groups(self, was: Group, now: Group, where: str) -> Iterator[_Difference]:
        """What differs between two groups; `where` are the words round them."""
        old, new = [item.form() for item in was.items], [item.form() for item in now.items]
        stood = frozenset(old)
        if was.opener == "(":
            yield from self._arguments(was, now, where)
            return
        for what, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
            if what == "equal":
                continue
            left = list(was.items[a:b])
            for item in now.items[c:d]:
                same = next((one for one in left if _label(one) == _label(item)), None)
                if same is not None:
                    left.remove(same)
                    yield from self._items(same, item, where)
                else:
                    last = b == len(was.items) and was.opener == "{" and _is_body_of_test(where)
                    if odd := self._insertion(item, now, where, stood, at_end=last):
                        yield odd
            for item in left:
                if not self._may_go(item):
                    yield _Difference(now.line, f"this is gone or changed: {_shown(item)}", item.form())

    def _arguments(self, was: Group, now: Group, where: str) -> Iterator[_Difference]:
        if len(was.items) != len(now.items):
            yield _Difference(now.line, f"{where}: {_short(was.form())} → {_short(now.form())}")
            return
        for old, new in zip(was.items, now.items, strict=True):
            if old.form() != new.form():
                yield from self._items(old, new, where)

    def _items(self, was: Item, now: Item, where: str) -> Iterator[_Difference]:
        """What differs between two items that are the same by their label."""
        if was.form() == now.form() or (self.language.name == "go" and _imports_more(was, now)):
            return
        if was.shape() != now.shape():
            yield _Difference(now.line, f"{_shown(was)} → {_shown(now)}")
            return
        words = ""
        for old, new in zip(was.parts, now.parts, strict=True):
            if isinstance(old, Group) and isinstance(new, Group):
                if old.form() == new.form():
                    continue
                inside = f"{where} {words}"[-200:]
                if old.opener == "[" and not _is_of_cases(inside):
                    yield _Difference(new.line or now.line, f"{_shown(was)} → {_shown(now)}")
                else:
                    is_block = old.opener == "{" and not all(map(_is_element, old.items))
                    yield from self.groups(old, new, f"{inside} {{" if is_block else inside)
            elif isinstance(new, str) and new[:1] not in {'"', "'", "`"}:
                words += f" {new}"

    def _may_go(self, item: Item) -> bool:
        """What may be gone: imports and headers, without which whoever needs them fails."""
        return (
            bool(re.match(r"(?:import|use|require|package|from|# include)\b", item.form())) and "*" not in item.form()
        )

    def _insertion(
        self, item: Item, group: Group, where: str, stood: frozenset[str], *, at_end: bool
    ) -> _Difference | None:
        """Why an item that is new between others is not known to be harmless; None when it is."""
        form = item.form()
        odd = _Difference(item.line, f"this is new between what was asked: {_shown(item)}")
        flat = form.replace(" ", "")
        plain = _plain(item)
        is_round = self.language.round is not None and self.language.round.search(plain)
        if is_round and (_ROUND_ALL.search(plain) or not self._is_whole_test(form)):
            return _Difference(item.line, f"this runs round the tests that stood: {_shown(item)}")
        if form.startswith(("//go:build", "// +build")):
            return odd
        if self._is_test(item) or self._is_import(form):
            return None
        if _REACHING.search(flat):
            return odd
        if group.opener == "[" or (group.opener == "{" and _is_element(item)):
            return None if _is_of_cases(where) else odd
        if self._is_assertion(item):
            return None
        if self.language.name == "shell" and _is_quiet_of_shell(item, group, stood):
            return None
        if _ENDS.search(form):
            return odd
        if at_end:
            return None
        name = _bound(item)
        if self.language.name == "shell" and _STEERS_SHELL.match(name):
            return odd
        return None if name and name not in self.used else odd

    def _is_test(self, item: Item) -> bool:
        form = item.form()
        if self.language.name == "javascript":
            return bool(re.match(r"(?:it|test|describe|suite|context|specify)\b", form))
        if self.language.name == "go":
            found = re.match(r"func (?:\([^)]*\) )?(\w+)", form)
            return bool(found and found[1] not in {"init", "TestMain"} and found[1] not in self.used) or bool(
                re.match(r"t \. Run \(", form)
            )
        if self.language.name == "rust":
            found = re.search(r"\bfn (\w+)|\bmod (\w+)", form)
            return bool(found and not re.search(r"macro_rules", form) and (found[1] or found[2]) not in self.used)
        if self.language.name == "java":
            return bool(re.search(r"@ (?:Test|ParameterizedTest|RepeatedTest|Nested)\b", form)) or (
                _label(item).split(":")[-1] not in self.used and "{" in item.shape() and "static {" not in item.shape()
            )
        if self.language.name == "ruby":
            return bool(re.match(r"(?:it|specify|describe|context|example|scenario|test|def test_\w+)\b", form))
        return form.startswith("@test")

    @staticmethod
    def _is_whole_test(form: str) -> bool:
        """Whether an item is a test or a suite, in whose block something may stand round its own tests."""
        return bool(re.match(r"(?:describe|context|suite|it|test|specify|func Test\w+|@test)\b", form))

    @staticmethod
    def _is_import(form: str) -> bool:
        if re.match(r"(?:import|use|require|require_relative|package|using|# include)\b", form):
            return "*" not in form and "fake" not in form.lower() and not re.search(r"\bas (?:expect|it|test)\b", form)
        return bool(re.match(r"(?:const|let|var) .* = require \(", form))

    def _is_assertion(self, item: Item) -> bool:
        """Whether a statement only asks: an assertion, or in Go a condition with nothing but a failure in its block."""
        form = item.form()
        flat = form.replace(" ", "")
        if self.language.name == "go":
            if form.startswith("if "):
                blocks = [group for group in item.groups() if group.opener == "{"]
                inner = [one.form().replace(" ", "") for block in blocks for one in block.items]
                return bool(inner) and all(re.match(r"t\.(?:Error|Fatal|Fail|Log|Helper)", one) for one in inner)
            return bool(re.match(r"(?:t\.(?:Error|Fatal|Fail|Log|Helper)|assert\.|require\.)", flat))
        return bool(
            re.match(
                r"(?:await)?(?:expect[({]|expect\.|assert|t\.(?:is|true|deepEqual)|refute|must_|debug_assert)", flat
            )
        ) or bool(self.language.name == "java" and re.match(r"(?:Assert(?:ions)?\.)?(?:assert\w*|verify)\(", flat))


_CASES = re.compile(
    r"(?i)\b(?:\w*cases|tests|tt|table|rows|scenarios|inputs|examples|params|each|testdata|\w*Cases|\w*Tests)\b"
)
# What is put round every test of its file, wherever it stands.
_ROUND_ALL = re.compile(
    r"\b(?:jest|vi)\.(?:mock|doMock|setMock)\(|\bmock\.module\(|func (?:TestMain|init)\(|\bRSpec\.configure\b"
)
_REACHING = re.compile(
    r"(?:jest|vi)\.(?:mock|doMock|spyOn|setMock|fn)\(|\bmock\.(?:module|method)|sinon\.|Object\.(?:assign|defineProperty)\("
    r"|\.prototype|expect\.extend|global(?:This)?\.|process\.(?:exit|abort|kill|on|once)\b|\.only\(|os\.Exit|runtime\.Goexit"
    r"|t\.Skip|allow_any_instance_of|allow\(|define_method|instance_variable_set|class_eval|instance_eval|std::process|Mockito"
    r"|macro_rules!|reflect\.|unsafe|System\.exit"
)
_ENDS = re.compile(
    r"^(?:return|break|continue|throw|goto|exit|skip|next|redo|raise|panic|try|if|unless|while|switch|defer|go)\b|\bskip\b"
)


_STEERS_SHELL = re.compile(
    r"(?:PATH|CDPATH|IFS|ENV|BASH_\w+|BASHOPTS|SHELLOPTS|PS4|(?:LD|PYTHON|NODE|GIT|RUBY|PERL|BATS|GO|CARGO|RUST)\w*)\Z"
)
_CHECKS_OF_SHELL = re.compile(r"(?:! )?(?:\[|(?:test|[ef]?grep|diff|cmp|assert\w*|refute\w*)\b(?! \())")
_AT_COMMAND = r"(?:^|[;{(`]|\|\|? ?|&& ?|\$\( ?|\b(?:then|do|else) )(?:! )?"
_ACTS_OF_SHELL = re.compile(
    r"\b(?:exit|return)\b(?! [1-9])|\b(?:source|eval|exec|trap|set|unset|export|declare|readonly|alias|skip|kill|cd)\b"
    rf"|\b(?:break|continue)\b|{_AT_COMMAND}(?:\. |[A-Za-z_]\w* (?:\+ )?=(?! =))"
    r"|>(?! ?> ?& [12]\b| ?& ?[12]\b| ?/ dev / null\b)"
)


def _is_quiet_of_shell(item: Item, group: Group, stood: Collection[str]) -> bool:
    """Whether a command that is new between others only asks, and ends the script with a failure at most; or sets a
    variable that nothing which stood says after it.
    """
    words = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'")
    form = words.sub(lambda said: said[0] if "$(" in said[0] or "`" in said[0] else '""', item.form())
    if _CHECKS_OF_SHELL.match(form):
        return not _ACTS_OF_SHELL.search(form)
    name, sign, value = form.partition(" = ")
    whole = re.fullmatch(r"\$\( [^()]*\)|\"[^\"]*\"|[\w.-]+", value)
    if group.opener or not sign or not whole or not name.isidentifier() or _STEERS_SHELL.match(name):
        return False
    if _ACTS_OF_SHELL.search(value):
        return False
    # In a loop, what stands before it comes after it as well.
    loops = any(re.match(r"(?:for|while|until)\b", one) for one in stood)
    place = next((at for at, one in enumerate(group.items) if one is item), 0)
    after = group.items if loops else group.items[place + 1 :]
    return not any(one.form() in stood and re.search(rf"\b{re.escape(name)}\b", one.form()) for one in after)


def _imports_more(was: Item, now: Item) -> bool:
    """Whether two import blocks of Go bind the same names to the same packages, as far as both bind them."""
    forms = [re.fullmatch(r"import \((.*)\)", item.form()) for item in (was, now)]
    if forms[0] is None or forms[1] is None:
        return False
    old, new = (re.findall(r"(?:(\w+|\.) )?\"([^\"]+)\"", form[1]) for form in forms if form is not None)
    names = [{alias or path.rpartition("/")[2]: path for alias, path in said} for said in (old, new)]
    return "." not in names[1].keys() - names[0].keys() and all(
        names[1].get(name, path) == path for name, path in names[0].items()
    )


def _is_of_cases(where: str) -> bool:
    """Whether the words of the statement round a literal say that it holds cases, and do not assert."""
    here = where.rpartition("{")[2]
    return bool(_CASES.search(here)) and not re.search(r"\bexpect|assert|require|[sS]hould|Equal", here)


def _is_body_of_test(where: str) -> bool:
    return bool(re.search(r"\b(?:it|test|func Test\w*|fn|void|specify|def test_\w+)\b", where))


def _is_element(item: Item) -> bool:
    """Whether an item of a block is an element of a literal: a group, a constant, or a key with its value."""
    first = item.parts[0]
    if isinstance(first, Group):
        return len(item.parts) <= 2
    return len(item.parts) > 1 and item.parts[1] == ":"


def _bound(item: Item) -> str:
    """The name that a declaration binds, "" for what is none."""
    found = re.match(
        r"(?:(?:const|let|var|val|final|mut|my|static|pub) )*(?:mut )?(?:[A-Z][\w<>]* |int |long |double )?(\w+)"
        r"(?: : [^=]*)? (?::=|=)(?!=)|(?:async )?(?:function|type|struct|class|interface|enum) (\w+)",
        item.form(),
    )
    return (found[1] or found[2]) if found else ""


def _label(item: Item) -> str:
    """What an item is the same by, whatever is in it: a declared name, a call with its first text, a set name."""
    form = item.form()
    if found := re.search(
        r"(?:^|\s)(?:func|fn|function|def|class|struct|enum|trait|impl|mod|module|interface|object)\s+(?:\([^)]*\)\s*)?([\w.?!]+)",
        form[:300],
    ):
        return f"declared:{found[1]}"
    if found := re.match(r"(?:x|f)?(\w+)(?: \. \w+)*(?: \(\[.*?\]\))? ?\(?[ ]?(\"[^\"]*\"|'[^']*')", form[:400]):
        return f"called:{found[1]}:{found[2]}"
    if name := _bound(item):
        return f"set:{name}"
    if (
        "{" in item.shape()
        and (found := re.search(r"(\w+) \([^{]*\{", form[:400]))
        and found[1] not in {"if", "for", "while", "switch"}
    ):
        return f"declared:{found[1]}"
    if found := re.match(r"(if|for|while|switch|match|try|return|expect|assert\w*)\b", form):
        return f"{found[1]}:{item.shape()}"
    return item.shape()


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def _plain(item: Item) -> str:
    """An item about as somebody would write it."""
    return re.sub(r" ?([.;,()\[\]{}@#!]) ?", r"\1", item.form())


def _shown(item: Item) -> str:
    return _short(_plain(item))


# --- one test against what it was ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Test:
    path: str
    name: str
    line: int
    text: str
    assertions: tuple[str, ...]
    skips: int


def _elsewhere(test: _Test, new: list[_Test]) -> _Test | None:
    """A test under another name or in another file that asks all that this one asked."""
    for other in new:
        if (is_run(test.path) and not is_run(other.path)) or _is_deeper(test.path, other.path):
            continue
        if other.name == test.name or (test.assertions and not Counter(test.assertions) - Counter(other.assertions)):
            new.remove(other)
            return other
    return None


def _moved_out(language: Language, ours: Sequence[Change]) -> Iterator[Moved]:
    """Files of tests that lie where their runner does not look any more."""
    for change in ours:
        if change.after is not None or not is_run(change.path):
            continue
        names = {test.name for test in _tests(language, change.path, change.before or "")}
        for other in ours:
            if other.before is not None or (is_run(other.path) and not _is_deeper(change.path, other.path)):
                continue
            if names & {test.name for test in _tests(language, other.path, other.after or "")}:
                yield moved("test_uncollected", other.path, 0, f"its runner does not look for {change.path} here")


def _is_deeper(was: str, now: str) -> bool:
    """Whether a file of bats lies below the folder where it was: bats looks into one folder only."""
    return now.endswith(".bats") and now.rpartition("/")[0].startswith(f"{was.rpartition('/')[0]}/")


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


def _of_file(language: Language, change: Change) -> Iterator[Moved]:
    before, after = code_of(change.before or ""), code_of(change.after or "")
    if language.name == "go":  # programs within texts end other processes
        before, after = (re.sub(r"`[^`]*`", lambda raw: "\n" * raw[0].count("\n"), text) for text in (before, after))
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
    if language.exit is not None and is_test_path(change.path):
        if _count(language.exit, after) > _count(language.exit, before):
            yield moved("exit_trick", change.path, _line(language.exit, after), "the test program is ended from within")
    elif language.exit is not None and change.path.endswith(".rs"):
        was = sum(_count(language.exit, test.text) for test in _tests(language, change.path, change.before or ""))
        now = sum(_count(language.exit, test.text) for test in _tests(language, change.path, change.after or ""))
        if now > was:
            yield moved("exit_trick", change.path, 0, "the test program is ended from within")
    if change.before is None and re.search(r"(?:^|/)__mocks__/", change.path):
        yield moved("subject_mocked", change.path, 0, "a module is mocked for every test")
    if language.name == "go" and change.path.endswith("_test.go"):
        for line, text in added_lines(before, after):
            if found := re.match(r"func\s+(TestMain|init)\s*\(", text):
                yield moved("support_changed", change.path, line, f"{found[1]} runs round every test of its package")
    if language.name == "ruby" and change.before is None and "RSpec.configure" in after:
        yield moved("support_changed", change.path, 0, "what runs round every test is configured")
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
    code = code_of(text)
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


def tests_of(language: Language, path: str, text: str) -> dict[str, str]:
    """The tests that a file declares, each with its text."""
    return {test.name: test.text for test in _tests(language, path, text)}


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


def _count(pattern: re.Pattern[str], text: str) -> int:
    return sum(1 for _ in pattern.finditer(text))


def _line(pattern: re.Pattern[str], text: str) -> int:
    """The line of the last match, from 1; 0 for none."""
    places = [found.start() for found in pattern.finditer(text)]
    return text.count("\n", 0, places[-1]) + 1 if places else 0

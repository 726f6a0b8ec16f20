"""Pure: where code of the product in other languages than Python ends the process that its tests run in.

Whoever ends a process with success ends its tests as if they had passed, so such an end is told where the file had
none, called or only named. One with a number that says failure passes no test and is left alone. Programs may end
themselves: what is one is told by its place, by what starts it, and in a file that is loaded as well, by its guard.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice

from gates.goalposts.languages import Language, code_of
from gates.goalposts.moves import Change, Moved, moved

_MAX_TOLD = 5
_PLACE = re.compile(r"(?:^|/)(?:bin|cli|cmd|scripts?|tools?|examples?|main)(?:/|\.|$)")
_READ_BY_OTHERS = re.compile(
    r"(?:^|/)(?:lib|libs|inc|includes?|functions?)/"
    r"|(?:lib|libs?|common|utils?|helpers?|functions?|funcs?|source|env)\.(?:sh|bash)\Z"
)
_FAILURE = r"(?!\s*\(\s*-?[1-9]\d*\s*\))"  # behind the name of an end: a call with a number that says failure

_HARD_OF_JS = r"exit|reallyExit|abort"
_OF_JS = re.compile(
    rf"\bprocess\s*\??\.\s*(?:{_HARD_OF_JS})\b{_FAILURE}|\bprocess\s*\??\.\s*kill\s*\(\s*(?:process\.pid|0)\b"
    rf"|\bDeno\.exit\b{_FAILURE}"
    rf"|\{{[^{{}}]*\b(?:{_HARD_OF_JS}|kill)\b[^{{}}]*\}}\s*=\s*(?:global(?:This)?\.)?process\b(?!\s*\.)"
)
# These stand in texts, which are else left out.
_NAMED_OF_JS = re.compile(
    rf"process\s*\[\s*['\"`]\w*(?:[eE]xit|abort)\b"
    rf"|import\s*\{{[^{{}}]*\b(?:{_HARD_OF_JS}|kill)\b[^{{}}]*\}}\s*from\s*['\"](?:node:)?process['\"]"
    rf"|\{{[^{{}}]*\b(?:{_HARD_OF_JS}|kill)\b[^{{}}]*\}}\s*=\s*require\(\s*['\"](?:node:)?process['\"]"
)
_LOADED_OF_JS = re.compile(rf"^process\.(?:{_HARD_OF_JS})\s*\(", re.MULTILINE)
_GUARD_OF_JS = re.compile(
    r"\bif\s*\((?=[^{};]*(?:require\.main\s*===?\s*module|import\.meta\.(?:main|url|filename)))[^{};]*\)\s*(?P<open>\{)"
)
_OF_RUST = re.compile(
    rf"\bprocess::(?:exit\b{_FAILURE}|abort\b)|\blibc::(?:_?exit\b{_FAILURE}|abort\b)"
    r"|\buse\s+(?:std|core)::process::(?:\{[^}]*\b(?:exit|abort)\b|exit\b|abort\b)|\bintrinsics::abort\b"
)
_AT_STATEMENT = r"(?:^|[;&|{(]|\b(?:then|else|do)\s)\s*"
_OF_SHELL = re.compile(
    rf"""{_AT_STATEMENT}(?:exit(?:\s+"?(?:0+|\$\?|\$\w+|\$\{{\w+\}})"?)?\s*(?=$|[;&|}})#])|exec\s+(?!\d*[<>])\S)""",
    re.MULTILINE,
)
_OF_RUBY = re.compile(
    r"(?:^|;|\b(?:and|or|then|do)\s)\s*(?:Kernel\.|Process\.)?exit!?(?!\s*\(?\s*(?:-?[1-9]|false\b))(?=\s*(?:$|[;#(}]|if\b|unless\b|0|true))",
    re.MULTILINE,
)


def programs_of(changes: Sequence[Change]) -> frozenset[str]:
    """The files that a package.json of the base starts; for files that are new, also one of the patch."""
    found: set[str] = set()
    new = {change.path for change in changes if change.before is None}
    for change in changes:
        folder, slash, name = change.path.rpartition("/")
        if name == "package.json":
            found |= {f"{folder}{slash}{one}" for one in _started(change.before)}
            found |= {f"{folder}{slash}{one}" for one in _started(change.after)} & new
    return frozenset(found)


def _started(text: str | None) -> Iterator[str]:
    """What a package.json names as a program, or starts by a script that is no check."""
    try:
        document = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return
    if not isinstance(document, dict):
        return
    programs = document.get("bin")
    named = list(programs.values()) if isinstance(programs, dict) else [programs]
    scripts = document.get("scripts")
    for key, command in scripts.items() if isinstance(scripts, dict) else ():
        if re.match(r"(?:start|serve|dev|cli)\b", key):
            named += re.findall(r"\b(?:node|tsx|ts-node|nodemon|bun|deno run)\s+(?:-\S+\s+)*(\S+)", str(command))
    for one in named:
        if isinstance(one, str):
            yield one.removeprefix("./")


def judge(language: Language, change: Change, programs: Collection[str]) -> Iterator[Moved]:
    """Where a file of the product ends the process with something that may be success, and ended none before."""
    find = _FINDERS.get(language.name)
    if find is None or change.after is None:
        return
    stood = change.after if change.before is None else change.before
    is_program = change.path in programs or bool(_PLACE.search(change.path))
    if language.name == "shell":
        is_program = is_program or stood.startswith("#!")
        is_program = is_program and not _READ_BY_OTHERS.search(change.path)
    elif stood.startswith("#!") and language.name != "rust":
        is_program = True
    if language.name == "go":
        is_program = is_program or bool(re.search(r"^func main\(", stood, re.MULTILINE))
    if change.before is not None and next(find(change.before, is_program), 0):
        return
    lines = change.after.splitlines()
    for line in sorted(set(islice(find(change.after, is_program), _MAX_TOLD))):
        yield moved("exit_trick", change.path, line, f"the product ends the process: {lines[line - 1].strip()}")


def _of_javascript(text: str, is_program: bool) -> Iterator[int]:
    if is_program:
        return
    code = code_of(text)
    guarded = [_block(code, match.start("open")) for match in _GUARD_OF_JS.finditer(code)]
    plain = _STRINGS.sub(lambda text: text[0][0] + " " * (len(text[0]) - 2) + text[0][-1], code)
    for pattern, of in ((_OF_JS, plain), (_NAMED_OF_JS, code), (_LOADED_OF_JS, plain)):
        for match in pattern.finditer(of):
            if not any(start <= match.start() < end for start, end in guarded):
                yield _line(code, match)


_STRINGS = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\$]|\\.)*`")


def _of_go(text: str, is_program: bool) -> Iterator[int]:
    code = re.sub(r"`[^`]*`|\"(?:[^\"\\\n]|\\.)*\"", _blank_text, code_of(text))
    said = re.findall(
        r"(?:\bimport\s+|^\s+)([\w.]+)\s+\"(os|syscall|golang\.org/x/sys/unix)\"", code_of(text), re.MULTILINE
    )
    soft = {"os", *(alias for alias, package in said if package == "os")}
    hard = {"syscall", "unix", *(alias for alias, package in said if package != "os")}
    loading = [
        _block(code, match.end() - 1) for match in re.finditer(r"^func\s+init\s*\(\s*\)\s*\{", code, re.MULTILINE)
    ]
    # A variable's initialiser goes to the next declaration.
    for match in re.finditer(r"^var\b", code, re.MULTILINE):
        end = re.compile(r"^(?:func|var|const|type)\b", re.MULTILINE).search(code, match.end())
        loading.append((match.start(), end.start() if end else len(code)))
    for names, kind in ((soft, "soft"), (hard, "hard")):
        words = "|".join(rf"\b{re.escape(name)}\s*\.\s*" if name != "." else r"(?<![\w.])" for name in sorted(names))
        pattern = rf"(?:{words})Exit\b{_FAILURE}"
        if kind == "hard":
            pattern += rf"|(?:{words})(?:Kill|Tgkill)\s*\(\s*\w+\.Getpp?id"
        for match in re.finditer(pattern, code):
            is_loading = any(start <= match.start() < end for start, end in loading)
            if kind == "hard" or is_loading or not is_program:
                yield _line(code, match)


def _blank_text(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def _of_rust(text: str, is_program: bool) -> Iterator[int]:
    if is_program:
        return
    code = code_of(text)
    plain = re.sub(r"\"(?:[^\"\\]|\\.)*\"", _blank_text, code)
    for match in _OF_RUST.finditer(plain):
        yield _line(plain, match)


def _of_shell(text: str, is_program: bool) -> Iterator[int]:
    if is_program:
        return
    plain = re.sub(r"^\s*#.*|(?<=\s)#.*$|'[^'\n]*'", _blank_text, text, flags=re.MULTILINE)
    for match in _OF_SHELL.finditer(plain):
        yield _line(plain, match)


def _of_ruby(text: str, is_program: bool) -> Iterator[int]:
    if is_program:
        return
    guard = re.search(
        r"^if\s+(?:__FILE__\s*==\s*\$(?:0|PROGRAM_NAME)|\$(?:0|PROGRAM_NAME)\s*==\s*__FILE__)", text, re.MULTILINE
    )
    plain = re.sub(r"^\s*#.*|'[^'\n]*'|\"(?:[^\"\\\n]|\\.)*\"", _blank_text, text, flags=re.MULTILINE)
    for match in _OF_RUBY.finditer(plain):
        if guard is None or match.start() < guard.start():
            yield _line(plain, match)


_FINDERS: Mapping[str, Callable[[str, bool], Iterator[int]]] = {
    "javascript": _of_javascript,
    "go": _of_go,
    "rust": _of_rust,
    "shell": _of_shell,
    "ruby": _of_ruby,
}  # fmt: skip


def _line(code: str, match: re.Match[str]) -> int:
    """The line of what was found, from 1, without what stands before the statement."""
    at = match.start() + len(match[0]) - len(match[0].lstrip(" \t\n;&|{("))
    return code.count("\n", 0, at) + 1


def _block(code: str, at: int) -> tuple[int, int]:
    """From a bracket that opens to the one that closes it; to the end where none does."""
    depth = 0
    for place in range(at, len(code)):
        depth += {"{": 1, "}": -1}.get(code[place], 0)
        if not depth:
            return at, place
    return at, len(code)

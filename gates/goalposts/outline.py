"""Pure: the outline of a program in a language of brackets or of do and end: statements within blocks, without layout.

Two texts with the same outline differ in comments, line breaks, quotes, semicolons and trailing commas at most. The
reader knows tokens and brackets and no grammar; where brackets do not match, it says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_DEPTH = 60


class Unmatched(ValueError):
    """Brackets that do not match, or are nested too deep: the text says where."""


@dataclass(slots=True)
class Group:
    """What stands between two brackets ("" for the whole file): its items, statements or elements."""

    opener: str
    items: list[Item] = field(default_factory=list)
    line: int = 0

    def form(self) -> str:
        """Equal for what is only laid out differently."""
        return f"{self.opener}{';'.join(item.form() for item in self.items)}{_CLOSERS.get(self.opener, '')}"


@dataclass(slots=True)
class Item:
    """One statement or element: words and groups, as they come."""

    parts: list[str | Group] = field(default_factory=list)
    line: int = 0
    _form: str = ""

    def form(self) -> str:
        """Equal for what is only laid out differently."""
        if not self._form:
            self._form = " ".join(part if isinstance(part, str) else part.form() for part in self.parts)
        return self._form

    def shape(self) -> str:
        """Its own words, of its groups the brackets only."""
        return " ".join(part if isinstance(part, str) else part.opener for part in self.parts)

    def groups(self) -> list[Group]:
        """Its groups, from the left."""
        return [part for part in self.parts if isinstance(part, Group)]


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    line: int
    first: bool  # of its line


_CLOSERS = {"(": ")", "[": "]", "{": "}"}
_C_FAMILY = re.compile(
    r"""(?P<comment>//(?!go:build|\s\+build)[^\n]*|/\*.*?\*/)|(?P<mark>//go:build[^\n]*|//\s\+build[^\n]*)
    |(?P<text>\"{3}.*?\"{3}|r\#+\".*?\"\#+|"(?:[^"\\\n]|\\.)*"|`(?:[^`\\]|\\.)*`)
    |(?P<char>'(?:[^'\\\n]|\\.)*')|(?P<number>\d[\w.]*)|(?P<word>[A-Za-z_$][\w$]*)
    |(?P<sign>=>|->|:=|::|\.\.\.|\?\.|\?\?|[=!]==?|<=|>=|&&|\|\||\+\+|--|[-+*/%|&^]=|[^\s\w])|(?P<line>\n)""",
    re.DOTALL | re.VERBOSE,
)
_HASH_FAMILY = re.compile(
    r"""(?P<comment>(?:(?<=\s)|^)\#[^\n]*)|(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)
    |(?P<number>\d[\w.]*)|(?P<word>[$@:]*[A-Za-z_][\w]*[?!]?)
    |(?P<sign>=>|->|::|&&|\|\||[=!]=|=~|<<|\#\{|\$[({]|[^\s\w])|(?P<line>\n)""",
    re.DOTALL | re.VERBOSE | re.MULTILINE,
)
_REGEX = re.compile(r"/(?![/*])(?:[^/\\\n\[]|\\.|\[(?:[^\]\\\n]|\\.)*\])+/[a-z]*")
_BEFORE_REGEX = frozenset("(,=:[!&|?{};") | {"return", "=>", "&&", "||", "==", "===", "typeof", "\n"}
# A line goes on when it ends, or the next one begins, with one of these.
_GOES_ON_AFTER = frozenset(
    {"=", "+", "-", "*", "/", "%", ".", "?", ":", "&&", "||", "=>", "->", "|", "&", "<", ",", "==", "===", "!=", "!==",
     "<=", ">=", "+=", "-=", ":=", "??", "?.", "else", "new", "await", "throw", "case", "::", "typeof", "!"}
)  # fmt: skip
_GOES_ON_BEFORE = frozenset(
    {".", "?", ":", "&&", "||", "+", "*", "/", "%", "=", "=>", "->", "?.", "??", "==", "===", "!=", "!==", "else",
     "catch", "finally", "<=", ">=", "|", ","}
)  # fmt: skip
_STATEMENTS = frozenset(
    {":=", "=", "if", "for", "return", "func", "function", "const", "let", "var", "while", "fn", "pub", "use", "import",
     "expect", "assert", "switch", "try", "throw", "await", ";", "class", "it", "test", "describe", "@", "#"}
)  # fmt: skip
_RUBY_BLOCKS = frozenset({"if", "unless", "while", "until", "case", "begin", "def", "class", "module", "for"})


def outline(text: str, language: str) -> Group:
    """The outline of a text. Raises Unmatched where its brackets do not match."""
    tokens = list(_tokens(text, language))
    if language == "ruby":
        tokens = list(_ruby_blocks(tokens))
    reader = _Reader(tokens, language)
    group = Group("", line=1)
    reader.fill(group, 0)
    if reader.at < len(tokens):
        raise Unmatched(f"line {tokens[reader.at].line}: a bracket too many")
    return group


def _tokens(text: str, language: str) -> Iterator[_Token]:
    """The words and signs of a text with their lines, no comments; texts of script in one kind of quotes."""
    pattern = _HASH_FAMILY if language in {"ruby", "shell"} else _C_FAMILY
    line, at, first, last = 1, 0, True, "\n"
    while at < len(text):
        if language == "javascript" and text[at] == "/" and last in _BEFORE_REGEX and (found := _REGEX.match(text, at)):
            yield _Token(found[0], line, first)
            at, first, last = found.end(), False, found[0]
            continue
        match = pattern.match(text, at)
        if match is None:
            at += 1
            continue
        kind, word = match.lastgroup, match[0]
        at = match.end()
        if kind == "line":
            first = True
        elif kind == "char" and language == "rust" and len(word) > 4 and "\\" not in word:
            at = match.start() + 1  # a lifetime, not a text
        elif kind != "comment":
            shown = word
            if kind in {"text", "char"} and language == "javascript" and "${" not in word:
                shown = '"' + word[1:-1].replace("\\'", "'").replace('\\"', '"') + '"'
            yield _Token(shown, line, first)
            first, last = False, shown
        line += word.count("\n")


def _ruby_blocks(tokens: list[_Token]) -> Iterator[_Token]:
    """With brackets for what begins with do, def, if and the like, and for its end."""
    waiting = 0
    loop = False
    for token in tokens:
        if token.first and waiting:
            yield _Token("{", token.line, False)
            waiting, loop = 0, False
        if token.text == "end":
            yield _Token("}", token.line, token.first)
            continue
        if token.text in _RUBY_BLOCKS and token.first:
            waiting, loop = 1, token.text in {"while", "until", "for"}
        if token.text == "do":
            if not loop:
                yield _Token("{", token.line, False)
            continue
        yield token
    if waiting:
        yield _Token("{", tokens[-1].line, False)


class _Reader:
    def __init__(self, tokens: list[_Token], language: str) -> None:
        self.tokens = tokens
        self.language = language
        self.at = 0

    def fill(self, group: Group, depth: int) -> None:
        """Takes items until the group's end, which is left where it is."""
        if depth > MAX_DEPTH:
            raise Unmatched(f"line {group.line}: nested too deep")
        by_comma = group.opener in {"(", "["} or (group.opener == "{" and self._is_literal())
        item = Item()
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            if token.text in {")", "]", "}"} and not (self.language == "shell" and token.text != "}"):
                break
            if token.text == "," and by_comma:
                item = self._end(group, item)
                self.at += 1
                continue
            if not by_comma and (token.text == ";" or (token.first and self._is_over(item, token))):
                item = self._end(group, item)
            if token.text == ";":
                self.at += 1
                continue
            if not item.parts:
                item.line = token.line
            self.at += 1
            if token.text in _CLOSERS and not (self.language == "shell" and token.text != "{"):
                item.parts.append(self._group(token, depth))
            else:
                item.parts.append(token.text)
        self._end(group, item)

    def _group(self, token: _Token, depth: int) -> Group:
        inner = Group(token.text, line=token.line)
        self.fill(inner, depth + 1)
        if self.at >= len(self.tokens) or self.tokens[self.at].text != _CLOSERS[token.text]:
            raise Unmatched(f"line {token.line}: {token.text} is not closed")
        self.at += 1
        return inner

    def _is_literal(self) -> bool:
        """Whether a block holds elements between commas, and no statements, as far as its first level tells."""
        depth = 0
        for token in self.tokens[self.at : self.at + 400]:
            if token.text in _CLOSERS:
                depth += 1
            elif token.text in {")", "]", "}"}:
                depth -= 1
                if depth < 0:
                    return True
            elif depth == 0 and token.text in _STATEMENTS:
                return False
        return False

    def _is_over(self, item: Item, token: _Token) -> bool:
        """Whether a statement ended with the line before this token."""
        if not item.parts:
            return False
        last = item.parts[-1]
        if isinstance(last, str) and last in _GOES_ON_AFTER and self.language not in {"shell"}:
            return False
        if token.text in _GOES_ON_BEFORE and self.language not in {"shell"}:
            return False
        if token.text == "{" and self.language in {"java", "other"}:
            return False
        # What an attribute or annotation stands before belongs to it.
        return not _is_attribute(item)

    @staticmethod
    def _end(group: Group, item: Item) -> Item:
        if item.parts:
            group.items.append(_simplified(item))
        return Item()


def _is_attribute(item: Item) -> bool:
    parts = item.parts
    at = 0
    while at < len(parts):
        if parts[at] == "#" and at + 1 < len(parts) and isinstance(parts[at + 1], Group):
            at += 2
        elif parts[at] == "@" and at + 1 < len(parts) and isinstance(parts[at + 1], str):
            at += 2
            while at + 1 < len(parts) and parts[at] == ".":
                at += 2
            if at < len(parts) and isinstance(parts[at], Group) and parts[at].opener == "(":  # type: ignore[union-attr]
                at += 1
        else:
            return False
    return bool(parts)


def _simplified(item: Item) -> Item:
    """An arrow function of one name is the same with and without brackets round it."""
    for at in range(len(item.parts) - 1):
        part = item.parts[at]
        if item.parts[at + 1] == "=>" and isinstance(part, Group) and part.opener == "(" and len(part.items) == 1:
            inner = part.items[0].parts
            if len(inner) == 1 and isinstance(inner[0], str):
                item.parts[at] = inner[0]
    return item

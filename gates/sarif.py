"""Pure: a SARIF 2.1.0 report in, findings with fingerprints out, and which of them are new against another report.

Runs in evidence.py's bounded child: standard library only. Source: the OASIS schema of SARIF 2.1.0. The levels are
those that the standard derives (a result's own, else its rule's default, else warning). What a report says about its
own baseline (`baselineState`) and about suppressions is shown and decides nothing: a patch cannot suppress what it
brings.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from gates.reading import MAX_BYTES, UNKNOWN_LENGTH, Tree, Unreadable, load_json, need
from gates.sarif_rules import Rules, known

MAX_RUNS = 100
MAX_FINDINGS = 20_000
MAX_MESSAGE_CHARS = 4 * 1024
MAX_RULE_CHARS = 255
MAX_LINE = 10**7
MAX_TEXT_CHARS = 8 * 1024 * 1024

_NOT_A_FINDING = frozenset({"pass", "notApplicable", "informational"})
_KINDS = _NOT_A_FINDING | {"fail", "open", "review"}


@dataclass(frozen=True, slots=True)
class Found:
    """One result of an analyser. `path` is of the tree or empty; `line` is from 1, or 0 when it names none.

    `fingerprint` is ours: of the tool, the rule, the path and what the tool says to tell results apart, without line
    numbers, so that code which only moves brings nothing new. `help_uri` is https or empty.
    """

    rule_id: str
    level: str
    message: str
    path: str = ""
    line: int = 0
    fingerprint: str = ""
    suppressed: bool = False
    help_uri: str = ""
    is_new: bool = True


def against(found: Iterable[Found], base: Iterable[str]) -> tuple[Found, ...]:
    """`found` with `is_new` decided: each fingerprint of the base accounts for one finding, the rest are new."""
    known = Counter(base)
    judged = []
    for one in found:
        known[one.fingerprint] -= 1
        judged.append(replace(one, is_new=known[one.fingerprint] < 0))
    return tuple(judged)


def new_by_level(found: Iterable[Found]) -> dict[str, int]:
    """How many new findings there are of each level."""
    return dict(Counter(one.level for one in found if one.is_new))


def read(data: bytes, tree: Tree) -> tuple[Found, ...]:
    """The findings of a report. Raises Unreadable: no SARIF 2.1.0, over a limit, a path or line the tree has not."""
    if len(data) > MAX_BYTES:
        raise Unreadable(f"the report has more than {MAX_BYTES // 1024 // 1024} MiB")
    document = load_json(data, "SARIF report")
    need(document, dict, "the report")
    if document.get("version") != "2.1.0":
        raise Unreadable("the report is not SARIF 2.1.0")
    runs = need(document.get("runs"), list, "runs")
    if not runs:
        raise Unreadable("the report has no run: nothing was looked at")
    if len(runs) > MAX_RUNS:
        raise Unreadable(f"the report has more than {MAX_RUNS} runs")
    reader = _Reader(tree)
    for run in runs:
        reader.run(need(run, dict, "a run"))
    return tuple(reader.found)


class _Reader:
    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.found: list[Found] = []
        self.room = MAX_TEXT_CHARS
        self.tool = ""
        self.bases: Mapping[str, Any] = {}

    def run(self, run: Mapping[str, Any]) -> None:
        driver = need(need(run.get("tool"), dict, "tool").get("driver"), dict, "tool.driver")
        self.tool = need(driver.get("name"), str, "tool.driver.name")[:MAX_RULE_CHARS]
        rules = Rules(run)
        self.bases = need(run.get("originalUriBaseIds", {}), dict, "originalUriBaseIds")
        for invocation in rules.invocations:
            if invocation.get("executionSuccessful") is False:
                raise Unreadable(f"{self.tool} says that it did not succeed")
        if "results" not in run or run["results"] is None:
            raise Unreadable(f"the run of {self.tool} has no results: it did not finish")
        for result in need(run["results"], list, "results"):
            self.result(need(result, dict, "a result"), rules)

    def result(self, result: Mapping[str, Any], rules: Rules) -> None:
        kind = result.get("kind", "fail")
        if kind not in _KINDS:
            raise Unreadable(f"a result of kind {str(kind)[:40]!r}")
        if kind in _NOT_A_FINDING:
            return
        if len(self.found) >= MAX_FINDINGS:
            raise Unreadable(f"the report has more than {MAX_FINDINGS} results")
        named = rules.of_result(result)
        rule = named.shown
        own = need(result.get("rule") or {}, dict, "rule").get("id")
        rule_id = str(result.get("ruleId") or own or rule.get("id") or "")[:MAX_RULE_CHARS]
        path, line = self.place(result)
        message = self.text(result, rule)
        said = result.get("level")
        level, why = (known(said), "") if said else rules.level(result, named)
        self.found.append(
            Found(
                rule_id=rule_id,
                level=level,
                message=f"{message} ({why})" if why else message,
                path=path,
                line=line,
                fingerprint=self.fingerprint(result, rule_id, path, message),
                suppressed=self.is_suppressed(result),
                help_uri=https_only(rule.get("helpUri")),
            )
        )

    def text(self, result: Mapping[str, Any], rule: Mapping[str, Any]) -> str:
        message = need(result.get("message"), dict, "message")
        text = message.get("text") or message.get("markdown")
        if text is None and "id" in message:
            strings = rule.get("messageStrings") or {}
            named = need(strings, dict, "messageStrings").get(str(message["id"])) or {}
            text = need(named, dict, "a message string").get("text", str(message["id"]))
            for number, argument in enumerate(need(message.get("arguments", []), list, "arguments")[:20]):
                text = str(text).replace(f"{{{number}}}", str(argument))
        kept = str(need(text or "", str, "message.text"))[: min(MAX_MESSAGE_CHARS, self.room)]
        self.room -= len(kept)
        return kept

    def place(self, result: Mapping[str, Any]) -> tuple[str, int]:
        """Where it is; each location of a result is held against the tree, the first is kept."""
        first = ("", 0)
        for number, location in enumerate(need(result.get("locations", []), list, "locations")):
            physical = need(location, dict, "a location").get("physicalLocation")
            if physical is None:
                continue
            artifact = need(need(physical, dict, "physicalLocation").get("artifactLocation") or {}, dict, "a location")
            uri = need(artifact.get("uri", ""), str, "uri")
            if not uri:
                continue
            path = self.path(uri, artifact.get("uriBaseId"))
            line = need((physical.get("region") or {}), dict, "region").get("startLine", 0)
            if not 0 <= need(line, int, "startLine") <= MAX_LINE:
                raise Unreadable(f"line {line} of {path} cannot be")
            length = self.tree.lines[path]
            # A tool may point at the end of the file, one line behind its last.
            if length != UNKNOWN_LENGTH and line > length + 1:
                raise Unreadable(f"line {line} of {path}, which has {length} lines")
            if number == 0 or not first[0]:
                first = (path, line)
        return first

    def path(self, uri: str, base_id: Any) -> str:
        scheme = urlsplit(uri).scheme.lower()
        if scheme not in {"", "file"}:
            raise Unreadable(f"a finding at an address that is no file: {uri[:80]}")
        sources = []
        if isinstance(base_id, str) and base_id in self.bases:
            base = need(self.bases[base_id], dict, "originalUriBaseIds").get("uri") or ""
            sources = [unquote(need(base, str, "a base's uri"))]
        path = self.tree.find(unquote(uri), sources)
        if path is None:
            raise Unreadable(f"a finding in a file that the tree does not have: {uri[:200]}")
        return path

    def fingerprint(self, result: Mapping[str, Any], rule_id: str, path: str, message: str) -> str:
        own: dict[str, Any] = {}
        for name in ("fingerprints", "partialFingerprints"):
            own |= need(result.get(name) or {}, dict, name)
        told = sorted((str(key)[:200], str(value)[:500]) for key, value in list(own.items())[:20]) or message
        canonical = json.dumps([self.tool, rule_id, path, told], ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()

    def is_suppressed(self, result: Mapping[str, Any]) -> bool:
        suppressions = need(result.get("suppressions") or [], list, "suppressions")
        return any(need(one, dict, "a suppression").get("status", "accepted") == "accepted" for one in suppressions)


def https_only(address: Any) -> str:
    """`address` when it is one that a page may link to, else nothing."""
    if not isinstance(address, str) or len(address) > 500 or not address.isascii() or not address.isprintable():
        return ""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    return address if parts.scheme == "https" and parts.hostname else ""


def to_lines(found: tuple[Found, ...]) -> Iterator[Any]:
    """The findings as documents of a line each; `from_lines` is the inverse."""
    yield {"findings": len(found)}
    for one in found:
        yield asdict(one)


def from_lines(documents: list[Any]) -> tuple[Found, ...]:
    """What `to_lines` wrote. Raises TypeError, KeyError or ValueError for anything else."""
    found = tuple(Found(**one) for one in documents[1:])
    if len(found) != documents[0]["findings"]:
        raise ValueError("findings are missing")
    return found

"""Coverage, findings and TAP: counted again, held against the tree, and refused by name where they are not honest."""

import json
import time
from typing import Any

import pytest

from gates import coverage, evidence, reader, sarif, tap
from gates.coverage import Coverage
from gates.evidence import EvidenceRefused
from gates.reading import Tree, Unreadable

TREE = Tree({"src/a.py": 10, "src/b.py": 4, "c.py": 3, "lib/big.bin": -1}, ("/tmp/copy/tree", "/src"), "")

COBERTURA = """<?xml version="1.0" ?><!DOCTYPE coverage SYSTEM "http://cobertura.sourceforge.net/xml/coverage-04.dtd">
<coverage line-rate="1" lines-covered="900" lines-valid="900"><sources><source>/src/src</source></sources><packages>
<package name="."><classes><class name="a" filename="a.py"><methods><method name="f"><lines><line number="1" hits="1"/>
</lines></method></methods><lines><line number="1" hits="1"/><line number="2" hits="0"/>
<line number="3" hits="7"/></lines></class></classes></package></packages></coverage>"""
PY_JSON: dict[str, Any] = {
    "meta": {"format": 3},
    "files": {"src/a.py": {"executed_lines": [1, 3], "missing_lines": [2], "summary": {"percent_covered": 100}}},
    "totals": {"percent_covered": 100.0},
}
LCOV = "TN:\nSF:src/a.py\nDA:1,1\nDA:2,0\nDA:3,12\nend_of_record\n"


@pytest.mark.parametrize("text", [COBERTURA, json.dumps(PY_JSON), LCOV], ids=["cobertura", "coverage.py", "lcov"])
def test_every_format_gives_the_same_lines_and_no_total_is_believed(text: str) -> None:
    report = coverage.read(text.encode(), TREE)
    assert report.files == {"src/a.py": {1: True, 2: False, 3: True}}
    assert (report.covered, report.executable, round(report.percent or 0, 3)) == (2, 3, 66.667)
    assert evidence.read("coverage", text.encode(), TREE) == report


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("src/a.py", "src/a.py"), ("./src/a.py", "src/a.py"), ("/src/src/a.py", "src/a.py"), ("src\\a.py", "src/a.py"),
        ("/tmp/copy/tree/c.py", "c.py"), ("file:///src/c.py", "c.py"), ("/etc/passwd", None), ("gone.py", None),
    ],
    ids=["plain", "dot", "box", "backslash", "copy", "uri", "outside", "gone"],
)  # fmt: skip
def test_a_name_means_a_file_of_the_tree_or_nothing(name: str, path: str | None) -> None:
    assert TREE.find(name) == path


def test_files_that_the_tree_does_not_have_measure_nothing() -> None:
    report = coverage.read(LCOV.replace("TN:\n", "SF:/usr/lib/x.py\nDA:1,1\nend_of_record\n").encode(), TREE)
    assert (report.executable, report.unknown) == (3, 1)


def lcov(*lines: str) -> bytes:
    """A record about src/b.py, which has four lines."""
    return "\n".join(["SF:src/b.py", *lines, "end_of_record", ""]).encode()


def xml(inside: str) -> bytes:
    """A Cobertura report of one class."""
    return (
        f'<coverage><packages><class filename="src/a.py"><lines>{inside}</lines></class></packages></coverage>'.encode()
    )


def py(**files: Any) -> bytes:
    """A report of coverage.py about src/a.py."""
    return json.dumps({"files": {"src/a.py": {"executed_lines": [], "missing_lines": [], **files}}}).encode()


BOMB = b'<!DOCTYPE coverage [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><coverage>&b;</coverage>'

BAD_COVERAGE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "well-formed"),
    "no report": (b"all lines were covered", "well-formed"),
    "another XML": (b"<testsuite/>", "begins with"),
    "another JSON": (b'{"covered": 100}', "no files"),
    "cut XML": (COBERTURA.encode()[:-40], "well-formed"),
    "cut JSON": (json.dumps(PY_JSON).encode()[:-5], "not JSON"),
    "cut LCOV": (LCOV.encode()[:-15], "cut off"),
    "a bomb": (BOMB, "DOCTYPE"),
    "a DOCTYPE of its own": (b"<!DOCTYPE x><coverage/>", "DOCTYPE"),
    "deep XML": (b"<coverage>" + b"<a>" * 1_000_000, "nested"),
    "deep JSON": (b'{"files": ' + b"[" * 1_000_000, "nested"),
    "NaN": (b'{"files": {"src/a.py": {"executed_lines": [NaN], "missing_lines": []}}}', "NaN"),
    "a huge number": (py(executed_lines=[10**18]), "digits"),
    "a number of a million digits": (b'{"files": ' + b"9" * 1_000_000 + b"}", "digits"),
    "infinity": (b'{"files": 1e999}', "beyond"),
    "a line that is text": (py(executed_lines=["1"]), "whole number"),
    "a line that is true": (py(executed_lines=[True]), "whole number"),
    "line 0": (py(executed_lines=[0]), "cannot be"),
    "line 10^8": (py(executed_lines=[10**8]), "cannot be"),
    "a line behind the end": (py(executed_lines=[11]), "has 10 lines"),
    "a line behind the end in XML": (xml('<line number="11" hits="1"/>'), "has 10 lines"),
    "a line behind the end in LCOV": (lcov("DA:5,1"), "has 4 lines"),
    "no missing lines": (b'{"files": {"src/a.py": {"executed_lines": [1]}}}', "no missing_lines"),
    "hits that are no number": (xml('<line number="1" hits="many"/>'), "whole number"),
    "hits below zero": (xml('<line number="1" hits="-1"/>'), "less than never"),
    "hits of 10^18": (xml('<line number="1" hits="1000000000000000000"/>'), "digits"),
    "a path that leaves": (LCOV.replace("src/a.py", "../../etc/passwd").encode(), "leaves the tree"),
    "a path that leaves by its source": (
        COBERTURA.replace("<source>/src/src", "<source>/src/../..").encode(),
        "leaves the tree",
    ),
    "a path with a NUL": (b'{"files": {"a\\u0000b": {"executed_lines": [], "missing_lines": []}}}', "no file"),
    "a path of 2,000 letters": (b"SF:" + b"x" * 2000 + b"\nend_of_record\n", "no file"),
    "only files of others": (b"SF:/usr/lib/x.py\nDA:1,1\nend_of_record\n", "none of them is in the tree"),
    "a line of no file": (b"TN:\nDA:1,1\n", "belongs to no file"),
}


@pytest.mark.parametrize("what", BAD_COVERAGE)
def test_a_coverage_report_that_is_not_honest_is_refused_by_name(what: str) -> None:
    data, why = BAD_COVERAGE[what]
    with pytest.raises(Unreadable, match=why):
        coverage.read(data, TREE)


def test_reports_over_the_limits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "MAX_LINES", 2)
    with pytest.raises(Unreadable, match="more than 2 lines"):
        coverage.read(LCOV.encode(), TREE)
    monkeypatch.setattr(coverage, "MAX_FILES", 0)
    with pytest.raises(Unreadable, match="more than 0 files"):
        coverage.read(LCOV.encode(), TREE)
    monkeypatch.setattr(coverage, "MAX_BYTES", 5)
    with pytest.raises(Unreadable, match="MiB"):
        coverage.read(LCOV.encode(), TREE)


@pytest.mark.parametrize(
    ("added", "code", "percent"),
    [
        ({"src/a.py": {1, 2}}, {"src/a.py"}, 50.0),
        ({"src/a.py": {1, 3}}, {"src/a.py"}, 100.0),
        ({"src/a.py": {2}}, {"src/a.py"}, 0.0),
        ({"src/a.py": {8, 9}}, {"src/a.py"}, 100.0),  # added, and no line that can run
        ({"README.md": {1}}, set(), 100.0),
        ({"src/new.py": {1}}, {"src/new.py"}, None),
        ({"src/new.py": {1}}, set(), 100.0),  # comments only, or a test
        ({"src/new.sh": {1}}, {"src/new.sh"}, 100.0),  # of a kind that the report is never about
        ({"tools/x.py": {1}}, {"tools/x.py"}, 100.0),  # in a folder that it is never about
        ({"src/a.py": {1}, "src/new.py": {1}}, {"src/a.py", "src/new.py"}, None),
    ],
    ids=["half", "all", "none", "not executable", "a text", "silent", "no code", "shell", "elsewhere", "one silent"],
)
def test_patch_coverage_is_of_the_added_lines_that_can_run(added: Any, code: set[str], percent: float | None) -> None:
    report = coverage.read(LCOV.encode(), TREE)
    lines = {path: frozenset(each) for path, each in added.items()}
    assert coverage.of_patch(report, lines, frozenset(code)).percent == percent


def test_a_hundred_percent_is_all_of_it() -> None:
    lines = {line: line > 1 for line in range(1, 1_000_001)}
    assert Coverage({"a": lines}).percent == 99.999
    assert Coverage({}).percent is None


# -- SARIF ---------------------------------------------------------------------------------------------------------


def result(rule_id: str = "E1", uri: str = "src/a.py", line: int = 2, **more: Any) -> dict[str, Any]:
    """One result."""
    place = {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": line}}}
    return {"ruleId": rule_id, "message": {"text": f"{rule_id} here"}, "locations": [place], **more}


def sarif_of(*results: Any, rules: Any = (), **run: Any) -> bytes:
    """A report of one run."""
    driver = {"name": "tool", "rules": list(rules)}
    return json.dumps(
        {"version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": list(results), **run}]}
    ).encode()


RULES = [{"id": "E1", "defaultConfiguration": {"level": "error"}, "helpUri": "javascript:alert(1)"}]


def test_levels_come_from_the_result_then_its_rule_then_the_standard() -> None:
    data = sarif_of(result(), result("E2"), result(level="note"), result(ruleIndex=0), result(kind="pass"), rules=RULES)
    assert [one.level for one in sarif.read(data, TREE)] == ["error", "warning", "note", "error"]
    assert {one.help_uri for one in sarif.read(data, TREE)} == {""}
    assert evidence.read("sarif", b"\xef\xbb\xbf" + data, TREE) == sarif.read(data, TREE)


def severe(key: str = "P1", level: str = "error", **more: Any) -> dict[str, Any]:
    """A rule whose findings have a level by default."""
    return {"id": key, "defaultConfiguration": {"level": level}, **more}


def pack(*rules: Any, **more: Any) -> dict[str, Any]:
    """What CodeQL and others write: a driver without rules, and packs of them as extensions."""
    extensions = [{"name": "other", "rules": [severe("P1", "note")]}, {"name": "pack", "rules": list(rules), **more}]
    return {"tool": {"driver": {"name": "tool"}, "extensions": extensions}}


def sets(level: str, **descriptor: Any) -> dict[str, Any]:
    """An invocation that gives a rule another level."""
    return {"ruleConfigurationOverrides": [{"descriptor": descriptor, "configuration": {"level": level}}]}


OF_PACK = {"id": "P1", "toolComponent": {"index": 1}}
GUID = "0f7d4ad2-0000-4000-8000-000000000000"
LEVELS: dict[str, tuple[bytes, list[str]]] = {
    "by the position of its extension": (sarif_of(result("P1", rule=OF_PACK), **pack(severe())), ["error"]),
    "by both positions": (
        sarif_of(result("P1", rule={"index": 0, "toolComponent": {"index": 1}}), **pack(severe())), ["error"]
    ),
    "by ruleIndex within it": (
        sarif_of(result("P1", ruleIndex=1, rule=OF_PACK), **pack(severe("P0", "note"), severe())), ["error"]
    ),
    "by the name of its extension": (
        sarif_of(result("P1", rule={"toolComponent": {"name": "pack"}}), **pack(severe())), ["error"]
    ),
    "by the guid of its extension": (
        sarif_of(result("P1", rule={"toolComponent": {"guid": GUID}}), **pack(severe(), guid=GUID)), ["error"]
    ),
    "by its own guid": (
        sarif_of(result("", rule={"guid": GUID, "toolComponent": {"index": 1}}), **pack(severe(guid=GUID))), ["error"]
    ),
    "in a pack that the result does not name": (sarif_of(result("P2"), **pack(severe("P2"))), ["error"]),
    "in one of two packs, the result does not say which": (sarif_of(result("P1"), **pack(severe())), ["error"]),
    "by rule.id alone": (sarif_of(result("", rule={"id": "E1"}), rules=RULES), ["error"]),
    "a case of a rule": (sarif_of(result("E1/2/3"), result("E1x"), rules=RULES), ["error", "warning"]),
    "an id that is described twice": (sarif_of(result("P1"), rules=[severe(), severe(level="note")]), ["error"]),
    "a position and an id that contradict each other": (
        sarif_of(result("P1", ruleIndex=1), rules=[severe(), severe("P2", "note")]), ["error"]
    ),
    "an invocation that raises it": (sarif_of(result("R"), rules=[{"id": "R"}], invocations=[sets("error", id="R")]),
                                     ["error"]),
    "an invocation that raises a rule of a pack": (
        sarif_of(result("P1", rule=OF_PACK), **pack({"id": "P1"}), invocations=[sets("error", **OF_PACK)]), ["error"]
    ),
    "an invocation that raises a rule that is not described": (
        sarif_of(result("R/1"), result("S"), invocations=[sets("error", id="R")]), ["error", "warning"]
    ),
    "the invocation that found it lowers it": (
        sarif_of(result(provenance={"invocationIndex": 0}), rules=RULES, invocations=[sets("note", id="E1")]), ["note"]
    ),
    "an invocation that may not have found it lowers it": (
        sarif_of(result(), rules=RULES, invocations=[sets("note", id="E1")]), ["error"]
    ),
    "another invocation raises it": (
        sarif_of(
            result("R", provenance={"invocationIndex": 1}), rules=[{"id": "R"}],
            invocations=[sets("error", id="R"), {}],
        ), ["warning"]
    ),
    "its own level": (sarif_of(result("P1", level="note", rule=OF_PACK), **pack(severe())), ["note"]),
}  # fmt: skip


@pytest.mark.parametrize("how", LEVELS)
def test_a_level_is_that_of_the_rule_wherever_the_report_describes_it(how: str) -> None:
    data, levels = LEVELS[how]
    assert [one.level for one in sarif.read(data, TREE)] == levels


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (sarif_of(result("P3", rule={"toolComponent": {"index": 1}}), **pack(severe())), "pack does not describe"),
        (sarif_of(result("P1", rule={"toolComponent": {"name": "gone"}}), **pack(severe("P1", "note"))), "called gone"),
        (sarif_of(result("P1", rule={"guid": GUID}), **pack(severe("P1", "note"))), "guid"),
        (sarif_of(result(), externalPropertyFileReferences={"driver": {"guid": GUID}}), "driver in another file"),
    ],
    ids=["no such rule", "no such pack", "no such guid", "another file"],
)
def test_a_rule_that_is_named_and_nowhere_described_counts_as_an_error_and_says_so(data: bytes, why: str) -> None:
    (one,) = sarif.read(data, TREE)
    assert one.level == "error"
    assert "taken as error: " in one.message
    assert why in one.message


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("https://x.example/E1", True), ("http://x.example", False), ("javascript:alert(1)", False),
        ("https://", False), ("data:text/html,x", False), (7, False), ("https://x\n.example", False),
    ],
    ids=["https", "http", "javascript", "no host", "data", "number", "line end"],
)  # fmt: skip
def test_only_https_is_linked(address: Any, kept: bool) -> None:
    assert bool(sarif.https_only(address)) is kept


def test_what_is_new_is_counted_by_fingerprint_and_moves_are_not_new() -> None:
    base = sarif.read(sarif_of(result(line=2), result("E2")), TREE)
    now = sarif.read(sarif_of(result(line=9), result(line=3), result("E3"), result("E2", uri="src/b.py")), TREE)
    judged = sarif.against(now, [one.fingerprint for one in base])
    assert [one.is_new for one in judged] == [False, True, True, True]
    assert sarif.new_by_level(judged) == {"warning": 3}


def test_no_report_talks_its_own_findings_away() -> None:
    said = sarif_of(
        result(baselineState="unchanged", suppressions=[{"kind": "inSource"}]), result(baselineState="absent")
    )
    judged = sarif.against(sarif.read(said, TREE), [])
    assert [(one.is_new, one.suppressed) for one in judged] == [(True, True), (True, False)]


BAD_SARIF: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not JSON"),
    "XML": (b"<sarif/>", "not JSON"),
    "a list": (b"[]", "an object"),
    "another version": (b'{"version": "2.0.0", "runs": []}', "2.1.0"),
    "no runs": (b'{"version": "2.1.0", "runs": []}', "no run"),
    "no results": (b'{"version": "2.1.0", "runs": [{"tool": {"driver": {"name": "x"}}}]}', "no results"),
    "no tool": (b'{"version": "2.1.0", "runs": [{"results": []}]}', "tool"),
    "a tool that failed": (sarif_of(invocations=[{"executionSuccessful": False}]), "did not succeed"),
    "cut off": (sarif_of(result())[:-4], "not JSON"),
    "deep": (b'{"runs": ' + b"[" * 100_000, "nested"),
    "NaN": (sarif_of(result(rank=float("nan"))), "NaN"),
    "line 10^18": (sarif_of(result(line=10**18)), "digits"),
    "line -1": (sarif_of(result(line=-1)), "cannot be"),
    "a line behind the end": (sarif_of(result(line=12)), "has 10 lines"),
    "a path that leaves": (sarif_of(result(uri="../../etc/passwd")), "leaves the tree"),
    "a quoted path that leaves": (sarif_of(result(uri="%2e%2e/x")), "leaves the tree"),
    "a file of nobody": (sarif_of(result(uri="src/gone.py")), "does not have"),
    "a file outside": (sarif_of(result(uri="file:///etc/passwd")), "does not have"),
    "an address": (sarif_of(result(uri="https://x.example/a.py")), "no file"),
    "a level of nobody": (sarif_of(result(level="fatal")), "level"),
    "a kind of nobody": (sarif_of(result(kind="maybe")), "kind"),
    "a rule that is not there": (sarif_of(result(ruleIndex=3)), "rule 3"),
    "a rule that its pack does not have": (sarif_of(result(ruleIndex=3, rule=OF_PACK), **pack(severe())), "of pack"),
    "a pack that is not there": (sarif_of(result(rule={"toolComponent": {"index": 2}}), **pack()), "extension 2 of 2"),
    "two positions": (sarif_of(result(ruleIndex=0, rule={"index": 1}), rules=RULES * 2), "which one"),
    "an invocation that is not there": (sarif_of(result(provenance={"invocationIndex": 0})), "invocation 0 of 0"),
    "a level of nobody in a pack": (sarif_of(result("P1", rule=OF_PACK), **pack(severe(level="fatal"))), "level"),
    "a level of nobody in an override": (sarif_of(rules=RULES, invocations=[sets("fatal", id="E1")]), "level"),
    "extensions that are none": (
        sarif_of(result(), tool={"driver": {"name": "x"}, "extensions": {"name": "p"}}),
        "a list",
    ),
    "no message": (sarif_of({"ruleId": "E1"}), "message"),
    "a message that is a list": (sarif_of({"message": {"text": [1]}}), "a text"),
}


@pytest.mark.parametrize("what", BAD_SARIF)
def test_a_report_of_findings_that_is_not_honest_is_refused_by_name(what: str) -> None:
    data, why = BAD_SARIF[what]
    with pytest.raises(Unreadable, match=why):
        sarif.read(data, TREE)


# -- TAP -----------------------------------------------------------------------------------------------------------

TAP = """TAP version 14
1..5
ok 1 - adds
not ok 2 - subtracts
  ---
  message: expected 1
  ...
ok 3 - net # SKIP no network
not ok 4 - later # TODO write it
    # Subtest: inner
    not ok 1 - deep
    1..1
ok 5 - adds
# done
"""


def test_tap_is_counted_by_its_points() -> None:
    results = tap.read(TAP.encode())
    assert [(test.name, test.outcome) for test in results.tests] == [
        ("adds", "pass"), ("subtracts", "fail"), ("net", "skip"), ("later", "skip"), ("adds", "pass"),
    ]  # fmt: skip
    assert (results.total, results.passed, results.failed, results.skipped) == (5, 2, 1, 2)
    assert results.tests[1].trace == "message: expected 1"
    assert evidence.parse("tap", TAP.encode()) == results


BAD_TAP: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no plan"),
    "no plan": (b"ok 1 - a\n", "no plan"),
    "cut off": (TAP.encode()[:40], "plan is 5"),
    "more than planned": (b"1..1\nok 1\nok 2\n", "plan is 1"),
    "two plans": (b"1..1\n1..1\nok 1\n", "two plans"),
    "bailed out": (b"1..2\nok 1\nBail out! no disk\n", "bailed out: no disk"),
    "out of order": (b"1..2\nok 2\nok 1\n", "should"),
    "a huge number": (b"1.." + b"9" * 400 + b"\n", "digits"),
    "no UTF-8": (b"1..1\nok 1 \xff\n", "UTF-8"),
    "an open block": (b"1..1\nok 1\n  ---\n  a: b\n", "cut off"),
}


@pytest.mark.parametrize("what", BAD_TAP)
def test_a_tap_report_that_is_not_whole_is_refused_by_name(what: str) -> None:
    data, why = BAD_TAP[what]
    with pytest.raises(Unreadable, match=why):
        tap.read(data)


# -- the child -----------------------------------------------------------------------------------------------------

HEAVY: dict[str, tuple[str, bytes]] = {
    "60 MB of numbers": ("coverage", b'{"files": {"src/a.py": {"executed_lines": [' + b"1," * 30_000_000 + b"1]}}}"),
    "60 MB of objects": ("sarif", b'{"version": "2.1.0", "runs": [' + b"{}," * 20_000_000 + b"{}]}"),
    "60 MB of one text": ("sarif", b'{"version": "' + b"x" * 60_000_000 + b'"}'),
    "60 MB of lines": ("tap", b"1..1\n" + b"ok\n" * 20_000_000),
    "60 MB of elements": ("coverage", b"<coverage>" + b"<line number='1' hits='1'/>" * 2_000_000),
}


@pytest.mark.parametrize("what", HEAVY)
def test_a_report_made_to_eat_memory_is_refused_in_bounds(what: str) -> None:
    kind, data = HEAVY[what]
    began = time.process_time()
    with pytest.raises(EvidenceRefused) as refused:
        evidence.read(kind, data, TREE)
    assert refused.value.code == "invalid_evidence"
    assert time.process_time() - began < 10  # ours; the child's is bounded by its own limit
    assert reader.CHILD_MEMORY_BYTES == 256 * 1024 * 1024

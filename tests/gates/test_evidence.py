"""Reports are recounted, bounded, and never trusted; what the command left is taken without following a link."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gates import evidence, junit, reader
from gates.evidence import EvidenceRefused, Missing, Results, collect, parse, read_junit


def report(*cases: str, attributes: str = "") -> bytes:
    return f"<testsuites><testsuite name='s' {attributes}>{''.join(cases)}</testsuite></testsuites>".encode()


def case(name: str = "test_a", inside: str = "", classname: str = "tests.test_x", more: str = "") -> str:
    return f'<testcase classname="{classname}" name="{name}" time="0.25" {more}>{inside}</testcase>'


FAILURE = '<failure message="assert 1 == 2">trace here</failure>'
ERROR = '<error message="boom"/>'
SKIPPED = '<skipped message="later"/>'


def counts(results: Results) -> tuple[int, int, int, int, int]:
    return results.total, results.passed, results.failed, results.skipped, results.flaky


def outcomes(results: Results) -> list[tuple[int, str]]:
    return [(test.attempt, test.outcome) for test in results.tests]


class TestReading:
    def test_a_report_of_pytest_has_the_counts_of_its_summary(self, tmp_path: Path) -> None:
        (tmp_path / "test_it.py").write_text(
            "import pytest\n"
            "def test_a(): pass\n"
            "def test_b(): assert 1 == 2, 'no'\n"
            "@pytest.mark.skip(reason='later')\ndef test_c(): pass\n"
            "@pytest.mark.xfail\ndef test_d(): assert 0\n"
            "@pytest.fixture\ndef broken(): raise ZeroDivisionError\n"
            "def test_e(broken): pass\n"
            "@pytest.fixture\ndef late():\n    yield\n    raise ZeroDivisionError\n"
            "def test_f(late): pass\n"
            "def test_g(late): assert 0\n"
            "@pytest.mark.parametrize('n', [1, 2])\ndef test_h(n): pass\n"
        )
        command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir=.", "--junitxml=j.xml", "."]
        command += ["-p", "no:cacheprovider", "-p", "no:django", "-p", "no:randomly"]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, text=True)
        assert "2 failed, 4 passed, 1 skipped, 1 xfailed, 3 errors" in ended.stdout
        results = parse("junit", tmp_path / "j.xml")
        # pytest counts a test twice that failed and then broke in its teardown; f passed there, and is an error here.
        assert counts(results) == (9, 3, 4, 2, 0)
        failed = {test.name: test for test in results.tests if test.outcome in {"fail", "error"}}
        assert sorted(failed) == ["test_b", "test_e", "test_f", "test_g"]
        assert "no" in failed["test_b"].message
        assert "assert 1 == 2" in failed["test_b"].trace
        assert failed["test_b"].test_key == "test_it::test_b"
        assert results.parsed

    def test_a_case_is_read_with_all_it_says(self) -> None:
        (test,) = read_junit(report(case(inside=FAILURE, more='file="tests/test_x.py"'))).tests
        assert (test.name, test.classname, test.file) == ("test_a", "tests.test_x", "tests/test_x.py")
        assert test.test_key == "tests/test_x.py::tests.test_x::test_a"
        assert (test.outcome, test.message, test.trace) == ("fail", "assert 1 == 2", "trace here")
        assert (test.attempt, test.duration_seconds) == (1, 0.25)

    @pytest.mark.parametrize(
        ("inside", "more", "outcome"),
        [
            ("", "", "pass"),
            (FAILURE, "", "fail"),
            (ERROR, "", "error"),
            (SKIPPED, "", "skip"),
            (FAILURE + ERROR, "", "error"),
            (SKIPPED + FAILURE, "", "fail"),
            ("<system-out>&lt;failure/&gt;</system-out>", "", "pass"),
            ("<properties><property name='a'><failure/></property></properties>", "", "pass"),
            ("", 'status="notrun"', "skip"),
            ("", 'status="run" result="completed"', "pass"),
            ("", 'status="fail"', "fail"),
            ("", 'result="FAILED"', "fail"),
            (SKIPPED, 'status="fail"', "skip"),
        ],
    )
    def test_the_outcome_is_the_worst_that_a_case_says(self, inside: str, more: str, outcome: str) -> None:
        (test,) = read_junit(report(case(inside=inside, more=more))).tests
        assert test.outcome == outcome

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("0", 0.0),
            ("1.5", 1.5),
            ("1,234.5", 1234.5),
            ("", None),
            ("-1", None),
            ("nan", None),
            ("1e99", None),
            ("x", None),
        ],
    )
    def test_a_time_that_is_none_is_left_out(self, text: str, seconds: float | None) -> None:
        (test,) = read_junit(report(f'<testcase name="a" time="{text}"/>')).tests
        assert test.duration_seconds == seconds

    def test_totals_that_lie_are_not_believed(self) -> None:
        lying = report(case("a"), case("b", FAILURE), attributes='tests="900" failures="0" errors="0" skipped="0"')
        assert counts(read_junit(lying)) == (2, 1, 1, 0, 0)

    @pytest.mark.parametrize("of", ["testsuite", "testsuites"])
    @pytest.mark.parametrize(("inside", "outcome"), [(FAILURE, "fail"), (ERROR, "error"), (FAILURE + ERROR, "error")])
    def test_what_fails_in_a_suite_outside_of_its_tests_is_a_failed_test_of_its_name(
        self, of: str, inside: str, outcome: str
    ) -> None:
        results = read_junit(f'<{of} name="LoginTest" errors="1">{case()}{inside}<system-err/></{of}>'.encode())
        assert counts(results) == (2, 1, 1, 0, 0)
        failed = results.tests[1]
        assert (failed.test_key, failed.outcome, failed.message != "") == ("LoginTest", outcome, True)

    def test_what_fails_in_an_inner_suite_or_in_one_without_a_name_is_told_as_its_own(self) -> None:
        data = b"""<testsuites><testsuite name="outer"><testsuite name="inner"><error/></testsuite><failure/>
          </testsuite><testsuite><failure/></testsuite><properties><failure/></properties></testsuites>"""
        results = read_junit(data)
        assert [test.test_key for test in results.tests] == ["outer::inner", "outer", "outside of tests"]
        assert counts(results) == (3, 0, 3, 0, 0)

    def test_a_case_within_a_case_is_a_test_too(self) -> None:
        inner = case("inner", FAILURE) + case("skipped", SKIPPED)
        results = read_junit(report(case("outer", inner), case("last")))
        assert [(test.name, test.outcome) for test in results.tests] == [
            ("inner", "fail"), ("skipped", "skip"), ("outer", "pass"), ("last", "pass"),
        ]  # fmt: skip
        below = read_junit(report(case("outer", f"<failure>{case('inner', ERROR)}</failure>")))
        assert counts(below) == (2, 0, 2, 0, 0)
        suite = read_junit(report(case("outer", f'<testsuite name="s">{ERROR}{case("inner")}</testsuite>')))
        assert counts(suite) == (3, 2, 1, 0, 0)

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            ('<testsuite name="s" tests="1" failures="3">{good}</testsuite>', 'states failures="3", and 0 are in it'),
            ('<testsuite name="s" tests="1" errors="1">{good}</testsuite>', 'suite .s. states errors="1", and 0 are'),
            ('<testsuite failures="2">{good}{bad}</testsuite>', 'the report states failures="2", and 1 are in it'),
            ('<testsuites failures="1"><testsuite>{good}</testsuite></testsuites>', 'states failures="1"'),
            (
                '<testsuites><testsuite errors="1">{good}</testsuite><testsuite>{bad}</testsuite></testsuites>',
                'states errors="1"',
            ),
            ('<testsuite failures="1,000">{good}{bad}</testsuite>', 'states failures="1000"'),
            (f'<testsuite failures="{"9" * 5000}">{{good}}</testsuite>', 'states failures="9+"'),
        ],
    )  # fmt: skip
    def test_a_suite_that_states_more_failures_than_it_holds_is_refused(self, data: str, why: str) -> None:
        with pytest.raises(EvidenceRefused, match=f"inconsistent totals: .*{why}"):
            read_junit(data.format(good=case("a"), bad=case("b", FAILURE)).encode())

    @pytest.mark.parametrize(
        ("data", "counted"),
        [
            # mocha 3 states its failures under both names; later ones as errors only.
            ('<testsuite tests="2" failures="1" errors="1">{good}{bad}</testsuite>', (2, 1, 1, 0, 0)),
            ('<testsuite tests="2" failures="0" errors="1">{good}{bad}</testsuite>', (2, 1, 1, 0, 0)),
            # pytest writes a failure and the error of its teardown as two cases of one name.
            ('<testsuite errors="1" failures="1" tests="2">{bad}{again}</testsuite>', (1, 0, 1, 0, 0)),
            # jest-junit, PHPUnit and others sum up the suites within.
            (
                '<testsuites failures="2"><testsuite failures="2"><testsuite failures="1">{bad}</testsuite>'
                '<testsuite failures="1">{other}</testsuite></testsuite></testsuites>',
                (2, 0, 2, 0, 0),
            ),
            # Gradle counts each try that it merges; Catch2 counts assertions, of which a case may hold many.
            ('<testsuite failures="2" tests="3">{flaky}</testsuite>', (1, 1, 0, 0, 1)),
            ('<testsuite failures="2" tests="9">{two}</testsuite>', (1, 0, 1, 0, 0)),
            # CTest and gtest may say it by a status alone.
            ('<testsuite failures="1"><testcase name="a" status="fail"/></testsuite>', (1, 0, 1, 0, 0)),
            # Fewer, and no figures at all.
            ('<testsuite tests="9" failures="0" errors="">{bad}</testsuite>', (1, 0, 1, 0, 0)),
            ('<testsuite failures="many" errors="-1">{good}</testsuite>', (1, 1, 0, 0, 0)),
        ],
    )  # fmt: skip
    def test_totals_as_honest_tools_write_them_are_counted_again(self, data: str, counted: tuple[int, ...]) -> None:
        text = data.format(
            good=case("a"), bad=case("b", FAILURE), again=case("b", ERROR), other=case("c", FAILURE),
            flaky=case("d", "<flakyFailure/><flakyFailure/>"), two=case("e", FAILURE + FAILURE),
        )  # fmt: skip
        assert counts(read_junit(text.encode())) == counted

    def test_nested_suites_are_read_and_name_cases_without_a_class(self) -> None:
        data = b"""<?xml version="1.0"?><testsuites><testsuite name="outer"><properties/>
          <testsuite name="inner"><testcase name="a"/><testsuite><testcase name="b"/></testsuite></testsuite>
          <testcase name="a"/></testsuite><testsuite name="other"><testcase name="a"><failure/></testcase></testsuite>
          </testsuites>"""
        results = read_junit(data)
        assert [test.test_key for test in results.tests] == ["outer/inner::a", "outer/inner::b", "outer::a", "other::a"]
        assert counts(results) == (4, 3, 1, 0, 0)

    @pytest.mark.parametrize("data", [b"<testsuites/>", b"<testsuite name='x' tests='0'></testsuite>", report()])
    def test_a_report_without_tests_has_none(self, data: bytes) -> None:
        assert counts(read_junit(data)) == (0, 0, 0, 0, 0)

    def test_a_bare_suite_and_namespaces_are_read(self) -> None:
        assert counts(read_junit(b"<testsuite><testcase name='a'/></testsuite>"))[0] == 1
        data = b"<j:testsuite xmlns:j='urn:x'><j:testcase name='a'><j:failure/></j:testcase></j:testsuite>"
        assert counts(read_junit(data)) == (1, 0, 1, 0, 0)

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "iso-8859-1"])
    def test_encodings_are_read(self, encoding: str) -> None:
        declared = "utf-8" if encoding == "utf-8-sig" else encoding
        text = f'<?xml version="1.0" encoding="{declared}"?><testsuite><testcase name="größe"/></testsuite>'
        assert read_junit(text.encode(encoding)).tests[0].name == "größe"


class TestAttempts:
    @pytest.mark.parametrize(
        ("insides", "told", "counted"),
        [
            ([FAILURE, ""], [(1, "pass"), (2, "fail")], (1, 0, 1, 0, 0)),
            ([ERROR, FAILURE, ""], [(1, "pass"), (2, "fail"), (3, "error")], (1, 0, 1, 0, 0)),
            # Nobody said that it was run again. Behind a test that did not fail stands another of its name.
            (["", FAILURE], [(1, "pass"), (1, "fail")], (2, 1, 1, 0, 0)),
            ([FAILURE, "", FAILURE], [(1, "pass"), (2, "fail"), (1, "fail")], (2, 0, 2, 0, 0)),
            (["", FAILURE, ""], [(1, "pass"), (1, "pass"), (2, "fail")], (2, 1, 1, 0, 0)),
            ([FAILURE, SKIPPED], [(1, "skip"), (2, "fail")], (1, 0, 1, 0, 0)),
            (["", SKIPPED], [(1, "pass"), (1, "skip")], (2, 1, 0, 1, 0)),
            ([SKIPPED, ""], [(1, "skip"), (1, "pass")], (2, 1, 0, 1, 0)),
            (["", "", ""], [(1, "pass"), (1, "pass"), (1, "pass")], (3, 3, 0, 0, 0)),
            ([FAILURE, FAILURE], [(1, "fail"), (2, "fail")], (1, 0, 1, 0, 0)),
        ],
    )
    def test_one_key_many_times_is_one_test_with_attempts_or_many_tests(
        self, insides: list[str], told: list[tuple[int, str]], counted: tuple[int, int, int, int, int]
    ) -> None:
        results = read_junit(report(*(case(inside=inside) for inside in insides)))
        assert outcomes(results) == told
        assert counts(results) == counted

    def test_surefire_tells_a_flaky_test_by_the_failures_before(self) -> None:
        inside = (
            '<flakyFailure message="first"><stackTrace>at x</stackTrace></flakyFailure><flakyError message="second"/>'
        )
        results = read_junit(report(case(inside=inside)))
        assert outcomes(results) == [(1, "fail"), (2, "error"), (3, "flaky_pass")]
        assert [test.message for test in results.tests] == ["first", "second", ""]
        assert results.tests[0].trace == "at x"
        assert counts(results) == (1, 1, 0, 0, 1)

    def test_surefire_tells_a_failed_test_by_the_failures_after(self) -> None:
        results = read_junit(report(case(inside=FAILURE + '<rerunFailure message="again"/>')))
        assert outcomes(results) == [(1, "fail"), (2, "fail")]
        assert counts(results) == (1, 0, 1, 0, 0)

    def test_reports_of_several_shards_are_joined_by_key(self) -> None:
        one = read_junit(report(case("a"), case("b", FAILURE)))
        two = read_junit(report(case("b"), case("c", FAILURE)))
        joined = junit.join([one, two])
        assert counts(joined) == (3, 1, 2, 0, 0)
        assert [(t.test_key, t.outcome) for t in joined.tests if t.name == "b"][-1][1] == "fail"
        assert counts(junit.join([two, one])) == (3, 1, 2, 0, 0)

    def test_long_names_stay_apart(self) -> None:
        results = read_junit(report(case("x" * 5000 + "1"), case("x" * 5000 + "2")))
        assert results.total == 2
        assert all(len(test.test_key) <= 500 and len(test.name) <= 500 for test in results.tests)


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE t [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    + "]><testsuite><testcase name='&j;'/></testsuite>"
)
XXE = '<!DOCTYPE t [<!ENTITY x SYSTEM "file:///etc/passwd">]><testsuite><testcase name="a">&x;</testcase></testsuite>'
PLAIN_DOCTYPE = '<?xml version="1.0" encoding="{}"?><!DOCTYPE testsuite><testsuite><testcase name="a"/></testsuite>'

REFUSED = {
    "billion laughs": (BOMB.encode(), "DOCTYPE"),
    "external entity": (XXE.encode(), "DOCTYPE"),
    "a plain DOCTYPE": (PLAIN_DOCTYPE.format("utf-8").encode(), "DOCTYPE"),
    "a DOCTYPE in UTF-16": (PLAIN_DOCTYPE.format("utf-16").encode("utf-16"), "DOCTYPE"),
    "a DOCTYPE in UTF-16-BE": (PLAIN_DOCTYPE.format("utf-16").encode("utf-16-be"), "DOCTYPE"),
    "a DOCTYPE in latin-1": (PLAIN_DOCTYPE.format("iso-8859-1").encode("latin-1"), "DOCTYPE"),
    "a DOCTYPE in an EBCDIC": (PLAIN_DOCTYPE.format("cp037").encode("cp037"), "well-formed|encoding"),
    "deep nesting": (b"<testsuite>" * 33, "nested"),
    "a million deep": (b"<testsuites>" + b"<a>" * 1_000_000, "nested"),
    "60,000 cases": (report("<testcase name='a'/>" * 60_000), "more than 50000 cases"),
    "60,000 attempts": (report(case(inside="<rerunFailure/>" * 60_000)), "more than 50000"),
    "cut off": (report(case(), case("b"))[:-30], "well-formed"),
    "nothing": (b"", "well-formed"),
    "no XML": (b"all tests passed", "well-formed"),
    "JSON": (b'{"passed": 3}', "well-formed"),
    "another document": (b"<html><testcase name='a'/></html>", "begins with"),
    "bytes that are no UTF-8": (b"<testsuite><testcase name='\xff\xfe'/></testsuite>", "well-formed"),
    "an encoding of no one": (b"<?xml version='1.0' encoding='x-none'?><testsuite/>", "well-formed|encoding"),
    "an entity of no one": (b"<testsuite><testcase name='&who;'/></testsuite>", "well-formed"),
    "two roots": (b"<testsuite/><testsuite/>", "well-formed"),
}


class TestRefusing:
    @pytest.mark.parametrize("what", REFUSED)
    def test_a_hostile_report_is_refused_and_says_why(self, what: str) -> None:
        data, why = REFUSED[what]
        began = time.monotonic()
        with pytest.raises(EvidenceRefused, match=why) as refused:
            read_junit(data)
        assert refused.value.code == "invalid_evidence"
        assert time.monotonic() - began < 5

    @pytest.mark.parametrize("what", ["billion laughs", "60,000 cases", "cut off"])
    def test_the_child_refuses_with_the_same_words(self, what: str) -> None:
        data, why = REFUSED[what]
        with pytest.raises(EvidenceRefused, match=why):
            parse("junit", data)

    def test_a_report_over_the_size_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(junit, "MAX_BYTES", 100)
        with pytest.raises(EvidenceRefused, match="more than"):
            read_junit(report(case(), case("b")))

    def test_messages_and_traces_are_cut(self) -> None:
        inside = f'<failure message="{"m" * 100_000}">{"t" * 100_000}</failure>'
        (test,) = read_junit(report(case(inside=inside))).tests
        assert len(test.message) == junit.MAX_MESSAGE_CHARS
        assert len(test.trace) == junit.MAX_TRACE_CHARS

    def test_all_texts_together_are_cut_and_every_test_is_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(junit, "MAX_TEXT_CHARS", 1000)
        results = read_junit(report(*(case(f"t{n}", f"<failure>{'x' * 100}</failure>") for n in range(50))))
        assert results.failed == 50
        assert sum(len(test.message) + len(test.trace) for test in results.tests) == 1000


ANSWERS = ["", "{", "[]", "{}", '{"total": 0}', '{"end": 0}', '{"total": 1}\n{"end": 1}', '{"end": 7}', "null", "[1]"]


class TestTheChild:
    def test_what_the_child_reads_is_what_we_would_read(self) -> None:
        data = report(case("a", FAILURE), case("a"), case("b", SKIPPED), case("ü", "<error>é</error>"))
        assert parse("junit", data) == read_junit(data)

    def test_a_large_report_is_read_in_bounded_memory(self) -> None:
        trace = "x" * 1000
        data = report(*(case(f"test_{n}", f"<failure>{trace}</failure>") for n in range(48_000)))
        assert len(data) > 48_000_000
        assert parse("junit", data).failed == 48_000

        script = (
            "import re, runpy, sys\nsys.argv = sys.argv[1:]\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit: pass\n"
            "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1], file=sys.stderr)"
        )
        command = [sys.executable, "-c", script, reader.__file__, "junit"]
        # Without the tests' own measuring, which would be counted too and speaks on stderr.
        env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        told = subprocess.run(
            command,
            input=b'{"lines": {}, "roots": [], "cwd": ""}\n' + data,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=True,
            env=env,
        ).stderr
        assert int(told) < 256 * 1024

    def test_a_child_that_dies_is_refused_evidence(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        program = tmp_path / "dies.py"
        program.write_text("import os; os.kill(os.getpid(), 9)")
        monkeypatch.setattr(evidence, "_PROGRAM", str(program))
        with pytest.raises(EvidenceRefused, match="died"):
            parse("junit", report(case()))

    def test_a_child_that_hangs_is_refused_evidence(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        program = tmp_path / "hangs.py"
        program.write_text("import time; time.sleep(600)")
        monkeypatch.setattr(evidence, "_PROGRAM", str(program))
        monkeypatch.setattr(evidence, "PARSE_SECONDS", 0.3)
        with pytest.raises(EvidenceRefused, match="took over"):
            parse("junit", report(case()))

    @pytest.mark.parametrize("answer", ANSWERS, ids=[f"answer-{number}" for number in range(len(ANSWERS))])
    def test_an_answer_of_the_child_that_is_none_is_refused(
        self, answer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        program = tmp_path / "babbles.py"
        program.write_text(f"import sys; sys.stdin.buffer.read(); print({answer!r})")
        monkeypatch.setattr(evidence, "_PROGRAM", str(program))
        with pytest.raises(EvidenceRefused, match="died"):
            parse("junit", report(case()))

    def test_an_unknown_kind_is_refused(self) -> None:
        with pytest.raises(EvidenceRefused, match="'horoscope'"):
            parse("horoscope", b"")

    def test_a_path_that_is_a_link_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "real.xml").write_bytes(report(case()))
        (tmp_path / "link.xml").symlink_to("real.xml")
        assert parse("junit", tmp_path / "real.xml").total == 1
        with pytest.raises(EvidenceRefused, match="a link"):
            parse("junit", tmp_path / "link.xml")


class TestCollecting:
    def test_declared_files_are_taken_and_others_are_not(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a/junit.xml").write_bytes(b"<testsuites/>")
        (tmp_path / "other").write_bytes(b"x")
        assert collect(tmp_path, {"junit": "a/junit.xml"}) == {"junit": b"<testsuites/>"}

    def test_an_empty_file_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "junit.xml").touch()
        assert collect(tmp_path, {"junit": "junit.xml"}) == {"junit": b""}

    def test_what_was_not_written_is_missing_and_the_rest_is_taken(self, tmp_path: Path) -> None:
        (tmp_path / "c.json").write_bytes(b"{}")
        found = collect(tmp_path, {"junit": "junit.xml", "coverage": "c.json", "sarif": "no/such/folder.json"})
        assert found["coverage"] == b"{}"
        assert found["junit"] == Missing("junit.xml: was not written")
        assert found["sarif"] == Missing("no/such/folder.json: was not written")

    def test_a_folder_that_is_gone_is_missing_evidence(self, tmp_path: Path) -> None:
        assert isinstance(collect(tmp_path / "gone", {"junit": "junit.xml"})["junit"], Missing)

    @pytest.mark.parametrize(
        "trick", ["link", "link inside", "dangling", "folder link", "hard link", "pipe", "folder", "device", "socket"]
    )
    def test_what_is_no_plain_file_of_its_own_is_not_read(self, trick: str, tmp_path: Path) -> None:
        output, secret = tmp_path / "output", tmp_path / "secret"
        output.mkdir()
        secret.mkdir()
        (secret / "junit.xml").write_bytes(b"<testsuites/>")
        file = output / "junit.xml"
        path = "junit.xml"
        if trick == "link":
            file.symlink_to(secret / "junit.xml")
        elif trick == "link inside":
            (output / "real.xml").write_bytes(b"<testsuites/>")
            file.symlink_to("real.xml")
        elif trick == "dangling":
            file.symlink_to("nowhere")
        elif trick == "folder link":
            (output / "below").symlink_to(secret)
            path = "below/junit.xml"
        elif trick == "hard link":
            os.link(secret / "junit.xml", file)
        elif trick == "pipe":
            os.mkfifo(file)
        elif trick == "folder":
            file.mkdir()
        elif trick == "device":
            file.symlink_to("/dev/zero")
        else:
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
                listening.bind(str(file))
        found = collect(output, {"junit": path})["junit"]
        assert isinstance(found, Missing)
        assert found.reason.startswith(f"{path}: ")

    def test_the_output_folder_itself_may_not_be_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "real/junit.xml").touch()
        (tmp_path / "link").symlink_to("real")
        assert isinstance(collect(tmp_path / "link", {"junit": "junit.xml"})["junit"], Missing)

    def test_a_file_over_the_size_is_missing(self, tmp_path: Path) -> None:
        with (tmp_path / "junit.xml").open("wb") as file:
            file.truncate(evidence.MAX_BYTES + 1)
        found = collect(tmp_path, {"junit": "junit.xml"})["junit"]
        assert found == Missing("junit.xml: more than 64 MiB")

    @pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", "a//b", "./a", "a/", "a\0b", "..", "."])
    def test_a_declared_path_that_leaves_the_folder_is_refused(self, path: str, tmp_path: Path) -> None:
        with pytest.raises(EvidenceRefused, match="below the output folder"):
            collect(tmp_path, {"junit": path})

    def test_collecting_leaves_no_descriptor_open(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a/b").symlink_to("x")
        before = len(os.listdir("/proc/self/fd"))
        for path in ("a/b", "a/c", "d/e", "a"):
            collect(tmp_path, {"junit": path})
        assert len(os.listdir("/proc/self/fd")) == before

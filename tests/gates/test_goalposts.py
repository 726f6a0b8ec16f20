"""Patches that move their own goalposts are told, each by its kind; patches that only add tests are not."""

import pytest

from gates import evidence, goalposts, presets
from gates.goalposts import Change
from tests.gates import goalposts_second as second
from tests.gates import goalposts_strangers as strangers
from tests.gates import goalposts_third as third
from tests.gates.goalposts_corpus import CHEATS, HONEST, Files


def changes_of(files: tuple[Files, Files]) -> list[Change]:
    """The changed files of a patch from `files` before and after; what is not named after is unchanged."""
    before, after = files
    return [
        Change(path, before.get(path), after.get(path, before.get(path))) for path in dict.fromkeys([*before, *after])
    ]


def judged(files: tuple[Files, Files]) -> tuple[goalposts.Moved, ...]:
    """What is told about a patch, the tree of the base known."""
    return goalposts.judge(changes_of(files), frozenset(files[0]))


def test_the_corpus_is_as_large_as_it_was_promised() -> None:
    assert len(CHEATS) >= 24
    assert len(HONEST) >= 20


@pytest.mark.parametrize("name", CHEATS)
def test_a_patch_that_moves_its_goalposts_is_told_by_its_kind(name: str) -> None:
    kind, files = CHEATS[name]
    found = goalposts.judge(changes_of(files))
    assert kind in {one.kind for one in found}, found
    assert all(one.kind in goalposts.KINDS and one.what and one.path for one in found)
    assert goalposts.told(found).startswith("moved: ")


@pytest.mark.parametrize("name", HONEST)
def test_a_patch_that_adds_tests_moves_nothing(name: str) -> None:
    assert goalposts.judge(changes_of(HONEST[name])) == ()


STRANGE = {**strangers.CHEATS, **second.CHEATS, **third.CHEATS}
HONEST_TOO = {**strangers.HONEST, **second.HONEST, **third.HONEST}


@pytest.mark.parametrize("name", STRANGE)
def test_what_a_stranger_got_past_is_told_with_its_place(name: str) -> None:
    kinds, files = STRANGE[name]
    found = judged(files)
    assert kinds & {one.kind for one in found}, found
    assert all(one.kind in goalposts.KINDS and one.what and one.path for one in found)


@pytest.mark.parametrize("name", HONEST_TOO)
def test_an_honest_patch_of_any_kind_moves_nothing(name: str) -> None:
    assert judged(HONEST_TOO[name]) == ()


def test_the_child_finds_what_we_would_find() -> None:
    for name in ("a test is deleted", "js: it.only", "fail_under is lowered"):
        changes = changes_of(CHEATS[name][1])
        assert evidence.moved_goalposts(changes) == goalposts.judge(changes) != ()


def test_a_patch_of_200_files_of_tests_is_within_the_childs_bounds() -> None:
    more = "".join(
        f"\n\ndef test_{n}(prices):\n    total = add({n}, 1)\n    assert total == {n + 1}\n" for n in range(30)
    )
    text = strangers.SHARED + more
    longer = f"{text}\n\ndef test_last():\n    assert add(0, 0) == 0\n"
    changes = [Change(f"tests/test_{n}.py", text, longer) for n in range(199)]
    changes.append(Change("tests/test_last.py", text, text.replace("LIMIT = 10", "LIMIT = 99")))
    (only,) = evidence.moved_goalposts(changes)
    assert (only.kind, only.path, only.line) == ("expectation_changed", "tests/test_last.py", 11)


@pytest.mark.parametrize(
    "hostile",
    [
        "(" * 100_000, "-" * 200_000 + "1", "x = " + "[" * 5000 + "]" * 5000, "a." * 100_000 + "b", "\x00", "\ud800",
        "if 1:\n" * 500,
    ],
    ids=["brackets", "minus", "lists", "attributes", "nul", "surrogate", "ifs"],
)  # fmt: skip
def test_a_file_made_to_break_the_reader_is_told_or_refused_and_never_clean(hostile: str) -> None:
    changes = [Change("tests/test_a.py", "def test_a():\n    assert f() == 1\n", hostile)]
    try:
        kinds = {one.kind for one in evidence.moved_goalposts(changes)}
    except evidence.EvidenceRefused as refused:
        kinds = {refused.code}
    assert kinds & {"unreadable", "test_deleted", "invalid_evidence"}


def test_moves_are_told_in_one_sentence_with_places() -> None:
    found = goalposts.judge(changes_of(CHEATS["a skip mark"][1]))
    assert goalposts.told(found) == "moved: tests/test_calc.py:9: test_add is skipped or expected to fail"
    assert goalposts.told(()).startswith("clean")


def test_every_preset_asks_whether_the_goalposts_moved() -> None:
    files = {
        "pyproject.toml": "[tool.pytest.ini_options]\n[tool.ruff]\n[tool.mypy]\n[tool.bandit]\n",
        "package.json": '{"devDependencies": {"@microsoft/eslint-formatter-sarif": "3"}}',
        ".semgrep.yml": "rules: []\n",
    }
    found = {preset.key: preset.criteria for preset in presets.propose(files.keys(), files.get)}
    assert found.keys() == {"pytest", "ruff", "mypy", "bandit", "semgrep", "eslint"}
    assert all(criteria["goalposts"] is True for criteria in found.values())

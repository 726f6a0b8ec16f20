"""What a gate's fields must obey, whoever writes them: the API and the admin ask the same model."""

import json
from typing import Any

import pytest
from django.test import Client

from gates import definition, presets
from gates.models import Gate
from pipeline.refusals import InvalidField, Refused
from tests import factories
from tests.factories import make_gate

pytestmark = pytest.mark.django_db


def rule(field: str) -> dict[str, Any]:
    return {"custom_rules": {"mine": {"field": field, "op": ">=", "value": 0}}}


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"criteria": {"min_tests": 1}}, "evidence", "min_tests is measured by junit or tap"),
    ({"criteria": {"max_failures": 0}, "evidence": {"sarif": "r.sarif"}}, "evidence", "max_failures is measured"),
    ({"criteria": {"max_skipped_increase": 0}, "evidence": {"coverage": "c.xml"}}, "evidence", "max_skipped_increase"),
    (
        {"criteria": rule("total_tests"), "evidence": {"coverage": "c.xml"}},
        "evidence",
        r"custom_rules.mine \(total_tes",
    ),
    ({"criteria": rule("coverage_percent"), "evidence": {"junit": "r.xml"}}, "evidence", "is measured by coverage"),
    ({"criteria": {"min_tests": 1}, "external": True}, "evidence", '{"junit": "junit.xml"}, or {"tap": "tests.tap"}'),
    (
        {"criteria": {"required_tests": None}, "evidence": {"junit": "j.xml"}},
        "criteria.required_tests",
        "null asks for",
    ),
    ({"criteria": {"goalposts": None}}, "criteria.goalposts", "null asks for nothing"),
    ({"criteria": {"timeout_seconds": 24 * 3600 + 1}}, "criteria.timeout_seconds", "from 1 to 86400"),
    ({"shards": 3, "evidence": {"junit": "out/j.xml"}}, "evidence", "does not name {shard}.*'out/j-{shard}.xml', say"),
    ({"shards": 3, "evidence": {"junit": "j-{shard}.xml", "coverage": "cov"}}, "evidence", "'cov-{shard}', say"),
    (
        {"shards": 3, "evidence": {"junit": "j-{shard}.xml", "coverage": "c.xml"}, "external": True},
        "evidence",
        "'c-{shard}.xml', say",
    ),
    ({"evidence": {"junit": "j-{shard}.xml"}}, "evidence", "names {shard}, and shards is 1"),
    ({"shards": 3}, "shards", "no evidence is named"),
    ({"shards": 101, "evidence": {"junit": "j-{shard}.xml"}}, "shards", "100"),
    ({"timeout_seconds": 24 * 3600 + 1}, "timeout_seconds", "86400"),
    ({"expected_exit_codes": [999]}, "expected_exit_codes", "from 0 to 255"),
    ({"expected_exit_codes": [-1]}, "expected_exit_codes", "from 0 to 255"),
    ({"expected_exit_codes": [127]}, "expected_exit_codes", "could not be started"),
    ({"finding_exit_codes": [1, 137]}, "finding_exit_codes", "ended by signal 9"),
    ({"finding_exit_codes": [0]}, "finding_exit_codes", "of success already"),
    ({"finding_exit_codes": [True]}, "finding_exit_codes", "whole numbers"),
    ({"command": ["x"] * 201}, "command", "201 texts"),
    ({"command": ["x" * 4097]}, "command", "4096"),
    ({"command": ["echo", "a\0b"]}, "command", "NUL"),
    ({"criteria": {"required_tests": ["a\0"]}, "evidence": {"junit": "j.xml"}}, "criteria", "NUL"),
    ({"evidence": {"junit": "j\0.xml"}}, "evidence", "NUL"),
    ({"env_allow": ["A\0"]}, "env_allow", "NUL"),
    ({"resources": {"a\0": 1}}, "resources", "NUL"),
    ({"applies_to": ["\ud800"]}, "applies_to", "half of a character"),
    ({"evidence": {"junit": "/tmp/j.xml"}}, "evidence", "relative to the evidence folder"),
    ({"env_allow": ["CI", "PATH", "HOME"]}, "env_allow", "HOME, PATH: the sandbox sets it"),
    (
        {"env_allow": ["LD_PRELOAD", "PYTHONPATH", "NODE_OPTIONS"]},
        "env_allow",
        "LD_PRELOAD, NODE_OPTIONS, PYTHONPATH: it",
    ),
    ({"env_allow": ["ld_library_path"]}, "env_allow", "load code"),
    *(
        ({"applies_to": ["src/**", glob]}, "applies_to", why)
        for glob, why in (
            ("[", "letters of a name"),
            ("src/a]", "letters of a name"),
            ("*.[ch]", "no set of letters"),
            ("src/*.{js,ts}", "braces are no choice"),
            ("!docs/**", "no exception"),
            ("src/**.py", "whole part"),
        )
    ),
    ({"judges": "task"}, "judges", "task: this version runs gates for patches only"),
    ({"judges": "phase"}, "judges", "would judge nobody"),
    ({"judges": "schedule", "required": False}, "judges", "would judge nobody"),
]


@pytest.mark.parametrize(
    ("fields", "field", "words"), REFUSED, ids=[f"{field}-{words}"[:50] for _, field, words in REFUSED]
)
def test_what_could_never_be_judged_or_run_is_refused_when_it_is_saved(
    fields: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(Refused, match=words) as refused:
        make_gate(**fields)
    assert refused.value.parts["field"] == field


@pytest.mark.parametrize(
    "fields",
    [
        {"shards": 3, "evidence": {"junit": "j-{shard}.xml", "coverage": "{shard}/c.xml"}},
        {"shards": 3, "evidence": {"junit": "j.xml"}, "external": True},
        {"criteria": {"min_tests": 1}, "evidence": {"tap": "t.tap"}},
        {"criteria": rule("duration_seconds")},
        {"criteria": rule("exit_code")},
        {"criteria": {"goalposts": True}},
        {"expected_exit_codes": [0, 255], "finding_exit_codes": [1, 125]},
        {"env_allow": ["CI", "PYTHONHASHSEED", "TZ"]},
        {"applies_to": ["app/[id]/**", "app/[[...slug]].js", "a/{b}", "src/?.py"]},
    ],
    ids=str,
)
def test_what_can_be_judged_is_saved(fields: dict[str, Any]) -> None:
    assert make_gate(**fields).pk


def test_every_preset_can_be_saved() -> None:
    files = {
        "pyproject.toml": "[tool.pytest]\n[tool.ruff]\n[tool.mypy]\n[tool.bandit]\n",
        "package.json": '{"scripts": {"test": "mocha"}, "devDependencies": {"@microsoft/eslint-formatter-sarif": "1"}}',
        "go.mod": "", "Cargo.toml": "", "Makefile": "test:\n", ".semgrep.yml": "",
    }  # fmt: skip
    found = presets.propose(files, files.get)
    project = factories.make_project()
    made = [Gate.objects.add(by=factories.BY, project=project, **preset.definition()) for preset in found]
    assert len(made) == 10
    codes = {gate.key: gate.finding_exit_codes for gate in made if gate.finding_exit_codes}
    assert list(codes) == ["npm-test"]
    assert codes["npm-test"] == list(range(1, 126))  # mocha ends with the number of its failures


def test_the_admin_refuses_what_the_api_refuses_and_explains_its_fields(admin_client: Client) -> None:
    gate = make_gate()
    page = admin_client.get(f"/admin/gates/gate/{gate.pk}/change/").content.decode()
    assert "An argument vector, no shell line" in page
    assert "What must be so" in page
    assert 'value="patch" selected' in page
    assert 'value="schedule"' not in page
    for field, text in (
        ("command", json.dumps(["a\0b"])),
        ("criteria", json.dumps({"timeout_seconds": 10**7})),
        ("criteria", '{"required_tests": null}'),
        ("expected_exit_codes", "[999]"),
        ("shards", "500"),
        ("judges", "schedule"),
        ("timeout_seconds", "10000000"),
    ):
        body = {
            "seen_version": gate.version, "project": gate.project_id, "key": gate.key, "name": gate.name,
            "gate_type": gate.gate_type, "command": '["true"]', "applies_to": "[]", "env_allow": "[]",
            "evidence": "{}", "criteria": "{}", "expected_exit_codes": "[]", "finding_exit_codes": "[]", "shards": "1",
            "depends_on": "[]", "resources": "{}", "caches": "[]", "reruns": "1", "judges": "patch", "enabled": "on",
            field: text,
        }  # fmt: skip
        answer = admin_client.post(f"/admin/gates/gate/{gate.pk}/change/", body)
        assert answer.status_code == 200, field
        assert field in answer.context["adminform"].form.errors, answer.context["adminform"].form.errors
    gate.refresh_from_db()
    assert (gate.command, gate.shards, gate.version) == (["true"], 1, 1)


def test_an_older_gate_with_a_criterion_of_null_is_run_without_it() -> None:
    gate = make_gate()
    Gate.objects.filter(pk=gate.pk).update(criteria={"max_new_findings": None, "goalposts": None, "min_tests": 0})
    gate.refresh_from_db()
    assert (gate.compares_with_base, gate.needs_base) == (False, False)
    assert factories.make_gate_run(gate).criteria == {"min_tests": 0}


def test_an_older_gate_gets_no_variable_that_is_refused_now(monkeypatch: pytest.MonkeyPatch) -> None:
    assert definition.why_not_handed_on("PATH")
    assert definition.why_not_handed_on("SIGNALBOX_PEPPER")
    assert not definition.why_not_handed_on("CI")
    with pytest.raises(InvalidField):
        definition.check_variables(["BASH_FUNC_x"])

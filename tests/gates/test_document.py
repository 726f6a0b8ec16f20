"""docs/gates.md is true: its gates are run, its criteria are taken, and it names every field and criterion."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gates import criteria
from gates.api.definitions import GateSerializer
from tests.flows.house import House, piece

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "gates.md").read_text()
GATES = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)]
CRITERIA = re.findall(r"^\| `(\w+)` \| `(\{.*?\})` \|([^|]*)\|", DOCUMENT, re.MULTILINE)
NOT_WRITTEN = {"id", "version", "created_at", "updated_at", "gate_version"}

FILES = {
    "calc.py": "def add(a, b):\n    return a + b\n",
    "test_calc.py": "from calc import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n",
    "test_part1.py": "def test_one():\n    assert True\n",
    "test_part2.py": "def test_two():\n    assert True\n",
    "old.py": "import os\n",  # ruff finds it on the base, too
    "checks.sh": "echo 1..2\necho ok 1 - starts\necho ok 2 - stops\n",
    "ruff.toml": "",
}
PATCH = {
    "calc.py": "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n",
    "test_sub.py": "from calc import sub\n\n\ndef test_sub():\n    assert sub(3, 1) == 2\n",
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("nudges")
@pytest.mark.parametrize("gate", GATES, ids=lambda gate: str(gate["key"]))
def test_every_gate_of_the_document_runs_and_passes(tmp_path: Path, gate: dict[str, Any]) -> None:
    given = {name: value for name, value in gate.items() if name not in {"project", "key", "name"}}
    house = House(tmp_path, [piece("a")], gates={gate["key"]: given}, files=FILES)
    house.work(PATCH)
    run = next(run for run in house.gate_runs() if not run.baseline)
    assert run.state == "passed", (run.decision_reason, run.output_tail)
    assert run.sandbox_level >= 2
    wanted = {key for key in gate["criteria"] if key not in {"custom_rules", "timeout_seconds"}}
    assert len(run.verdicts) >= len(wanted)
    assert house.run.state == "succeeded"


def test_every_criterion_has_an_example_that_is_taken_and_says_what_it_needs() -> None:
    assert [name for name, _, _ in CRITERIA] != []
    assert {name for name, _, _ in CRITERIA} == set(criteria._CHECKS)
    for name, example, needs in CRITERIA:
        given = json.loads(example)
        assert list(given) == [name]
        assert criteria.check(given) == given
        assert needs.strip() in (" or ".join(criteria.NEEDS_EVIDENCE.get(name, ())), "the field's")
    for field in criteria.FIELDS:
        assert f"`{field}`" in DOCUMENT


def test_every_field_of_a_gate_is_named() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", DOCUMENT, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert set(GateSerializer.Meta.fields) - NOT_WRITTEN <= named

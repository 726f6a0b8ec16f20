"""Gates that need other gates: renamed with them, never in a ring, and what keeps a run waiting is said."""

from typing import Any

import pytest

from gates import running
from gates.models import Gate
from pipeline import blockers
from pipeline.models import Event
from pipeline.refusals import InvalidField, Refused
from tests.api.asking import Api, refused
from tests.conftest import Threads
from tests.factories import BY, make_gate, make_gate_run, make_key, make_patch, make_project, make_user
from tests.test_races import second_waits_for_first

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]


@pytest.fixture
def pair() -> tuple[Gate, Gate]:
    """`eb` depends on `ea`."""
    ea = make_gate(key="ea")
    return ea, make_gate(ea.project, key="eb", depends_on=["ea"])


def waits(gate: Gate, **fields: Any) -> list[str]:
    """Why a new run of it would wait."""
    return [one.why for one in make_gate_run(gate, **fields).hindrances()]


def test_a_new_key_is_written_into_the_gates_that_need_it(pair: tuple[Gate, Gate]) -> None:
    ea, eb = pair
    make_gate(ea.project, key="ec", depends_on=["eb", "ea"])
    api = Api(make_key("admin", project=ea.project).text)
    assert api.patch(f"/gates/{ea.pk}/", {"key": "ea-renamed"}, 1).status_code == 200
    needed = dict(Gate.objects.exclude(pk=ea.pk).values_list("key", "depends_on"))
    assert needed == {"eb": ["ea-renamed"], "ec": ["eb", "ea-renamed"]}
    assert set(Gate.objects.values_list("gate_version", flat=True)) == {1}
    event = Event.objects.about(eb).order_by("-stream_seq")[0]
    assert (event.kind, event.before, event.after) == (
        "gate.changed", {"depends_on": ["ea"]}, {"depends_on": ["ea-renamed"]},
    )  # fmt: skip
    eb.refresh_from_db()
    assert eb.edit(by=BY, name="saved as it is")
    assert waits(eb) == ["ea-renamed has no run on this tree"]


@pytest.mark.parametrize("lacking", ["gone", "off", "ring"])
def test_what_will_never_pass_keeps_a_run_waiting_and_is_told_to_an_admin(
    pair: tuple[Gate, Gate], lacking: str, client: Any
) -> None:
    ea, eb = pair
    if lacking == "gone":
        Gate.objects.filter(pk=eb.pk).update(depends_on=["gone"])
    else:
        Gate.objects.filter(pk=ea.pk).update(**{"enabled": False} if lacking == "off" else {"depends_on": ["eb"]})
    eb.refresh_from_db()
    run = make_gate_run(eb)
    why = {
        "gone": "the project has no gate gone", "off": "ea is disabled",
        "ring": "gates wait for each other: ea → eb → ea",
    }[lacking]  # fmt: skip
    with pytest.raises(Refused, match=why):
        run.start(by=BY)
    assert running.run_pending() == 0
    told = blockers.blocker(run)
    assert told is not None
    assert why in told.reason
    assert told.action == blockers.Action("edit", f"/gates/{eb.pk}/", "admin")
    client.force_login(make_user(is_superuser=True, is_staff=True))
    assert why in client.get(f"/gates/runs/{run.pk}/").text
    api = Api(make_key("viewer", project=run.project).text)
    assert why in api.get(f"/gate-runs/{run.pk}/").json()["blocked_reasons"][0]


def test_a_run_says_what_the_gates_that_it_waits_for_are_doing(pair: tuple[Gate, Gate]) -> None:
    ea, eb = pair
    run = make_gate_run(eb)
    assert [one.why for one in run.hindrances()] == ["ea has no run on this tree"]
    first = make_gate_run(ea, tree_hash=run.tree_hash)
    told = blockers.blocker(run)
    assert told is not None
    assert told.reason == "It waits for ea to pass: ea is pending"
    assert [link.id for link in told.chain] == [run.pk, first.pk]
    first.start(by=BY)
    assert [one.why for one in run.hindrances()] == ["ea is running"]


def test_however_many_runs_wait_the_one_behind_them_is_run(pair: tuple[Gate, Gate]) -> None:
    for _ in range(running.PAGE + 1):
        make_gate_run(pair[1])
    assert running._next() is None
    free = make_gate_run(make_gate())
    assert running._next() == free.pk


def test_a_gate_that_does_not_apply_to_a_patch_holds_nobody_up() -> None:
    patch = make_patch()
    docs = make_gate(patch.project, key="docs", applies_to=["no/such/**"])
    tests = make_gate(patch.project, key="tests", depends_on=["docs"])
    assert waits(tests, patch=patch) == []
    assert waits(tests) == ["docs has no run on this tree"]
    docs.edit(by=BY, applies_to=[])
    assert waits(tests, patch=patch) == ["docs has no run on this tree"]


def test_a_gate_that_others_need_is_neither_disabled_nor_removed_nor_moved(pair: tuple[Gate, Gate]) -> None:
    ea, eb = pair
    api = Api(make_key("admin").text)
    answer = api.patch(f"/gates/{ea.pk}/", {"enabled": False}, 1)
    assert refused(answer) == (422, "invalid_field")
    assert "eb depends on it" in answer.json()["detail"]
    assert refused(api.delete(f"/gates/{ea.pk}/")) == (409, "in_use")
    with pytest.raises(InvalidField, match=r"eb of .* depends on it"):
        ea.edit(by=BY, project=make_project())
    assert Event.objects.about(ea).count() == 1
    assert eb.edit(by=BY, enabled=False)
    assert ea.edit(by=BY, enabled=False)
    with pytest.raises(InvalidField, match="ea is disabled"):
        eb.edit(by=BY, enabled=True)
    eb.edit(by=BY, depends_on=[])
    ea.remove(by=BY)
    assert list(Gate.objects.values_list("key", flat=True)) == ["eb"]


def test_two_edits_at_once_make_no_ring(threads: Threads) -> None:
    first = make_gate(key="first")
    second = make_gate(first.project, key="second")
    _done, late = second_waits_for_first(
        threads,
        lambda: Gate.objects.get(pk=first.pk).edit(by=BY, depends_on=["second"]),
        lambda: Gate.objects.get(pk=second.pk).edit(by=BY, depends_on=["first"]),
    )
    assert isinstance(late.error, InvalidField)
    assert late.error.code == "circular_dependency"
    assert dict(Gate.objects.values_list("key", "depends_on")) == {"first": ["second"], "second": []}


def test_a_gate_is_not_added_on_top_of_one_that_is_renamed_at_once(threads: Threads) -> None:
    first = make_gate(key="first")
    _done, late = second_waits_for_first(
        threads,
        lambda: Gate.objects.get(pk=first.pk).edit(by=BY, key="other"),
        lambda: make_gate(first.project, key="second", depends_on=["first"]),
    )
    assert isinstance(late.error, InvalidField)
    assert late.error.code == "unknown_dependency"

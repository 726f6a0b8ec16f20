"""One verb for many patches, by the API: told one by one, written for all or none, or for those that can."""

from pathlib import Path
from typing import Any

import pytest

from ledger import bulk
from ledger.models import Patch
from pipeline.events import SYSTEM, Event
from pipeline.refusals import InvalidField, Refused
from tests import factories
from tests.api.asking import Api, refused
from tests.factories import BY
from tests.ledger.landing import Shore, lines

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]


@pytest.fixture
def shore(tmp_path: Path) -> Shore:
    """A project with its mirror and queue."""
    return Shore(tmp_path, {"a.txt": lines(1, 2, 3)})


def states(*patches: Patch) -> list[str]:
    """What the database holds, in the order given."""
    return [Patch.objects.values_list("state", flat=True).get(pk=patch.pk) for patch in patches]


def test_a_dry_run_tells_what_would_be_and_writes_nothing(shore: Shore) -> None:
    open_, landed = shore.submit({"b.txt": "b\n"}), shore.land({"a.txt": lines(1)})
    before = Event.objects.count()

    outcome = bulk.carry_out("quarantine", [open_, landed], "", by=BY, dry_run=True)

    assert [(one.patch, one.done, one.code) for one in outcome.results] == [
        (open_.pk, True, ""), (landed.pk, False, "invalid_move"),
    ]  # fmt: skip
    assert (outcome.written, outcome.done, len(outcome.refused)) == (False, 1, 1)
    assert states(open_, landed) == ["created", "committed"]
    assert Event.objects.count() == before


def test_one_that_refuses_keeps_all_as_they_are_unless_it_may_be_left_out(shore: Shore) -> None:
    one, landed, two = shore.submit({"b.txt": "b\n"}), shore.land({"a.txt": lines(1)}), shore.submit({"c.txt": "c\n"})
    assert not bulk.carry_out("drop", [one, landed, two], "no", by=BY).written
    assert states(one, landed, two) == ["created", "committed", "created"]

    outcome = bulk.carry_out("drop", [one, landed, two], "no", by=BY, partial=True)

    assert (outcome.written, outcome.done) == (True, 2)
    assert states(one, landed, two) == ["dropped", "committed", "dropped"]
    told = Event.objects.filter(kind="patch.dropped")
    assert {(event.subject_id, event.reason, event.actor_name) for event in told} == {
        (one.pk, "no", BY.name), (two.pk, "no", BY.name),
    }  # fmt: skip


def test_a_declaring_verb_that_had_happened_is_neither_done_nor_refused(shore: Shore) -> None:
    patch = shore.submit({"b.txt": "b\n"})
    patch.drop("no", by=SYSTEM)
    outcome = bulk.carry_out("drop", [patch], "again", by=BY)
    assert (outcome.written, outcome.done, outcome.refused) == (True, 0, [])


def test_an_unknown_verb_a_missing_reason_and_an_empty_choice_are_refused(shore: Shore) -> None:
    patch = shore.submit({"b.txt": "b\n"})
    with pytest.raises(InvalidField, match="one of"):
        bulk.carry_out("explode", [patch], "x", by=BY)
    with pytest.raises(Refused) as problem:
        bulk.carry_out("drop", [patch], "  ", by=BY)
    assert problem.value.code == "reason_required"
    with pytest.raises(InvalidField, match="no patch"):
        bulk.chosen(Patch.objects.none())


def test_more_than_may_be_taken_at_once_is_refused(shore: Shore, monkeypatch: pytest.MonkeyPatch) -> None:
    shore.submit({"b.txt": "b\n"})
    shore.submit({"c.txt": "c\n"})
    monkeypatch.setattr(bulk, "MOST", 1)
    with pytest.raises(InvalidField, match="more than 1"):
        bulk.chosen(Patch.objects.all())


def ask(role: str, shore: Shore, **given: Any) -> Any:
    """POST it as somebody of that role in the project."""
    document = {"filter": {"project": shore.project.key}, **given}
    return Api(factories.make_key(role, project=shore.project).text).post("/patches/bulk/", document)


def test_the_api_finds_them_by_state_and_answers_each(shore: Shore) -> None:
    one, landed = shore.submit({"b.txt": "b\n"}), shore.land({"a.txt": lines(1)})
    chosen = {"project": shore.project.key, "state": "created"}

    tried = ask("operator", shore, verb="drop", filter=chosen)
    assert tried.status_code == 200
    assert tried.json() == {
        "verb": "drop", "dry_run": True, "written": False, "count": 1, "done": 1, "refused": 0,
        "results": [{"patch": one.pk, "state": "dropped", "done": True, "code": "", "message": ""}],
    }  # fmt: skip
    assert states(one, landed) == ["created", "committed"]

    done = ask("operator", shore, verb="drop", filter=chosen, dry_run=False, reason="no")
    assert (done.status_code, done.json()["written"]) == (200, True)
    assert states(one, landed) == ["dropped", "committed"]


def test_the_api_asks_for_the_role_of_the_verb(shore: Shore) -> None:
    patch = shore.submit({"b.txt": "b\n"})
    patch.quarantine("odd", by=SYSTEM)
    chosen = {"project": shore.project.key, "patches": [patch.pk]}
    for verb in ("release", "rollback"):
        answer = ask("operator", shore, verb=verb, reason="x", dry_run=False, filter=chosen)
        assert refused(answer) == (403, "permission_denied")
    assert states(patch) == ["quarantined"]
    assert ask("approver", shore, verb="release", reason="x", dry_run=False, filter=chosen).json()["written"]
    assert states(patch) == ["created"]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"verb": "explode"}, "invalid_field"),
        ({"verb": "drop", "filter": {"project": "nowhere"}}, "project_not_found"),
        ({"verb": "drop", "filter": {"project": "PROJECT", "state": "created"}, "dry_run": False}, "reason_required"),
        ({"verb": "drop", "filter": {"project": "PROJECT"}, "dry_run": False, "reason": "all"}, "invalid_field"),
        ({"verb": "drop", "filter": {"state": "created"}}, "missing_required_field"),
    ],
    ids=["verb", "project", "reason", "everything", "no-project"],
)
def test_the_api_refuses_what_it_cannot_do(shore: Shore, given: dict[str, Any], code: str) -> None:
    patch = shore.submit({"b.txt": "b\n"})
    if given.get("filter", {}).get("project") == "PROJECT":
        given = {**given, "filter": {**given["filter"], "project": shore.project.key}}
    assert refused(ask("operator", shore, **given))[1] == code
    assert states(patch) == ["created"]

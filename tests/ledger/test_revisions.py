"""Newer revisions: what takes the place of a patch, and what then becomes of the older one."""

from pathlib import Path
from typing import Any

import pytest

from ledger import queue, rollback
from ledger.models import Patch, PatchPolicy, QueueItem, review
from pipeline import events
from pipeline.events import Event
from pipeline.models import Project
from pipeline.refusals import InvalidField, Refused
from tests import factories
from tests.api.asking import Api
from tests.factories import BY, new_file_diff
from tests.flows.house import House, piece

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]


@pytest.fixture
def house(tmp_path: Path) -> House:
    """One task."""
    return House(tmp_path, [piece("a", conflict_group="g"), piece("b", conflict_group="g")])


def revise(house: House, older: Patch, path: str = "newer.txt", **fields: Any) -> Patch:
    """A person submits something else in its place."""
    patch, is_new = Patch.objects.submit(
        project=house.project, diff_text=new_file_diff(path), base_commit=house.head, by=BY, replaces=older, **fields
    )
    assert is_new
    return patch


def read(patch: Patch) -> Patch:
    patch.refresh_from_db()
    return patch


def refusal(call: object, *given: object, **named: object) -> Refused:
    with pytest.raises(Refused) as caught:
        call(*given, by=BY, **named)  # type: ignore[operator]
    return caught.value


def test_a_newer_revision_takes_the_older_one_out_of_the_queue_and_lands_in_its_place(house: House) -> None:
    house.queue.pause(by=BY)
    older = house.work({"a.txt": "a\n"})
    assert read(older).state == "queued"
    newer = revise(house, older)
    assert (read(older).state, older.state_reason) == ("dropped", f"superseded by {newer.pk}")
    assert QueueItem.objects.get(patch=older).state == "withdrawn"
    house.queue.resume(by=BY)
    house.drain()
    assert read(newer).state == "committed"
    assert [commit.id for commit in house.new_commits()] == [newer.commit_sha]
    # The task asked for a patch, and what came in its place has landed.
    assert house.states()["a"] == "completed"
    house.must_hold()


def test_one_that_waits_for_a_review_cannot_be_approved_any_more(house: House) -> None:
    factories.make_policy(project=house.project, constraints={"min_reviewers": 1})
    older = house.work({"a.txt": "a\n"})
    assert read(older).state == "validated"
    newer = revise(house, older)
    caught = refusal(older.reviews.give, older, "approve", reviewer=factories.make_user())
    assert caught.code == "invalid_move"
    house.drain()
    assert (read(older).state, read(newer).state) == ("dropped", "validated")


def test_one_that_failed_goes_on_only_when_the_newer_one_is_gone(house: House) -> None:
    failed = house.work({"a.txt": "BROKEN\n"})
    newer = revise(house, failed)
    assert read(failed).state == "apply_failed"
    caught = refusal(failed.queue)
    assert (caught.code, caught.parts["patches"]) == ("superseded", [newer.pk])
    newer.drop("not so good", by=BY)
    assert failed.queue(by=BY)


def test_one_that_was_set_aside_is_released_only_when_the_newer_one_is_gone(house: House) -> None:
    house.queue.pause(by=BY)
    older = house.work({"a.txt": "a\n"})
    read(older).quarantine("odd", by=BY)
    newer = revise(house, older)
    assert refusal(older.release, reason="fine").code == "superseded"
    assert read(older).state == "quarantined"
    newer.drop("not so good", by=BY)
    assert older.release(by=BY, reason="fine")


def test_while_it_is_landing_it_cannot_be_replaced_and_then_not_any_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Refused] = []

    def submit(point: str) -> None:
        if point == "land.before_ref":
            older = Patch.objects.get(project=house.project)
            with pytest.raises(Refused) as caught:
                revise(house, older)
            said.append(caught.value)

    monkeypatch.setattr(queue, "crashpoint", submit)
    older = house.work({"a.txt": "a\n"})
    (caught,) = said
    assert (caught.code, caught.status) == ("invalid_move", 409)
    assert "is landing right now" in str(caught)
    assert read(older).state == "committed"
    assert Patch.objects.filter(project=house.project).count() == 1
    with pytest.raises(InvalidField, match="has landed"):
        revise(house, older)
    house.must_hold()


def test_an_agent_takes_nobody_elses_work_out(house: House) -> None:
    house.queue.pause(by=BY)
    others = house.work({"a.txt": "a\n"})
    document = house.claim()
    with pytest.raises(InvalidField, match="not of this task"):
        house.submit(document, {"b.txt": "b\n"}, replaces=others)
    assert read(others).state == "queued"
    own = house.submit(document, {"b.txt": "b\n"})
    again = house.submit(document, {"b.txt": "better\n"}, replaces=own)
    assert read(own).state == "dropped"
    house.report(document, again)
    house.queue.resume(by=BY)
    house.drain()
    assert house.run.state == "succeeded"
    assert house.file("b.txt") == "better"
    house.must_hold()


def test_an_agent_takes_out_nobody_elses_work_that_was_set_aside_or_has_failed(house: House) -> None:
    house.queue.pause(by=BY)
    others = house.work({"a.txt": "a\n"})
    read(others).quarantine("odd", by=BY)
    nobodys = factories.make_patch(house.project, base_commit=house.head)
    document = house.claim()
    for older in (others, factories.in_state(nobodys, "apply_failed")):
        with pytest.raises(InvalidField, match="not of this task"):
            house.submit(document, {"b.txt": "b\n"}, replaces=older)
    assert read(others).release(by=BY, reason="fine")


def test_a_task_is_not_done_by_the_patch_of_another_one(house: House) -> None:
    house.queue.pause(by=BY)
    others = house.work({"a.txt": "a\n"})
    document = house.claim()
    own = house.submit(document, {"b.txt": "b\n"})
    # As one could before agents were held to their own task.
    Patch.objects.filter(pk=own.pk).update(replaces=others)
    assert read(others).drop("gone", by=BY)
    assert read(others).in_its_place() == others
    newer = revise(house, others)
    assert read(others).in_its_place() == newer


def test_a_persons_revision_stays_under_every_rule_over_what_it_replaces(house: House) -> None:
    rules = {"min_reviewers": 2, "forbid_touching_paths": ["f5.txt"]}
    PatchPolicy.objects.add(by=BY, level="workstream", workstream=house.workstream, constraints=rules)
    older = house.work({"a.txt": "a\n"})
    operator = Api(factories.make_key("operator", project=house.project).text)
    sent = {"project": house.project.key, "base_commit": house.head, "replaces": older.pk}
    answer = operator.post("/patches/", {**sent, "diff_text": new_file_diff("f5.txt")})
    assert answer.status_code == 201
    bad = Patch.objects.get(pk=answer.json()["id"])
    for name in ("phase", "workstream", "run", "task", "chain_id"):
        assert getattr(bad, name) == getattr(older, name) is not None, name
    house.drain()
    assert (read(bad).state, bad.last_error_code) == ("apply_failed", "forbid_touching_paths")
    assert house.states()["a"] == "queued"  # it was not done by that: the agent tries again
    good = Patch.objects.get(
        pk=operator.post(
            "/patches/", {**sent, "replaces": bad.pk, "task": older.task_id, "diff_text": new_file_diff("b.txt")}
        ).json()["id"]
    )
    house.drain()
    assert (read(good).state, good.policy_snapshot["min_reviewers"]) == ("validated", 2)
    assert house.run.count_patches_created == 3
    assert house.head == house.first_commit
    house.must_hold()


def test_what_replaces_a_revision_of_a_task_is_of_no_other_task(house: House) -> None:
    older = house.deliver({"a.txt": "a\n"})
    with pytest.raises(
        InvalidField, match=rf"task: .*patch {older.pk} is of task a, and so is what comes in its place"
    ):
        revise(house, older, task=house.task("b"))
    assert read(older).state == "created"
    nobodys = factories.make_patch(house.project, base_commit=house.head)
    newer = revise(house, nobodys, task=house.task("b"))
    assert (newer.task, newer.workstream, read(nobodys).state) == (house.task("b"), house.workstream, "dropped")


def test_what_replaces_the_reverse_of_a_workstreams_patch_is_under_its_rules(house: House) -> None:
    landed = house.work({"a.txt": "a\n"})
    house.queue.pause(by=BY)
    reverse, _is_new = rollback.roll_back(landed, "odd", by=BY)
    newer = revise(house, reverse)
    assert (newer.phase, newer.workstream, newer.task) == (house.phase, house.workstream, None)
    other = factories.make_task(factories.make_run(factories.make_workstream(house.phase)))
    with pytest.raises(InvalidField, match="is of workstream ws"):
        revise(house, newer, "other.txt", task=other)


def test_a_run_that_has_ended_takes_no_revision_in_but_its_rules_hold(house: House) -> None:
    house.queue.pause(by=BY)
    older = house.work({"a.txt": "a\n"})
    read(older).quarantine("odd", by=BY)
    house.run.cancel(reason="enough", by=BY)
    house.drain()
    assert house.run.is_finished
    newer = revise(house, older)
    assert (newer.run, newer.task, newer.workstream) == (None, older.task, house.workstream)
    house.queue.resume(by=BY)
    house.drain()
    assert read(newer).state == "committed"
    house.must_hold()


def test_what_a_person_wrote_in_an_agents_place_is_approved_by_who_started_the_run(house: House) -> None:
    starter, author = (factories.make_user(is_superuser=True) for _ in range(2))
    events.record("run.started", house.run, by=events.Actor("user", starter.pk, starter.username))
    house.queue.pause(by=BY)
    older = house.work({"a.txt": "a\n"})
    newer = revise(house, older, user=author)
    assert review.belong_to([older, newer]) == {
        older.pk: {starter.pk: "started the run in which an agent wrote it"},
        newer.pk: {author.pk: "submitted it"},
    }


def test_in_recorded_custody_what_others_have_applied_is_theirs_to_tell() -> None:
    project = factories.make_project(custody=Project.Custody.RECORDED)
    applied, waiting = (factories.in_state(factories.make_patch(project), state) for state in ("applied", "validated"))
    for older in (applied, waiting):
        newer = factories.make_patch(project, replaces=older)
    assert (read(applied).state, read(waiting).state) == ("applied", "dropped")
    first = Patch.objects.get(replaces=applied)
    factories.in_state(applied, "verified", tests_ran=True, tests_passed=True)
    assert applied.report_commit(by=BY)
    assert (read(first).state, read(newer).state) == ("dropped", "created")
    assert applied.pk in first.state_reason
    assert Event.objects.filter(subject_id=first.pk, kind="patch.dropped").count() == 1

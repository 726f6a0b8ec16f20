"""The merge queue: what lands, on what, and who is put out when it cannot."""

from pathlib import Path
from typing import Any

import pytest
from django.db import transaction

from gates.models import GateRun
from gates.reactions import open_missing_gates
from ledger import blockers, git, queue, validation
from ledger.models import Patch, PatchPolicy, QueueItem
from ledger.models.review import changed_by_policy
from pipeline.events import Actor, Event
from pipeline.refusals import Refused
from tests.conftest import Threads
from tests.factories import (
    BY,
    make_approver,
    make_gate,
    make_merge_queue,
    make_patch,
    make_policy,
    make_project,
    sample_repository,
)
from tests.flows.house import House, piece
from tests.ledger.hostile.texts import END, added, deleted

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]


@pytest.fixture
def pair(tmp_path: Path) -> House:
    """Two tasks that may write the same files and never run at the same time; their patches may meet in the queue."""
    return House(tmp_path, [piece("a", conflict_group="g"), piece("b", conflict_group="g")])


@pytest.fixture
def single(tmp_path: Path) -> House:
    """One task."""
    return House(tmp_path, [piece("a")])


def test_two_patches_made_on_one_base_land_one_after_the_other(pair: House) -> None:
    first, second = pair.deliver({"a.txt": "a\n"}), pair.deliver({"b.txt": "b\n"})
    assert first.base_commit == second.base_commit == pair.first_commit
    pair.drain()
    one, two = pair.new_commits()
    assert one.parents == (pair.first_commit,)
    assert two.parents == (one.id,)
    assert (pair.file("a.txt"), pair.file("b.txt")) == ("a", "b")
    runs = {run.patch_id: run.tree_hash for run in pair.gate_runs()}
    assert runs == {first.pk: one.tree, second.pk: two.tree}
    assert pair.run.state == "succeeded"
    pair.must_hold()


def test_a_patch_that_conflicts_with_what_landed_before_it_is_put_out_and_sent_back(pair: House) -> None:
    first = pair.deliver({"README.md": "# Mine\n"})
    second = pair.deliver({"README.md": "# Yours\n"})
    pair.drain()
    first.refresh_from_db()
    second.refresh_from_db()
    assert first.state == "committed"
    assert (second.state, second.last_error_code) == ("apply_failed", "stale_base")
    assert second.tests_ran is False
    item = QueueItem.objects.get(patch=second)
    assert (item.state, item.culprit_id) == ("evicted", item.pk)
    assert "README.md" in second.last_error_message
    loser = second.task
    assert (loser.state, loser.count_repairs) == ("queued", 1)
    assert pair.file("README.md") == "# Mine"
    document = pair.claim()
    assert document["checkout"]["commit"] == pair.head
    pair.report(document, pair.submit(document, {"README.md": "# Mine and yours\n"}))
    pair.drain()
    assert pair.run.state == "succeeded"
    pair.must_hold()


def link(path: str, target: str) -> str:
    """A diff that adds a symbolic link."""
    return added(path, mode="120000", body=f"@@ -0,0 +1 @@\n+{target}\n{END}")


def in_turn(house: House, *texts: str) -> list[Patch]:
    """Patches of these texts, all made on one base, after they have gone their way."""
    make_policy(project=house.project, constraints={"forbid_symlinks": False})
    base = house.head
    made = [Patch.objects.submit(project=house.project, diff_text=text, base_commit=base, by=BY)[0] for text in texts]
    house.drain()
    for patch in made:
        patch.refresh_from_db()
    return made


NO_CALC = deleted("calc.py", body="@@ -1,2 +0,0 @@\n-def add(a, b):\n-    return a + b\n")


@pytest.mark.parametrize(
    ("first", "second", "code", "words"),
    [
        (added("case/Foo.txt"), added("case/foo.txt"), "case_collision", "case/foo.txt differs from case/Foo.txt"),
        (added("Case/a.txt"), added("case/b.txt"), "case_collision", "differs from Case"),
        (link("l", "calc.py"), NO_CALC, "symlink_target", "l leads to calc.py, which is taken away"),
        (NO_CALC, link("l", "calc.py"), "symlink_target", "l leads to calc.py, which is not there"),
        (added("ca/x") + added("cb/x") + link("ca/l", "../cb"), "", "symlink_target", "loop"),
    ],
)
def test_two_patches_that_cannot_stand_together_do_not_both_land(
    single: House, first: str, second: str, code: str, words: str
) -> None:
    second = second or added("ca/y") + added("cb/y") + link("cb/m", "../ca")
    one, two = in_turn(single, first, second)
    assert (one.state, two.state, two.last_error_code) == ("committed", "apply_failed", code)
    assert words in two.last_error_message
    assert "Together with what has landed" in two.last_error_message
    assert two.tests_ran is False
    assert [commit.id for commit in single.new_commits()] == [one.commit_sha]
    single.must_hold()


def test_two_patches_that_can_stand_together_land_with_their_links(single: House) -> None:
    made = in_turn(single, link("l", "calc.py"), link("m", "calc.py"), added("case/a"), added("case/b"))
    assert {patch.state for patch in made} == {"committed"}
    single.must_hold()


def test_what_a_link_leads_to_is_not_taken_away_alone(single: House) -> None:
    (landed,) = in_turn(single, link("l", "calc.py"))
    alone, _is_new = Patch.objects.submit(project=single.project, diff_text=NO_CALC, base_commit=single.head, by=BY)
    gone = deleted("l", mode="120000", body=f"@@ -1 +0,0 @@\n-calc.py\n{END}")
    single.drain()
    alone.refresh_from_db()
    assert (landed.state, alone.state, alone.last_error_code) == ("committed", "apply_failed", "symlink_target")
    both, _is_new = Patch.objects.submit(
        project=single.project, diff_text=NO_CALC + gone, base_commit=single.head, by=BY
    )
    single.drain()
    both.refresh_from_db()
    assert both.state == "committed"
    single.must_hold()


def test_a_change_that_the_branch_holds_already_is_not_an_empty_commit(pair: House) -> None:
    pair.deliver({"a.txt": "same\n"})
    document = pair.claim()
    again = pair.submit(document, {"a.txt": "same\n", "b.txt": "more\n"})
    pair.report(document, again)
    pair.drain()
    again.refresh_from_db()
    assert again.state in ("committed", "apply_failed")
    assert all(commit.tree != pair.new_commits()[0].tree for commit in pair.new_commits()[1:])
    pair.must_hold()


def test_a_branch_that_a_person_moves_while_a_patch_lands_is_built_on_and_tested_again(
    single: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []

    def push(point: str) -> None:
        if point == "land.before_ref" and not moved:
            moved.append(single.human_commits("by-hand.txt", "hello\n"))

    monkeypatch.setattr(queue, "crashpoint", push)
    patch = single.work({"a.txt": "a\n"})
    patch.refresh_from_db()
    assert patch.state == "committed"
    ours = single.new_commits()[-1]
    assert ours.parents == (moved[0],)
    assert single.file("by-hand.txt") == "hello"
    item = QueueItem.objects.get(patch=patch)
    assert (item.restarts, item.builds) == (1, 2)
    first, second = single.gate_runs()
    assert (first.state, second.state) == ("passed", "passed")
    assert first.tree_hash != second.tree_hash == ours.tree
    assert (patch.attempts, patch.reapplies) == (1, 1)
    assert single.run.state == "succeeded"
    single.must_hold()


def test_a_rebase_onto_a_move_that_gives_the_same_tree_runs_no_gate_again(
    single: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = single.deliver({"a.txt": "a\n"})
    head = single.human_commits("README.md", "# Calc, by hand\n")
    single.drain()
    patch.refresh_from_db()
    assert patch.state == "committed"
    assert patch.tested_parent == head
    assert len(single.gate_runs()) == 1


def test_a_verdict_that_is_no_longer_fresh_is_asked_for_again_before_the_branch_moves(
    single: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = Patch.verify

    def verify(patch: Patch, **facts: Any) -> bool:
        done = verified(patch, **facts)
        gate = single.gates["words"]
        gate.refresh_from_db()
        if gate.gate_version == 1:
            gate.edit(by=BY, command=["true"])
        return done

    monkeypatch.setattr(Patch, "verify", verify)
    single.work({"a.txt": "a\n"})
    assert [(run.gate_version, run.state) for run in single.gate_runs()] == [(1, "passed"), (2, "passed")]
    assert single.run.state == "succeeded"
    single.must_hold()


def test_what_a_stricter_policy_forbids_does_not_land_from_the_queue(single: House) -> None:
    single.queue.pause(by=BY)
    patch = single.work({"a.txt": "a\n", "b.txt": "b\n"})
    make_policy(project=single.project, constraints={"max_files_changed": 1})
    single.queue.resume(by=BY)
    single.drain()
    patch.refresh_from_db()
    assert (patch.state, patch.last_error_code) == ("apply_failed", "max_files_changed")
    assert single.new_commits() == []
    (told,) = Event.objects.filter(subject_id=patch.pk, kind="patch.rejudged")
    assert told.reason == (
        "the policy has changed since it was judged: 2 files changed; at most 1 are allowed (project policy)"
    )
    # The agent is told, and does it again.
    assert single.states() == {"a": "queued"}
    assert "at most 1 are allowed" in single.claim()["prompt"]["text"]
    single.must_hold()


def test_what_a_stricter_policy_wants_reviewed_waits_for_that_and_is_told_why(
    single: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tighten(point: str) -> None:
        if point == "build.done" and not PatchPolicy.objects.exists():
            make_policy(project=single.project, constraints={"min_reviewers": 1})

    monkeypatch.setattr(queue, "crashpoint", tighten)
    patch = single.work({"a.txt": "a\n"})
    patch.refresh_from_db()
    assert (patch.state, single.new_commits()) == ("validated", [])
    assert patch.state_reason == "the policy has changed since it was judged: it needs 1 review(s), where it needed 0"
    ada = make_approver(single.project)
    patch.reviews.give(patch, "approve", by=Actor("user", ada.pk, "Ada"), reviewer=ada)
    single.drain()
    patch.refresh_from_db()
    assert (patch.state, patch.state_reason) == ("committed", "")
    assert single.run.state == "succeeded"
    single.must_hold()


def test_a_milder_policy_and_one_that_says_nothing_of_it_leave_a_patch_where_it_is(single: House) -> None:
    policy = make_policy(project=single.project, constraints={"max_files_changed": 5})
    single.queue.pause(by=BY)
    patch = single.work({"a.txt": "a\n"})
    policy.edit(by=BY, constraints={"max_files_changed": 9, "forbid_touching_paths": ["other/**"]})
    single.queue.resume(by=BY)
    single.drain()
    patch.refresh_from_db()
    assert patch.state == "committed"
    assert not Event.objects.filter(kind="patch.rejudged").exists()


def test_where_the_policy_asks_for_tests_a_patch_waits_for_a_gate_that_tests_its_paths(single: House) -> None:
    make_policy(project=single.project, constraints={"require_tests_for_paths": ["src/**"]})
    make_gate(single.project, gate_type="unit_tests", applies_to=["docs/**"])
    make_gate(single.project, gate_type="unit_tests", required=False)
    patch = single.work({"src/a.txt": "a\n", "docs/a.txt": "a\n"})
    patch.refresh_from_db()
    assert (patch.state, single.new_commits()) == ("applied", [])
    wait = blockers.who_holds(subject=patch)
    assert wait is not None
    assert (wait.code, wait.holder) == ("gates_missing", blockers.ADMINS)
    assert "tests of src/a.txt, and no required gate tests that" in wait.reason
    make_gate(single.project, gate_type="integration_tests", applies_to=["src/**"])
    open_missing_gates()
    single.drain()
    patch.refresh_from_db()
    assert patch.state == "committed"
    single.must_hold()


@pytest.mark.parametrize(
    ("constraints", "state", "why"),
    [
        ({"require_tests_for_paths": ["*.txt"]}, "applied", "a.txt has to be tested by a gate"),
        ({"allowed_formats": ["other"]}, "apply_failed", "Format unified_diff is not one of other"),
        ({"patch_only": True}, "committed", ""),
        ({"require_tests_for_paths": ["src/**"]}, "committed", ""),
    ],
)
def test_rules_about_tests_and_formats_reach_a_patch_that_waits(
    single: House, constraints: dict[str, Any], state: str, why: str
) -> None:
    single.queue.pause(by=BY)
    patch = single.work({"a.txt": "a\n"})
    make_policy(project=single.project, constraints=constraints)
    single.queue.resume(by=BY)
    single.drain()
    patch.refresh_from_db()
    assert patch.state == state
    told = [event.reason for event in Event.objects.filter(subject_id=patch.pk, kind="patch.rejudged")]
    assert len(told) == bool(why)
    assert all(why in reason for reason in told)


def test_an_override_holds_against_a_policy_that_was_tightened(single: House) -> None:
    single.queue.pause(by=BY)
    patch = single.work({"a.txt": "a\n", "b.txt": "b\n"})
    patch.overrides.grant(patch, "max_files_changed", reason="it is all right", by=BY)
    make_policy(project=single.project, constraints={"max_files_changed": 1})
    single.queue.resume(by=BY)
    single.drain()
    patch.refresh_from_db()
    assert patch.state == "committed"


def test_one_that_waited_for_its_review_is_judged_by_what_holds_when_it_comes(single: House) -> None:
    policy = make_policy(project=single.project, constraints={"min_reviewers": 1})
    patch = single.work({"a.txt": "a\n"})
    policy.edit(by=BY, constraints={"min_reviewers": 2})
    for state in ("validated", "committed"):
        user = make_approver(single.project)
        patch.reviews.give(patch, "approve", by=Actor("user", user.pk, "Ada"), reviewer=user)
        single.drain()
        patch.refresh_from_db()
        assert patch.state == state
    single.must_hold()


def test_whether_the_policy_is_the_same_costs_a_landing_one_query(
    single: House, django_assert_num_queries: Any
) -> None:
    make_policy(project=single.project, constraints={"max_files_changed": 5})
    single.queue.pause(by=BY)
    patch = single.work({"a.txt": "a\n"})
    with transaction.atomic():
        row = patch.locked_in_place()
        with django_assert_num_queries(1):
            assert changed_by_policy(row) == ""


def test_a_paused_queue_builds_nothing_and_goes_on_when_resumed(single: House) -> None:
    single.queue.pause(by=BY, reason="a release is being cut")
    patch = single.work({"a.txt": "a\n"})
    patch.refresh_from_db()
    assert patch.state == "queued"
    assert single.gate_runs() == []
    single.queue.resume(by=BY)
    single.drain()
    assert single.run.state == "succeeded"


def test_a_patch_in_quarantine_leaves_the_queue_and_a_release_takes_it_through_everything_again(single: House) -> None:
    single.queue.pause(by=BY)
    patch = single.work({"a.txt": "a\n"})
    patch.refresh_from_db()
    patch.quarantine("who asked for this?", by=BY)
    single.queue.resume(by=BY)
    single.drain()
    patch.refresh_from_db()
    assert patch.state == "quarantined"
    assert [item.state for item in patch.queue_items.all()] == ["withdrawn"]
    assert single.states() == {"a": "validating"}
    single.must_hold()

    patch.release(by=BY, reason="the owner did")
    assert not patch.is_valid
    single.drain()
    patch.refresh_from_db()
    assert patch.state == "committed"
    kinds = list(Event.objects.filter(subject_id=patch.pk).order_by("stream_seq").values_list("kind", flat=True))
    assert kinds.count("patch.validated") == 2
    assert single.run.state == "succeeded"
    single.must_hold()


def test_a_patch_that_a_person_drops_is_work_to_be_done_again(single: House) -> None:
    single.queue.pause(by=BY)
    patch = single.work({"a.txt": "a\n"})
    patch.refresh_from_db()
    patch.drop("not like this", by=BY)
    single.queue.resume(by=BY)
    single.drain()
    task = single.task("a")
    assert (task.state, task.count_repairs) == ("queued", 1)
    assert "not like this" in single.claim()["prompt"]["text"]
    single.must_hold()


def test_what_is_landing_right_now_cannot_be_dropped(single: House, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[str] = []

    def drop(point: str) -> None:
        if point == "land.before_ref":
            with pytest.raises(Refused) as problem:
                Patch.objects.get(run=single.run).drop("too late", by=BY)
            refused.append(problem.value.code)

    monkeypatch.setattr(queue, "crashpoint", drop)
    single.work({"a.txt": "a\n"})
    assert refused == ["invalid_move"]
    assert single.run.state == "succeeded"
    single.must_hold()


def test_only_one_advances_a_queue_at_a_time(single: House, threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    single.queue.pause(by=BY)
    single.work({"a.txt": "a\n"})
    single.queue.resume(by=BY)
    threads.at_once(*[lambda: queue.advance(single.queue.pk) for _ in range(4)])
    single.drain()
    assert Event.objects.filter(project_id=single.project.pk, kind="patch.committed").count() == 1
    assert Event.objects.filter(project_id=single.project.pk, kind="queue_item.building").count() == 1
    single.must_hold()


def test_a_queue_that_is_paused_between_build_and_landing_lands_nothing(
    single: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "crashpoint", lambda point: single.queue.pause(by=BY) if point == "build.done" else None)
    single.work({"a.txt": "a\n"})
    assert single.head == single.first_commit
    monkeypatch.undo()
    single.queue.resume(by=BY)
    single.drain()
    assert single.run.state == "succeeded"
    single.must_hold()


def test_a_tree_that_the_mirror_lost_since_the_validation_is_made_again(single: House) -> None:
    single.queue.pause(by=BY)
    patch = single.work({"a.txt": "a\n"})
    patch.refresh_from_db()
    mirror = Path(single.project.mirror)
    (mirror / "objects" / patch.result_tree[:2] / patch.result_tree[2:]).unlink()
    single.queue.resume(by=BY)
    single.drain()
    patch.refresh_from_db()
    assert (patch.state, patch.committed_tree) == ("committed", patch.result_tree)
    single.must_hold()


def test_a_step_looks_at_a_handful_however_many_wait(pair: House) -> None:
    pair.queue.pause(by=BY)
    first, second = pair.deliver({"a.txt": "a\n"}), pair.deliver({"b.txt": "b\n"})
    pair.drain()
    due = QueueItem.objects.due_in
    assert [item.patch_id for item in due(pair.queue)] == [first.pk]
    second.drop("no", by=BY)
    assert [item.patch_id for item in due(pair.queue)] == [first.pk]


def test_a_landing_starts_few_gits(single: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs several milliseconds: the candidate, the branch, and two looks at where the branch stands."""
    single.queue.pause(by=BY)
    single.work({"a.txt": "a\n"})
    single.queue.resume(by=BY)
    started: list[str] = []
    bounded = git.running.run_bounded
    monkeypatch.setattr(git.running, "run_bounded", lambda *given: (started.append(given[-1]), bounded(*given))[1])
    queue.advance(single.queue.pk)
    assert started == ["git rev-parse", "git commit-tree", "git rev-parse"]
    single.drain()
    assert single.run.state == "succeeded"


@pytest.mark.parametrize(
    ("summary", "title"),
    [
        ("Add a file", "Add a file"),
        ("  two\n\nlines\tand\x07 a bell ", "two lines and a bell"),
        ("Signalbox-Patch: 01ARZ3NDEKTSV4RRFFQ69G5FAV", "Change: Signalbox-Patch: 01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        ("x" * 200, "x" * 72),
        ("", "Change by an agent"),
    ],
)
def test_a_commit_message_is_one_clean_line_and_our_trailer(summary: str, title: str) -> None:
    patch = Patch(summary=summary)
    assert queue.message(patch) == f"{title}\n\nSignalbox-Patch: {patch.pk}\n"


def test_a_superseded_gate_run_is_skipped_and_is_no_verdict(single: House, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[str] = []

    def push(point: str) -> None:
        if point == "build.done" and not pushed:
            pushed.append(single.human_commits("by-hand.txt", "hello\n"))

    monkeypatch.setattr(queue, "crashpoint", push)
    single.work({"a.txt": "a\n"})
    assert single.run.state == "succeeded"
    skipped = [run for run in GateRun.objects.filter(project=single.project) if run.state == "skipped"]
    assert all(run.skip_reason == "Skipped: superseded" for run in skipped)
    assert single.new_commits()[-1].parents == (pushed[0],)
    single.must_hold()


def test_a_patch_that_no_required_gate_judges_waits_for_an_admin_and_says_so() -> None:
    project = make_project(repository=sample_repository())
    merge_queue = make_merge_queue(project)
    patch = make_patch(project)
    assert validation.validate(patch.pk)
    patch.refresh_from_db()
    patch.queue(by=BY)
    queue.advance(merge_queue.pk)
    patch.refresh_from_db()
    assert patch.state == "applied"
    wait = blockers.who_holds(subject=patch)
    assert wait is not None
    assert (wait.code, wait.holder) == ("gates_missing", blockers.ADMINS)
    make_gate(project)
    assert blockers.who_holds(subject=patch).code == "testing"

"""The ledger's API: submitting, reading and steering patches, queues and policies."""

import hashlib
import re
from typing import Any

import pytest

from ledger.models import MergeQueue, Patch, PatchContent, PatchPolicy
from pipeline import events
from pipeline.ids import new_id
from tests import factories
from tests.api.asking import HUGE, NUL, Api, refused, wrong_values
from workers.models import Lease

pytestmark = pytest.mark.django_db

COUNT = events.Event.objects.filter


@pytest.fixture
def project() -> Any:
    """A managed project with its mirror and its queue."""
    made = factories.make_project(repository=factories.sample_repository())
    factories.make_merge_queue(made)
    return made


@pytest.fixture
def operator(project: Any) -> Api:
    """An operator of it."""
    return Api(factories.make_key("operator", project=project).text)


@pytest.fixture
def key() -> Any:
    """A worker's key, with its text."""
    return factories.make_key("worker")


@pytest.fixture
def agent(key: Any) -> Api:
    """The program that holds it."""
    return Api(key.text)


@pytest.fixture
def lease(project: Any, key: Any) -> Lease:
    """A live lease of a worker of that key on a task of the project."""
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)
    return factories.make_lease(factories.make_worker(api_key=key.row), factories.make_task(run))


def from_worker(lease: Lease, **fields: Any) -> dict[str, Any]:
    """What the agent program sends for its lease."""
    project = lease.task.run.project
    return {
        "lease": lease.pk,
        "generation": lease.generation,
        "base_commit": factories.head_of(project),
        "diff_text": factories.new_file_diff(),
        "summary": "Add a note",
        **fields,
    }


def from_person(project: Any, **fields: Any) -> dict[str, Any]:
    """What a person's program sends."""
    return {
        "project": project.key,
        "base_commit": factories.head_of(project),
        "diff_text": factories.new_file_diff(),
        "summary": "Add a note",
        **fields,
    }


def in_state(patch: Patch, state: str) -> Patch:
    """The patch in that state."""
    return factories.in_state(patch, state)


# -- submitting --------------------------------------------------------------------------------------------------


def test_a_worker_submits_under_its_lease(agent: Api, lease: Lease, key: Any) -> None:
    body = from_worker(lease)

    answer = agent.post("/patches/", body)

    patch = Patch.objects.get()
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/api/v1/patches/{patch.pk}/"
    shown = answer.json()
    assert (shown["id"], shown["state"], shown["task"]) == (patch.pk, "created", lease.task_id)
    assert "diff_text" not in shown
    assert (patch.attempt_id, patch.author_worker_id, patch.summary) == (
        lease.attempt_id,
        lease.worker_id,
        "Add a note",
    )
    assert patch.content.diff_text == body["diff_text"]
    told = COUNT(kind="patch.created").get()
    assert (told.actor_id, told.on_behalf_of, told.task_id) == (lease.worker_id, key.row.name, lease.task_id)


def test_a_person_submits_to_a_project_by_key_or_id(project: Any, operator: Api) -> None:
    by_key = operator.post("/patches/", from_person(project, issue_ref="#7"))
    by_id = operator.post("/patches/", {**from_person(project), "project": project.pk})

    assert (by_key.status_code, by_id.status_code) == (201, 201)
    assert by_key.json()["project"] == by_id.json()["project"] == project.pk
    assert by_key.json()["issue_ref"] == "#7"


def test_a_session_submits_as_its_person(project: Any, client: Any) -> None:
    user = factories.make_user()
    factories.make_membership(user, project, "operator")
    client.force_login(user)

    answer = client.post("/api/v1/patches/", from_person(project), content_type="application/json")

    assert answer.status_code == 201
    assert Patch.objects.get().author_user == user


def test_a_worker_without_a_lease_is_told_so_and_not_which_projects_there_are(agent: Api, project: Any) -> None:
    told = []
    for named in (project.key, "no-such-project", None):
        body = from_person(project)
        body = {**body, "project": named} if named else {k: v for k, v in body.items() if k != "project"}
        answer = agent.post("/patches/", body)
        assert refused(answer) == (422, "missing_required_field")
        told.append({k: v for k, v in answer.json().items() if k not in ("request_id", "instance")})
    assert told[0] == told[1] == told[2]
    assert "A worker's key submits for the task that its worker holds" in told[0]["detail"]
    assert Patch.objects.count() == 0


def test_the_same_content_again_is_the_same_patch(agent: Api, lease: Lease) -> None:
    body = from_worker(lease)

    first, again = agent.post("/patches/", body), agent.post("/patches/", body)

    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == first.json()["id"]
    assert (Patch.objects.count(), COUNT(kind="patch.resubmitted").count()) == (1, 1)


def test_the_lost_answer_to_a_submission_is_given_again(agent: Api, lease: Lease) -> None:
    body = from_worker(lease)

    first = agent.post("/patches/", body, Idempotency_Key="call-1")
    again = agent.post("/patches/", body, Idempotency_Key="call-1")

    assert (again.status_code, again.json()) == (201, first.json())
    assert COUNT(kind="patch.resubmitted").count() == 0


def test_blanks_at_the_ends_of_a_diff_are_part_of_it(project: Any, operator: Api) -> None:
    text = factories.new_file_diff().rstrip("\n") + "  \n"

    answer = operator.post("/patches/", from_person(project, diff_text=text))

    assert answer.json()["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert PatchContent.objects.get().diff_text == text


@pytest.mark.parametrize("with_key", [False, True])
@pytest.mark.parametrize(
    ("diff_text", "refusal"),
    [
        (factories.new_file_diff("../out", "x"), (422, "path_escape")),
        (factories.new_file_diff(".git/hooks/pre-commit", "x"), (422, "dotgit")),
        ("Here is my patch\n", (422, "not_unified_diff")),
        ("", (422, "not_unified_diff")),
    ],
)
def test_a_refused_diff_is_remembered_by_its_digest_alone(
    agent: Api, lease: Lease, diff_text: str, refusal: tuple[int, str], with_key: bool
) -> None:
    headers = {"Idempotency_Key": "call-1"} if with_key else {}

    assert refused(agent.post("/patches/", from_worker(lease, diff_text=diff_text), **headers)) == refusal

    assert Patch.objects.count() == 0
    told = COUNT(kind="patch.refused").get()
    assert (told.subject_type, told.subject_id) == ("project", lease.task.run.project_id)
    assert (told.task_id, told.worker_id) == (lease.task_id, lease.worker_id)
    assert told.data == {
        "code": refusal[1],
        "sha256": hashlib.sha256(diff_text.encode()).hexdigest(),
        "bytes": len(diff_text.encode()),
    }


@pytest.mark.parametrize("base", ["", "f" * 40, "main", "HEAD~1", "--help"])
def test_a_base_that_the_mirror_does_not_know_is_stale(project: Any, operator: Api, base: str) -> None:
    assert refused(operator.post("/patches/", from_person(project, base_commit=base))) == (409, "stale_base")
    assert (Patch.objects.count(), COUNT(kind="patch.refused").count()) == (0, 1)


@pytest.mark.parametrize(
    ("base", "said"),
    [("", "is missing"), ("1234567", "“1234567” is no full name"), ("f" * 40, "fetch its branch")],
)
def test_a_wrong_base_is_answered_with_what_is_right(project: Any, operator: Api, base: str, said: str) -> None:
    detail = operator.post("/patches/", from_person(project, base_commit=base)).json()["detail"]
    assert said in detail
    assert f"such as {factories.head_of(project)}, the head of main" in detail


def test_a_submission_of_another_generation_or_an_ended_lease_is_stale(agent: Api, lease: Lease) -> None:
    assert refused(agent.post("/patches/", from_worker(lease, generation=2))) == (409, "stale_claim")
    lease.finish("cancelled", by=factories.BY)
    assert refused(agent.post("/patches/", from_worker(lease))) == (409, "stale_claim")
    assert (Patch.objects.count(), COUNT(kind="lease.stale_report").count()) == (0, 2)


def test_the_lease_of_another_workers_key_does_not_exist(lease: Lease) -> None:
    stranger = Api(factories.make_key("worker").text)

    assert refused(stranger.post("/patches/", from_worker(lease))) == (404, "lease_not_found")
    assert Patch.objects.count() == 0


def test_a_worker_names_its_lease_and_nothing_else_and_a_person_the_reverse(
    agent: Api, lease: Lease, operator: Api, project: Any
) -> None:
    without = {name: value for name, value in from_worker(lease).items() if name != "lease"}
    assert refused(agent.post("/patches/", without)) == (422, "missing_required_field")
    assert refused(agent.post("/patches/", from_worker(lease, task=lease.task_id))) == (422, "invalid_field")
    assert refused(operator.post("/patches/", from_person(project, lease=lease.pk))) == (422, "invalid_field")
    assert refused(operator.post("/patches/", {"diff_text": "x"})) == (422, "missing_required_field")
    assert Patch.objects.count() == 0


def test_a_person_submits_nothing_to_a_project_that_is_not_theirs(operator: Api) -> None:
    other = factories.make_project(repository=factories.sample_repository())
    viewer = Api(factories.make_key("viewer", project=other).text)
    replaced = factories.make_patch(other)

    assert refused(operator.post("/patches/", from_person(other))) == (404, "project_not_found")
    assert refused(viewer.post("/patches/", from_person(other))) == (403, "permission_denied")
    body = {**from_person(other), "project": "nowhere", "replaces": replaced.pk}
    assert refused(operator.post("/patches/", body)) == (404, "project_not_found")


def test_no_submission_with_a_wrong_value_gets_in(project: Any, operator: Api) -> None:
    good = from_person(project, issue_ref="#1", task=new_id(), replaces=new_id())
    for name, value in good.items():
        for wrong in wrong_values(value):
            if name == "diff_text" and isinstance(wrong, str) and len(wrong) == 200_000:
                continue  # a long text is a diff, if a bad one
            answer = operator.post("/patches/", {**from_person(project), name: wrong})
            assert refused(answer)[0] in (400, 404, 422), (name, str(wrong)[:50])
    for name in ("id", "state", "commit_sha", "custody", "tests_passed", "author_user"):
        assert refused(operator.post("/patches/", from_person(project, **{name: "x"}))) == (400, "unknown_field")
    assert refused(operator.post("/patches/", from_person(project, summary="x" * 513))) == (422, "invalid_field")
    assert refused(operator.post("/patches/", from_person(project, diff_text=NUL))) == (422, "invalid_field")
    answer = operator.post("/patches/", from_person(project, diff_text="x" * 4_000_000))
    assert refused(answer) == (413, "too_large")
    assert re.fullmatch(r"The body has 4000\d{3} bytes; at most 3145728 bytes are taken", answer.json()["detail"])
    answer = operator.post("/patches/", from_person(project, diff_text="x" * 2_500_000))
    assert refused(answer) == (413, "patch_too_large")
    assert answer.json()["detail"] == "The diff has 2500000 bytes; at most 2097152 are taken"
    assert Patch.objects.count() == 0


@pytest.mark.parametrize("generation", [HUGE, -1, "one", None, 1.5, []])
def test_a_generation_is_a_number(agent: Api, lease: Lease, generation: Any) -> None:
    assert refused(agent.post("/patches/", from_worker(lease, generation=generation)))[0] == 422


# -- reading -----------------------------------------------------------------------------------------------------


def test_a_patch_is_found_by_both_its_ids(project: Any, operator: Api) -> None:
    patch = factories.make_patch(project)

    for pk in (patch.pk, patch.ledger_id):
        answer = operator.get(f"/patches/{pk}/")
        assert answer.json()["id"] == patch.pk
        assert answer.headers["ETag"] == f'"{patch.version}"'
    assert refused(operator.get(f"/patches/{new_id()}/")) == (404, "ledger_entry_not_found")


def test_a_diff_is_a_file_that_no_browser_shows(project: Any, operator: Api) -> None:
    patch = factories.make_patch(project, diff_text=factories.new_file_diff("page.html", "<script>alert(1)</script>é"))

    answer = operator.get(f"/patches/{patch.pk}/diff/")

    assert answer.content == patch.content.diff_text.encode()
    assert answer.headers["Content-Type"] == "text/x-diff; charset=utf-8"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{patch.pk}.diff"'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_no_list_loads_a_diff_and_its_queries_do_not_grow(
    project: Any, operator: Api, django_assert_max_num_queries: Any
) -> None:
    for _number in range(4):
        factories.make_patch(project)
    with django_assert_max_num_queries(4) as asked:
        rows = operator.get("/patches/").json()["results"]

    assert len(rows) == 4
    assert "files_touched" not in rows[0]
    assert not any("diff_text" in query["sql"] for query in asked.captured_queries)


def test_patches_are_filtered_by_declared_fields_only(project: Any, operator: Api) -> None:
    patch, dropped = factories.make_patch(project), factories.make_patch(project)
    dropped.drop("not wanted", by=factories.BY)

    def ids(**query: Any) -> list[str]:
        return [row["id"] for row in operator.get("/patches/", **query).json()["results"]]

    assert ids(state="created") == [patch.pk]
    assert ids(project=project.key, chain_id=dropped.chain_id) == [dropped.pk]
    assert ids(ordering="id") == [patch.pk, dropped.pk]
    assert refused(operator.get("/patches/", diff_text="x")) == (400, "unknown_filter")
    assert refused(operator.get("/patches/", ordering="diff_text")) == (400, "invalid_field")


def test_the_history_tells_every_move(project: Any, operator: Api) -> None:
    patch = factories.make_patch(project)
    patch.quarantine("odd", by=factories.BY)

    rows = operator.get(f"/patches/{patch.pk}/history/").json()["results"]

    assert [(row["kind"], row["reason"]) for row in rows] == [
        ("patch.quarantined", "odd"),
        ("patch.created", "Initial creation"),
    ]
    assert rows[0]["after"]["state"] == "quarantined"
    assert refused(operator.get(f"/patches/{patch.pk}/history/", state="x")) == (400, "unknown_filter")
    assert len(operator.get(f"/patches/{patch.pk}/history/", limit=1).json()["results"]) == 1


# -- steering ----------------------------------------------------------------------------------------------------


def test_a_patch_is_validated_queued_and_set_aside_by_an_operator(project: Any, operator: Api) -> None:
    patch = factories.make_patch(project)
    path = f"/patches/{patch.pk}"

    assert refused(operator.post(f"{path}/queue/")) == (409, "invalid_move")
    assert operator.post(f"{path}/validate/").json()["state"] == "validated"
    assert refused(operator.post(f"{path}/validate/")) == (409, "invalid_move")
    assert operator.post(f"{path}/queue/").json()["state"] == "queued"
    assert operator.get(f"/merge-queues/{project.key}/main/").json()["items"][0]["patch"] == patch.pk
    assert refused(operator.post(f"{path}/quarantine/")) == (422, "reason_required")
    shown = operator.post(f"{path}/quarantine/", {"reason": "odd", "owner": "ada"}).json()
    assert (shown["state"], shown["quarantine_owner"]) == ("quarantined", "ada")
    assert operator.post(f"{path}/quarantine/", {"reason": "odd"}).status_code == 200
    assert operator.get(f"/merge-queues/{project.key}/main/").json()["items"] == []
    assert COUNT(kind="patch.quarantined").get().actor_name == COUNT(kind="patch.queued").get().actor_name != ""


def test_a_release_needs_an_approver_and_a_reason(project: Any, operator: Api) -> None:
    patch = factories.make_patch(project)
    patch.quarantine("odd", by=factories.BY)
    approver = Api(factories.make_key("approver", project=project).text)
    path = f"/patches/{patch.pk}/release/"

    assert refused(operator.post(path, {"reason": "fine"})) == (403, "permission_denied")
    assert refused(approver.post(path, {"reason": "  "})) == (422, "reason_required")
    assert approver.post(path, {"reason": "fine"}).json()["state"] == "created"
    assert refused(approver.post(path, {"reason": "fine"})) == (409, "invalid_move")


def test_a_failed_patch_is_queued_again(project: Any, operator: Api) -> None:
    patch = in_state(factories.make_patch(project), "apply_failed")
    Patch.objects.filter(pk=patch.pk).update(format_ok=True, scope_ok=True, constraints_ok=True)

    assert operator.post(f"/patches/{patch.pk}/requeue/").json()["state"] == "queued"


def test_a_drop_is_quiet_and_final(project: Any, operator: Api) -> None:
    patch = factories.make_patch(project)
    path = f"/patches/{patch.pk}"

    assert refused(operator.post(f"{path}/drop/")) == (422, "reason_required")
    assert operator.post(f"{path}/drop/", {"reason": "not wanted"}).json()["state"] == "dropped"
    assert operator.post(f"{path}/drop/", {"reason": "not wanted"}).status_code == 200
    assert COUNT(kind="patch.dropped").count() == 1
    answer = operator.post(f"{path}/quarantine/", {"reason": "odd"})
    assert refused(answer) == (409, "invalid_move")
    assert (answer.json()["state"], answer.json()["allowed"]) == ("dropped", [])


@pytest.mark.parametrize(
    "body", [{"reason": []}, {"reason": NUL}, {"reason": "x" * 2001}, {"why": "x"}, [], {"owner": 5}]
)
def test_no_verb_with_a_wrong_value_is_done(project: Any, operator: Api, body: Any) -> None:
    patch = factories.make_patch(project)
    for verb in ("quarantine", "drop", "validate", "queue"):
        assert refused(operator.post(f"/patches/{patch.pk}/{verb}/", body))[0] in (400, 409, 422), verb
    patch.refresh_from_db()
    assert patch.state in ("created",)


def test_a_branch_without_a_queue_is_said_so(operator: Api, project: Any) -> None:
    MergeQueue.objects.all().delete()
    patch = in_state(factories.make_patch(project), "validated")

    assert refused(operator.post(f"/patches/{patch.pk}/queue/")) == (404, "merge_queue_not_found")


# -- merge queues ------------------------------------------------------------------------------------------------


def test_a_queue_is_found_by_its_branch_even_with_slashes(project: Any, operator: Api) -> None:
    queue = factories.make_merge_queue(project, target_branch="release/1.x/hot")

    for name in (project.key, project.pk):
        assert operator.get(f"/merge-queues/{name}/release/1.x/hot/").json()["id"] == queue.pk
    assert refused(operator.get(f"/merge-queues/{project.key}/nowhere/")) == (404, "merge_queue_not_found")
    assert refused(operator.get("/merge-queues/nowhere/main/")) == (404, "merge_queue_not_found")


def test_a_queue_of_another_project_does_not_exist(operator: Api) -> None:
    other = factories.make_merge_queue(factories.make_project())

    assert refused(operator.get(f"/merge-queues/{other.project.key}/{other.target_branch}/"))[0] == 404
    assert refused(operator.post(f"/merge-queues/{other.pk}/pause/")) == (404, "merge_queue_not_found")


def test_a_queue_is_paused_and_resumed(project: Any, operator: Api) -> None:
    queue = MergeQueue.objects.get(project=project)

    assert operator.post(f"/merge-queues/{queue.pk}/pause/", {"reason": "freeze"}).json()["state"] == "paused"
    assert operator.post(f"/merge-queues/{queue.pk}/pause/").status_code == 200
    assert operator.post(f"/merge-queues/{queue.pk}/resume/").json()["state"] == "running"
    assert COUNT(kind__startswith="merge_queue.", reason="freeze").count() == 1
    (row,) = operator.get("/merge-queues/", state="running").json()["results"]
    assert "items" not in row


# -- policies ----------------------------------------------------------------------------------------------------


def test_an_admin_keeps_the_policies_of_its_project(project: Any, operator: Api) -> None:
    admin = Api(factories.make_key("admin", project=project).text)
    body = {"level": "project", "project": project.key, "constraints": {"max_files_changed": 5}}

    assert refused(operator.post("/policies/", body)) == (403, "permission_denied")
    made = admin.post("/policies/", body)
    assert made.status_code == 201
    path = f"/policies/{made.json()['id']}/"
    assert refused(admin.patch(path, {"enabled": False})) == (412, "precondition_failed")
    changed = admin.patch(path, {"constraints": {"max_files_changed": 4}}, version=1)
    assert (changed.status_code, changed.json()["version"]) == (200, 2)
    assert refused(admin.patch(path, {"level": "global"}, version=2)) == (422, "invalid_field")
    assert admin.delete(path).status_code == 204
    assert list(COUNT(kind__startswith="policy.").order_by("seq").values_list("kind", flat=True)) == [
        "policy.added", "policy.changed", "policy.removed",
    ]  # fmt: skip


def test_the_policy_of_the_installation_is_its_admins(project: Any) -> None:
    admin = Api(factories.make_key("admin", project=project).text)
    chief = Api(factories.make_key("admin").text)
    body = {"level": "global", "constraints": {"max_files_changed": 50}}

    assert refused(admin.post("/policies/", body)) == (403, "permission_denied")
    made = chief.post("/policies/", body).json()
    assert admin.get(f"/policies/{made['id']}/").status_code == 200
    assert refused(admin.delete(f"/policies/{made['id']}/")) == (403, "permission_denied")
    weaker = {"level": "project", "project": project.key, "constraints": {"max_files_changed": 51}}
    assert refused(admin.post("/policies/", weaker)) == (422, "constraint_weakened")


def test_no_policy_with_a_wrong_value_gets_in(project: Any) -> None:
    chief = Api(factories.make_key("admin").text)
    good = {"level": "project", "project": project.key, "constraints": {}, "enabled": True}
    for name, value in good.items():
        for wrong in wrong_values(value):
            answer = chief.post("/policies/", {**good, name: wrong})
            assert refused(answer)[0] in (400, 404, 422), (name, str(wrong)[:50])
    for constraints in ({"max_files_changed": -1}, {"max_files_changed": "5"}, {"speed": 1}, {"patch": 5}):
        assert refused(chief.post("/policies/", {**good, "constraints": constraints}))[0] == 422, constraints
    assert refused(chief.post("/policies/", {"level": "project"})) == (422, "missing_required_field")
    assert refused(chief.post("/policies/", {"level": "global", "project": project.key})) == (422, "invalid_field")
    assert refused(chief.post("/policies/", {**good, "phase": factories.make_phase(project).pk}))[0] == 422
    assert refused(chief.post("/policies/", {})) == (422, "missing_required_field")
    assert PatchPolicy.objects.count() == 0

"""The admin shows every row to whoever may see it, and changes rows only by their verbs, in the person's name."""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.db import connection, models
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from costs.models import CostRecord, OtlpMark, OtlpMeter, SignalCount
from gates.models import Finding, Gate, GateEvidence, GateOutput, GateRun, RunnerHost, TestResult
from ledger.models import Patch, PatchContent, PatchPolicy, PatchReview, PolicyOverride, Receipt, Seal
from pipeline.admin_site import DefinitionAdmin, LookOnlyAdmin
from pipeline.events import Event, EventEpoch
from pipeline.ids import new_id
from pipeline.models import (
    ApiKey,
    Delivery,
    ExecutionRequest,
    Hold,
    Membership,
    NotificationRule,
    Phase,
    Project,
    PromptInstance,
    RoutingDecision,
    Run,
    StoredAnswer,
    Subscription,
    TaskDependency,
    Tick,
    Tool,
    User,
    WebhookEndpoint,
    Workstream,
)
from tests import factories as make
from workers.models import Worker

pytestmark = pytest.mark.django_db

REGISTERED = sorted(admin.site._registry, key=lambda model: model._meta.label)
LOOK_ONLY = [model for model in REGISTERED if isinstance(admin.site._registry[model], LookOnlyAdmin)]
DEFINITIONS = [model for model in REGISTERED if isinstance(admin.site._registry[model], DefinitionAdmin)]


def named(model: type[models.Model]) -> str:
    return model._meta.label


def url(model: type[models.Model], page: str, *args: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)


@pytest.fixture
def boss() -> User:
    return make.make_user(username="ada", is_staff=True, is_superuser=True)


@pytest.fixture
def client(boss: User) -> Client:
    client = Client()
    client.force_login(boss)
    return client


def fill() -> None:
    """A row in every table that the admin shows."""
    phase = make.make_phase()
    project = phase.project
    make.make_membership(project=project)
    make.make_key(project=project)
    workstream = make.make_workstream(phase, tasks=[make.task_spec("one"), make.task_spec("two", depends_on=["one"])])
    run = make.make_run(workstream, started=True)
    task = make.make_task(run)
    lease = make.make_lease(task=task)
    prompt = PromptInstance.objects.create(
        template_id="t",
        target_tool="shell",
        kind="research",
        sections=[],
        text="Do it",
        sha256="0" * 64,
        project=project,
    )
    request = ExecutionRequest.objects.create(
        project=project,
        phase=phase,
        task=task,
        task_kind="research",
        tool=lease.attempt.tool,
        created_by="t",
        prompt=prompt,
    )
    RoutingDecision.objects.create(
        task=task,
        run=run,
        request=request,
        strategy="fixed",
        candidates=[],
        chosen=lease.attempt.tool,
        reason="only one",
    )
    make.make_hold(project=project, scope_id=project.pk)
    make.make_failed_reaction(project)
    patch = make.make_patch()
    make.make_queue_item(patch, make.make_merge_queue(project))
    make.make_policy()
    gate_run = make.make_gate_run(make.make_gate(project), patch=patch)
    test = f"t-{make.number()}"
    TestResult.objects.create(gate_run=gate_run, test_key=test, name="t", outcome="pass")
    GateOutput.objects.create(gate_run=gate_run, number=1, text="ok")
    GateEvidence.objects.create(gate_run=gate_run, kind="junit", sha256="0" * 64, size_bytes=1)
    RunnerHost.objects.seen(f"host-{make.number()}", 2, [])
    Finding.objects.create(gate_run=gate_run, rule_id="r", level="note", fingerprint="f", is_new=True, message="m")
    make.make_flaky_test(project, test_key=test)
    fill_what_is_kept(project)
    make.make_price()
    make.make_budget(project)
    make.make_reservation(project)
    make.make_cost(attempt=lease.attempt)
    OtlpMeter.objects.create(meter=f"claude:session:{make.number()}", tool="claude", project=project)
    OtlpMark.objects.create(series=f"{make.number()}", value=1, at_ns=1)
    SignalCount.add({"claude_code.user_prompt": 1})
    Tick.objects.take("sweep", timedelta(seconds=5))
    StoredAnswer.objects.create(
        principal="key", key=new_id(), body_hash="0", body="sbx_secret", expires_at=timezone.now() + timedelta(days=1)
    )
    if not EventEpoch.objects.exists():
        EventEpoch.objects.create(number=1, reason="made")
    assert TaskDependency.objects.exists()


def fill_what_is_kept(project: Project) -> None:
    """A row of everything that the ledger keeps about patches, and of everything that is sent out."""
    make.make_push(make.make_project())
    reviewed = make.make_patch(project)
    PatchReview.objects.give(reviewed, "comment", by=make.BY, reviewer=make.make_user(), body="Why so?")
    PolicyOverride.objects.grant(reviewed, "max_lines_changed", reason="once", by=make.BY)
    Receipt.objects.keep(make.in_state(make.make_patch(project), "committed"), "{}", by=make.BY)
    sealed = Seal.objects.count()
    Seal.objects.create(
        number=sealed + 1,
        prev_root="0" * 64 if sealed else "",
        from_cursor="0-0-0",
        to_cursor="1-1-1",
        month="2026-01",
        count=1,
        root_hash="0" * 64,
        leaves=b"0" * 32,
    )
    hook = Subscription.objects.add(by=make.BY, key=f"hooks-{make.number()}", patterns=["run.*"])
    webhook = WebhookEndpoint.objects.add(by=make.BY, subscription=hook, url="https://example.org/hook")
    Delivery.objects.create(endpoint=webhook, event=Event.objects.latest("id"))
    notes = Subscription.objects.add(by=make.BY, key=f"notes-{make.number()}", patterns=["run.*"])
    NotificationRule.objects.add(by=make.BY, key=notes.key, subscription=notes, target="json://example.org/x")


# -- looking -----------------------------------------------------------------------------------------------------


def test_every_noun_of_the_house_is_registered() -> None:
    mine = {"pipeline", "workers", "ledger", "gates", "costs"}
    from django.apps import apps

    known = {m for m in apps.get_models(include_auto_created=False) if m._meta.app_label in mine}
    assert known - set(REGISTERED) == set()
    assert {m._meta.app_label for m in REGISTERED} <= mine


def test_every_list_and_page_answers(client: Client) -> None:
    fill()
    for model in REGISTERED:
        answer = client.get(url(model, "changelist"))
        assert answer.status_code == 200, model
        assert answer.context["cl"].result_count >= 1, model
        row = model._default_manager.first()
        page = client.get(url(model, "change", row.pk))
        assert page.status_code == 200, model
        assert client.get(url(model, "history", row.pk)).status_code == 200, model
        searched = client.get(url(model, "changelist"), {"q": str(row.pk)})
        assert searched.status_code == 200, model


def test_what_machines_own_is_not_added_edited_or_deleted(client: Client) -> None:
    fill()
    for model in LOOK_ONLY:
        row, before = model._default_manager.first(), model._default_manager.count()
        assert row is not None
        assert client.get(url(model, "add")).status_code == 403
        assert client.post(url(model, "add"), {}).status_code == 403
        assert client.post(url(model, "change", row.pk), {"state": "x"}).status_code == 403
        assert client.get(url(model, "delete", row.pk)).status_code == 403
        assert client.post(url(model, "delete", row.pk), {"post": "yes"}).status_code == 403
        assert model._default_manager.count() == before


@pytest.mark.parametrize("model", DEFINITIONS, ids=named)
def test_every_definition_offers_its_form(client: Client, model: type[models.Model]) -> None:
    assert client.get(url(model, "add")).status_code == 200


def test_no_list_loads_long_texts(client: Client) -> None:
    fill()
    with CaptureQueriesContext(connection) as queries:
        for model in LOOK_ONLY:
            assert client.get(url(model, "changelist")).status_code == 200
    loaded = " ".join(query["sql"] for query in queries)
    for column in ("diff_text", "output_tail", "error_log", "crash_trace", "canonical", "trace"):
        assert f'"{column}"' not in loaded


def test_the_number_of_queries_does_not_grow_with_the_rows(client: Client) -> None:
    fill()
    grown = {}
    counts = {}
    for model in LOOK_ONLY:
        with CaptureQueriesContext(connection) as first:
            client.get(url(model, "changelist"))
        counts[model] = len(first)
    fill()
    fill()
    for model in LOOK_ONLY:
        with CaptureQueriesContext(connection) as second:
            client.get(url(model, "changelist"))
        if len(second) > counts[model]:
            grown[model] = (counts[model], len(second))
    assert grown == {}


def test_a_keys_hash_and_a_stored_answers_body_are_shown_nowhere(client: Client) -> None:
    fill()
    key, answer = ApiKey.objects.get(), StoredAnswer.objects.get()
    assert key.secret_hash not in client.get(url(ApiKey, "change", key.pk)).text
    assert "sbx_secret" not in client.get(url(StoredAnswer, "change", answer.pk)).text


# -- definitions -------------------------------------------------------------------------------------------------


def form_of(client: Client, address: str, **changes: Any) -> dict[str, Any]:
    """What a browser would send back for the form at `address`, with `changes`."""
    form = client.get(address).context["adminform"].form
    sent = {}
    for bound in form:
        value = bound.value()
        if value is None or value is False:
            continue
        if isinstance(bound.field.widget, type(form.fields[bound.name].widget)) and hasattr(
            bound.field.widget, "decompress"
        ):
            for n, part in enumerate(bound.field.widget.decompress(value)):
                sent[f"{bound.html_name}_{n}"] = part or ""
        else:
            sent[bound.html_name] = value
    return {**sent, **changes}


def errors_of(answer: Any) -> str:
    assert answer.status_code == 200, answer.status_code
    form = answer.context["adminform"].form
    return json.dumps(form.errors.get_json_data())


def last(kind: str) -> Event:
    return Event.objects.filter(kind=kind).latest("seq")


PROJECT = {"key": "demo", "name": "Demo", "repository_url": "/r", "default_branch": "main", "custody": "managed",
           "domain": "software-dev", "profile": "{}", "currency": "USD", "sandbox_level_min": 1}  # fmt: skip


def test_adding_goes_through_the_verb_and_names_the_person(client: Client, boss: User) -> None:
    answer = client.post(url(Project, "add"), PROJECT)
    assert answer.status_code == 302, errors_of(answer)
    project = Project.objects.get(key="demo")
    event = last("project.added")
    assert (event.subject_id, event.actor_kind, event.actor_id, event.actor_name) == (
        project.pk,
        "user",
        boss.pk,
        "ada",
    )
    assert event.after["key"] == "demo"


def test_editing_goes_through_the_verb_and_tells_what_changed(client: Client) -> None:
    project = make.make_project(name="Old")
    address = url(Project, "change", project.pk)
    answer = client.post(address, form_of(client, address, name="New"))
    assert answer.status_code == 302, errors_of(answer)
    project.refresh_from_db()
    assert (project.name, project.version) == ("New", 2)
    event = last("project.changed")
    assert (event.actor_name, event.before, event.after) == ("ada", {"name": "Old"}, {"name": "New"})


def test_a_stale_form_tells_lists_and_documents_as_people_read_them(client: Client) -> None:
    subscription = Subscription.objects.add(by=make.BY, key="mine", patterns=["run.*"])
    address = url(Subscription, "change", subscription.pk)
    form = form_of(client, address)
    subscription.edit(by=make.BY, patterns=["run.*", "patch.committed"])

    refused = str(errors_of(client.post(address, form)))

    assert "tester changed patterns" in refused
    assert "run.*, patch.committed" in refused


def test_a_stale_form_is_refused_and_shows_what_changed(client: Client) -> None:
    project = make.make_project(name="Old")
    address = url(Project, "change", project.pk)
    mine = form_of(client, address, default_branch="trunk")
    project.edit(by=make.BY, name="Theirs")
    answer = client.post(address, mine)
    said = errors_of(answer)
    assert "tester changed name" in said
    assert "Theirs" in said
    project.refresh_from_db()
    assert (project.name, project.default_branch) == ("Theirs", "main")
    assert client.post(address, form_of(client, address, default_branch="trunk")).status_code == 302


def test_the_page_carries_the_version_that_it_shows(client: Client) -> None:
    project = make.make_project()
    project.edit(by=make.BY, name="Edited")
    page = client.get(url(Project, "change", project.pk)).text
    (field,) = re.findall(r"<input[^>]*name=\"seen_version\"[^>]*>", page)
    assert 'type="hidden"' in field
    assert 'value="2"' in field


def test_a_form_without_its_version_writes_nothing(client: Client) -> None:
    project = make.make_project(name="Old")
    address = url(Project, "change", project.pk)
    sent = form_of(client, address, name="New")
    del sent["seen_version"]
    assert "seen_version" in errors_of(client.post(address, sent))
    project.refresh_from_db()
    assert project.name == "Old"


def nested(depth: int) -> str:
    """A document of so many levels."""
    return '{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


def test_a_document_may_be_nested_as_deep_as_the_api_takes_it(client: Client) -> None:
    phase = make.make_phase()
    address = url(Phase, "change", phase.pk)
    assert client.post(address, form_of(client, address, acceptance=nested(31))).status_code == 302


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (Phase, "constraints", "{not json"),
        (Phase, "constraints", "[1]"),
        (Phase, "constraints", '{"patch": {"max_lines_changed": "many"}}'),
        (Phase, "constraints", '{"nonsense": 1}'),
        (Phase, "resource_scope", '{"write": "src"}'),
        (Phase, "resource_scope", '{"write": [1]}'),
        (Phase, "depends_on", '["nowhere"]'),
        (Phase, "depends_on", '[["a"]]'),
        (Phase, "allowed_tools", '[{"a": 1}]'),
        (Phase, "key", "Not A Key"),
        (Workstream, "tasks", '{"a": 1}'),
        (Workstream, "tasks", "[1]"),
        (Workstream, "tasks", '[{"task_id": "a"}]'),
        (Workstream, "error_handling", '{"strategy": []}'),
        (Workstream, "concurrency", '{"mode": {}}'),
        (Gate, "criteria", '{"coverage": "all"}'),
        (Gate, "criteria", '{"min_coverage_percent": 140}'),
        (Gate, "evidence", '{"junit": 1}'),
        (Gate, "applies_to", "[1]"),
        (Gate, "command", '"make test"'),
        (Gate, "command", "{}"),
        (Gate, "depends_on", '[["a"]]'),
        (Gate, "expected_exit_codes", '["0"]'),
        (Tool, "capabilities", "[]"),
        (Tool, "command", '"claude -p"'),
        (Tool, "env_allow", '{"PATH": 1}'),
        (Gate, "command", r'["a", "b\u0000"]'),
        (Gate, "applies_to", r'{"a\u0000": 1}'),
        (Phase, "acceptance", r'{"a": ["\ud800"]}'),
        (Tool, "command", '["a\\u0000"]'),
        pytest.param(Gate, "criteria", nested(33), id="33 deep"),
        pytest.param(Gate, "criteria", nested(900), id="900 deep"),
        pytest.param(Gate, "applies_to", nested(5000), id="5000 deep"),
        pytest.param(Workstream, "tasks", nested(100_000), id="100000 deep"),
        pytest.param(Phase, "acceptance", '{"a": NaN}', id="NaN"),
        pytest.param(Phase, "acceptance", '{"a": 1e999}', id="1e999"),
        pytest.param(Phase, "acceptance", '{"a": ' + "9" * 5000 + "}", id="5000 digits"),
        (Project, "profile", "3"),
        (Project, "currency", "usd"),
        (Project, "repository_url", ""),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_a_wrong_value_is_an_error_of_the_form(
    client: Client, model: type[models.Model], field: str, value: str
) -> None:
    makers: dict[Any, Callable[[], Any]] = {
        Phase: make.make_phase, Workstream: make.make_workstream, Gate: make.make_gate, Tool: make.make_tool,
        Project: make.make_project,
    }  # fmt: skip
    row = makers[model]()
    address = url(model, "change", row.pk)
    answer = client.post(address, form_of(client, address, **{field: value}))
    assert errors_of(answer) != "{}"
    row.refresh_from_db()
    assert row.version == 1


def test_a_weakened_constraint_is_told_with_its_wider_layer(client: Client) -> None:
    phase = make.make_phase(constraints={"patch": {"max_lines_changed": 10}})
    workstream = make.make_workstream(phase)
    address = url(Workstream, "change", workstream.pk)
    loose = json.dumps({"patch": {"max_lines_changed": 20}})
    said = errors_of(client.post(address, form_of(client, address, constraints=loose)))
    assert "max_lines_changed" in said


POLICY = {"level": "project", "project": "", "phase": "", "workstream": "", "task": "", "enabled": "on"}


def refused(client: Client, model: type[models.Model], **fields: Any) -> dict[str, list[str]]:
    """What the form of a new row says is wrong, by field."""
    answer = client.post(url(model, "add"), fields)
    assert answer.status_code == 200
    return dict(answer.context["adminform"].form.errors)


@pytest.mark.parametrize("level", ["project", "phase", "workstream", "task"])
def test_a_policy_without_its_target_is_an_error_of_that_field(client: Client, level: str) -> None:
    told = refused(client, PatchPolicy, **{**POLICY, "level": level, "constraints": '{"max_files_changed": 3}'})
    assert told == {level: [f"A policy of level {level} names its {level}"]}


def test_a_policy_with_a_target_of_another_level_is_an_error_of_that_field(client: Client) -> None:
    project = make.make_project()
    given = {**POLICY, "level": "global", "project": project.pk, "constraints": '{"max_files_changed": 3}'}
    told = refused(client, PatchPolicy, **given)
    assert told == {"project": ["A policy of level global has no project"]}


def test_a_document_that_may_be_empty_need_not_be_typed(client: Client) -> None:
    project = make.make_project()
    phase = {"project": project.pk, "key": "x", "name": "X", "sequence": 1, "category": "build"}
    assert client.post(url(Phase, "add"), phase).status_code == 302
    assert (Phase.objects.get().constraints, Phase.objects.get().depends_on) == ({}, [])


@pytest.mark.parametrize("typed", ["", "{}"])
def test_a_policy_that_sets_nothing_is_told_what_it_could_set(client: Client, typed: str) -> None:
    given = {**POLICY, "project": make.make_project().pk, "constraints": typed}
    told = refused(client, PatchPolicy, **given)
    assert told == {"constraints": ['Set at least one constraint, such as {"max_lines_changed": 400}']}
    page = client.get(url(PatchPolicy, "add")).content.decode()
    assert "on_validation_failure: an object" in page
    assert "require_issue_ref: true or false" in page


@pytest.mark.parametrize(
    ("routes", "told"),
    [
        ({"scop": "dropped"}, "scop: unknown; known are format, scope, constraints"),
        ({"scope": "quarantine"}, "must be one of apply_failed, quarantined, dropped, not quarantine"),
    ],
)
def test_a_route_that_nobody_takes_is_an_error_of_the_policys_form(
    client: Client, routes: dict[str, str], told: str
) -> None:
    project = make.make_project()
    constraints = json.dumps({"on_validation_failure": routes})
    (said,) = refused(client, PatchPolicy, **{**POLICY, "project": project.pk, "constraints": constraints})[
        "constraints"
    ]
    assert told in said


def test_a_key_that_is_taken_is_an_error_of_the_form(client: Client) -> None:
    make.make_project(key="demo")
    assert "already exists" in errors_of(client.post(url(Project, "add"), PROJECT))
    assert Project.objects.count() == 1


def test_removing_goes_through_the_verb(client: Client) -> None:
    phase = make.make_phase()
    assert client.get(url(Phase, "delete", phase.pk)).status_code == 200
    assert client.post(url(Phase, "delete", phase.pk), {"post": "yes"}).status_code == 302
    assert not Phase.objects.exists()
    assert last("phase.removed").actor_name == "ada"


def test_what_is_in_use_is_not_removed(client: Client) -> None:
    run = make.make_run()
    answer = client.post(url(Workstream, "delete", run.workstream_id), {"post": "yes"}, follow=True)
    assert answer.status_code == 200
    assert Workstream.objects.filter(pk=run.workstream_id).exists()
    assert not Event.objects.filter(kind="workstream.removed").exists()


# -- people and keys ---------------------------------------------------------------------------------------------


def test_a_new_keys_text_is_shown_once_and_opens(client: Client) -> None:
    from pipeline.auth import find_key

    answer = client.post(
        url(ApiKey, "add"),
        {"name": "ci", "role": "operator", "project": "", "expires_at_0": "", "expires_at_1": ""},
        follow=True,
    )
    (text,) = set(re.findall(r"sbx_[a-z0-9]{8}_[A-Za-z0-9_-]{43}", answer.text))
    key = ApiKey.objects.get()
    assert find_key(text) == key
    assert last("api_key.added").actor_name == "ada"
    assert text not in client.get(url(ApiKey, "change", key.pk)).text


def test_a_workers_key_of_more_than_ninety_days_is_refused(client: Client) -> None:
    answer = client.post(
        url(ApiKey, "add"),
        {"name": "w", "role": "worker", "project": "", "expires_at_0": "2099-01-01", "expires_at_1": "00:00:00"},
    )
    assert "90 days" in errors_of(answer)
    assert not ApiKey.objects.exists()


def test_a_key_keeps_its_role_and_end(client: Client) -> None:
    key = make.make_key("viewer").row
    address = url(ApiKey, "change", key.pk)
    assert client.post(address, form_of(client, address, name="renamed", role="admin")).status_code == 302
    key.refresh_from_db()
    assert (key.name, key.role) == ("renamed", "viewer")


def test_a_person_is_added_edited_and_given_a_password_in_the_bosss_name(client: Client) -> None:
    answer = client.post(
        url(User, "add"),
        {
            "username": "bea",
            "usable_password": "true",
            "password1": "long-enough-4711",
            "password2": "long-enough-4711",
        },
    )
    assert answer.status_code == 302, errors_of(answer)
    bea = User.objects.get(username="bea")
    assert (last("user.added").subject_id, last("user.added").actor_name) == (bea.pk, "ada")
    address = url(User, "change", bea.pk)
    assert client.post(address, form_of(client, address, is_staff="on")).status_code == 302
    assert last("user.changed").after == {"is_staff": True}
    answer = client.post(
        reverse("admin:auth_user_password_change", args=[bea.pk]),
        {"usable_password": "true", "password1": "another-long-4711", "password2": "another-long-4711"},
    )
    assert answer.status_code == 302
    assert last("user.changed").data == {"password": "changed"}
    bea.refresh_from_db()
    assert bea.check_password("another-long-4711")
    assert "4711" not in "".join(Event.objects.values_list("canonical", flat=True))
    assert client.get(url(User, "delete", bea.pk)).status_code == 403


# -- moves -------------------------------------------------------------------------------------------------------


def act(client: Client, verb: str, *rows: Any, **more: str) -> Any:
    """Run the action on the rows, as the changelist's form does."""
    data = {"action": verb, "_selected_action": [str(row.pk) for row in rows], "index": "0", **more}
    return client.post(url(type(rows[0]), "changelist"), data, follow=True)


@pytest.mark.parametrize(
    ("maker", "verb", "kind"),
    [
        (make.make_run, "cancel", "run.canceled"),
        (make.make_run, "hold", "hold.placed"),
        (lambda: make.make_run(started=True), "quarantine", "run.quarantined"),
        (make.make_task, "cancel", "task.cancelled"),
        (make.make_hold, "release", "hold.released"),
        (make.make_patch, "quarantine", "patch.quarantined"),
        (make.make_patch, "drop", "patch.dropped"),
        (lambda: make.in_state(make.make_patch(), "quarantined"), "release", "patch.released"),
        (make.make_gate_run, "skip", "gate_run.skipped"),
        (lambda: make.in_state(make.make_gate_run(), "failed"), "waive", "gate_run.waived"),
        (make.make_cost, "void", "cost.voided"),
        (lambda: make.make_key().row, "revoke", "api_key.changed"),
    ],
)
def test_an_action_asks_why_and_acts_in_the_persons_name(
    client: Client, maker: Callable[[], Any], verb: str, kind: str
) -> None:
    row = maker()
    before = Event.objects.count()
    asked = act(client, verb, row)
    assert asked.status_code == 200
    assert 'name="reason"' in asked.text
    assert row.pk in asked.text
    assert "required." in act(client, verb, row, reason="  ").text
    assert Event.objects.count() == before
    done = act(client, verb, row, reason="because I say so")
    assert "1 of 1 row changed." in done.text
    event = last(kind)
    assert (event.actor_kind, event.actor_name) == ("user", "ada")
    assert "because I say so" in event.reason


@pytest.mark.parametrize(("hours", "waived", "ends"), [("", True, False), ("24", True, True), ("soon", False, False)])
def test_a_waiver_is_asked_how_long_it_lasts(client: Client, hours: str, waived: bool, ends: bool) -> None:
    run = make.in_state(make.make_gate_run(), "failed")
    assert 'name="hours"' in act(client, "waive", run).text
    assert 'name="hours"' not in act(client, "skip", run).text
    act(client, "waive", run, reason="known", hours=hours)
    run.refresh_from_db()
    assert (run.waived_at is not None, run.waiver_expires_at is not None) == (waived, ends)
    if ends:
        # The end is told from the request's begin.
        assert timedelta(hours=23) < run.waiver_expires_at - run.waived_at <= timedelta(hours=24)


@pytest.mark.parametrize(
    ("state", "verb", "kind"),
    [
        ("idle", "pause", "worker.paused"),
        ("paused", "resume", "worker.resumed"),
        ("idle", "request_shutdown", "worker.shutdown_requested"),
    ],
)
def test_workers_are_paused_resumed_and_drained(client: Client, state: str, verb: str, kind: str) -> None:
    worker = make.make_worker()
    if state == "paused":
        worker.pause(by=make.BY)
    assert "1 of 1 row changed." in act(client, verb, worker).text
    assert last(kind).actor_name == "ada"


def test_what_one_row_refuses_keeps_no_other_back(client: Client) -> None:
    fresh, gone = make.make_worker(), make.in_state(make.make_worker(), "stopped")
    answer = act(client, "pause", fresh, gone)
    assert "Cannot pause" in answer.text
    assert "1 of 2 rows changed." in answer.text
    fresh.refresh_from_db()
    gone.refresh_from_db()
    assert (fresh.state, gone.state) == ("paused", "stopped")


def test_what_a_guard_of_the_database_refuses_is_a_message(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def bypass(self: Worker, *, by: Any) -> bool:
        return bool(Worker.objects.filter(pk=self.pk).update(state="busy"))

    monkeypatch.setattr(Worker, "pause", bypass)
    worker = make.make_worker()
    answer = act(client, "pause", worker)
    assert answer.status_code == 200
    assert "The database refused" in answer.text
    worker.refresh_from_db()
    assert worker.state == "idle"


def test_a_malformed_selection_is_a_message(client: Client) -> None:
    make.make_worker()
    answer = client.post(
        url(Worker, "changelist"), {"action": "pause", "_selected_action": ["nonsense"], "index": "0"}, follow=True
    )
    assert answer.status_code == 200
    assert "is not an id" in answer.text


# -- roles -------------------------------------------------------------------------------------------------------


def staff(role: str, project: Project) -> Client:
    person = make.make_user(is_staff=True)
    make.make_membership(person, project, role)
    client = Client()
    client.force_login(person)
    return client


def test_staff_see_only_their_projects() -> None:
    mine, other = make.make_run(), make.make_run()
    client = staff("viewer", mine.project)
    shown = client.get(url(Run, "changelist")).context["cl"].queryset
    assert [run.pk for run in shown] == [mine.pk]
    assert client.get(url(Run, "change", mine.pk)).status_code == 200
    assert client.get(url(Run, "change", other.pk)).status_code == 302
    for model in (Tick, StoredAnswer, User):
        assert client.get(url(model, "changelist")).status_code == 403
    patch = make.make_patch()
    assert patch.content.pk not in [
        row.pk for row in client.get(url(PatchContent, "changelist")).context["cl"].queryset
    ]


def test_a_viewer_is_offered_no_action_and_can_take_none() -> None:
    hold = make.make_hold()
    client = staff("viewer", hold.project)
    assert client.get(url(Hold, "changelist")).status_code == 200
    act(client, "release", hold, reason="because")
    hold.refresh_from_db()
    assert hold.state == "active"
    assert client.get(url(Project, "add")).status_code == 403
    address = url(Project, "change", hold.project_id)
    assert client.get(address).status_code == 200
    assert client.post(address, PROJECT).status_code == 403


def test_a_role_in_one_project_is_none_in_another() -> None:
    mine, other = make.make_project(), make.make_project()
    person = make.make_user(is_staff=True)
    make.make_membership(person, mine, "approver")
    make.make_membership(person, other, "viewer")
    client = Client()
    client.force_login(person)
    holds = [make.make_hold(project=project, scope_id=project.pk) for project in (mine, other)]
    answer = act(client, "release", *holds, reason="because")
    assert "needs the role approver" in answer.text
    assert list(Hold.objects.order_by("pk").values_list("state", flat=True)) == ["released", "active"]


def test_a_projects_admin_edits_it_and_nothing_of_others() -> None:
    mine, other = make.make_project(), make.make_project()
    client = staff("admin", mine)
    assert client.post(url(Phase, "add"), phase_of(mine)).status_code == 302
    assert "project" in errors_of(client.post(url(Phase, "add"), phase_of(other)))
    assert not Phase.objects.filter(project=other).exists()
    assert client.get(url(Project, "add")).status_code == 403
    tool = make.make_tool()
    assert client.post(url(Tool, "change", tool.pk), {}).status_code == 403
    role = Membership.objects.get(project=mine)
    assert client.get(url(Membership, "change", role.pk)).status_code == 200


def test_a_phase_is_not_moved_into_a_project_that_one_may_only_read() -> None:
    phase, other = make.make_phase(), make.make_project()
    person = make.make_user(is_staff=True)
    make.make_membership(person, phase.project, "admin")
    make.make_membership(person, other, "viewer")
    client = Client()
    client.force_login(person)
    address = url(Phase, "change", phase.pk)
    said = errors_of(client.post(address, form_of(client, address, project=other.pk)))
    assert "needs the role admin" in said
    phase.refresh_from_db()
    assert phase.project_id != other.pk


def phase_of(project: Project) -> dict[str, Any]:
    lists = dict.fromkeys(["depends_on", "allowed_tools", "disallowed_tools"], "[]")
    documents = dict.fromkeys(["resource_scope", "constraints", "acceptance"], "{}")
    return {
        "project": project.pk,
        "key": "build",
        "name": "Build",
        "category": "build",
        "sequence": 1,
        **lists,
        **documents,
    }


def test_people_who_are_not_staff_stay_outside() -> None:
    person = make.make_user()
    client = Client()
    client.force_login(person)
    for model in (Run, Patch, GateRun, CostRecord):
        answer = client.get(url(model, "changelist"))
        assert answer.status_code == 302
        assert "login" in answer.url


def test_an_unknown_row_is_told_and_not_an_error(client: Client) -> None:
    for key in (new_id(), "nonsense"):
        assert client.get(url(Run, "change", key)).status_code == 302


# -- lists of words, and hashes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("run.*", ["run.*"]),
        ("run.*\r\npatch.committed\r\n", ["run.*", "patch.committed"]),
        ("run.*, *.failed", ["run.*", "*.failed"]),
        ('["run.*", "patch.committed"]', ["run.*", "patch.committed"]),
    ],
)
def test_the_patterns_of_a_subscription_are_typed_as_lines(admin_client, typed, meant):
    form = {"key": "mine", "patterns": typed, "channels": "task_events", "min_severity": "debug", "state": "active"}

    answer = admin_client.post("/admin/pipeline/subscription/add/", form)

    assert answer.status_code == 302, answer.context["adminform"].errors
    made = Subscription.objects.get(key="mine")
    assert (made.patterns, made.channels) == (meant, ["task_events"])
    shown = admin_client.get(f"/admin/pipeline/subscription/{made.pk}/change/").text
    assert "\n".join(meant) in shown


@pytest.mark.parametrize("typed", ["", "no.such", "[1]", "[run.*", "<b>"])
def test_patterns_that_are_none_are_an_error_of_their_field(admin_client, typed):
    form = {"key": "mine", "patterns": typed, "channels": "", "min_severity": "debug", "state": "active"}

    answer = admin_client.post("/admin/pipeline/subscription/add/", form)

    assert list(answer.context["adminform"].errors) == ["patterns"]
    assert not Subscription.objects.filter(key="mine").exists()


def test_a_list_shows_the_ends_of_a_hash_and_the_whole_on_hover(admin_client):
    fill_what_is_kept(make.make_project())

    page = admin_client.get("/admin/ledger/seal/").text

    assert f'<code title="{"0" * 64}">00000000…000000</code>' in page
    assert page.count("0" * 64) == 1

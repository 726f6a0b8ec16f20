"""The pages of what follows a landing: remotes, receipts, the queue's troubles; and one verb for many patches."""

from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from ledger import receipts
from ledger.models import MergeQueue, Push, Receipt, Remote
from pipeline.events import SYSTEM
from tests import factories
from tests.ledger.landing import Shore, lines
from tests.ledger.test_pages_ledger import FOUND, signed_in_as

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]


@pytest.fixture
def shore(tmp_path: Path) -> Shore:
    """A project with its mirror and queue."""
    return Shore(tmp_path, {"a.txt": lines(1, 2, 3)})


@pytest.fixture
def remote(shore: Shore) -> Remote:
    """A remote that takes what lands."""
    row = Remote(project=shore.project, url="/srv/git/shore.git", landing="push")
    row.save(force_insert=True)
    return row


def test_a_remote_shows_its_address_its_last_error_and_what_it_is_owed(
    client: Client, shore: Shore, remote: Remote
) -> None:
    signed_in_as(client, shore.project, "viewer")
    patch = shore.land({"a.txt": lines(1, 2, 3, 4)})
    push, _new = Push.objects.owe(patch, remote, by=SYSTEM)
    push.hold("the remote went <another> way", by=SYSTEM)
    remote.note_fetch("it does not <answer>", [], by=SYSTEM)

    page = client.get(reverse("ledger:remotes")).text

    assert "/srv/git/shore.git" in page
    assert "it does not &lt;answer&gt;" in page
    assert "the remote went &lt;another&gt; way" in page
    assert patch.commit_sha[:10] in page
    assert "Fetch now" not in page


def test_an_operator_has_a_remote_asked_and_a_viewer_has_not(
    client: Client, shore: Shore, remote: Remote, nudges: list[Any], django_capture_on_commit_callbacks: Any
) -> None:
    signed_in_as(client, shore.project, "viewer")
    assert client.post(reverse("ledger:remote_fetch", args=[remote.pk])).status_code == 403
    signed_in_as(client, shore.project, "operator")
    with django_capture_on_commit_callbacks(execute=True):
        assert client.post(reverse("ledger:remote_fetch", args=[remote.pk])).status_code == 302
    assert ("ledger.landing_tasks.fetch", remote.pk) in nudges


def test_nobody_sees_the_remotes_and_receipts_of_a_project_in_which_they_have_no_part(
    client: Client, shore: Shore, remote: Remote
) -> None:
    receipt = receipts.write(shore.land({"a.txt": lines(1, 2)}))
    assert receipt is not None
    signed_in_as(client, factories.make_project(), "viewer")
    assert "/srv/git/shore.git" not in client.get(reverse("ledger:remotes")).text
    assert receipt.commit_sha[:12] not in client.get(reverse("ledger:receipts")).text
    assert client.get(reverse("ledger:receipt", args=[receipt.pk])).status_code == 404
    assert client.post(reverse("ledger:remote_fetch", args=[remote.pk])).status_code == 404


def test_a_receipt_is_found_from_its_patch_and_the_list_and_says_what_it_knows(client: Client, shore: Shore) -> None:
    signed_in_as(client, shore.project, "viewer")
    patch = shore.land({"a.txt": lines(1, 2)})
    receipt = receipts.write(patch)
    assert receipt is not None
    address = reverse("ledger:receipt", args=[receipt.pk])
    assert address in client.get(reverse("ledger:patch", args=[patch.pk])).text
    assert address in client.get(reverse("ledger:receipts")).text

    page = client.get(address)

    assert page.context["is_intact"]
    assert patch.commit_sha in page.text
    assert "is that of the statement" in page.text


def test_a_receipt_that_somebody_changed_is_said_to_be_broken(client: Client, shore: Shore) -> None:
    signed_in_as(client, shore.project, "viewer")
    receipt = Receipt(project=shore.project, patch=shore.land({"a.txt": "x\n"}), commit_sha="1" * 40)
    receipt.statement, receipt.sha256 = '{"predicate": "<b>no</b>', "0" * 64
    receipt.save(force_insert=True)

    page = client.get(reverse("ledger:receipt", args=[receipt.pk]))

    assert page.status_code == 200
    assert "its digest differs" in page.text
    assert "<b>no</b>" not in page.text


def test_the_queue_says_why_the_machine_makes_it_wait_and_can_be_paused(client: Client, shore: Shore) -> None:
    queue = MergeQueue.objects.get(project=shore.project)
    queue.block("No space left on <device>", by=SYSTEM)
    signed_in_as(client, shore.project, "viewer")
    page = client.get(reverse("ledger:merge_queue")).text
    assert "No space left on &lt;device&gt;" in page
    assert "Pause" not in page
    assert client.post(reverse("ledger:queue_pause", args=[queue.pk])).status_code == 403
    signed_in_as(client, shore.project, "operator")
    client.post(reverse("ledger:queue_pause", args=[queue.pk]), {"reason": "a release"})
    queue.refresh_from_db()
    assert queue.state == "paused"
    client.post(reverse("ledger:queue_resume", args=[queue.pk]))
    queue.refresh_from_db()
    assert queue.state == "running"


def test_the_ticked_patches_are_dropped_and_those_that_refuse_are_named(client: Client, shore: Shore) -> None:
    gone, landed = shore.submit({"b.txt": "b\n"}), shore.land({"a.txt": lines(1)})
    signed_in_as(client, shore.project, "viewer")
    given = {"verb": "drop", "reason": "not wanted", "patch": [gone.pk, landed.pk]}
    assert "patch" not in client.get(reverse("ledger:list")).context["bulk"]
    assert client.post(reverse("ledger:bulk"), given).status_code == 403
    gone.refresh_from_db()
    assert gone.state == "created"

    signed_in_as(client, shore.project, "operator")
    assert 'name="patch"' in client.get(reverse("ledger:list")).text
    page = client.post(reverse("ledger:bulk"), given, follow=True).text

    gone.refresh_from_db()
    landed.refresh_from_db()
    assert (gone.state, landed.state) == ("dropped", "committed")
    assert "1 of 2" in page
    assert landed.pk in page


@pytest.mark.parametrize("given", [{"verb": "explode"}, {}], ids=["unknown", "none"])
def test_an_unknown_verb_for_many_is_a_bad_request(client: Client, shore: Shore, given: dict[str, str]) -> None:
    signed_in_as(client, shore.project, "operator")
    assert client.post(reverse("ledger:bulk"), given).status_code == 400


def test_comments_stand_in_the_diff_below_their_lines(client: Client, shore: Shore) -> None:
    signed_in_as(client, shore.project, "viewer")
    patch = shore.submit({"a.txt": lines(1, "two", 3)})
    patch.note_validation(FOUND, by=SYSTEM)
    ada = factories.make_user()
    anchors = [
        {"path": "a.txt", "first": 1, "last": 2, "body": "Why <b>two</b>?"},
        {"path": "a.txt", "first": 2, "side": "old", "body": "This was right."},
        {"path": "a.txt", "first": 4_000, "body": "Far away."},
    ]
    patch.reviews.give(patch, "comment", by=SYSTEM, reviewer=ada, anchors=anchors)

    rows = client.get(reverse("ledger:patch", args=[patch.pk])).context["files"][0].rows

    kinds = [row.kind for row in rows]
    assert kinds.count("comment") == 2
    said = [place for place, kind in enumerate(kinds) if kind == "comment"]
    assert [kinds[place - 1] for place in said] == ["removed", "added"]
    assert "This was right." in rows[said[0]].html
    assert "Why &lt;b&gt;two&lt;/b&gt;?" in rows[said[1]].html
    assert ada.get_username() in rows[said[1]].html

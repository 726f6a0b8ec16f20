"""Taking a repository into care: a mirror, a project and a queue, all or nothing."""

from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from ledger import git, projects
from ledger.models import MergeQueue
from pipeline.models import Phase, Project
from pipeline.refusals import InvalidField, Refused
from tests.api.asking import Api
from tests.factories import BY, head_of, make_key, make_repository, run_git

pytestmark = pytest.mark.django_db


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit."""
    return make_repository(tmp_path / "My Library.git", {"a.txt": "a\n"})


def mirrors() -> list[Path]:
    """Every mirror there is."""
    return sorted((Path(settings.DATA_DIR) / "mirrors").glob("*.git"))


def test_a_repository_gets_a_mirror_a_project_and_a_queue_at_its_head(repository):
    project = projects.register(str(repository), by=BY)
    queue = MergeQueue.objects.get(project=project)
    assert project.key == "my-library"
    assert (queue.target_branch, queue.head_commit) == (project.default_branch, head_of(project))
    assert git.fsck(project.mirror) == []


@pytest.mark.parametrize(
    "source", ["", "  ", "--upload-pack=touch /tmp/x", "ftp://example.org/x.git", "/nowhere/at/all"]
)
def test_nonsense_is_refused_and_leaves_nothing_behind(source):
    before = mirrors()
    with pytest.raises(Refused):
        projects.register(source, by=BY)
    assert not Project.objects.exists()
    assert mirrors() == before


def test_the_same_key_again_is_refused_and_leaves_no_second_mirror(repository):
    projects.register(str(repository), by=BY, key="one")
    before = mirrors()
    with pytest.raises(InvalidField, match="already exists"):
        projects.register(str(repository), by=BY, key="one")
    assert mirrors() == before


def test_a_branch_that_is_not_there_is_refused_and_leaves_nothing_behind(repository):
    before = mirrors()
    with pytest.raises(Refused):
        projects.register(str(repository), by=BY, branch="nowhere")
    assert not Project.objects.exists()
    assert mirrors() == before


def test_the_command_makes_a_first_phase_and_tells_where_things_are(repository, capsys):
    call_command("addproject", str(repository), "--key", "lib")
    project = Project.objects.get(key="lib")
    assert Phase.objects.get(project=project).key == "work"
    told = capsys.readouterr().out
    assert head_of(project) in told
    assert str(project.mirror) in told


def test_the_command_says_in_one_sentence_what_is_wrong(tmp_path):
    with pytest.raises(CommandError):
        call_command("addproject", str(tmp_path))


def test_the_branch_of_a_project_is_one_that_its_repository_has(repository: Path) -> None:
    run_git(repository, "branch", "side")
    project = projects.register(str(repository), by=BY, key="one")
    api = Api(make_key("admin").text)
    answer = api.patch(f"/projects/{project.key}/", {"default_branch": "nowhere"}, project.version)
    assert (answer.status_code, answer.json()["field"]) == (422, "default_branch")
    assert "it has: main, side" in str(answer.json())
    project.refresh_from_db()
    assert project.default_branch == "main"
    assert api.patch(f"/projects/{project.key}/", {"default_branch": "side"}, project.version).status_code == 200
    project.refresh_from_db()
    assert project.default_branch == "side"

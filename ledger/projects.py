"""Taking a repository into care: a bare mirror of our own, the project's row, and the queue of its branch."""

import re
import shutil
from pathlib import Path
from typing import Any

from django.db import transaction

from ledger import git
from ledger.models import MergeQueue
from pipeline import events
from pipeline.ids import new_id
from pipeline.models import Project
from pipeline.refusals import InvalidField


def key_from(source: str) -> str:
    """A key for the repository at `source`: its last part in lower case, what a key cannot hold as `-`."""
    name = source.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1].removesuffix(".git").lower()
    return re.sub(r"[^a-z0-9._-]+", "-", name).strip("-._")[:64] or "project"


def register(
    source: str, *, by: events.Actor, key: str = "", name: str = "", branch: str | None = None, **fields: Any
) -> Project:
    """Mirror the repository at `source` (a path or URL) and make its project and merge queue, all or nothing.

    Raises Refused `duplicate_key`, InvalidField, GitFailed, UnknownCommit when the branch has no commit.
    """
    if not source.strip():
        raise InvalidField("source", "name the repository: a path, or a file, https or ssh URL")
    path = Path(source).expanduser()
    if path.exists():
        source = str(path.resolve())
    key = key or key_from(source)
    if Project.objects.filter(key=key).exists():
        raise InvalidField("key", f"Project {key} already exists; name another with --key", code="duplicate_key")
    project = Project(pk=new_id())
    project.mirror.parent.mkdir(parents=True, exist_ok=True)
    git.clone_mirror(source, project.mirror, branch=branch)
    try:
        branch = branch or git.default_branch(project.mirror)
        head = git.head(project.mirror, branch)
        with transaction.atomic():
            made = Project.objects.add(
                by=by, pk=project.pk, key=key, name=name or key, repository_url=source, default_branch=branch, **fields
            )
            MergeQueue.objects.open_for(made, branch, head, by=by)
    except Exception:
        shutil.rmtree(project.mirror, ignore_errors=True)
        raise
    return made

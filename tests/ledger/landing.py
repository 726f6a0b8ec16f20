"""Patches that have landed, made quickly for tests about what comes after: real commits, without queue and gates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ledger import git
from ledger.models import Patch
from pipeline.clock import db_now
from pipeline.models import Project
from tests.factories import BY, in_state, make_merge_queue, make_project, make_repository, run_git


def lines(*numbers: int | str) -> str:
    """A text of one line for each of these."""
    return "".join(f"line {number}\n" for number in numbers)


class Shore:
    """A project with its mirror and queue, and a checkout in which changes are made."""

    def __init__(self, folder: Path, files: Mapping[str, str], **fields: Any) -> None:
        repository = make_repository(folder / "repository", files)
        self.project: Project = make_project(repository=repository, **fields)
        make_merge_queue(self.project)
        self.clone = folder / "clone"
        run_git(folder, "clone", "--quiet", str(self.project.mirror), str(self.clone))

    @property
    def mirror(self) -> Path:
        """The mirror's folder."""
        return Path(self.project.mirror)

    @property
    def head(self) -> str:
        """The commit of the branch."""
        return git.head(self.mirror, "main")

    def content(self, path: str, commit: str = "") -> str:
        """What the branch, or a commit, holds in `path`."""
        return run_git(self.mirror, "show", f"{commit or 'main'}:{path}") + "\n"

    def diff(self, files: Mapping[str, str | None]) -> str:
        """The change of the present head that `files` are (None: removed)."""
        run_git(self.clone, "fetch", "--quiet", "origin")
        run_git(self.clone, "reset", "--quiet", "--hard", "origin/main")
        self._write(files)
        run_git(self.clone, "add", "--all")
        run_git(self.clone, "diff", "--cached", "--full-index", f"--output={self.clone.parent}/diff")
        return (self.clone.parent / "diff").read_text()

    def _write(self, files: Mapping[str, str | None]) -> None:
        for name, text in files.items():
            path = self.clone / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                path.unlink()
            else:
                path.write_text(text)

    def submit(self, files: Mapping[str, str | None], **fields: Any) -> Patch:
        """A created patch on the present head."""
        return self.submit_text(self.diff(files), **fields)

    def submit_text(self, diff_text: str, **fields: Any) -> Patch:
        """The same, of a diff."""
        fields.setdefault("by", BY)
        patch, _is_new = Patch.objects.submit(
            project=self.project, diff_text=diff_text, base_commit=self.head, summary="A change", **fields
        )
        return patch

    def land(self, files: Mapping[str, str | None], **fields: Any) -> Patch:
        """A committed patch, whose commit is the head of the branch."""
        return self.land_text(self.diff(files), **fields)

    def land_text(self, diff_text: str, **fields: Any) -> Patch:
        """The same, of a diff."""
        patch = self.submit_text(diff_text, **fields)
        return self._landed(patch, git.apply(self.mirror, patch.base_commit, patch.content.diff_text))

    def _landed(self, patch: Patch, tree: str, **fields: Any) -> Patch:
        parent = self.head
        commit = git.commit(
            self.mirror,
            tree,
            parent,
            f"A change\n\nSignalbox-Patch: {patch.pk}\n",
            author_name="Ada",
            author_email="ada@example.org",
            at=patch.created_at,
        )
        git.move_branch(self.mirror, "main", commit, parent)
        return in_state(
            patch,
            "committed",
            commit_sha=commit,
            tested_parent=parent,
            tested_tree=tree,
            committed_tree=tree,
            committed_at=db_now(),
            **fields,
        )

    def land_from(self, base: str, files: Mapping[str, str | None], *, modes: Mapping[str, int] | None = None) -> Patch:
        """A committed patch of another base than the head, onto which it was carried over. Raises DoesNotApply."""
        run_git(self.clone, "fetch", "--quiet", "origin")
        run_git(self.clone, "reset", "--quiet", "--hard", base)
        self._write(files)
        for name, mode in (modes or {}).items():
            (self.clone / name).chmod(mode)
        run_git(self.clone, "add", "--all")
        run_git(self.clone, "diff", "--cached", "--full-index", f"--output={self.clone.parent}/diff")
        text = (self.clone.parent / "diff").read_text()
        made = git.apply(self.mirror, base, text)
        tree = git.rebase_tree(self.mirror, base, made, self.head)
        patch, _is_new = Patch.objects.submit(
            project=self.project, diff_text=text, base_commit=base, summary="A change", by=BY
        )
        return self._landed(patch, tree, result_tree=made)

    def by_hand(self, files: Mapping[str, str | None]) -> str:
        """Somebody pushes a commit past the queue; its id."""
        self.diff(files)
        run_git(self.clone, "commit", "--quiet", "--message=By hand")
        run_git(self.clone, "push", "--quiet", "origin", "HEAD:main")
        return self.head

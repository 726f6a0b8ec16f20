"""A small house for flows: a real repository with its mirror, gates that are real commands, workers that edit files."""

import tempfile
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from costs.models import CostRecord
from gates.models import Gate, GateRun
from ledger import git, projects
from ledger.models import MergeQueue, Patch
from pipeline import crashpoints, events
from pipeline.clock import db_now
from pipeline.invariants import check_all
from pipeline.models import Phase, Project, Run, Task, Tool, Workstream
from tests.factories import BY, make_repository, make_tool, make_worker, number, run_git
from workers import claims
from workers.models import Lease, Worker

NOT_BROKEN = ["sh", "-c", "if grep -rn BROKEN .; then exit 1; fi"]
"""A gate that is fast: the tree fails when any of its files says BROKEN."""

FILES = {"calc.py": "def add(a, b):\n    return a + b\n", "README.md": "# Calc\n"}


def piece(task_id: str, **fields: Any) -> dict[str, Any]:
    """A task that edits code, and that is tried again at once when something goes wrong."""
    execution = {"retry": {"mode": "none"}, **fields.pop("execution", {})}
    return {"task_id": task_id, "name": f"Do {task_id}", "kind": "code_edit", "execution": execution, **fields}


def chain(*keys: str) -> list[dict[str, Any]]:
    """Tasks that each need the one before."""
    return [piece(key, depends_on=[before] if before else []) for before, key in zip(["", *keys], keys, strict=False)]


class House:
    """A project with a repository, a run of a workstream and a worker; nothing runs but what the test asks for."""

    def __init__(
        self,
        folder: Path,
        tasks: Sequence[Mapping[str, Any]],
        *,
        gates: Mapping[str, Mapping[str, Any]] | None = None,
        files: Mapping[str, str] = FILES,
        **workstream: Any,
    ) -> None:
        self.folder = folder
        self.repository = make_repository(folder / "repository", files)
        self.project: Project = projects.register(str(self.repository), by=BY, key=f"flow-{number()}")
        self.phase: Phase = Phase.objects.add(
            by=BY,
            project=self.project,
            key="work",
            name="Work",
            category="build",
            resource_scope={"type": "files", "write": ["**"], "create": ["**"], "forbidden": ["secret/**"]},
        )
        self.gates: dict[str, Gate] = {
            key: Gate.objects.add(
                by=BY, project=self.project, key=key, name=key, **{"gate_type": "lint", "command": NOT_BROKEN, **gate}
            )
            for key, gate in ({"words": {}} if gates is None else gates).items()
        }
        self.tool: Tool = make_tool(max_parallel=50)
        self.workstream: Workstream = Workstream.objects.add(
            by=BY, phase=self.phase, key="ws", name="Work", objective="Make it better", tasks=list(tasks), **workstream
        )
        self.first_commit = self.head
        self.run: Run = Run.objects.open(by=BY, workstream=self.workstream)
        self.run.start(by=BY)
        self.worker: Worker = make_worker()

    # -- asking ------------------------------------------------------------------------------------------------------

    @property
    def head(self) -> str:
        """The commit of the branch in the mirror."""
        return git.head(self.project.mirror, self.project.default_branch)

    @property
    def queue(self) -> MergeQueue:
        """The queue of the branch."""
        return MergeQueue.objects.get(project=self.project)

    def new_commits(self) -> list[git.Commit]:
        """What landed on the branch since the beginning, oldest first."""
        found = []
        for commit in git.log(self.project.mirror, self.project.default_branch, 100):
            if commit.id == self.first_commit:
                break
            found.append(commit)
        return found[::-1]

    def task(self, key: str) -> Task:
        """The task as it is now."""
        return Task.objects.select_related("run").get(run=self.run, key=key)

    def states(self) -> dict[str, str]:
        """Every task's state."""
        return dict(Task.objects.filter(run=self.run).values_list("key", "state"))

    def patches(self, key: str = "") -> list[Patch]:
        """The patches of the run, or of one task, oldest first."""
        found = Patch.objects.filter(run=self.run).order_by("pk")
        return list(found.filter(task__key=key) if key else found)

    def gate_runs(self) -> list[GateRun]:
        """Every gate run of the project, oldest first."""
        return list(GateRun.objects.filter(project=self.project).order_by("pk"))

    def kinds(self) -> list[str]:
        """The kinds of the run's events, in order."""
        return list(events.Event.objects.filter(run_id=self.run.pk).order_by("seq").values_list("kind", flat=True))

    def costs(self) -> dict[str, tuple[str, str]]:
        """(class, cause) of what each attempt cost, by task key and generation."""
        rows = CostRecord.objects.live().filter(run=self.run).select_related("attempt__task")
        return {f"{r.attempt.task.key}{r.attempt.generation}": (r.landing, r.waste_cause) for r in rows}

    def file(self, path: str) -> str:
        """What the branch holds in `path`."""
        return run_git(self.project.mirror, "show", f"{self.project.default_branch}:{path}")

    # -- doing -------------------------------------------------------------------------------------------------------

    def claim(self, worker: Worker | None = None) -> dict[str, Any]:
        """The next task's document. Fails the test when there is none."""
        document = claims.claim(worker or self.worker)
        assert document is not None, f"nothing to claim: {self.states()}"
        return document

    def edit(self, document: Mapping[str, Any], files: Mapping[str, str | None]) -> str:
        """The diff that an agent would make: a clone of the named commit, with `files` written (None: removed)."""
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            clone = Path(place) / "clone"
            run_git(self.folder, "clone", "--quiet", "--no-checkout", document["checkout"]["url"], str(clone))
            run_git(clone, "checkout", "--quiet", document["checkout"]["commit"])
            for name, text in files.items():
                path = clone / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if text is None:
                    path.unlink()
                else:
                    path.write_text(text)
            run_git(clone, "add", "--all")
            # To a file: what run_git answers has lost its last blank lines.
            run_git(clone, "diff", "--cached", "--full-index", f"--output={place}/diff")
            return (Path(place) / "diff").read_text()

    def submit(self, document: Mapping[str, Any], files: Mapping[str, str | None], **fields: Any) -> Patch:
        """Submit the change that `files` are, in the name of the document's lease."""
        lease = Lease.objects.select_related("worker").get(pk=document["lease"]["id"])
        patch, _is_new = Patch.objects.submit(
            project=self.project,
            diff_text=self.edit(document, files),
            base_commit=document["checkout"]["commit"],
            by=claims.actor(lease.worker, lease.generation),
            summary=f"Work on {document['task']['key']}",
            attempt=lease.attempt,
            worker_id=lease.worker_id,
            **fields,
        )
        return patch

    def report(self, document: Mapping[str, Any], *patches: Patch, amount: str = "1") -> None:
        """Complete the document's lease with `patches`, and a use of `amount`."""
        lease = Lease.objects.select_related("worker").get(pk=document["lease"]["id"])
        claims.complete(
            lease,
            generation=document["lease"]["generation"],
            by=claims.actor(lease.worker, lease.generation),
            exit_code=0,
            patch_ids=[patch.pk for patch in patches],
            usage=[{"resource_type": "custom", "amount": amount, "currency": "USD"}],
        )

    def deliver(self, files: Mapping[str, str | None], *, worker: Worker | None = None) -> Patch:
        """Claim, edit, submit and complete one task; the consequences wait for `drain()`."""
        document = self.claim(worker)
        patch = self.submit(document, files)
        self.report(document, patch)
        return patch

    def work(self, files: Mapping[str, str | None]) -> Patch:
        """`deliver`, and let everything follow from it."""
        patch = self.deliver(files)
        self.drain()
        return patch

    def drain(self) -> None:
        """Let everything follow until it is quiet, and read the run again."""
        events.drain()
        self.run.refresh_from_db()

    def human_commits(self, path: str, text: str) -> str:
        """Somebody pushes a commit to the mirror's branch, past the queue; its id."""
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            clone = Path(place) / "clone"
            run_git(self.folder, "clone", "--quiet", str(self.project.mirror), str(clone))
            (clone / path).write_text(text)
            run_git(clone, "add", "--all")
            run_git(clone, "commit", "--quiet", "--message=By hand")
            run_git(clone, "push", "--quiet", "origin", f"HEAD:{self.project.default_branch}")
            return run_git(clone, "rev-parse", "HEAD")

    # -- what must be true at every end --------------------------------------------------------------------------------

    def must_hold(self) -> None:
        """Every invariant holds, git finds nothing wrong, and each new commit of ours is what its gates tested."""
        broken = [(result.number, result.text, result.violations) for result in check_all() if not result.holds]
        assert broken == []
        assert git.fsck(self.project.mirror) == []
        # What was rolled back stays in the history of the branch, with the reverse that undid it.
        once = Patch.objects.filter(project=self.project, state__in=["committed", "rolled_back"]).exclude(commit_sha="")
        landed = {patch.commit_sha: patch for patch in once}
        ours = [commit for commit in self.new_commits() if "Signalbox-Patch" in commit.message]
        assert [commit.id for commit in ours if commit.id not in landed] == []
        assert len(ours) == len(landed)
        for commit in ours:
            patch = landed[commit.id]
            assert commit.tree == patch.committed_tree == patch.tested_tree
            trees = {run.tree_hash for run in GateRun.objects.filter(patch=patch) if run.verdict == "passed"}
            assert commit.tree in trees


def long_ago(lease: Lease, *columns: str) -> None:
    """Put clocks of a lease into the past: those columns, and whatever must not be later than them."""
    past = db_now() - timedelta(seconds=1)
    Lease.objects.filter(pk=lease.pk).update(**dict.fromkeys(columns, past))


class Died(BaseException):
    """What a death looks like to the process that has to live on: nothing catches it."""


class Deaths:
    """Kills, in this process, whoever passes a crash point."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(crashpoints, "os", self)
        self.number = 0

    def _exit(self, status: int) -> None:
        self.number += 1
        self.disarm()
        raise Died

    def arm(self, name: str) -> None:
        """The next pass of `name` is the end."""
        self.monkeypatch.setattr(crashpoints, "_armed", name)
        self.monkeypatch.setattr(crashpoints, "_left", 1)

    def disarm(self) -> None:
        """Nobody dies any more."""
        self.monkeypatch.setattr(crashpoints, "_armed", "")

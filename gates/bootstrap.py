"""Gates proposed for a project from what its branch holds, and those of them that somebody chose, saved."""

from collections.abc import Collection

from gates import presets
from gates.models import Gate
from ledger import git
from pipeline import events
from pipeline.models import Project
from pipeline.refusals import InvalidField, Refused
from pipeline.rows import in_transaction

MAX_TEXT_BYTES = 1024 * 1024


def proposals(project: Project) -> list[presets.Preset]:
    """What suits the head of the project's branch, without the keys that it has already. Reads the mirror only.

    Raises Refused `repository_missing`, and what git raises when the branch is not there.
    """
    mirror = project.mirror
    if not mirror.exists():
        raise Refused(f"Project {project.key} has no repository here to look at", code="repository_missing")
    tree = git.tree_of(mirror, git.head(mirror, project.default_branch))
    oids = {file.path: file.oid for file in git.files(mirror, tree)}

    def read(path: str) -> str | None:
        raw = git.blob(mirror, oids[path]) if path in oids else b""
        return raw.decode("utf-8", "replace") if len(raw) <= MAX_TEXT_BYTES else None

    taken = set(Gate.objects.filter(project=project).values_list("key", flat=True))
    return [preset for preset in presets.propose(oids.keys(), read) if preset.key not in taken]


def save(project: Project, keys: Collection[str], *, by: events.Actor) -> list[Gate]:
    """Add the gates of these proposals. Raises InvalidField for a key that is not proposed; then none is added."""
    offered = {preset.key: preset for preset in proposals(project)}
    unknown = sorted(set(keys) - offered.keys())
    if unknown:
        raise InvalidField("keys", f"not proposed: {', '.join(unknown)}; proposed are {', '.join(offered) or 'none'}")
    with in_transaction():
        return [Gate.objects.add(by=by, project=project, **offered[key].definition()) for key in dict.fromkeys(keys)]

"""Judges what a patch made of its base: the resulting trees decide, whatever the text said (reliability.md, fact 4)."""

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from ledger import diff as diffs
from ledger import git, literals, policy
from ledger import links as symlinks

CODES = {diffs.LINK_MODE: "symlink_target", "160000": "submodule"}


def judge(repo: git.StrPath, base: str, tree: str, parsed: diffs.Diff, *, links: bool = False) -> list[policy.Finding]:
    """What `tree`, made of the commit `base` by the diff `parsed`, must not hold; empty when all is in order.

    The rules are codes of domain.md §1.10: `symlink_target`, `submodule`, `bad_mode`, those of a path,
    `header_mismatch` where the trees differ by something else than the text says, `case_collision` for a new path
    beside one that some file systems cannot tell from it, wherever in the tree that is. With `links` a symbolic link
    may stand there that leads to a file or folder of the tree, and through no other link. Raises what git raises.
    """
    changes = git.changes(repo, base, tree)
    findings = list(_kinds(changes, links))
    if links:
        findings += _links(repo, tree, [change for change in changes if change.new_mode == diffs.LINK_MODE])
        findings += _between_links(repo, base, tree, changes)
    told = {finding.path for finding in findings}
    for finding in (*policy.check_tree(parsed, changes), *_contents(repo, changes, parsed)):
        if finding.path not in told:
            findings.append(_finding("header_mismatch", finding.path or "", finding.message))
    findings += _collisions(repo, tree, [change.path for change in changes if change.kind == "add"])
    return findings


def judge_merged(repo: git.StrPath, base: str, onto: str, tree: str) -> list[policy.Finding]:
    """What `tree`, in which the change of a patch of the commit `base` was merged onto `onto`, must not hold though
    each of both was in order: `case_collision`, and `symlink_target` for a link that leads to nothing, through another
    link or into a loop. Raises what git raises.
    """
    changes = git.changes(repo, onto, tree)
    findings = list(_links(repo, tree, [change for change in changes if change.new_mode == diffs.LINK_MODE]))
    between = list(_between_links(repo, onto, tree, changes))
    if between:
        # What had stood before the patch was made was judged with it, by the policy of its place.
        stood, now = git.links(repo, base), git.links(repo, tree)
        findings += [one for one in between if one.path and stood.get(one.path) != now[one.path]]
    return findings + list(_collisions(repo, tree, [change.path for change in changes if change.kind == "add"]))


def _kinds(changes: Iterable[git.TreeChange], links: bool) -> Iterator[policy.Finding]:
    """What is no plain file (and no link, where there may be `links`), before or after, and what no tree of ours may
    name.
    """
    allowed = {"", *diffs.PLAIN_MODES, *([diffs.LINK_MODE] if links else [])}
    for change in changes:
        for mode in (change.new_mode, change.old_mode):
            if mode not in allowed:
                code = CODES.get(mode, "bad_mode")
                yield _finding(code, change.path, f"{change.path} is not a plain file: its mode is {mode}")
                break
        else:
            try:
                diffs.judge_path(change.path)
            except diffs.DiffRefused as refusal:
                yield _finding(refusal.code, change.path, str(refusal))


def _links(repo: git.StrPath, tree: str, changes: Iterable[git.TreeChange]) -> Iterator[policy.Finding]:
    """Links that lead out of the tree, to nothing, or through another link; what they lead to is asked of the tree."""
    for change in changes:
        try:
            target = diffs.judge_target(change.path, git.blob(repo, change.new_oid).decode())
        except UnicodeDecodeError:
            yield _finding("symlink_target", change.path, f"{change.path}: its target is not UTF-8")
            continue
        except diffs.DiffRefused as refusal:
            yield _finding("symlink_target", change.path, f"{change.path}: {refusal}")
            continue
        modes = git.modes_on_the_way(repo, tree, target)
        odd = [path for path, mode in modes.items() if mode not in (git.FOLDER_MODE, *diffs.PLAIN_MODES)]
        if odd:
            yield _finding(
                "symlink_target", change.path, f"{change.path} leads through {odd[0]}, which is no plain file"
            )
        elif target not in modes:
            yield _finding("symlink_target", change.path, f"{change.path} leads to {target}, which is not there")


def _between_links(
    repo: git.StrPath, old: str, tree: str, changes: Iterable[git.TreeChange]
) -> Iterator[policy.Finding]:
    """Changed links that lead into a loop, and others whose file or folder the change takes away."""
    changed = {change.path for change in changes if change.new_mode == diffs.LINK_MODE}
    if not changed and all(change.kind != "delete" for change in changes):
        return
    found = git.links(repo, tree)
    for path in symlinks.looping(found, changed):
        yield _finding("symlink_target", path, f"{path} leads into a loop: whoever follows the links comes to no end")
    for path, gone in symlinks.lost(repo, old, tree, {p: t for p, t in found.items() if p not in changed}).items():
        yield _finding("symlink_target", path, f"{path} leads to {gone}, which is taken away")


def _contents(repo: git.StrPath, changes: Iterable[git.TreeChange], parsed: diffs.Diff) -> Iterator[policy.Finding]:
    """Binary files that are not what the text holds: git takes an object that it has by its name alone."""
    made = {change.path: change.new_oid for change in changes}
    for binary in parsed.binaries:
        try:
            old = git.blob(repo, binary.old_oid) if binary.content.is_delta else b""
            name = literals.object_name(binary.content.made_from(old), len(binary.new_oid))
        except (literals.Malformed, git.UnknownCommit) as error:
            yield _finding("header_mismatch", binary.path, f"{binary.path}: {error}")
            continue
        if not name == binary.new_oid == made.get(binary.path, name):
            yield _finding("header_mismatch", binary.path, f"{binary.path}: its content is not the one of its name")


def _collisions(repo: git.StrPath, tree: str, added: list[str]) -> Iterator[policy.Finding]:
    """New paths of which a part differs from its neighbour in case or in Unicode's form only."""
    folders = sorted({str(parent) for path in added for parent in PurePosixPath(path).parents})
    if not folders:
        return
    names = git.names_in(repo, tree, ["" if folder == "." else folder for folder in folders])
    spelled = {folder: _by_fold(found) for folder, found in names.items()}
    for path in added:
        parts = path.split("/")
        for depth, part in enumerate(parts):
            for other in spelled["/".join(parts[:depth])].get(diffs.folded(part), ()):
                if other != part:
                    message = f"{path} differs from {'/'.join([*parts[:depth], other])} in case or form only"
                    yield _finding("case_collision", path, message)


def _by_fold(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(diffs.folded(name), []).append(name)
    return found


def _finding(code: str, path: str, message: str) -> policy.Finding:
    return policy.Finding(code, policy.BUILT_IN_LAYER, path, None, None, message)

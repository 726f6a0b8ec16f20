"""From a diff to a commit: apply, what differs between two trees, carry over to another base, commit."""

import hashlib
import re
import zlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from ledger.git.names import COMMITTER_EMAIL, COMMITTER_NAME, UnknownCommit, object_id
from ledger.git.objects import knows, tree_of, trees_of
from ledger.git.running import (
    MEMORY_BYTES,
    GitFailed,
    OutOfProcessorTime,
    StrPath,
    complaint,
    decoded,
    run,
    tail,
    temporary,
)  # fmt: skip
from pipeline.refusals import Refused

Kind = Literal["add", "change", "delete"]

_OFFSET = re.compile(rb"^Hunk #\d+ succeeded at \d+ \(offset -?\d+ lines?\)|^Context reduced to ", re.MULTILINE)
_MIRROR_AT_FAULT = re.compile(
    rb"^(?:error|fatal): (?:failed to read |unable to (?:read|write|create|find) |cannot read |loose object "
    rb"|object file |packfile "
    rb"|.*(?:No space left on device|Input/output error|[Oo]ut of memory|malloc|insufficient permission))",
    re.MULTILINE,
)
_PATCH_AT_FAULT = re.compile(
    rb"patch does not apply|already exists|does not exist|does not match index|corrupt patch|No valid patches"
    rb"|patch failed|unrecognized input|invalid path|beyond a symbolic link|lacks filename information"
    rb"|inconsistent|wrong type|depends on old contents|patch fragment without header|removal patch leaves"
    rb"|cannot apply binary patch|patch with only garbage|unexpected end of file|has type \d+, expected"
    rb"|invalid mode|does not match old mode|No changes|still has contents|is not valid|git apply: bad git-diff"
    rb"|creates incorrect result|not match the current contents|but it is not empty|missing binary patch data"
    rb"|appears as both a file and as a directory|unable to add cache entry"
    rb"|binary patch does not apply|corrupt binary patch|unrecognized binary patch"
)
_NO_ROOM = re.compile(rb"[Oo]ut of memory")
_THROUGH_LINK = re.compile(rb"beyond a symbolic link")


class DoesNotApply(Refused):
    """The change does not fit: context differs, a hunk needs an offset, a path is in the way.

    `paths` are those in conflict, when git names them. Of another code are what would be written through a link
    (symlink_target), and what takes more memory or processor time than a patch may (patch_too_large).
    """

    code = "stale_base"

    def __init__(self, message: str, *, paths: tuple[str, ...] = (), code: str | None = None) -> None:
        super().__init__(message, code=code, paths=list(paths))
        self.paths = paths


@dataclass(frozen=True)
class TreeChange:
    """One path that differs between two trees. Modes are six octal digits; mode and id are "" on the absent side."""

    path: str
    kind: Kind
    old_mode: str
    new_mode: str
    old_oid: str
    new_oid: str


def patch_id(diff_text: str) -> str:
    """What names the change itself, wherever its lines stand (git-patch-id(1), --stable): 40 hexadecimal digits.

    "" for a text in which git sees no change. No repository is asked, so that all have names of the same kind.
    """
    raw = diff_text.encode("utf-8", "surrogateescape")
    done = run("/", "patch-id", "--stable", git_dir=False, stdin=raw)
    return decoded(done.stdout).partition(" ")[0]


def apply(repo: StrPath, base_commit: str, diff_text: str) -> str:
    """The tree that `diff_text` makes of `base_commit`; neither a branch nor a checkout is touched.

    Every hunk must fit at its own line: raises DoesNotApply for differing context and for any offset. The text is
    judged by git alone here; `ledger.diff` reads it before, and `changes` of the result is what a policy judges.
    Raises UnknownCommit for the base.
    """
    with temporary(repo) as place:
        index = {"GIT_INDEX_FILE": str(place / "index")}
        read = run(repo, "read-tree", object_id(base_commit), env=index, allowed=(0, 128))
        if read.returncode:
            tree_of(repo, base_commit)  # says so when there is no such base
            raise GitFailed("git read-tree failed", stderr=tail(read.stderr))
        try:
            done = run(
                repo,
                *("apply", "--cached", "--verbose", "--whitespace=nowarn", "-"),
                env=index,
                stdin=diff_text.encode("utf-8", "surrogateescape"),
                allowed=(0, 1, 128),
            )
        except OutOfProcessorTime as error:
            raise DoesNotApply(f"The patch takes too long to apply: {error}", code="patch_too_large") from error
        if done.returncode:
            if _NO_ROOM.search(done.stderr):
                message = f"The patch takes more than {MEMORY_BYTES} bytes of memory to apply"
                raise DoesNotApply(message, code="patch_too_large")
            if _MIRROR_AT_FAULT.search(done.stderr) or not _PATCH_AT_FAULT.search(done.stderr):
                raise GitFailed("git apply failed", stderr=tail(done.stderr))
            code = "symlink_target" if _THROUGH_LINK.search(done.stderr) else None
            raise DoesNotApply(f"The patch does not apply: {complaint(done.stderr)}", code=code)
        if found := _OFFSET.search(done.stderr):
            raise DoesNotApply(f"The patch does not apply where it says: {decoded(found.group()).strip()}")
        return decoded(run(repo, "write-tree", env=index).stdout).strip()


_RAW = ("diff-tree", "-r", "--raw", "-z", "--no-renames", "--no-abbrev")


def changes(repo: StrPath, old_tree: str, new_tree: str) -> list[TreeChange]:
    """Every path that differs between two trees (or commits), in byte order; a change of type is a `change`.

    Source: `git diff-tree --raw -z` (git-diff(1), "raw output format"), renames never guessed.
    Raises UnknownCommit when the mirror lacks one of them.
    """
    return _read_changes(decoded(_of_trees(repo, *_RAW, old_tree, new_tree)).split("\0")[:-1])


def _changes_of_pairs(repo: StrPath, *pairs: tuple[str, str]) -> list[list[TreeChange]]:
    """What `changes` answers for each pair of trees, asked for at once. The mirror holds all of them."""
    asked = "".join(f"{object_id(old)} {object_id(new)}\n" for old, new in pairs)
    said = decoded(run(repo, *_RAW, "--stdin", stdin=asked.encode()).stdout)
    found: list[list[str]] = []
    fields = iter(said.split("\0"))
    for field in fields:
        # A line with the two names goes before each pair's records, in the same field as the first of them.
        *heads, facts = field.split("\n")
        found += [[] for _head in heads]
        if facts:
            found[-1] += [facts, next(fields)]
    if len(found) != len(pairs):
        raise GitFailed("git diff-tree answered another question", stderr=said[:200])
    return [_read_changes(fields) for fields in found]


def _read_changes(fields: list[str]) -> list[TreeChange]:
    kinds: dict[str, Kind] = {"A": "add", "D": "delete"}
    found = []
    for facts, path in zip(fields[::2], fields[1::2], strict=True):
        old_mode, new_mode, old_oid, new_oid, letter = facts[1:].split(" ")
        kind = kinds.get(letter, "change")
        if kind == "add":
            old_mode = old_oid = ""
        elif kind == "delete":
            new_mode = new_oid = ""
        found.append(TreeChange(path, kind, old_mode, new_mode, old_oid, new_oid))
    return found


_TEXT = (
    *("diff-tree", "-r", "-p", "--full-index", "--binary", "--no-color", "--no-ext-diff", "--no-textconv"),
    *("--unified=3", "--src-prefix=a/", "--dst-prefix=b/"),
)
_MOVES: tuple[str, ...] = ("--find-renames=50%", "-l200")  # more files are compared by their whole content only
_FILE = re.compile(r"^(?=diff --git )", re.MULTILINE)
_LINK_MODE = "120000"


def diff_text(repo: StrPath, old: str, new: str) -> str:
    """The difference between two trees or commits as `ledger.diff` reads it: full index, binary literals, no renames.

    Bytes that are no UTF-8 become lone surrogates, which `apply` turns back. Raises UnknownCommit.
    """
    return decoded(_of_trees(repo, *_TEXT, "--no-renames", old, new))


def short_diff_text(repo: StrPath, old: str, new: str, longest_line: int) -> str:
    """The same difference in as few words as `ledger.diff` takes: files that moved are renamed (a symbolic link is not,
    since that hides what it leads to), and a file that no diff can show as text (other bytes than UTF-8, NUL, a line of
    more than `longest_line` bytes) is written as a binary one. Raises UnknownCommit.
    """
    moves = _MOVES
    found = decoded(_of_trees(repo, *_TEXT, *moves, old, new))
    if "\nrename from " in found and _moves_links(changes(repo, old, new)):
        moves = ("--no-renames",)
        found = decoded(_of_trees(repo, *_TEXT, *moves, old, new))
    files = _FILE.split(found)
    odd = [place for place, file in enumerate(files) if not _is_plain_text(file, longest_line)]
    if not odd:
        return found
    with temporary(repo) as folder:
        attributes = folder / "attributes"
        attributes.write_text("* -diff\n")
        as_binary = ("-c", f"core.attributesFile={attributes}")
        binary = _FILE.split(decoded(_of_trees(repo, *as_binary, *_TEXT, *moves, old, new)))
    # What is a move may be decided otherwise for binary files, though hardly ever.
    if [_first_line(file) for file in files] != [_first_line(file) for file in binary]:
        return "".join(binary)
    return "".join(binary[place] if place in odd else file for place, file in enumerate(files))


def _moves_links(found: list[TreeChange]) -> bool:
    gone = any(change.kind == "delete" and change.old_mode == _LINK_MODE for change in found)
    return gone and any(change.kind == "add" and change.new_mode == _LINK_MODE for change in found)


def _is_plain_text(file: str, longest_line: int) -> bool:
    raw = file.encode("utf-8", "surrogateescape")
    if "\0" in file or (len(raw) > longest_line and any(len(line) > longest_line for line in raw.split(b"\n"))):
        return False
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _of_trees(repo: StrPath, *arguments: str) -> bytes:
    """Output of a command whose last two arguments are tree-ish object names."""
    for name in arguments[-2:]:
        object_id(name)
    done = run(repo, *arguments, "--", allowed=(0, 128))
    if done.returncode:
        for name in arguments[-2:]:
            tree_of(repo, name)
        raise GitFailed("git diff-tree failed", stderr=tail(done.stderr))
    return done.stdout


def rebase_tree(repo: StrPath, base_commit: str, tree: str, onto_commit: str) -> str:
    """The tree of `onto_commit` with the change that leads from `base_commit` to `tree`.

    A three-way merge of exactly these three trees, whatever the history between them is. No path changes that the
    change itself did not touch. Raises DoesNotApply with the paths in conflict, UnknownCommit.
    """
    # Asked for also when they are trees already: merge-tree takes one that is missing for an empty one.
    base_tree, tree, onto_tree = trees_of(repo, base_commit, tree, onto_commit)
    if base_tree == onto_tree:
        return tree
    with temporary(repo) as folder:
        ours, theirs = _made_for_merging(folder, base_tree, onto_tree, tree)
        options = ("--write-tree", "--name-only", "--no-messages", "-z")
        beside = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(folder)}
        done = run(repo, "merge-tree", *options, ours, theirs, env=beside, allowed=(0, 1))
    merged, *paths = decoded(done.stdout).rstrip("\0").split("\0")
    if done.returncode:
        names = tuple(dict.fromkeys(path for path in paths if path))
        raise DoesNotApply(f"Conflict with what landed before in {', '.join(names)}", paths=names)
    # git 2.39's merge-tree follows renames whatever it is told, and could so carry an edit into a path that nobody
    # judged: the file that what landed before has moved elsewhere.
    asked, made = _changes_of_pairs(repo, (base_tree, tree), (onto_tree, merged))
    touched = {change.path for change in asked}
    strays = tuple(change.path for change in made if change.path not in touched)
    if strays:
        raise DoesNotApply(f"What landed before moved the edited lines to {', '.join(strays)}", paths=strays)
    return merged


def _made_for_merging(folder: Path, base_tree: str, *trees: str) -> list[str]:
    """A commit for each of `trees`, all on one commit of `base_tree`, as loose objects of the object folder `folder`.

    git 2.39's merge-tree takes commits and finds their merge base itself; with commits made for the purpose the base
    is the one asked for, also when the true one is no ancestor of the other. They are read once, by the git to which
    the folder is shown, so they are neither in the mirror nor on disk for good. The form is that of git's own loose
    objects (gitformat-pack(5) is silent, "Git Internals" 10.2 is not): zlib of type, size, NUL and content.
    """
    person = f"{COMMITTER_NAME} <{COMMITTER_EMAIL}> 0 +0000"
    people = f"author {person}\ncommitter {person}\n\nmerge\n"
    algorithm = hashlib.sha256 if len(base_tree) == 64 else hashlib.sha1

    def write(text: str) -> str:
        raw = text.encode()
        whole = b"commit %d\0%s" % (len(raw), raw)
        name = algorithm(whole).hexdigest()
        (folder / name[:2]).mkdir(exist_ok=True)
        (folder / name[:2] / name[2:]).write_bytes(zlib.compress(whole, 1))
        return name

    root = write(f"tree {base_tree}\n{people}")
    return [write(f"tree {tree}\nparent {root}\n{people}") for tree in trees]


def commit(
    repo: StrPath, tree: str, parent: str, message: str, *, author_name: str, author_email: str, at: datetime
) -> str:
    """The commit of `tree` on `parent`: author as given, committer the product, both at `at` (aware) in whole seconds.

    The same input gives the same commit; no branch moves. Control characters and angle brackets in the author become
    blanks (an empty name becomes "unknown"). Raises UnknownCommit for the tree or the parent, ValueError for a naive
    time, an empty message, or one with a NUL.
    """
    if at.tzinfo is None:
        raise ValueError("a commit needs an aware time")
    if not message.strip() or "\0" in message:
        raise ValueError("a commit needs a message without NUL")
    when = f"@{int(at.timestamp())} +0000"
    people = {
        "GIT_AUTHOR_NAME": _person(author_name),
        "GIT_AUTHOR_EMAIL": _person(author_email),
        "GIT_AUTHOR_DATE": when,
        "GIT_COMMITTER_NAME": COMMITTER_NAME,
        "GIT_COMMITTER_EMAIL": COMMITTER_EMAIL,
        "GIT_COMMITTER_DATE": when,
    }
    arguments = ("-p", object_id(parent), "-F", "-")
    text = message.encode("utf-8", "replace")
    done = run(repo, "commit-tree", object_id(tree), *arguments, env=people, stdin=text, allowed=(0, 1, 128))
    if done.returncode:
        # git checks both names itself; which of them it does not know is asked only then.
        if not knows(repo, parent):
            raise UnknownCommit(f"No commit {parent} in the mirror")
        tree_of(repo, tree)
        raise GitFailed("git commit-tree failed", stderr=tail(done.stderr))
    return decoded(done.stdout).strip()


def _person(text: str) -> str:
    """`text` as git can hold it in a person's line; git itself would drop such characters silently."""
    cleaned = "".join(" " if not character.isprintable() or character in "<>" else character for character in text)
    return " ".join(cleaned.split()).strip(" .,:;\"'\\") or "unknown"

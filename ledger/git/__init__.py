"""The one place that runs git: on mirrors that belong to Signalbox, with nobody's configuration, in bounds of time.

Values go in and values come out; object names are full lower-case hexadecimal (SHA-1 or SHA-256), branches are short
names such as `main`, paths are POSIX and decoded as UTF-8 with `surrogateescape`. Nothing here reads a user's checkout
or writes outside the mirror, except `export`, into the folder it is given.

Every function raises `GitFailed` when git cannot do its work (disk, memory, damaged mirror, network) and `TimedOut`
when it took too long; the other errors are named where they can occur.

The rooms: `running` (one git in its bounds), `names`, `objects` (looking), `branches` (where they stand and how they
move), `changing` (from a diff to a commit), `mirrors` (as a whole), `chains` (commits of our own beside any branch).
Two are entered by their own name, since few need them: `commit_notes` (receipts on commits) and `remotes` (one fetch
or push with a credential that shows nowhere).
"""

from ledger.git.branches import (
    BranchMoved,
    Commit,
    branches_below,
    contains,
    default_branch,
    head,
    is_ancestor,
    landed,
    log,
    move_branch,
    set_branch_aside,
)
from ledger.git.chains import (
    add_note,
    move_note,
    note_head,
    notes,
)
from ledger.git.changing import (
    DoesNotApply,
    TreeChange,
    apply,
    changes,
    commit,
    diff_text,
    patch_id,
    rebase_tree,
    short_diff_text,
)
from ledger.git.mirrors import (
    STALE_LOCK,
    Fetched,
    clone_mirror,
    export,
    fetch,
    fsck,
    init,
    pack,
    push,
    sweep_locks,
)
from ledger.git.names import (
    COMMITTER_EMAIL,
    COMMITTER_NAME,
    PATCH_TRAILER,
    UnknownCommit,
)
from ledger.git.objects import (
    FOLDER_MODE,
    TreeFile,
    blob,
    files,
    knows,
    links,
    missing,
    modes_on_the_way,
    names_in,
    note_file,
    tree_of,
    tree_of_commit,
)
from ledger.git.running import (
    MEMORY_BYTES,
    NETWORK_MEMORY_BYTES,
    NETWORK_SECONDS,
    SECONDS,
    TEMPORARY,
    GitFailed,
    OutOfProcessorTime,
    StrPath,
    TimedOut,
    run,
    set_limits,
)

__all__ = [
    "COMMITTER_EMAIL",
    "COMMITTER_NAME",
    "FOLDER_MODE",
    "MEMORY_BYTES",
    "NETWORK_MEMORY_BYTES",
    "NETWORK_SECONDS",
    "PATCH_TRAILER",
    "SECONDS",
    "STALE_LOCK",
    "TEMPORARY",
    "BranchMoved",
    "Commit",
    "DoesNotApply",
    "Fetched",
    "GitFailed",
    "OutOfProcessorTime",
    "StrPath",
    "TimedOut",
    "TreeChange",
    "TreeFile",
    "UnknownCommit",
    "add_note",
    "apply",
    "blob",
    "branches_below",
    "changes",
    "clone_mirror",
    "commit",
    "contains",
    "default_branch",
    "diff_text",
    "export",
    "fetch",
    "files",
    "fsck",
    "head",
    "init",
    "is_ancestor",
    "knows",
    "landed",
    "links",
    "log",
    "missing",
    "modes_on_the_way",
    "move_branch",
    "move_note",
    "names_in",
    "note_file",
    "note_head",
    "notes",
    "pack",
    "patch_id",
    "push",
    "rebase_tree",
    "run",
    "set_branch_aside",
    "set_limits",
    "short_diff_text",
    "sweep_locks",
    "tree_of",
    "tree_of_commit",
]

"""What may name an object, a branch or a source, and who we are in a commit."""

import os
import re
from urllib.parse import urlsplit

from pipeline.refusals import InvalidField, Refused

COMMITTER_NAME = "Signalbox"
COMMITTER_EMAIL = "signalbox@signalbox.invalid"  # RFC 2606: never somebody's address
PATCH_TRAILER = "Signalbox-Patch"
NOTES = "refs/notes/signalbox"
"""Where receipts hang on their commits."""
ASIDE = "refs/signalbox/aside/"
"""What keeps a commit whose branch was set aside, by its name."""

_OBJECT_ID = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")
_BRANCH_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|\Z)")
_SCP_LIKE = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)[A-Za-z0-9][A-Za-z0-9.-]*:(?!:)[^-\s][^\s]*\Z")


class UnknownCommit(Refused):
    """The mirror has no such commit, tree or branch, or the name is not a full object name."""

    code = "stale_base"


def is_object_id(name: str) -> bool:
    """Whether `name` is a full object name: lower-case hexadecimal of SHA-1 or SHA-256."""
    return _OBJECT_ID.match(name) is not None


def object_id(name: str) -> str:
    """`name`, when it is a full object name. Raises UnknownCommit for anything else."""
    if not is_object_id(name):
        raise UnknownCommit(f"Not a full object name: {name[:80]!r}")
    return name


def branch_name(name: str) -> str:
    """`name` if it may be a branch (git-check-ref-format(1), without shorthands); raises InvalidField."""
    if (
        not name
        or len(name.encode("utf-8", "replace")) > 255
        or name == "@"
        or name == "HEAD"
        or name[0] in "-./"
        or name[-1] in "./"
        or _BRANCH_FORBIDDEN.search(name)
        or not name.isprintable()
    ):
        raise InvalidField("branch", f"not a branch name: {name[:80]!r}")
    return name


def protocol_of(source: str) -> str:
    """Which of git's protocols `source` needs: `file`, `https` or `ssh`; raises InvalidField for any other."""
    if not source or source.startswith("-") or not source.isprintable():
        raise InvalidField("source", "not a repository path or URL")
    if "://" not in source:
        if _SCP_LIKE.match(source) and not os.path.exists(source):
            return "ssh"
        if re.match(r"[A-Za-z0-9+.-]+::", source):
            raise InvalidField("source", "a remote helper is not accepted")
        return "file"
    try:
        parts = urlsplit(source)
        host, password = parts.hostname or "", parts.password
    except ValueError as error:
        raise InvalidField("source", "not a repository path or URL") from error
    if parts.scheme not in {"file", "https", "ssh"}:
        raise InvalidField("source", "must be a path, or a file, https or ssh URL")
    if password is not None:
        raise InvalidField("source", "must not hold a password")
    if parts.scheme != "file" and (not host or host.startswith("-") or (parts.username or "").startswith("-")):
        raise InvalidField("source", "not a repository path or URL")
    return parts.scheme

"""What git does with a remote: which addresses may be used, and one fetch or push with a credential that shows nowhere.

The secret travels in the environment of one git process, as a header for exactly one host (git-config(1),
`http.<url>.extraHeader` by `GIT_CONFIG_COUNT`): neither its arguments, nor the mirror's configuration, nor what it says
hold it. Redirects are not followed, and the host's name is looked up once, judged and pinned.
"""

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from django.conf import settings

from ledger.git.branches import branches_below, is_ancestor
from ledger.git.chains import note_head
from ledger.git.names import NOTES, UnknownCommit
from ledger.git.objects import knows
from ledger.git.running import Done, GitFailed, decoded, run, tail
from pipeline import egress
from pipeline.refusals import InvalidField, Refused

PROTOCOLS = ("file", "https", "ssh")
INCOMING = "refs/remotes/origin/"


class RemoteRefused(Refused):
    """The remote does not take the push because its branch holds something that ours does not."""

    code = "remote_diverged"


@dataclass(frozen=True)
class Address:
    """A remote's address taken apart: git's protocol, and for https and ssh the host and port it goes to."""

    url: str
    protocol: str
    host: str = ""
    port: int = 0


def check_address(url: str) -> Address:
    """The parts of an address that may be used; names are not looked up here.

    Raises InvalidField for what is no address, holds a password, is no file, https or ssh address, or is of a kind
    that SIGNALBOX_REMOTE_PROTOCOLS does not allow; AddressRefused for an internal one written in numbers.
    """
    if not url or url.startswith("-") or not url.isprintable() or "::" in url.split("/")[0].partition("[")[0]:
        raise InvalidField("url", "a path, or a file, https or ssh address")
    if "://" not in url:
        user, at, rest = url.partition("@")
        host, colon, _path = rest.partition(":")
        if at and colon and "/" not in user + host and not os.path.exists(url):
            address = Address(url, "ssh", host, 22)
        elif os.path.isabs(url):
            address = Address(url, "file")
        else:
            raise InvalidField("url", "a path begins with /, an address with file://, https:// or ssh://")
    else:
        address = _by_url(url)
    allowed = settings.SIGNALBOX_REMOTE_PROTOCOLS
    if address.protocol not in allowed:
        raise InvalidField("url", f"{address.protocol} is not allowed here; allowed: {', '.join(allowed) or 'none'}")
    if address.host:
        if address.host.startswith("-"):
            raise InvalidField("url", "no host begins with a dash")
        literal = egress.literal_address(address.host)
        if literal is not None:
            egress.refuse_internal(literal)
    return address


def _by_url(url: str) -> Address:
    try:
        parts = urlsplit(url)
        port, host, user = parts.port, parts.hostname or "", parts.username or ""
    except ValueError as problem:
        raise InvalidField("url", f"this is no address: {problem}") from problem
    if parts.scheme not in PROTOCOLS:
        raise InvalidField("url", "must be a path, or a file, https or ssh address")
    if parts.password is not None:
        raise InvalidField("url", "must not hold a password: name a credential")
    if parts.scheme == "file":
        return Address(url, "file")
    if not host or user.startswith("-") or (parts.scheme == "https" and user):
        raise InvalidField("url", "names a host, and https no user: that stands in `username`")
    return Address(url, parts.scheme, host, port or {"https": 443, "ssh": 22}[parts.scheme])


def environment(address: Address, username: str, secret: str) -> dict[str, str]:
    """The variables of one git process that speaks to `address`. Looks the host up, once.

    Raises AddressRefused when it lies inside (SIGNALBOX_WEBHOOK_ALLOW_NETS lists what may), GitFailed when it is
    unknown.
    """
    if address.protocol == "file":
        return {}
    try:
        found = egress.addresses_of(address.host, address.port)
    except (egress.Unreachable, egress.TimedOut) as problem:
        raise GitFailed(f"{address.host} cannot be reached", stderr=str(problem)) from problem
    if address.protocol != "https":
        return {}
    numbers = ",".join(f"[{one}]" if one.version == 6 else str(one) for one in found)
    config = [
        ("http.followRedirects", "false"),
        ("http.curloptResolve", f"{address.host}:{address.port}:{numbers}"),
        ("http.userAgent", "signalbox"),
    ]
    if secret:
        basic = base64.b64encode(f"{username}:{secret}".encode()).decode()
        host = f"[{address.host}]" if ":" in address.host else address.host
        config.append((f"http.https://{host}:{address.port}/.extraHeader", f"Authorization: Basic {basic}"))
    variables = {"GIT_CONFIG_COUNT": str(len(config))}
    for number, (key, value) in enumerate(config):
        variables |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    if authorities := settings.SIGNALBOX_REMOTE_CA_FILE:
        variables["GIT_SSL_CAINFO"] = str(authorities)
    return variables


class Taken(NamedTuple):
    """The remote's branches as they are in the mirror now, {branch: commit}; and {ref: what git says} of those that
    could not be taken, such as one whose file is locked.
    """

    branches: dict[str, str]
    missed: dict[str, str]


def fetch(repo: Path, address: Address, *, username: str = "", secret: str = "") -> Taken:
    """Take the remote's branches and tags into the mirror; no branch of ours moves.

    Raises GitFailed, AddressRefused, when the remote cannot be asked; one ref that cannot be written keeps no other.
    """
    arguments = ["fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"]
    arguments += _upload_pack(address)
    refspecs = (f"+refs/heads/*:{INCOMING}*", "+refs/tags/*:refs/tags/*")
    done = _talk(repo, address, username, secret, *arguments, "--", address.url, *refspecs, allowed=(0, 1))
    held = branches_below(repo, INCOMING)
    if done.returncode == 0:
        return Taken(held, {})
    why = tail(_scrubbed(done.stderr.decode("utf-8", "replace"), secret).encode()) or "git could not write it"
    there = _branches_of(repo, address, "refs/heads/*", username, secret)
    missed = {branch: why for branch, commit in there.items() if held.get(branch) != commit}
    return Taken({branch: held[branch] for branch in there if branch not in missed}, missed or {"refs/tags/*": why})


def push(repo: Path, address: Address, commit: str, branch: str, *, username: str = "", secret: str = "") -> None:
    """Give the remote `commit` as its `branch`, forward only.

    Raises RemoteRefused when that would lose commits of the remote's, GitFailed for everything else.
    """
    if not knows(repo, commit):
        raise UnknownCommit(f"No commit {commit} in the mirror")
    said = _give(repo, address, f"{commit}:refs/heads/{branch}", username, secret)
    if not said:
        return
    # A push that came in the middle of ours: each host has its own words for that, so the branch is asked.
    if _is_behind(said) or (
        "[remote rejected]" in said and _is_beside(repo, address, commit, branch, username, secret)
    ):
        raise RemoteRefused(f"Branch {branch} of the remote holds commits that ours does not")
    raise GitFailed("git push was refused", stderr=said)


def push_receipts(repo: Path, address: Address, *, username: str = "", secret: str = "") -> None:
    """Give the remote the notes of this mirror, forward only; nothing while there are none.

    Raises RemoteRefused when the remote's notes hold what ours do not, GitFailed for everything else.
    """
    if note_head(repo, NOTES) is None:
        return
    if said := _give(repo, address, f"{NOTES}:{NOTES}", username, secret):
        if _is_behind(said):
            raise RemoteRefused(f"{NOTES} of the remote holds commits that ours does not")
        raise GitFailed("git push was refused", stderr=said)


def _give(repo: Path, address: Address, refspec: str, username: str, secret: str) -> str:
    """One push; what git said when it was refused, else ""."""
    arguments = ["push", "--porcelain", "--no-verify"]
    if address.protocol == "file":
        # Its hooks and automatic maintenance would run as our user, for whoever can write there.
        arguments.append("--receive-pack=git -c safe.directory=* -c core.hooksPath=/dev/null -c gc.auto=0 receive-pack")
    done = _talk(repo, address, username, secret, *arguments, "--", address.url, refspec, allowed=(0, 1))
    if not done.returncode:
        return ""
    said = done.stdout.decode("utf-8", "replace") + done.stderr.decode("utf-8", "replace")
    return _scrubbed(said, secret)[-2000:] or "it does not say why"


def _is_behind(said: str) -> bool:
    """Whether git says so of the ref that was to be pushed."""
    return any(words in said for words in ("(non-fast-forward)", "(fetch first)", "(stale info)"))


def _is_beside(repo: Path, address: Address, commit: str, branch: str, username: str, secret: str) -> bool:
    """Whether the remote's branch is by now at a commit that `commit` does not hold."""
    tip = _branches_of(repo, address, f"refs/heads/{branch}", username, secret).get(branch, "")
    return bool(tip) and not (knows(repo, tip) and is_ancestor(repo, tip, commit))


def _branches_of(repo: Path, address: Address, pattern: str, username: str, secret: str) -> dict[str, str]:
    """{branch: commit} of the remote's branches of that pattern, as the remote says."""
    arguments = ["ls-remote", *_upload_pack(address), "--", address.url, pattern]
    said = decoded(_talk(repo, address, username, secret, *arguments).stdout)
    pairs = (line.split("\t", 1) for line in said.splitlines())
    return {ref.removeprefix("refs/heads/"): commit for commit, ref in pairs if ref.startswith("refs/heads/")}


def _upload_pack(address: Address) -> list[str]:
    """The operator named a folder, which may belong to another user; see `git.clone_mirror`."""
    return ["--upload-pack=git -c safe.directory=* upload-pack"] if address.protocol == "file" else []


def _talk(
    repo: Path, address: Address, username: str, secret: str, *arguments: str, allowed: tuple[int, ...] = (0,)
) -> Done:
    """One git command that speaks to the remote; what it says never holds the secret."""
    variables = environment(address, username, secret)
    try:
        return run(repo, *arguments, env=variables, allowed=allowed, protocol=address.protocol)
    except GitFailed as problem:
        said = _scrubbed(problem.stderr, secret)
        # Without its cause: that one still holds what git said.
        raise type(problem)(f"{address.host or 'the remote'} did not answer as it has to", stderr=said) from None


def _scrubbed(said: str, secret: str) -> str:
    """`said` without the secret in any of the forms in which it travels."""
    if not secret:
        return said.strip()
    for form in (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode()):
        said = said.replace(form, "…")
    return said.strip()

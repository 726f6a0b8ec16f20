"""A fresh folder for one attempt: the checkout that the tool changes, and the diff that it is judged by.

Two git directories: the tool's own in `tree/.git`, which it may do with as it likes, and `base.git`, which only the
agent uses. The diff is taken with the second one, so that no configuration, hook, filter or commit of the tool
has a say in it.
"""

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from workers.agent import clock
from workers.agent.claim import Checkout
from workers.agent.client import is_loopback

DIFF_BYTES = 4 * 1024 * 1024
"""A larger diff is not read: the server takes 2 MiB (reliability.md 2a, case 21)."""
GIT_SECONDS = 900.0
HISTORY_DEPTH = 50
"""How many commits of history a tool finds; the whole of a large repository costs minutes."""
FETCHES = 3
"""How often a fetch over the network is tried: a server that starts anew is back within seconds."""
PAUSE_SECONDS = 1.0
"""Before the second try; each further pause is twice as long."""

_ERROR_BYTES = 2000

# What the repository's own .gitattributes says about content is set aside, so that every byte that the tool wrote is in
# the diff as it was written, and a checkout holds the bytes of the commit: no filter, no line ends, no encoding.
_ATTRIBUTES = "* -text !eol !diff !filter !ident !working-tree-encoding\n"

_SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.untrackedCache": "false",
    "core.fileMode": "true",
    "core.symlinks": "true",
    "core.ignoreCase": "false",
    "core.precomposeUnicode": "false",
    "core.autocrlf": "false",
    "core.protectHFS": "true",
    "core.protectNTFS": "true",
    "core.quotePath": "true",
    "core.attributesFile": os.devnull,
    "core.excludesFile": os.devnull,
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "transfer.bundleURI": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "advice.detachedHead": "false",
    "advice.addEmbeddedRepo": "false",
    "protocol.allow": "never",
    "protocol.file.allow": "always",
    "protocol.http.allow": "always",
    "protocol.https.allow": "always",
}


# How a fetch over HTTP reaches the server, in the names that git knows; none of them reaches the tool. The values of
# SSL_CERT_FILE and SSL_CERT_DIR are what the rest of the agent goes by.
_PROXIES = ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")
_CERTIFICATES = {"SSL_CERT_FILE": "GIT_SSL_CAINFO", "SSL_CERT_DIR": "GIT_SSL_CAPATH"}

_POLL_SECONDS = 0.1


class GitFailed(Exception):
    """A git command ended badly or took too long; the message holds the end of what it said."""


class Interrupted(Exception):
    """The attempt was ended from outside while git worked."""


class DiffTooLarge(Exception):
    """The diff passes `DIFF_BYTES`."""

    def __init__(self) -> None:
        super().__init__(f"The diff is larger than {DIFF_BYTES} bytes")


class DiffUnreadable(Exception):
    """The diff holds text that is not UTF-8, which cannot travel."""

    def __init__(self, path: str) -> None:
        super().__init__(f"The diff is not UTF-8 text: {path}")


@dataclass(frozen=True)
class Remote:
    """The server that serves the mirror over HTTP: its address as the agent was given it, and the agent's key.

    A claim names the mirror's address; only its path is used, so that the key goes to the server that it is for.
    """

    server: str
    key: str = field(repr=False)

    def address(self, told: str) -> str:
        """Where on this server the mirror is that a claim tells of."""
        at = urlsplit(self.server)
        return urlunsplit((at.scheme, at.netloc, urlsplit(told).path, "", ""))

    def environment(self, address: str) -> dict[str, str]:
        """What makes git show the key there, and nowhere else. Neither the command line nor a file ever holds it."""
        told = {
            f"http.{address}.extraHeader": f"Authorization: Bearer {self.key}",
            "http.followRedirects": "false",
            # The server may let a fetch wait for a minute before its first byte.
            "http.lowSpeedLimit": "1000",
            "http.lowSpeedTime": "180",
            "credential.helper": "",
        }
        given = {"GIT_CONFIG_COUNT": str(len(told))}
        for place, (name, value) in enumerate(told.items()):
            given |= {f"GIT_CONFIG_KEY_{place}": name, f"GIT_CONFIG_VALUE_{place}": value}
        if not is_loopback(self.server):
            given |= {name: os.environ[name] for name in _PROXIES if name in os.environ}
            given |= {ours: os.environ[name] for name, ours in _CERTIFICATES.items() if name in os.environ}
        return given


class Workspace:
    """One attempt's folder below `parent`, mode 0700.

    `interrupted` is asked ten times a second while git works; when it says yes, git is killed and Interrupted raised.
    """

    def __init__(self, parent: Path, label: str, interrupted: Callable[[], bool]) -> None:
        self.root = Path(tempfile.mkdtemp(prefix=f"{label}-", dir=parent))
        self.tree = self.root / "tree"
        self.home = self.root / "home"
        self.temporary = self.root / "tmp"
        self.scratch = self.root / "scratch"
        self.usage_file = self.root / "usage.jsonl"
        self._base = self.root / "base.git"
        self._commit = ""
        self._interrupted = interrupted
        for folder in (self.tree, self.home, self.temporary, self.scratch):
            folder.mkdir(mode=0o700)
        self._identity = self._identify()

    def check_out(self, checkout: Checkout, *, remote: Remote | None = None, litter: Sequence[str] = ()) -> None:
        """Fills `tree` with the commit, detached, without remotes and hooks. Raises GitFailed, Interrupted.

        The repository is read at its path where that can be read, else over HTTP from `remote`. New files named as in
        `litter` (patterns as in .gitignore) are never part of the diff.
        """
        self._commit = checkout.commit
        self._git("init", "--quiet", "--bare", "--template=", str(self._base))
        if checkout.address and remote is not None and not _is_here(checkout.url):
            self._fetch_over_http(remote, remote.address(checkout.address), checkout.commit)
        else:
            self._fetch(checkout.url, checkout.commit)
        self._git("init", "--quiet", "--template=", str(self.tree))
        inside = self.tree / ".git"
        (inside / "objects" / "info").mkdir(parents=True, exist_ok=True)
        (inside / "objects" / "info" / "alternates").write_text(f"{self._base / 'objects'}\n", encoding="utf-8")
        if (self._base / "shallow").exists():
            shutil.copyfile(self._base / "shallow", inside / "shallow")
        for directory in (self._base, inside):
            (directory / "info").mkdir(exist_ok=True)
            (directory / "info" / "attributes").write_text(_ATTRIBUTES, encoding="utf-8")
            (directory / "info" / "exclude").write_text("".join(f"{name}\n" for name in litter), encoding="utf-8")
        # A tool may commit, and git asks for a name; what it commits is not what is submitted.
        for name, value in (("user.name", "Signalbox agent"), ("user.email", "agent@signalbox.invalid")):
            self._git(f"--git-dir={inside}", "config", name, value)
        self._git("checkout", "--quiet", "--force", "--detach", checkout.commit, directory=self.tree)

    def diff(self) -> str:
        """What the tree holds against the commit: new, changed and deleted files; empty when nothing changed.

        The same tree gives the same text. Ignored new files are left out, and so is whatever the tool committed but
        took back. Raises GitFailed, Interrupted, DiffTooLarge, DiffUnreadable.
        """
        if self._identify() != self._identity:
            raise GitFailed("The folder of the checkout was replaced")
        index = {
            "GIT_DIR": str(self._base),
            "GIT_WORK_TREE": str(self.tree),
            "GIT_INDEX_FILE": str(self.root / "index"),
        }
        self._git("read-tree", self._commit, directory=self.tree, environment=index)
        self._git("add", "--all", directory=self.tree, environment=index)
        raw = self._git(
            "diff",
            "--cached",
            "--no-color",
            "--no-ext-diff",
            "--no-textconv",
            "--no-renames",
            "--no-relative",
            "--no-indent-heuristic",
            "--diff-algorithm=myers",
            "--unified=3",
            "--inter-hunk-context=0",
            "--full-index",
            "--binary",
            "--ignore-submodules=none",
            "--submodule=short",
            "--src-prefix=a/",
            "--dst-prefix=b/",
            self._commit,
            directory=self.tree,
            environment=index,
            limit_bytes=DIFF_BYTES,
        )
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            header = raw.rfind(b"diff --git ", 0, error.start)
            named = raw[header : raw.find(b"\n", header)].decode("utf-8", "replace")
            raise DiffUnreadable(named.removeprefix("diff --git ")) from error

    def remove(self) -> None:
        """Deletes everything, also what the tool made unreadable. What cannot be deleted is left."""
        for folder, _, _ in os.walk(self.root):
            with contextlib.suppress(OSError):
                os.chmod(folder, 0o700)
        shutil.rmtree(self.root, ignore_errors=True)

    def _fetch(self, source: str, commit: str, environment: dict[str, str] | None = None) -> None:
        """Brings the commit into `base.git`, which keeps no trace of where it came from."""
        self._git(
            f"--git-dir={self._base}",
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-recurse-submodules",
            f"--depth={HISTORY_DEPTH}",
            "--",
            source,
            commit,
            environment=environment,
        )

    def _fetch_over_http(self, remote: Remote, address: str, commit: str) -> None:
        """The same from a server, which may be away for a moment. Raises GitFailed, Interrupted."""
        environment = remote.environment(address)
        for tried in range(1, FETCHES + 1):
            try:
                self._fetch(address, commit, environment)
            except GitFailed:
                if tried == FETCHES:
                    raise
            else:
                return
            again_at = clock.now() + PAUSE_SECONDS * 2 ** (tried - 1)
            while clock.now() < again_at:
                if self._interrupted():
                    raise Interrupted
                time.sleep(_POLL_SECONDS)

    def _identify(self) -> tuple[int, int]:
        """Which folder `tree` is; a link or another folder in its place is not it."""
        try:
            found = os.lstat(self.tree)
        except FileNotFoundError:
            return (0, 0)
        return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else (0, 0)

    def _git(
        self,
        *arguments: str,
        directory: Path | None = None,
        environment: dict[str, str] | None = None,
        limit_bytes: int = 64 * 1024,
    ) -> bytes:
        """What git prints. It sees no configuration but ours, and of the environment only PATH."""
        settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
        given = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.root),
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            **(environment or {}),
        }
        give_up_at = clock.now() + GIT_SECONDS
        with tempfile.TemporaryFile(dir=self.root) as printed, tempfile.TemporaryFile(dir=self.root) as said:
            try:
                git = subprocess.Popen(
                    ["git", *settings, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=said,
                    env=given,
                    cwd=directory or self.root,
                    start_new_session=True,
                )
            except OSError as error:
                raise GitFailed(f"git cannot be run: {error}") from error
            try:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        git.wait(_POLL_SECONDS)
                    if os.fstat(printed.fileno()).st_size > limit_bytes:
                        raise DiffTooLarge
                    if git.returncode is not None:
                        break
                    if self._interrupted():
                        raise Interrupted
                    if clock.now() > give_up_at:
                        raise GitFailed(f"git took more than {GIT_SECONDS:.0f} s")
            finally:
                if git.returncode is None:
                    with contextlib.suppress(OSError):
                        os.killpg(git.pid, signal.SIGKILL)
                    git.wait()
            if git.returncode != 0:
                said.seek(max(0, os.fstat(said.fileno()).st_size - _ERROR_BYTES))
                raise GitFailed(said.read().decode("utf-8", "replace").strip() or f"git ended with {git.returncode}")
            printed.seek(0)
            return printed.read()


def _is_here(url: str) -> bool:
    """Whether `url` is the path of a repository that this process can read. An address on the network is not."""
    path = unquote(urlsplit(url).path) if url.startswith("file://") else url
    if not path.startswith("/"):
        return False
    objects = [Path(path) / "objects", Path(path) / ".git" / "objects"]
    return any(os.access(folder, os.R_OK | os.X_OK) for folder in objects)

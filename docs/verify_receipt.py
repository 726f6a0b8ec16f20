"""`python verify_receipt.py REPOSITORY [--patch FILE …] [--bundle FILE]`: verifies receipts with git and Python alone.

Reads every note in refs/notes/signalbox of a clone and holds it against its commit. A plain clone has no notes:
`git -C REPOSITORY fetch origin refs/notes/signalbox:refs/notes/signalbox`. `--patch` holds a patch's text, and
`--bundle` what `verify-ledger --export` wrote (verify that one first, with verify_bundle.py) against them
(docs/landing.md says what is proved by which). Prints ok and what that proves, or each thing that differs.

Ends with 0 when all is as it was, with 1 when something is not, with 2 when nothing can be said."""

import argparse
import gzip
import json
import subprocess
import sys
import zlib
from datetime import UTC, datetime
from hashlib import sha256

NOTES = "refs/notes/signalbox"
TRAILER = "Signalbox-Patch: "
OURS = "signalbox@signalbox.invalid"
TYPES = {"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://signalbox.invalid/receipt/v1"}
KEYS = {
    "approvers": (),
    "author": ("name", "user", "worker"),
    "base": ("commit", "tree"),
    "cost": (),
    "gates": (),
    "landed": ("at", "branch", "commit", "project", "tree"),
    "patch": ("bytes", "chain", "files", "id", "ledger_id", "replaces", "reverses", "sha256", "summary"),
    "policy_sha256": (),
    "tested": ("parent", "tree"),
    "work": ("adapter", "attempt", "prompt", "run", "task", "tool"),
}
HEX = "0123456789abcdef"
LETTERS = {"A": "add", "D": "delete"}
FETCH = f"git fetch origin {NOTES}:{NOTES}"
ALONE = """\
proved by git alone: each receipt names its commit, tree, parent, patch id, author, title and files as the commit has
them, its base's tree, and is the one that was hung there first; no landed commit is without one
not proved without --patch: the sha256 and size of a patch's text
not proved without --bundle: cost, gates, approvers, models, prompt and the rest, against somebody who wrote the whole
history of the notes anew"""
BUNDLED = """\
proved: every byte of every receipt is what the bundle's log holds the digest of, and none of this project is missing
(that the bundle itself is whole, and ends in the root that you know: verify_bundle.py)"""


class Cannot(Exception):
    """Nothing can be said, and why."""


def git(repository, *arguments, stdin=b""):
    """What git says, as bytes, with nothing in another's place and whatever its user has configured."""
    command = ["git", "--no-replace-objects", "-c", "log.showRoot=true", "-c", "log.showSignature=false"]
    try:
        done = subprocess.run([*command, "-C", repository, *arguments], check=True, capture_output=True, input=stdin)
        return done.stdout
    except FileNotFoundError as problem:
        raise Cannot("git is not installed") from problem
    except subprocess.CalledProcessError as problem:
        said = problem.stderr.decode("utf-8", "replace").strip()
        raise Cannot(f"git {arguments[0]} in {repository} failed: {said}") from problem


def canonical(document):
    """The one way to write a document: keys sorted, no blanks."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def objects(repository, names):
    """{name: (kind, content)} of the objects that are there, of any number of names at once."""
    raw = git(repository, "cat-file", "--batch", stdin="".join(f"{name}\n" for name in names).encode())
    found, at = {}, 0
    for name in names:
        line, at = raw[at : raw.index(b"\n", at)].decode("utf-8", "replace"), raw.index(b"\n", at) + 1
        if not line.endswith((" missing", " ambiguous")):
            size = int(line.rsplit(" ", 1)[1])
            found[name], at = (line.split(" ")[1], raw[at : at + size]), at + size + 1
    return found


def commit_of(found, name):
    """The fields of a commit as its object says, with its people and message; None when it is not there."""
    kind, raw = found.get(name, ("", b""))
    if kind != "commit":
        return None
    head, _, message = raw.decode("utf-8", "replace").partition("\n\n")
    lines = [line.partition(" ")[::2] for line in head.splitlines()]
    fields = {**dict(reversed(lines)), "message": message, "parent": [text for key, text in lines if key == "parent"]}
    for who in ("author", "committer"):
        name_of, _, rest = fields.get(who, "").partition("<")
        email, _, when = rest.partition("> ")
        fields[who] = (name_of.strip(), email, when.split(" ")[0])
    return fields


def notes(repository):
    """{commit: note} of everything noted, and {commit: what became of a note that is not the first that hung there}."""
    listed = git(repository, "notes", f"--ref={NOTES}", "list").decode().split()
    now = dict(zip(listed[1::2], listed[::2], strict=True))
    first, changed, by = {}, {}, ""
    history = ("log", "--reverse", "--raw", "--no-abbrev", "--no-renames", "--format=%H", NOTES)
    for line in git(repository, *history).splitlines():
        if not line.startswith(b":"):
            by = line.decode() or by
            continue
        told, _, path = line.decode("utf-8", "replace").partition("\t")
        commit, blob = path.replace("/", ""), told.split(" ")[3]  # git files notes in folders once there are many
        if blob.strip("0"):
            first.setdefault(commit, blob)
        if commit in first and blob != first[commit]:
            changed[commit] = by
    was = {
        commit: f"the receipt that was hung here first was {'changed' if commit in now else 'taken away'}"
        f" (by {changed[commit]} of {NOTES})"
        for commit, blob in first.items()
        if now.get(commit) != blob
    }
    found = objects(repository, sorted(set(now.values())))
    return {commit: found[blob][1] for commit, blob in now.items() if blob in found}, was


def clean(text):
    """A text on one line, without what cannot be printed, as a commit's title has it."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def title_of(summary):
    """The title that a commit with this summary has."""
    title = clean(summary)[:72].rstrip() or "Change by an agent"
    word = title.split(" ")[0].lower()
    reserved = ("signalbox-patch", "signed-off-by", "co-authored-by")
    return f"Change: {title}" if ":" in word and word.split(":")[0] in reserved else title


def person(text):
    """A name or address as git's lines about people have it."""
    return clean(text.replace("<", " ").replace(">", " ")).strip(" .,:;\"'\\") or "unknown"


def files_of(repository, parent, commit):
    """{path: add, change or delete} of a commit."""
    words = git(repository, "diff-tree", "-r", "-z", "--no-renames", "--name-status", parent, commit)
    parts = words.decode("utf-8", "surrogateescape").split("\0")
    return {path: LETTERS.get(letter, "change") for letter, path in zip(parts[::2], parts[1::2], strict=False)}


def faults_of(repository, commit, raw, found, is_shallow):
    """What in one note does not agree with its commit."""
    try:
        statement = json.loads(raw)
        predicate = statement["predicate"]
        for key, names in KEYS.items():
            for name in names:
                predicate[key][name]
            predicate[key]
        author, base, landed = predicate["author"], predicate["base"], predicate["landed"]
        patch, tested = predicate["patch"], predicate["tested"]
        place = f"{landed['project']}@{landed['branch']}"
        subject = [
            {"name": place, "digest": {"gitCommit": landed["commit"]}},
            {"name": f"{place}:/", "digest": {"gitTree": landed["tree"]}},
        ]
        landed_at = datetime.fromisoformat(landed["at"]).astimezone(UTC)
        title, email = title_of(patch["summary"]), f"{author['worker'] or 'user'}@signalbox.invalid"
        name, files = person(author["name"]), dict(patch["files"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as problem:
        return [f"this is no statement: {problem!r}"]
    if canonical(statement).encode() != raw:
        return ["the statement is not written as it was"]
    made = commit_of(found, commit)
    if made is None:
        return ["the repository does not hold this commit"]
    lines = made["message"].strip().splitlines() or [""]
    checks = [
        *((name_of, statement.get(name_of), text) for name_of, text in TYPES.items()),
        ("landed commit", landed["commit"], commit),
        ("landed tree", landed["tree"], made.get("tree")),
        ("tested tree", tested["tree"], made.get("tree")),
        ("tested parent", tested["parent"], " ".join(made["parent"])),
        ("subject", statement.get("subject"), subject),
        ("trailer", f"{TRAILER}{patch['id']}", lines[-1]),
        ("summary", title, lines[0]),
        ("author name", name, made["author"][0]),
        ("author worker", email, made["author"][1]),
        ("committer", OURS, made["committer"][1]),
    ]
    if made["committer"][2].isdigit() and landed_at < datetime.fromtimestamp(int(made["committer"][2]), UTC):
        checks.append(("landed at", landed["at"], "before the commit was made"))
    below = commit_of(found, str(base["commit"]))
    # A rewind builds its reverses on one another before any has landed, on commits that no clone holds.
    if below or not (is_shallow or patch["reverses"]):
        checks.append(("base tree", base["tree"], below["tree"] if below else "unknown: there is no such base commit"))
    parent = commit_of(found, made["parent"][0]) if made["parent"] else None
    if parent and parent["tree"] == base["tree"]:  # else the patch was put on another tree, and may change less there
        checks.append(("files", files, files_of(repository, made["parent"][0], commit)))
    return [f"{what}: the receipt says {told!r}, but it is {is_!r}" for what, told, is_ in checks if told != is_]


def landed_in(repository):
    """The commits of every branch and tag that Signalbox made for a patch."""
    form = "--format=%H%x00%ce%x00%B%x00"
    raw = git(repository, "log", "--branches", "--remotes", "--tags", f"--grep=^{TRAILER}", form)
    parts = [part.strip() for part in raw.decode("utf-8", "replace").split("\0")]
    for commit, email, message in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        if email == OURS and message.splitlines()[-1].startswith(TRAILER):
            yield commit


def read_bundle(path):
    """{sha256 of a receipt: (its commit, its project)} of all that the bundle's log tells."""
    told = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(map(json.loads, lines)):
                if not number and "format" not in line:
                    raise ValueError("it does not begin with its format")
                event = json.loads(line["event"][-1]) if "event" in line else {}
                if event.get("kind") == "receipt.written":
                    told[event["data"]["sha256"]] = event["data"]["commit"], event["project_id"]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, IndexError) as problem:
        raise Cannot(f"{path} is no whole bundle: {problem}") from problem
    return told


def verify(repository, patches=(), bundle=None):
    """Every fault as a line, and how many receipts there are. Raises Cannot."""
    git(repository, "rev-parse", "--git-dir")
    if not git(repository, "for-each-ref", NOTES):
        raise Cannot(f"there are no receipts in {repository}: a plain clone has none. Fetch them first: {FETCH}")
    found, was = notes(repository)
    sealed = read_bundle(bundle) if bundle else {}
    if not found and not was:
        raise Cannot(f"no receipt hangs on any commit of {repository}. Fetch them again: {FETCH}")
    digests = {commit: sha256(raw).hexdigest() for commit, raw in found.items()}
    bases, texts = {}, {}
    for commit, raw in found.items():
        try:
            predicate = json.loads(raw)["predicate"]
            texts[predicate["patch"]["sha256"]] = predicate["patch"]["bytes"]
            bases[commit] = (str(predicate["base"]["commit"]), str(predicate["tested"]["parent"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # told below
    asked = sorted({*found, *(name for names in bases.values() for name in names if name and set(name) <= set(HEX))})
    held = objects(repository, asked)
    is_shallow = git(repository, "rev-parse", "--is-shallow-repository").strip() == b"true"
    faults = {commit: faults_of(repository, commit, raw, held, is_shallow) for commit, raw in sorted(found.items())}
    for commit, what in was.items():
        if digests.get(commit) not in sealed:
            faults.setdefault(commit, []).append(what)
    for commit in landed_in(repository):
        if commit not in found:
            faults.setdefault(commit, []).append(
                f"no receipt hangs on this commit of Signalbox. Not fetched yet? {FETCH}"
            )
    if bundle:
        ours = {sealed[own][1] for own in digests.values() if own in sealed}
        here = objects(repository, sorted({commit for commit, _ in sealed.values()}))
        for commit, own in digests.items():
            if sealed.get(own, ("",))[0] != commit:
                faults[commit].append("the sealed log knows no such receipt")
        for own, (commit, project) in sealed.items():
            if digests.get(commit) != own and (project in ours or commit in here):
                faults.setdefault(commit, []).append(
                    "the sealed log knows a receipt of this commit that does not hang on it"
                )
    lines = [f"{commit}: {fault}" for commit, told in faults.items() for fault in told]
    for file in patches:
        try:
            with open(file, "rb") as text:
                raw = text.read()
        except OSError as problem:
            raise Cannot(f"{file} cannot be read: {problem.strerror}") from problem
        if (own := sha256(raw).hexdigest()) not in texts:
            lines.append(f"{file}: no receipt is about this text")
        elif texts[own] != len(raw):
            lines.append(f"{file}: its receipt says {texts[own]} bytes, but it has {len(raw)}")
    return lines, len(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", metavar="REPOSITORY")
    parser.add_argument("--patch", metavar="FILE", action="append", default=[])
    parser.add_argument("--bundle", metavar="FILE")
    given = parser.parse_args()
    try:
        bad, count = verify(given.repository, given.patch, given.bundle)
    except Cannot as problem:
        sys.exit(print(f"cannot verify: {problem}", file=sys.stderr) or 2)
    sys.exit(print("\n".join(bad) or f"ok {count} receipts\n{BUNDLED if given.bundle else ALONE}") or bool(bad))

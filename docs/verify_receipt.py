"""`python verify_receipt.py REPOSITORY [--patch FILE …] [--bundle FILE]`: verifies receipts with git and Python alone.

Reads every note in refs/notes/signalbox of a clone (`git fetch origin refs/notes/signalbox:refs/notes/signalbox`) and
holds it against its commit; `--patch` holds a patch's text, and `--bundle` what `verify-ledger --export` wrote (verify
that one first, with verify_bundle.py) against them (docs/landing.md). Prints ok, or each thing that differs."""

import gzip
import json
import subprocess
import sys
from hashlib import sha256

NOTES = "refs/notes/signalbox"


def git(repository, *arguments):
    """What git says, as bytes."""
    return subprocess.run(["git", "-C", repository, *arguments], check=True, capture_output=True).stdout


def canonical(document):
    """The one way to write a document: keys sorted, no blanks."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def notes(repository):
    """{commit: note} of everything noted."""
    listed = git(repository, "notes", f"--ref={NOTES}", "list").decode().split()
    pairs = zip(listed[1::2], listed[::2], strict=True)
    return {commit: git(repository, "cat-file", "blob", blob) for commit, blob in pairs}


def faults_of(repository, commit, raw):
    """What in one note does not agree with its commit."""
    try:
        statement = json.loads(raw)
        said = {name: value for one in statement["subject"] for name, value in one["digest"].items()}
        predicate = statement["predicate"]
        patch, landed, tested = predicate["patch"]["id"], predicate["landed"], predicate["tested"]
    except (ValueError, KeyError, TypeError) as problem:
        return [f"this is no statement: {problem!r}"]
    if canonical(statement).encode() != raw:
        return ["the statement is not written as it was"]
    try:
        head, _blank, message = (
            git(repository, "cat-file", "commit", commit).decode("utf-8", "replace").partition("\n\n")
        )
    except subprocess.CalledProcessError:
        return ["the repository does not hold this commit"]
    lines = [line.partition(" ")[::2] for line in head.splitlines()]
    parents = " ".join(value for name, value in lines if name == "parent")
    trailer = (message.strip().splitlines() or [""])[-1]
    checks = {
        "subject gitCommit": (said.get("gitCommit"), commit),
        "subject gitTree": (said.get("gitTree"), dict(lines).get("tree")),
        "landed commit": (landed.get("commit"), commit),
        "landed tree": (landed.get("tree"), dict(lines).get("tree")),
        "tested tree": (tested.get("tree"), dict(lines).get("tree")),
        "tested parent": (tested.get("parent"), parents),
        "trailer": (f"Signalbox-Patch: {patch}", trailer),
    }
    return [
        f"{name}: the receipt says {told!r}, but it is {found!r}"
        for name, (told, found) in checks.items()
        if told != found
    ]


def verify(repository, patches=(), bundle=None):
    """Every fault as a line, and how many receipts there are."""
    faults, found = [], notes(repository)
    for commit, raw in sorted(found.items()):
        faults += [f"{commit}: {fault}" for fault in faults_of(repository, commit, raw)]
    known = {sha256(raw).hexdigest(): commit for commit, raw in found.items()}
    if bundle:
        sealed = {}
        with gzip.open(bundle, "rt", encoding="utf-8") as lines:
            for line in map(json.loads, lines):
                told = json.loads(line["event"][-1]) if "event" in line else {}
                if told.get("kind") == "receipt.written":
                    sealed[told["data"]["sha256"]] = told["data"]["commit"]
        faults += [
            f"{commit}: the sealed log knows no such receipt" for own, commit in known.items() if own not in sealed
        ]
    texts = set()
    for raw in found.values():
        try:
            texts.add(json.loads(raw)["predicate"]["patch"]["sha256"])
        except (ValueError, KeyError, TypeError):
            continue  # told above
    for file in patches:
        with open(file, "rb") as text:
            if sha256(text.read()).hexdigest() not in texts:
                faults.append(f"{file}: no receipt is about this text")
    return faults, len(found)


if __name__ == "__main__":
    given = sys.argv[2:]
    named = {
        name: [given[at + 1] for at, word in enumerate(given[:-1]) if word == name] for name in ("--patch", "--bundle")
    }
    bad, count = verify(sys.argv[1], named["--patch"], (named["--bundle"] or [None])[0])
    print("\n".join(bad) or f"ok {count} receipts")
    sys.exit(bool(bad))

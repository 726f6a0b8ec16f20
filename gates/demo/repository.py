"""The sample repository that the demo's agents work on: a small library with tests, made on the spot."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

BRANCH = "main"

FILES: Mapping[str, str] = {
    "README.md": """\
# greeting

A very small library that greets people. Signalbox made it for its demo.
""",
    ".gitignore": """\
__pycache__/
""",
    "greeting/__init__.py": """\
\"\"\"Greets people.\"\"\"

from greeting.voice import shout
from greeting.words import greet

__all__ = ["greet", "shout"]
""",
    "greeting/words.py": """\
\"\"\"What is said.\"\"\"


def greet(name):
    \"\"\"A greeting for `name`.\"\"\"
    return f"Hello, {name}!"
""",
    "greeting/voice.py": """\
\"\"\"How it is said.\"\"\"


def shout(text):
    \"\"\"The text in capital letters.\"\"\"
    return text.upper()
""",
    "tests/test_words.py": """\
from greeting import greet


def test_a_greeting_names_the_person():
    assert greet("Ada") == "Hello, Ada!"
""",
    "tests/test_voice.py": """\
from greeting import shout


def test_a_shout_is_in_capital_letters():
    assert shout("Hello, Ada!") == "HELLO, ADA!"


def test_a_shout_adds_nothing():
    assert shout("hello") == "HELLO"
""",
    "secrets/README.md": """\
Agents must not touch this folder, and there is nothing secret in it.
""",
}

_PERSON = {
    "GIT_AUTHOR_NAME": "Signalbox demo",
    "GIT_AUTHOR_EMAIL": "demo@signalbox.invalid",  # RFC 2606: never a real host
    "GIT_COMMITTER_NAME": "Signalbox demo",
    "GIT_COMMITTER_EMAIL": "demo@signalbox.invalid",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
}
_GIT_SECONDS = 60


def write_files(folder: Path) -> None:
    """The files of the first commit below `folder`, which is made."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def make(folder: Path) -> Path:
    """A fresh repository in `folder`, in place of whatever was there, with one commit on `main`; always the same id.

    Raises subprocess.CalledProcessError when git refuses.
    """
    shutil.rmtree(folder, ignore_errors=True)
    write_files(folder)
    _git(folder, "init", "--quiet", "--template=", f"--initial-branch={BRANCH}")
    _git(folder, "add", "--all")
    _git(folder, "commit", "--quiet", "--no-gpg-sign", "--message=A library that greets people")
    return folder


def _git(folder: Path, *arguments: str) -> None:
    # Whoever calls us from a git hook has these set, and they would name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**environment, **_PERSON},
        check=True,
        capture_output=True,
        timeout=_GIT_SECONDS,
    )

"""A scripted coding agent: reads a prompt, really edits the checkout, and fails the way its temper asks for.

It is run as a file (`python agent.py TEMPER`) by the agent program's `shell` adapter, and needs the standard library
only. The tempers: `good` does what it is told; `hasty` breaks a test on its first try and mends it when the prompt says
that the gate failed; `nosy` writes into a forbidden folder first; `mortal` kills the agent program that it works for,
once, in the middle of a task. All of them know the tasks of the demo's plan and no others.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TEMPERS = ("good", "hasty", "nosy", "mortal")
PACE = "DEMO_PACE_SECONDS"
"""The environment variable that says how long a step takes; default 1."""
MODEL = "demo-large"
PROVIDER = "demo"

KNOWS_NO_SUCH_TASK, NOT_OUR_REPOSITORY = 3, 4
"""Exit codes."""

_LAST_WORDS_SECONDS = 60.0


def task_in(prompt: str) -> str:
    """The key of the task that the prompt tells of, whose HEADER says `Task <key> (<kind>)`; "" when there is none."""
    found = re.search(r"^Task ([a-z0-9._-]+) \(", prompt, re.MULTILINE)
    return found[1] if found else ""


def earlier_attempts(prompt: str) -> int:
    """How many earlier attempts the prompt tells of."""
    return len(re.findall(r"^Earlier attempt \d+ ended with ", prompt, re.MULTILINE))


# -- the edits -----------------------------------------------------------------------------------------------------


def write(path: str, text: str) -> None:
    """Puts `text` into a file of the checkout, the folder above it made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def languages(attempt: int) -> None:
    """A page that lists the languages."""
    write("docs/languages.md", "# Languages\n\n- English\n- French\n- German\n")


def _language(module: str, word: str, closing: str) -> None:
    write(
        f"greeting/{module}.py",
        f'"""Greetings in {module.capitalize()}."""\n\n\ndef greet(name):\n'
        f'    """A greeting for `name`."""\n    return f"{word} {{name}}{closing}"\n',
    )
    write(
        f"tests/test_{module}.py",
        f"from greeting.{module} import greet\n\n\ndef test_{module}_greets():\n"
        f'    assert greet("Ada") == "{word} Ada{closing}"\n',
    )


def german(attempt: int) -> None:
    """A module and its test."""
    _language("german", "Hallo,", "!")


def french(attempt: int) -> None:
    """A module and its test."""
    _language("french", "Bonjour", " !")


def numbers(attempt: int) -> None:
    """A module and its test."""
    write(
        "greeting/numbers.py",
        '"""Greets many at once."""\n\nfrom greeting.words import greet\n\n\ndef greet_all(names):\n'
        '    """One line for each name."""\n    return "\\n".join(greet(name) for name in names)\n',
    )
    write(
        "tests/test_numbers.py",
        "from greeting.numbers import greet_all\n\n\ndef test_everybody_gets_a_line():\n"
        '    assert greet_all(["Ada", "Grace"]) == "Hello, Ada!\\nHello, Grace!"\n',
    )


def louder(attempt: int, *, mistaken: bool = False) -> None:
    """`shout` takes a number of exclamation marks; the mistaken version adds some unasked, which a test forbids."""
    default = "3" if mistaken else "0"
    write(
        "greeting/voice.py",
        f'"""How it is said."""\n\n\ndef shout(text, marks={default}):\n'
        '    """The text in capital letters, with so many more exclamation marks."""\n'
        '    return text.upper() + "!" * marks\n',
    )
    path = Path("tests/test_voice.py")
    path.write_text(
        path.read_text(encoding="utf-8")
        + '\n\ndef test_a_shout_can_be_louder():\n    assert shout("hello", marks=2) == "HELLO!!"\n',
        encoding="utf-8",
    )


def choose(attempt: int) -> None:
    """`greet` takes a language."""
    write(
        "greeting/words.py",
        '"""What is said."""\n\nfrom greeting import french, german\n\n'
        'LANGUAGES = {"de": german.greet, "fr": french.greet}\n\n\ndef greet(name, language="en"):\n'
        '    """A greeting for `name`; in English when the language is unknown."""\n'
        "    if language in LANGUAGES:\n        return LANGUAGES[language](name)\n"
        '    return f"Hello, {name}!"\n',
    )
    write(
        "tests/test_words.py",
        "import pytest\n\nfrom greeting import greet\n\n\n"
        "def test_a_greeting_names_the_person():\n"
        '    assert greet("Ada") == "Hello, Ada!"\n\n\n'
        "@pytest.mark.parametrize(\n"
        '    ("language", "words"), [("de", "Hallo, Ada!"), ("fr", "Bonjour Ada !"), ("xx", "Hello, Ada!")]\n)\n'
        "def test_a_greeting_has_a_language(language, words):\n"
        '    assert greet("Ada", language) == words\n',
    )


def command(attempt: int) -> None:
    """`python -m greeting`."""
    write(
        "greeting/__main__.py",
        '"""Greets from a terminal: `python -m greeting NAME…`."""\n\nimport sys\n\n'
        "from greeting.numbers import greet_all\nfrom greeting.voice import shout\n\n\n"
        'def main(names):\n    """What is printed for these names."""\n'
        "    return shout(greet_all(names), marks=1)\n\n\n"
        'if __name__ == "__main__":\n    print(main(sys.argv[1:]))\n',
    )
    write(
        "tests/test_main.py",
        "from greeting.__main__ import main\n\n\ndef test_the_command_shouts():\n"
        '    assert main(["Ada"]) == "HELLO, ADA!!"\n',
    )


def readme(attempt: int) -> None:
    """The README says how it is used."""
    path = Path("README.md")
    path.write_text(
        path.read_text(encoding="utf-8") + "\n## Use\n\n```\npython -m greeting Ada\n```\n", encoding="utf-8"
    )


def trespass(attempt: int) -> None:
    """What nobody may do; each time another text, so that each time it is a new patch."""
    write("secrets/token.txt", f"found on try {attempt + 1}\n")


def token(attempt: int) -> None:
    """A task that cannot be done without touching what is forbidden."""
    write("docs/deployment.md", f"# Deployment\n\nThe token is in `secrets/token.txt` (try {attempt + 1}).\n")
    trespass(attempt)


def announce(attempt: int) -> None:
    """A page for the newspapers."""
    write("docs/release.md", "# 1.0\n\nNow it greets in three languages.\n")


EDITS: dict[str, Callable[[int], None]] = {
    "languages": languages,
    "german": german,
    "french": french,
    "numbers": numbers,
    "louder": louder,
    "choose": choose,
    "command": command,
    "readme": readme,
    "token": token,
    "deploy": announce,
    "announce": announce,
}


# -- the tempers ---------------------------------------------------------------------------------------------------


def work(task: str, attempt: int, temper: str) -> None:
    """The edits of one attempt, with the mistake that the temper makes in its task on the first one."""
    if temper == "hasty" and task == "louder" and attempt == 0:
        louder(attempt, mistaken=True)
        return
    EDITS[task](attempt)
    if temper == "nosy" and task == "readme" and attempt == 0:
        trespass(attempt)


def agent_program() -> int | None:
    """The process id of the agent program above us; None when we cannot be sure who that is.

    Between it and us stands its keeper. Both are known by their command lines, so that a person who tries this script
    in a terminal does not lose that terminal.
    """
    keeper = os.getppid()
    parent, words = process(keeper)
    if "keeper.py" not in words:
        return None
    _grandparent, words = process(parent)
    return parent if "workers.agent" in words else None


def process(pid: int) -> tuple[int, str]:
    """A process's parent and command line, from /proc or `ps`; (0, "") when neither tells."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat, open(f"/proc/{pid}/cmdline", "rb") as line:
            # The name stands in brackets and may itself hold brackets and blanks: read on from the last one.
            parent = int(stat.read().rpartition(b")")[2].split()[1])
            return parent, line.read().replace(b"\0", b" ").decode(errors="replace")
    except (OSError, ValueError, IndexError):
        pass
    try:
        told = subprocess.run(
            ["ps", "-o", "ppid=,command=", "-p", str(pid)], capture_output=True, text=True, timeout=10, check=True
        )
        parent_text, _blank, words = told.stdout.strip().partition(" ")
        return int(parent_text), words
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0, ""


def die() -> None:
    """Kills the agent program, whose keeper then kills us; returns only where that program cannot be told for sure."""
    program = agent_program()
    if program is None:
        say("I was to take the agent program down with me, but I cannot tell which process it is")
        return
    say(f"Taking the agent program down: kill -9 {program}")
    os.kill(program, signal.SIGKILL)
    time.sleep(_LAST_WORDS_SECONDS)


def say(line: str) -> None:
    """One line of progress."""
    print(line, flush=True)


def book(task: str, attempt: int) -> None:
    """What a model would have used, for the file that the agent program reads afterwards; figures of our invention."""
    place = os.environ.get("SIGNALBOX_USAGE_FILE")
    if not place:
        return
    length = sum(map(ord, task))
    item = {
        "resource_type": "api_call",
        "provider": PROVIDER,
        "model": MODEL,
        "tokens_uncached_input": 2000 + 11 * length,
        "tokens_cache_read": 9000 + 700 * attempt,
        "tokens_cache_write_5m": 3 * length,
        "tokens_cache_write_1h": 0,
        "tokens_output": 400 + 2 * length,
    }
    with open(place, "a", encoding="utf-8") as file:
        file.write(json.dumps(item) + "\n")


def main(arguments: list[str]) -> int:
    """Works on the checkout in the current folder; the exit code. `arguments` is the temper alone."""
    (temper,) = arguments or ["good"]
    if temper not in TEMPERS:
        sys.exit(f"there is no temper {temper!r}; there are {', '.join(TEMPERS)}")
    pace_seconds = float(os.environ.get(PACE, "1"))
    prompt = sys.stdin.read()
    task, attempt = task_in(prompt), earlier_attempts(prompt)
    if task not in EDITS:
        say(f"I know no task called {task or 'nothing'}")
        return KNOWS_NO_SUCH_TASK
    if not Path("greeting", "words.py").exists():
        say("This is not the demo's repository: I leave it alone")
        return NOT_OUR_REPOSITORY
    say(f"Reading the prompt of {task}: {len(prompt)} characters, {attempt} earlier attempts")
    time.sleep(pace_seconds)
    book(task, attempt)
    if temper == "mortal" and task == "numbers" and attempt == 0:
        write("greeting/numbers.py", '"""Half a thou')
        die()
    say("Editing")
    work(task, attempt, temper)
    time.sleep(pace_seconds)
    say("Done")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

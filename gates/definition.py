"""Pure: what the fields of a gate must obey, whoever writes them: the API, the admin, or a proposal that was chosen."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from gates import criteria as rules
from gates.evidence import KINDS, SHARD, TEST_KINDS
from pipeline import scope
from pipeline.refusals import InvalidField

MAX_WORDS = 200
MAX_WORD_CHARS = 4096
MAX_PATH_CHARS = 255
MAX_SHARDS = 100
MAX_GATE_SECONDS = rules.MAX_SECONDS
NO_COMMAND = range(126, 128)
BY_SIGNAL = range(129, 193)

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = ("SIGNALBOX_", "CELERY_", "DJANGO_")
SET_BY_US = ("GIT_CEILING_DIRECTORIES", "HOME", "LANG", "PATH", "PYTHONUNBUFFERED", "TMPDIR")
LOADS_CODE = (
    "BASH_ENV", "BASHOPTS", "CLASSPATH", "ENV", "GCONV_PATH", "GIT_EXEC_PATH", "GIT_EXTERNAL_DIFF", "GIT_SSH",
    "GIT_SSH_COMMAND", "IFS", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "LUA_CPATH", "LUA_INIT",
    "LUA_PATH", "NODE_OPTIONS", "NODE_PATH", "PERL5DB", "PERL5LIB", "PERL5OPT", "PERLLIB", "PHPRC", "PROMPT_COMMAND",
    "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTHONBREAKPOINT", "PYTHONEXECUTABLE", "PYTHONHOME", "PYTHONINSPECT",
    "PYTHONPATH", "PYTHONPLATLIBDIR", "PYTHONPYCACHEPREFIX", "PYTHONSTARTUP", "PYTHONUSERBASE", "PYTHONWARNINGS",
    "RUBYLIB", "RUBYOPT", "RUSTC_WRAPPER", "SHELLOPTS",
)  # fmt: skip
_LOADER = ("LD_", "DYLD_", "BASH_FUNC_", "GIT_CONFIG")


def why_not_handed_on(variable: str) -> str:
    """Why no gate gets this environment variable of ours, as the end of a sentence; empty where it may have it.

    Signalbox's own are its keys and passwords; the box sets some itself; others make any program load code.
    """
    name = variable.upper()
    if name.startswith(_OURS) or name in ("SECRET_KEY", "DATABASE_URL"):
        return "no gate gets what Signalbox itself is configured with"
    if name in SET_BY_US:
        return "the sandbox sets it for every gate"
    if name in LOADS_CODE or name.startswith(_LOADER):
        return "it makes programs load code from outside the tree that is tested"
    return ""


def check_variables(names: Iterable[str]) -> None:
    """Names of variables that a gate may be handed. Raises InvalidField, naming those that it may not."""
    refused: dict[str, list[str]] = {}
    for name in names:
        if not VARIABLE.fullmatch(name):
            raise InvalidField("env_allow", f"{name[:80]!r} is not the name of a variable")
        if why := why_not_handed_on(name):
            refused.setdefault(why, []).append(name)
    if refused:
        told = "; ".join(f"{', '.join(sorted(names))}: {why}" for why, names in refused.items())
        raise InvalidField("env_allow", told)


def check_globs(field: str, given: Iterable[str]) -> None:
    """Globs of this house: `*`, `?` and `**`. Raises InvalidField, also for what means more in other tools and nothing
    here: such a gate would judge no patch, and nobody would see it.
    """
    for glob in given:
        scope.check_glob(glob, field)
        if glob.startswith("!"):
            raise InvalidField(field, f"{glob[:200]!r}: there is no exception by !; name the paths that it judges")
        for part in glob.split("/"):
            if part.count("[") != part.count("]") or ("[" in part and not scope.is_literal(part)):
                why = "brackets are letters of a name, as in app/[id]/page.js, no set of letters: write a glob of each"
                raise InvalidField(field, f"{glob[:200]!r}: {why}")
            if "{" in part and "," in part:
                raise InvalidField(field, f"{glob[:200]!r}: braces are no choice here: write a glob of each")


def check_texts(field: str, given: Any) -> None:
    """A list of at most MAX_WORDS texts, of which none is too long. Raises InvalidField."""
    if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
        raise InvalidField(field, "a list of texts")
    if len(given) > MAX_WORDS:
        raise InvalidField(field, f"{len(given)} texts, and there may be {MAX_WORDS}")
    if any(len(item) > MAX_WORD_CHARS for item in given):
        raise InvalidField(field, f"a text has more than {MAX_WORD_CHARS} characters")


def check_storable(field: str, given: Any) -> None:
    """No text in a document, however deep, holds what no program and no table takes. Raises InvalidField."""
    if isinstance(given, str):
        if "\0" in given:
            raise InvalidField(field, "a text holds a NUL character")
        if any("\ud800" <= letter <= "\udfff" for letter in given):
            raise InvalidField(field, "a text holds half of a character")
    elif isinstance(given, Mapping):
        for key, value in given.items():
            check_storable(field, key)
            check_storable(field, value)
    elif isinstance(given, Sequence):
        for item in given:
            check_storable(field, item)


def check_codes(field: str, given: Any) -> None:
    """Exit codes by which a program itself tells something. Raises InvalidField: of a program that was not there, or
    that a signal ended, the shell tells.
    """
    if not isinstance(given, list) or not all(isinstance(code, int) and not isinstance(code, bool) for code in given):
        raise InvalidField(field, "a list of whole numbers")
    if len(given) > MAX_WORDS or not all(0 <= code <= 255 for code in given):
        raise InvalidField(field, f"at most {MAX_WORDS} exit codes from 0 to 255")
    if wrong := [code for code in given if code in NO_COMMAND or code in BY_SIGNAL]:
        why = "could not be started" if wrong[0] in NO_COMMAND else f"was ended by signal {wrong[0] - 128}"
        raise InvalidField(field, f"{wrong[0]} says that the command {why}: that is never an end to judge by")


def check_both(success: Collection[int], finding: Collection[int]) -> None:
    """No exit code says both. Raises InvalidField."""
    if both := sorted(set(success or [0]) & set(finding)):
        raise InvalidField("finding_exit_codes", f"{both[0]} is an exit code of success already")


def check_evidence(given: Any) -> None:
    """Kinds that we read, each at a place of its own below the evidence folder. Raises InvalidField."""
    if not isinstance(given, dict) or not all(isinstance(path, str) for path in given.values()):
        raise InvalidField("evidence", "an object: kind of evidence to its path")
    if unknown := set(given) - set(KINDS):
        raise InvalidField("evidence", f"unknown kind {', '.join(sorted(unknown))}; known are {', '.join(KINDS)}")
    for path in given.values():
        if path.startswith("/"):
            why = "a report's path is relative to the evidence folder ({evidence} in the command)"
            raise InvalidField("evidence", f"{path[:200]!r} is absolute; {why}")
        scope.check_path(path, "evidence")
        if len(path) > MAX_PATH_CHARS:
            raise InvalidField("evidence", f"a path has more than {MAX_PATH_CHARS} characters")
    _check_places(sorted(given.values()))


def _check_places(paths: list[str]) -> None:
    """Every report is a file of its own, and none is the folder of another."""
    for at, path in enumerate(paths):
        for other in paths[at + 1 :]:
            if other == path:
                raise InvalidField("evidence", f"{path!r} is the place of two kinds")
            if other.startswith(f"{path}/"):
                raise InvalidField("evidence", f"{path!r} is a report, and cannot be the folder of {other!r}")


def check_shards(given: Mapping[str, str], shards: int, *, external: bool) -> None:
    """Reports of several shards can be told apart. Raises InvalidField."""
    told_apart = {kind for kind, path in given.items() if SHARD in path}
    if told_apart and shards == 1:
        kind = min(told_apart)
        raise InvalidField("evidence", f"{given[kind]!r} names {SHARD}, and shards is 1: say how many, or leave it out")
    # A system outside may join its shards itself, and says of how many its one report is.
    if shards > 1 and told_apart != set(given) and (told_apart or not external):
        kind = min(set(given) - told_apart)
        stem, dot, ending = given[kind].rpartition(".")
        right = f"{stem}-{SHARD}.{ending}" if dot and "/" not in ending else f"{given[kind]}-{SHARD}"
        why = f"of {shards} shards each leaves a report of its own: {right!r}, say"
        raise InvalidField("evidence", f"{given[kind]!r} does not name {SHARD}; {why}")
    if shards > 1 and not given and not external:
        why = f"shards are counted by their reports: name one with {SHARD}, or leave shards at 1"
        raise InvalidField("shards", f"{shards}, and no evidence is named; {why}")


def check_measurable(criteria: Mapping[str, Any], evidence: Collection[str]) -> None:
    """Every criterion is measured by a kind of evidence that is named. Raises InvalidField: it would never be met."""
    wanted = {key: kinds for key, kinds in rules.NEEDS_EVIDENCE.items() if key in criteria}
    for name, rule in criteria.get("custom_rules", {}).items():
        if rule["field"] in rules.TEST_FIELDS:
            wanted[f"custom_rules.{name} ({rule['field']})"] = TEST_KINDS
        elif rule["field"] in rules.COVERAGE_FIELDS:
            wanted[f"custom_rules.{name} ({rule['field']})"] = ("coverage",)
    for key, kinds in wanted.items():
        if not set(kinds) & set(evidence):
            example = ", or ".join(f'{{"{kind}": "{_EXAMPLES[kind]}"}}' for kind in kinds)
            raise InvalidField(
                "evidence",
                f"{key} is measured by {' or '.join(kinds)}, and none is named: such a gate would never pass. Name the"
                f" report that the command writes below the evidence folder: {example}",
            )


_EXAMPLES = {"junit": "junit.xml", "tap": "tests.tap", "coverage": "coverage.xml", "sarif": "report.sarif"}

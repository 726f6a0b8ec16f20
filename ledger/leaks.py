"""Secrets in text: of which kind, where, and the same text without them. Pure, and asks no network.

A library's detectors (detect-secrets) and ours, which are of its class: its way to add one. Only the patterns are used,
never their way of trying a secret out.
"""

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import getmembers, isabstract, isclass
from typing import Any, NamedTuple

from detect_secrets.plugins.base import RegexBasedDetector

# The detectors that know a secret by its form. Those that guess by entropy or by a variable's name are left out: in a
# diff of ordinary code they name a line in fifty, and a rule that cries wolf is overridden without a look. So are those
# of four hosts of which few have heard and whose patterns take four fifths of the time. GitHub's is ours: the library's
# takes the name of a function for one (`weighs_and_…`).
DETECTORS = (
    "aws", "azure_storage_key", "basic_auth", "discord", "mailchimp", "npm", "sendgrid", "slack",
    "square_oauth", "stripe", "twilio",
)  # fmt: skip
# Some patterns need quadratic time for text made for it, so a long line is read in pieces that overlap by more than
# any of these secrets is long. Measured: 15 µs for an ordinary line, 0.6 µs a character of a long one.
PIECE, OVERLAP = 2_000, 300

# A secret is not the end of a longer word: `risk-proj-…` is none.
_BEGIN = r"(?<![A-Za-z0-9_-])"
_PAIRS = r"(?:[^;\n]{0,120};){0,6}\s{0,3}"
_PASSWORD = r"""(?:password|pwd)\s{0,3}=\s{0,3}[^;\s"'<>{}$%&]{4,120}"""
_SERVER = r"(?:server|data source|host|user id|uid|username|database|initial catalog)\s{0,3}="


class Form(NamedTuple):
    """What a kind of secret looks like; `marks` are texts of which each has one, in lower case: they are looked for
    first, which takes a fiftieth of the time.
    """

    kind: str
    marks: tuple[str, ...]
    patterns: tuple[str, ...]


FORMS = (
    Form(
        "Signalbox Key",
        ("sbx_", "whsec_"),
        (r"sbx_[a-z0-9]{8}_[A-Za-z0-9_-]{20,200}", r"whsec_[A-Za-z0-9+/]{32,100}"),
    ),
    Form("Anthropic Key", ("sk-ant-",), (r"sk-ant-[A-Za-z0-9_-]{32,200}",)),
    Form(
        "OpenAI Key",
        ("sk-proj-", "sk-svcacct-", "sk-admin-", "t3blbkfj", "sk-or-v1-"),
        (
            r"sk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{32,200}",
            r"sk-[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}",
            r"sk-or-v1-[0-9a-f]{64}",
        ),
    ),
    Form(
        "Key of a Model's Host",
        ("gsk_", "xai-", "pplx-", "r8_"),
        (r"gsk_[A-Za-z0-9]{52}", r"xai-[A-Za-z0-9]{80}", r"pplx-[A-Za-z0-9]{48}", r"r8_[A-Za-z0-9]{37}"),
    ),
    Form("Hugging Face Token", ("hf_", "api_org_"), (r"(?:hf|api_org)_[A-Za-z0-9]{34}",)),
    Form(
        "GitHub Token",
        ("github_pat_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
        (r"github_pat_[A-Za-z0-9_]{50,120}", r"gh[pousr]_[A-Za-z0-9]{36,255}"),
    ),
    Form(
        "GitLab Token",
        ("glpat-", "gloas-", "gldt-", "glrt-", "glrtr-", "glcbt-", "glptt-", "glft-", "glimt-", "glagent-", "glsoat-"),
        (r"gl(?:pat|oas|dt|rt|rtr|cbt|ptt|ft|imt|agent|soat)-[A-Za-z0-9_.-]{20,200}",),
    ),
    Form(
        "Slack Token",
        ("xapp-", "xoxe"),
        (r"xapp-\d-[A-Za-z0-9]{6,20}-\d{6,20}-[a-z0-9]{32,80}", r"xoxe[.-][A-Za-z0-9.-]{30,250}"),
    ),
    Form("Google Key", ("aiza", "gocspx-"), (r"AIza[A-Za-z0-9_-]{35}", r"GOCSPX-[A-Za-z0-9_-]{28}")),
    Form("PyPI Token", ("pypi-age",), (r"pypi-AgE[A-Za-z0-9_-]{50,250}",)),
    Form(
        "Registry Token",
        ("dckr_pat_", "rubygems_"),
        (r"dckr_pat_[A-Za-z0-9_-]{27,40}", r"rubygems_[0-9a-f]{48}"),
    ),
    Form(
        "Cloud Token",
        (
            "_v1_", "hvs.", "hvb.", "dapi", "atatt3", "shpat_", "shpss_", "shpca_", "shppa_", "glsa_", "atlasv1",
            "lin_api_",
        ),
        (
            r"do[opr]_v1_[0-9a-f]{64}",
            r"hv[sb]\.[A-Za-z0-9_-]{24,250}",
            r"dapi[0-9a-f]{32}",
            r"ATATT3[A-Za-z0-9_=-]{100,250}",
            r"shp(?:at|ss|ca|pa)_[0-9a-fA-F]{32}",
            r"glsa_[A-Za-z0-9]{32}_[0-9a-f]{8}",
            r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_-]{60,80}",
            r"lin_api_[A-Za-z0-9]{40}",
        ),
    ),
    Form("Telegram Token", (":aa",), (r"\d{8,10}:AA[A-Za-z0-9_-]{33}",)),
    # RFC 7519: two parts that begin with `{"`, and a signature. The library's own pattern needs quadratic time.
    Form("JSON Web Token", ("eyj",), (r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",)),
    # The library finds a private key only in a whole file; its first line is enough (RFC 7468).
    Form(
        "Private Key",
        ("private key", "age-secret-key-"),
        (
            r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----.*",
            r"AGE-SECRET-KEY-1[0-9A-Z]{58}",
        ),
    ),
    Form(
        "Connection String",
        ("password", "pwd"),
        (
            rf"(?i:{_SERVER}[^;\n]{{1,120}};{_PAIRS}{_PASSWORD})",
            rf"(?i:{_PASSWORD};{_PAIRS}{_SERVER})",
            r"""(?i:jdbc:[^\s"'?;]{3,200}[?;](?:[^\s"'&;]{1,80}[&;]){0,8}password=[^\s"'&;<>{}$%]{4,120})""",
        ),
    ),
)  # fmt: skip

_END_OF_KEY = re.compile(r"-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_BODY_OF_KEY = re.compile(r"[\s\"'+-]*[A-Za-z0-9+/]{40,}[=\s\"'+,\\n]*\Z")
LONGEST_KEY = 200
"""Lines of a private key: one of 16,384 bits has 199 of 64 letters."""
# What people write where a secret goes: words, the marks of a template, dots, or a letter again and again.
_WORDS = re.compile(
    r"(?i)(?:^|[^a-z0-9])"
    r"(?:your|my|some|example|placeholder|changeme|dummy|redacted|insert|replace)(?:$|[^a-z0-9])"
)
_TEMPLATE = re.compile(r"[<>{}$%*…]|\.\.\.")
_NO_PASSWORD = frozenset(
    (
        "password", "passwd", "pass", "pwd", "secret", "token", "key", "user", "username", "changeme", "change-me",
        "example", "test", "foo", "bar", "xxx",
    )
)  # fmt: skip
_CREDENTIALS = re.compile(r"://([^:@/\s]*):([^@\s]*)@\Z")
_LOCAL = re.compile(r"(?:localhost|127\.\d+\.\d+\.\d+|\[::1\])(?:[:/?\s\"'`]|\Z)")


class _Detector(NamedTuple):
    kind: str
    marks: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]


class Leak(NamedTuple):
    """A secret in a line: where it begins and ends, and of which kind it is."""

    start: int
    end: int
    kind: str


def _own(form: Form) -> type[RegexBasedDetector]:
    """A detector as the library knows them."""
    patterns = [re.compile(pattern if pattern.startswith("(?i") else _BEGIN + pattern) for pattern in form.patterns]
    return type(
        form.kind.title().replace(" ", ""), (RegexBasedDetector,), {"secret_type": form.kind, "denylist": patterns}
    )


def _detectors() -> Iterator[_Detector]:
    kinds: list[tuple[Any, tuple[str, ...]]] = [(_own(form), form.marks) for form in FORMS]
    for name in DETECTORS:
        module = import_module(f"detect_secrets.plugins.{name}")
        kinds += [
            (kind, ())
            for _name, kind in getmembers(module, isclass)
            if kind.__module__ == module.__name__ and issubclass(kind, RegexBasedDetector) and not isabstract(kind)
        ]
    for kind, marks in kinds:
        detector = kind()
        yield _Detector(detector.secret_type, marks, tuple(detector.denylist))


_KNOWN = tuple(_detectors())


def leaks(line: str) -> list[Leak]:
    """The secrets in a line, in its order; what is only written where a secret would go is none."""
    found = set()
    for start in range(0, max(len(line) - OVERLAP, 1), PIECE - OVERLAP):
        piece = line[start : start + PIECE]
        if len(piece) < 8 or not piece.strip():
            continue
        lower = piece.lower()
        for kind, marks, patterns in _KNOWN:
            if marks and not any(mark in lower for mark in marks):
                continue
            for pattern in patterns:
                for match in pattern.finditer(piece):
                    if not _is_placeholder(match, piece):
                        found.add(Leak(start + match.start(), start + match.end(), kind))
    return sorted(found)


def kinds(line: str) -> list[str]:
    """The kinds of secret in a line, such as `AWS Access Key`, sorted. The secret itself goes nowhere."""
    return sorted({leak.kind for leak in leaks(line)})


def redacted(text: str, *, sees: Callable[[str], bool] = lambda line: True) -> str:
    """`text` with `[redacted: KIND]` in place of every secret in the lines that `sees` is true of, and of every line of
    a private key. It has as many lines as before.
    """
    lines = text.split("\n")
    hidden = 0  # the lines up to here are of a private key
    for at, line in enumerate(lines):
        if not sees(line):
            continue
        if at < hidden:
            lines[at] = f"{line[:1]}[redacted]" if line.strip("+- ") else line
            continue
        found = _apart(leaks(line))
        for leak in reversed(found):
            if leak.kind == "Private Key":
                end = _END_OF_KEY.search(line, leak.start)
                hidden = at if end else _end_of_key(lines, at + 1)
                leak = leak._replace(end=end.end() if end else len(line))
            line = f"{line[: leak.start]}[redacted: {leak.kind}]{line[leak.end :]}"
        lines[at] = line
    return "\n".join(lines)


def _end_of_key(lines: list[str], start: int) -> int:
    """The number of the line behind a private key whose first line stands before `start`."""
    for at, line in enumerate(lines[start : start + LONGEST_KEY], start):
        if _END_OF_KEY.search(line):
            return at + 1
    while start < len(lines) and _BODY_OF_KEY.match(lines[start]):
        start += 1  # its end is not shown
    return start


def _apart(found: list[Leak]) -> list[Leak]:
    """The same without what overlaps: the parts of one secret are one."""
    kept: list[Leak] = []
    for leak in found:
        if kept and leak.start < kept[-1].end:
            kept[-1] = kept[-1]._replace(end=max(kept[-1].end, leak.end))
        else:
            kept.append(leak)
    return kept


def _is_placeholder(match: re.Match[str], line: str) -> bool:
    text = match[0]
    named = _CREDENTIALS.search(text)
    if named:
        user, password = named[1], named[2]
        if password.lower() in _NO_PASSWORD or _TEMPLATE.search(password) or len(set(password)) < 2:
            return True
        return bool(user == password and _LOCAL.match(line, match.end()))
    if text.startswith("-----BEGIN"):
        return False
    return len(set(text[-16:].lower())) < 3 or _WORDS.search(text) is not None

"""The one way to Apprise: may messages go to this address, what of it may be shown, send one there (console.md).

An address (an Apprise URL) holds the secrets of its service, so it is shown as scheme and host, or as the name of the
variable of the environment that holds it.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from django.conf import settings

from pipeline.digest import harmless
from pipeline.egress import AddressRefused, literal_address, refuse_internal
from pipeline.refusals import InvalidField

MAX_LENGTH = 2000
VARIABLE = re.compile(r"env:(SIGNALBOX_NOTIFY_[A-Z0-9_]{1,64})")
# A process that hangs is ended after this; Apprise's own bounds on connecting and reading are shorter.
TIMEOUT_SECONDS = 25.0
SOCKET_TIMEOUT_SECONDS = 8.0
MAX_WHY_CHARACTERS = 400

# Scheme -> the host that its service always has; empty where the address names it. Apprise knows 255 schemes, also
# ones that write files, talk to this machine's desktop or start programs, so these are the only ones that may be used.
SCHEMES = {
    "mailto": "", "mailtos": "", "json": "", "jsons": "", "mmost": "", "mmosts": "", "rocket": "", "rockets": "",
    "matrix": "", "matrixs": "", "ntfy": "ntfy.sh", "ntfys": "ntfy.sh", "gotify": "", "gotifys": "", "workflow": "",
    "workflows": "", "slack": "hooks.slack.com", "discord": "discord.com", "tgram": "api.telegram.org",
    "gchat": "chat.googleapis.com", "pover": "api.pushover.net", "pagerduty": "events.pagerduty.com",
    "opsgenie": "api.opsgenie.com",
}  # fmt: skip
NAMES_HOST = {scheme for scheme, host in SCHEMES.items() if host in ("", "ntfy.sh")}
# These take a key or a topic in the host's place as well; it has neither dots nor colons.
MAY_NAME_HOST = {"matrix", "matrixs", "ntfy", "ntfys"}

# Parameters that say who is told. Others switch checks off, read files, load images or mention everybody.
PARAMETERS = {
    "to", "from", "name", "cc", "bcc", "reply", "smtp", "user", "pass", "mode", "token", "key", "workspace", "thread",
    "channel", "channels", "team", "botname", "topic", "region", "priority", "tags", "xtags", "entity", "alias",
    "group", "class", "sound", "silent", "webhook", "auth", "id", "sig", "api-version", "ver", "pa", "powerautomate",
    "version", "path",
}  # fmt: skip


class NotSent(Exception):
    """The target did not take the message; the text says why and holds nothing of the target's secrets."""


class Address(NamedTuple):
    """An Apprise URL in its parts: `host` is the one that may be shown, and `hosts` are those that it names itself."""

    url: str
    scheme: str
    host: str
    hosts: tuple[str, ...]


def parse(target: str) -> Address:
    """The address behind `target`, an Apprise URL or `env:NAME`. Raises InvalidField `target` for what may not be."""
    url = _url(target)
    if len(url) > MAX_LENGTH or not url.isprintable() or " " in url or "," in url:
        raise _wrong(f"one address of at most {MAX_LENGTH} characters, without blanks and commas")
    scheme, separator, _rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in SCHEMES:
        raise _wrong(f"an address in Apprise's form that begins with one of {', '.join(sorted(SCHEMES))}, then ://")
    try:
        parts = urlsplit(url)
        named = parts.hostname or ""
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError as problem:
        raise _wrong("an address whose parts can be told apart: encode special characters as %XX") from problem
    for name, _value in pairs:
        if name.lower() not in PARAMETERS and not (scheme in ("json", "jsons") and name.startswith(("+", " "))):
            known = ", ".join(sorted(PARAMETERS))
            raise _wrong(f"the parameter “{name[:40]}” is not taken here; known are {known}, and +Header of json")
    host = unquote(named)
    is_host = "." in host or ":" in host or host == "localhost" or scheme not in MAY_NAME_HOST
    hosts = [host] if host and scheme in NAMES_HOST and is_host else []
    hosts += [value for name, value in pairs if name.lower() == "smtp"]
    return Address(url, scheme, hosts[0] if hosts else SCHEMES[scheme], tuple(hosts))


def _url(target: str) -> str:
    if not target.startswith("env:"):
        return target
    named = VARIABLE.fullmatch(target)
    if named is None:
        raise _wrong("env: is followed by a variable whose name begins with SIGNALBOX_NOTIFY_")
    url = os.environ.get(named[1], "").strip()
    if not url:
        raise _wrong(f"the variable {named[1]} is not set in this process's environment")
    return url


def _wrong(message: str) -> InvalidField:
    return InvalidField("target", message)


def shown(target: str) -> str:
    """What people may see of `target`: the variable's name, or scheme and host; never what is secret in it."""
    if target.startswith("env:"):
        return target[:100] if VARIABLE.fullmatch(target) else "env:…"
    try:
        address = parse(target)
    except InvalidField:
        return "…"
    return f"{address.scheme}://{address.host or '…'}"


def check(target: str) -> None:
    """Raises InvalidField `target` with a sentence unless messages may be sent there; asks nobody outside.

    Whether a name leads to an internal address is judged again, by the real address, with every connection.
    """
    address = parse(target)
    for host in address.hosts:
        literal = literal_address("127.0.0.1" if host.lower().rstrip(".") == "localhost" else host)
        try:
            if literal is not None:
                refuse_internal(literal)
        except AddressRefused as refusal:
            raise _wrong(str(refusal)) from refusal
    answer = _ask({"target": address.url})
    if not answer["ok"]:
        raise _wrong(answer["why"])


def send(target: str, *, title: str, body: str, severity: str = "info") -> None:
    """Hand one message to the target and wait, at most 25 s, until it took it. Raises NotSent saying why not.

    Hold no transaction open meanwhile.
    """
    try:
        address = parse(target)
    except InvalidField as refusal:
        # What stands in a variable was judged when the rule was saved; if it has changed, its text is not ours to tell.
        raise NotSent(
            f"{target} holds no good address any more" if target.startswith("env:") else str(refusal)
        ) from None
    job = {
        "target": address.url,
        "title": title,
        "body": body,
        "severity": severity,
        "timeout_seconds": SOCKET_TIMEOUT_SECONDS,
    }
    answer = _ask(job)
    if not answer["ok"]:
        # A target's own words are in it: data, as what workers write.
        raise NotSent(harmless(conceal(answer["why"], address.url), MAX_WHY_CHARACTERS))


def _ask(job: dict[str, Any]) -> dict[str, Any]:
    """The messenger's answer. What it writes besides may hold secrets, so nobody keeps it."""
    # Neither our secrets nor proxies, nor anybody's file of passwords, belong to it.
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "SSL_CERT_FILE") if name in os.environ}
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "pipeline.messenger"],
            input=json.dumps({**job, "allowed": list(settings.SIGNALBOX_WEBHOOK_ALLOW_NETS)}),
            capture_output=True,
            text=True,
            cwd=Path(__file__).resolve().parent.parent,
            env={**environment, "NETRC": os.devnull, "PYTHONIOENCODING": "utf-8"},
            timeout=TIMEOUT_SECONDS,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"ok": False, "why": f"no answer within {TIMEOUT_SECONDS:.0f} s"}
    except ValueError:
        return {"ok": False, "why": "the messenger ended without an answer"}
    return answer


def conceal(text: str, url: str) -> str:
    """`text` without any piece of `url` but its scheme and the host that is shown."""
    address = parse(url)
    rest = url.partition("://")[2]
    pieces = {piece for whole in (rest, unquote(rest)) for piece in re.split(r"[/:@?&=+#;]", whole)}
    for piece in sorted(pieces, key=len, reverse=True):
        if len(piece) > 3 and piece not in (address.host, *address.hosts):
            text = text.replace(piece, "…")
    return text

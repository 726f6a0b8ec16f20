"""What a tool prints, as it may be stored: without the secrets we know or recognise, and bounded in size."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

CAPTURE_BYTES = 1024 * 1024
"""Most bytes kept of one stream: the first and the last half of it (domain.md §1.11)."""

REPLACEMENT = b"[redacted]"

_OVERLAP_BYTES = 4096
_KEY_BLOCK_BYTES = 32 * 1024
_SHORTEST_SECRET = 8
_QUESTION_BYTES = 16 * 1024

# Every quantifier is bounded below the overlap, so that a match never straddles what was already let go.
_TOKENS = (
    rb"sbx_[A-Za-z0-9_-]{8,512}",
    rb"gh[pousr]_[A-Za-z0-9]{16,512}",
    rb"github_pat_[A-Za-z0-9_]{16,512}",
    rb"(?:AKIA|ASIA)[0-9A-Z]{16}",
    rb"sk-(?:ant|proj)-[A-Za-z0-9_-]{16,512}",
)
_BLOCK_BEGIN = rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
_BLOCK_END = re.compile(rb"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_LONGEST_END = 90

# Looking for these is twenty times faster than the expression; a flood rarely holds one.
_ANCHORS = (
    b"sbx_",
    *(b"gh" + letter + b"_" for letter in (b"p", b"o", b"u", b"s", b"r")),
    b"github_pat_",
    b"AKIA",
    b"ASIA",
    b"sk-ant-",
    b"sk-proj-",
    b"PRIVATE KEY",
)
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


def parts_of_key(key: str) -> list[str]:
    """The pieces of an API key `sbx_<id>_<secret>` that must not be shown: the whole, and the secret alone.

    The secret may hold `_`, so the key is split at the first two (reliability.md D13). The id is public.
    """
    return [key, *key.split("_", 2)[2:]]


def secrets_in(environment: Mapping[str, str]) -> list[str]:
    """The values of those variables whose names say that they hold a secret."""
    return [value for name, value in environment.items() if _SECRET_NAME.search(name)]


class Redactor:
    """Replaces secrets: each of `secrets` exactly, and whatever looks like a token or a private key block.

    A secret shorter than eight characters is not looked for: it would blank ordinary words.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({s.encode() for s in secrets if len(s.encode()) >= _SHORTEST_SECRET}, key=len, reverse=True)
        self.anchors = (*_ANCHORS, *known)
        self.overlap_bytes = max(_OVERLAP_BYTES, 2 * max(map(len, known), default=0))
        self.pattern = re.compile(b"|".join((b"(?P<block>" + _BLOCK_BEGIN + b")", *map(re.escape, known), *_TOKENS)))

    def stream(self) -> "StreamRedactor":
        """A redactor for one stream that arrives in chunks."""
        return StreamRedactor(self)

    def text(self, text: str) -> str:
        """`text` without secrets."""
        stream = self.stream()
        raw = text.encode("utf-8", "replace")
        return (stream.feed(raw) + stream.flush()).decode("utf-8", "replace")

    def question(self, asked: object) -> Any:
        """A JSON value whose texts are without secrets, cut to what a person may be asked: 2,000 characters a text, 20
        items a list or object, six levels; as one text where it is above 16 KiB even so.
        """
        clean = self._clean(asked, depth=6)
        written = json.dumps(clean)
        return clean if len(written) <= _QUESTION_BYTES else {"text": written[:2000]}

    def _clean(self, value: object, *, depth: int) -> Any:
        if isinstance(value, str):
            return self.text(value.replace("\0", "\ufffd"))[:2000]
        if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
            return value
        if depth == 0:
            return "…"
        if isinstance(value, Mapping):
            pairs = list(value.items())[:20]
            return {self.text(str(name))[:100]: self._clean(item, depth=depth - 1) for name, item in pairs}
        if isinstance(value, list | tuple):
            return [self._clean(item, depth=depth - 1) for item in value[:20]]
        return self._clean(str(value), depth=depth)


class StreamRedactor:
    """Redacts one stream; holds the last few KiB back, since a secret may be cut by the edge of a chunk."""

    def __init__(self, redactor: Redactor) -> None:
        self.count = 0
        self._redactor = redactor
        self._held = b""
        self._swallowed = 0  # bytes dropped of a private key block that has not ended; 0 = outside of one

    def feed(self, chunk: bytes) -> bytes:
        """The bytes that are now known to be clean."""
        return self._pass(self._held + chunk, final=False)

    def flush(self) -> bytes:
        """What was held back, clean: the stream has ended."""
        return self._pass(self._held, final=True)

    def _pass(self, waiting: bytes, *, final: bool) -> bytes:
        clean: list[bytes] = []
        while True:
            if self._swallowed:
                waiting = self._swallow(waiting, final=final)
                if self._swallowed:
                    break
            safe = len(waiting) if final else max(0, len(waiting) - self._redactor.overlap_bytes)
            block_opens = False
            if any(anchor in waiting for anchor in self._redactor.anchors):
                done = 0
                for match in self._redactor.pattern.finditer(waiting):
                    if match.start() >= safe:
                        break
                    clean += (waiting[done : match.start()], REPLACEMENT)
                    self.count += 1
                    done = match.end()
                    if match["block"] is not None:
                        block_opens = True
                        break
                if not block_opens:
                    safe = max(safe, done)
                    clean.append(waiting[done:safe])
                else:
                    safe = done
            else:
                clean.append(waiting[:safe])
            waiting = waiting[safe:]
            if not block_opens:
                break
            self._swallowed = 1
        self._held = waiting
        return b"".join(clean)

    def _swallow(self, waiting: bytes, *, final: bool) -> bytes:
        """Drops the inside of a key block; a block that does not end is given up after 32 KiB."""
        end = _BLOCK_END.search(waiting)
        if end is not None:
            self._swallowed = 0
            return waiting[end.end() :]
        room = _KEY_BLOCK_BYTES - self._swallowed
        if len(waiting) > room:
            self._swallowed = 0
            return waiting[room:]
        if final:
            self._swallowed = 0
            return b""
        kept = waiting[-_LONGEST_END:]
        self._swallowed += len(waiting) - len(kept)
        return kept


class Capture:
    """The first and the last half of one stream, redacted; memory stays below twice `limit_bytes`."""

    def __init__(self, redactor: Redactor, limit_bytes: int = CAPTURE_BYTES) -> None:
        self.total_bytes = 0
        self._half = limit_bytes // 2
        self._redaction = redactor.stream()
        self._head = bytearray()
        self._tail = bytearray()
        self._kept_bytes = 0

    @property
    def redactions(self) -> int:
        """How many secrets were replaced so far."""
        return self._redaction.count

    def add(self, chunk: bytes) -> None:
        """Takes the next bytes of the stream."""
        self.total_bytes += len(chunk)
        self._keep(self._redaction.feed(chunk))

    def close(self) -> None:
        """The stream has ended."""
        self._keep(self._redaction.flush())

    def _keep(self, clean: bytes) -> None:
        self._kept_bytes += len(clean)
        room = self._half - len(self._head)
        if room > 0:
            self._head += clean[:room]
            clean = clean[room:]
        self._tail += clean[-self._half :]
        if len(self._tail) > 2 * self._half:
            del self._tail[: -self._half]

    def text(self) -> str:
        """The stream as text, with a line where its middle was left out. NUL, which PostgreSQL refuses, is replaced."""
        tail = bytes(self._tail[-self._half :])
        left_out = self._kept_bytes - len(self._head) - len(tail)
        middle = f"\n[{left_out} bytes left out]\n".encode() if left_out else b""
        return _readable(bytes(self._head) + middle + tail)

    def tail(self, limit_bytes: int) -> str:
        """The last `limit_bytes` of the stream as text."""
        tail = bytes(self._tail[-limit_bytes:]) if limit_bytes else b""
        if len(tail) < limit_bytes and self._kept_bytes <= len(self._head) + len(self._tail):
            tail = bytes(self._head[-(limit_bytes - len(tail)) :]) + tail
        return _readable(tail)


def _readable(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").replace("\0", "�")

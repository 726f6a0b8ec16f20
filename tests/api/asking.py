"""Asking the API as a program does: JSON, a bearer key, and what came back."""

import json
from collections.abc import Iterator
from typing import Any

from django.test import Client

ROOT = "/api/v1"

HUGE = 10**40
NUL = "a\x00b"
HALF = "a\ud800b"


class Api:
    """One caller. Every method answers Django's response; `json()` of it is the document."""

    def __init__(self, text: str = "", **headers: str) -> None:
        if text:
            headers["Authorization"] = f"Bearer {text}"
        self._client = Client(headers=headers)

    def get(self, path: str, **query: Any) -> Any:
        """GET, with query parameters."""
        return self._client.get(ROOT + path, query)

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        """POST of a JSON document; header names are written with `_`."""
        return self._send("post", path, body, headers)

    def patch(self, path: str, body: Any, version: int | None = None) -> Any:
        """PATCH, quoting `version` when given."""
        return self._send("patch", path, body, {} if version is None else {"If_Match": f'"{version}"'})

    def delete(self, path: str, body: Any = None) -> Any:
        """DELETE."""
        return self._send("delete", path, body, {})

    def _send(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Any:
        return getattr(self._client, method)(
            ROOT + path,
            data=json.dumps({} if body is None else body),
            content_type="application/json",
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )


def refused(answer: Any) -> tuple[int, str]:
    """(status, code) of a problem document. Fails for anything else."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer.content[:500]
    document = answer.json()
    assert document["status"] == answer.status_code
    assert document["request_id"] == answer.headers["X-Request-Id"]
    return answer.status_code, document["code"]


def wrong_values(good: Any) -> Iterator[Any]:
    """Values that no field with the good value `good` takes: wrong types, huge ones, text that cannot be stored."""
    yield from (NUL, HALF)
    if isinstance(good, bool):
        yield from ("maybe", 7, [], {}, HUGE)
    elif isinstance(good, int):
        yield from ("many", -HUGE, HUGE, 1.5, [], {}, "1" * 5000)
    elif isinstance(good, str):
        yield from ([], {}, True, "x" * 200_000)
    elif isinstance(good, list):
        yield from ("text", 7, {}, True, [[]], [None], ["x"] * 5000)
    elif isinstance(good, dict):
        yield from ("text", 7, [], True, {NUL: 1})

"""POSTs that may come twice: an Idempotency-Key, its effect and its stored answer commit together."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from django.db import transaction
from django.http import HttpRequest
from rest_framework.renderers import JSONRenderer
from rest_framework.response import Response

from pipeline import prepared
from pipeline.ids import new_id, to_uuid
from pipeline.models import StoredAnswer
from pipeline.refusals import Refused

ANSWER_LIFE = timedelta(hours=24)


def fingerprint(request: HttpRequest) -> str:
    """What makes a repeated request the same: its method, address and body."""
    head = f"{request.method}\n{request.get_full_path()}\n".encode()
    return hashlib.sha256(head + request.body).hexdigest()


# A twin that runs now is waited for, by its row; one whose time is over gives its row away.
_TAKE_KEY = """
INSERT INTO pipeline_storedanswer AS kept (id, principal, key, body_hash, status, headers, body, expires_at)
VALUES (%s, %s, %s, %s, 0, '{}', '', clock_timestamp() + %s)
ON CONFLICT (principal, key) DO UPDATE SET id = EXCLUDED.id, body_hash = EXCLUDED.body_hash, status = 0,
    headers = '{}', body = '', expires_at = EXCLUDED.expires_at
WHERE kept.expires_at <= clock_timestamp()
RETURNING 1
"""
_KEEP_ANSWER = "UPDATE pipeline_storedanswer SET status = %s, headers = %s::jsonb, body = %s WHERE id = %s"


class Repeatable:
    """A POST with an `Idempotency-Key`: its effect and its stored answer commit together, or neither does."""

    def __init__(self, principal: str, key: str, body_hash: str) -> None:
        self.principal, self.key, self.body_hash = principal, key, body_hash

    def answer(self, handler: Callable[[], Response], *, hide: Sequence[str] = ()) -> Response:
        """The handler's answer, or the stored one of an earlier request with this key.

        A twin that runs now is waited for: its row holds the unique key until it commits or rolls back. Only answers
        below 400 are kept, without the fields in `hide`; a refusal undoes its row too. Raises Refused
        `idempotency_mismatch` when the key was used for another body, method or address.
        """
        with transaction.atomic():
            if not self.take():
                stored = StoredAnswer.objects.select_for_update()
                return self._replay(stored.get(principal=self.principal, key=self.key))
            response = handler()
            if response.status_code >= 400 or response.status_code == 204:
                transaction.set_rollback(True)
                return response
            shown = response.data
            if hide and isinstance(shown, Mapping):
                shown = {name: value for name, value in shown.items() if name not in hide}
            headers = {name: value for name, value in response.items() if name in ("ETag", "Location")}
            self.keep(response.status_code, headers, JSONRenderer().render(shown).decode())
            return response

    def take(self) -> bool:
        """Take the key in the caller's transaction, which waits for a twin; False when there is a stored answer."""
        self.id = to_uuid(new_id())
        given = [self.id, self.principal, self.key, self.body_hash, ANSWER_LIFE]
        return bool(prepared.execute(_TAKE_KEY, given))

    def keep(self, status: int, headers: Mapping[str, str], body: str) -> None:
        """Store the answer under the key that was taken."""
        prepared.execute(_KEEP_ANSWER, [status, json.dumps(headers), body, self.id])

    def _replay(self, stored: StoredAnswer) -> Response:
        if stored.body_hash != self.body_hash:
            raise Refused("This Idempotency-Key was used for another request", code="idempotency_mismatch", status=422)
        data = json.loads(stored.body) if stored.body else None
        return Response(data, stored.status, headers={**stored.headers, "Idempotency-Replayed": "true"})

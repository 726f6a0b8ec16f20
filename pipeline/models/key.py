"""How programs come in: API keys, kept as hashes, and the stored answers that make a repeated request harmless."""

import hashlib
import hmac
import secrets
from datetime import timedelta
from typing import Any, NamedTuple, Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from pipeline import events
from pipeline.clock import ClockNow, db_now
from pipeline.definitions import Definition, DefinitionQuerySet
from pipeline.models.project import Project
from pipeline.refusals import InvalidField
from pipeline.rows import Kept, in_transaction, versioned

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
MAX_WORKER_KEY_LIFE = timedelta(days=90)


class NewKey(NamedTuple):
    """A key at the only moment when its text is known."""

    row: "ApiKey"
    text: str


def hash_secret(secret: str) -> str:
    """HMAC-SHA256 of the secret under the installation's pepper, in hex: what the database holds."""
    return hmac.new(settings.SIGNALBOX_PEPPER.encode(), secret.encode(), hashlib.sha256).hexdigest()


class ApiKeyQuerySet(DefinitionQuerySet["ApiKey"]):
    """The words for asking about keys."""

    def visible_to(self, principal: Any) -> Self:
        """The keys of the projects that `principal` administers; keys without a project only for the installation's."""
        ids = principal.project_ids(at_least="admin")
        return self if ids is None else self.filter(project__in=ids)

    def live(self) -> Self:
        """Neither revoked nor past their end."""
        return self.filter(revoked_at=None).filter(Q(expires_at=None) | Q(expires_at__gt=ClockNow()))

    def make(
        self,
        *,
        name: str,
        role: str,
        by: events.Actor,
        project: Project | None = None,
        life: timedelta | None = None,
    ) -> NewKey:
        """A new key, `sbx_<prefix>_<secret>`; its text is returned here and can never be shown again.

        A worker's key lives 90 days at most, which is also its default. Raises InvalidField for an unknown role or a
        longer life.
        """
        if role not in ApiKey.Role.values:
            raise InvalidField("role", f"one of {', '.join(ApiKey.Role.values)}, not “{role}”")
        if role == ApiKey.Role.WORKER:
            life = life or MAX_WORKER_KEY_LIFE
            if life > MAX_WORKER_KEY_LIFE:
                raise InvalidField("expires_at", "a worker's key lives 90 days at most")
        if life is not None and life <= timedelta(0):
            raise InvalidField("expires_at", "a key ends in the future")
        prefix = "".join(secrets.choice(ALPHABET) for _n in range(8))
        secret = secrets.token_urlsafe(32)
        row = self.add(
            by=by,
            prefix=prefix,
            secret_hash=hash_secret(secret),
            name=name,
            role=role,
            project=project,
            expires_at=None if life is None else timezone.now() + life,
            created_by=by.name,
        )
        return NewKey(row, f"sbx_{prefix}_{secret}")


@versioned(quiet=("last_used_at",))
class ApiKey(Definition):
    """A program's way in: stored hashed with a pepper, shown once, revocable at once, for one project or for all."""

    NOUN = "api_key"

    class Role(models.TextChoices):
        VIEWER = "viewer", _("viewer")
        OPERATOR = "operator", _("operator")
        APPROVER = "approver", _("approver")
        ADMIN = "admin", _("admin")
        WORKER = "worker", _("worker")

    # A secret, and a clock of use that no verb moves.
    UNTOLD = Definition.UNTOLD | {"secret_hash", "last_used_at"}

    prefix = models.CharField(max_length=8, unique=True, editable=False)
    secret_hash = models.CharField(max_length=64, editable=False)
    name = models.CharField(max_length=200)
    role = models.CharField(max_length=8, choices=Role)
    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="api_keys")
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, editable=False)
    last_used_at = models.DateTimeField(null=True, editable=False)
    created_by = models.CharField(max_length=200, editable=False)

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="apikey_role_known", condition=Q(role__in=["viewer", "operator", "approver", "admin", "worker"])
            ),
            models.CheckConstraint(
                name="apikey_worker_ends", condition=~Q(role="worker") | Q(expires_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} (sbx_{self.prefix}_…)"

    def correlation(self) -> dict[str, str | None]:
        """Events about a key belong to its project, if it has one."""
        return {"project_id": self.project_id}

    def matches(self, secret: str) -> bool:
        """Whether `secret` is this key's, in constant time."""
        return hmac.compare_digest(self.secret_hash, hash_secret(secret))

    def revoke(self, *, by: events.Actor, reason: str = "") -> bool:
        """End the key at once; False when it has ended already."""
        with in_transaction():
            now = db_now()
            done = ApiKey.objects.filter(pk=self.pk, revoked_at=None).update(revoked_at=now)
            if done:
                events.record(
                    "api_key.changed",
                    self,
                    by=by,
                    reason=reason,
                    before={"revoked_at": None},
                    after={"revoked_at": now},
                )
        self.refresh_from_db()
        return bool(done)


class StoredAnswer(Kept):
    """The answer to a POST with an `Idempotency-Key`, written in the effect's own transaction, kept 24 hours."""

    principal = models.CharField(max_length=64)
    key = models.CharField(max_length=200)
    body_hash = models.CharField(max_length=64)
    status = models.PositiveSmallIntegerField(default=0)
    headers = models.JSONField(default=dict)
    body = models.TextField(blank=True)
    expires_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["principal", "key"], name="storedanswer_once_per_key")]
        indexes = [models.Index(fields=["expires_at"], name="storedanswer_expiry")]

    def __str__(self) -> str:
        return f"{self.principal} {self.key}"

"""The repository that a mirror follows, and what of the landed work it still has to be given."""

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Self

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from ledger.git import remotes
from ledger.models.patch import Patch
from ledger.models.queue import MergeQueue
from pipeline import events
from pipeline.clock import ClockNow
from pipeline.definitions import Definition, DefinitionQuerySet
from pipeline.models import Project
from pipeline.refusals import InvalidField, Refused
from pipeline.rows import Told, in_transaction, versioned
from pipeline.states import NOW, Stateful, held_by_postgres

ENVIRONMENT_PREFIX = "SIGNALBOX_CREDENTIAL_"
"""Only such variables may be named, so that no reference reaches the product's own secrets."""

SECRET_BYTES = 64 * 1024
_REFERENCE = re.compile(r"env:[A-Z0-9_]{1,100}|file:[^\x00-\x1f]{1,300}")


class CredentialMissing(Refused):
    """What a reference names is not there, is empty, or may not be read. The message never holds a secret."""

    code = "credential_missing"
    status = 503


def credentials_folder() -> Path:
    """The one folder whose files may be named as `file:`."""
    return Path(settings.SIGNALBOX_CREDENTIALS_DIR or Path(settings.DATA_DIR) / "credentials")


def check_reference(field: str, reference: str) -> None:
    """Raises InvalidField unless `reference` is empty, `env:SIGNALBOX_CREDENTIAL_…` or `file:` a plain name."""
    if not reference:
        return
    kind, _colon, name = reference.partition(":")
    right = f"env:{ENVIRONMENT_PREFIX}NAME, or file:NAME of a file in the folder for credentials"
    if not _REFERENCE.fullmatch(reference):
        raise InvalidField(field, f"a reference, not the secret itself: {right}")
    if kind == "env" and not name.startswith(ENVIRONMENT_PREFIX):
        raise InvalidField(field, f"only variables that begin with {ENVIRONMENT_PREFIX} may be named")
    if kind == "file" and (Path(name).name != name or name.startswith(".")):
        raise InvalidField(field, f"a plain file name, not a path: {right}")


def read_secret(reference: str) -> str:
    """The secret that `reference` names, "" for an empty reference. Raises CredentialMissing, InvalidField."""
    check_reference("credential", reference)
    if not reference:
        return ""
    kind, _colon, name = reference.partition(":")
    if kind == "env":
        secret = os.environ.get(name, "")
    else:
        try:
            secret = (credentials_folder() / name).read_bytes()[:SECRET_BYTES].decode()
        except (OSError, UnicodeDecodeError) as problem:
            raise CredentialMissing(f"The credential {reference} cannot be read here") from problem
    secret = secret.strip()
    if not secret:
        raise CredentialMissing(f"The credential {reference} is empty or not set here")
    if not secret.isprintable():
        raise CredentialMissing(f"The credential {reference} holds more than one line")
    return secret


class RemoteQuerySet(DefinitionQuerySet["Remote"]):
    """The words for asking about remotes."""

    def visible_to(self, principal: Any) -> Self:
        """The remotes of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)

    def live(self) -> Self:
        """Those that are followed."""
        return self.filter(enabled=True, project__archived_at=None, project__custody=Project.Custody.MANAGED)

    def lacking_receipts(self) -> Self:
        """Those that have not got every receipt, as far as is known."""
        return self.exclude(receipts_error="")


@versioned(quiet=("fetched_at",))
class Remote(Definition):
    """Where a project's mirror fetches from, and where and how its landed work goes.

    The address stands beside the credential and not in the project, since whoever may change the one sends the other
    somewhere else; so both belong to the installation's admin.
    """

    NOUN = "remote"
    # When it was last asked: every few minutes, and nothing happened.
    UNTOLD: ClassVar[frozenset[str]] = Told.UNTOLD | {"fetched_at"}

    class Landing(models.TextChoices):
        NONE = "none", _("stays in the mirror")
        PUSH = "push", _("pushed to the branch itself")
        BRANCH = "branch", _("pushed to a branch of ours, with the text of a pull request")

    project = models.OneToOneField(Project, models.PROTECT, related_name="remote")
    url = models.CharField(max_length=1000, help_text=_("a path, or a file, https or ssh address, without a password"))
    landing = models.CharField(max_length=6, choices=Landing, default=Landing.NONE)
    username = models.CharField(max_length=100, default="x-access-token")
    credential = models.CharField(max_length=400, blank=True, help_text=_("env:NAME or file:NAME; never the secret"))
    webhook_credential = models.CharField(
        max_length=400, blank=True, help_text=_("env:NAME or file:NAME: what the host signs its push webhook with")
    )
    fetch_seconds = models.PositiveIntegerField(default=300, help_text=_("0: only when asked, or told by a webhook"))
    enabled = models.BooleanField(default=True)
    fetched_at = models.DateTimeField(null=True, editable=False)
    fetch_error = models.TextField(blank=True, editable=False)
    receipts_error = models.TextField(blank=True, editable=False)

    objects = RemoteQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(name="remote_landing_known", condition=Q(landing__in=["none", "push", "branch"])),
            models.CheckConstraint(
                name="remote_fetches_in_reason", condition=Q(fetch_seconds=0) | Q(fetch_seconds__gte=10)
            ),
        ]

    def __str__(self) -> str:
        return f"remote of {self.project.key}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a remote belong to its project."""
        return {"project_id": self.project_id}

    def check_rules(self) -> None:
        """The address is one that may be used; secrets are named and not written down; a project under our care."""
        remotes.check_address(self.url)
        check_reference("credential", self.credential)
        check_reference("webhook_credential", self.webhook_credential)
        if self.credential and not self.url.startswith("https://"):
            raise InvalidField("credential", "is for https:// addresses; ssh uses the agent of the service's user")
        if not self.username.isprintable() or ":" in self.username or not self.username:
            raise InvalidField("username", "one word without a colon")
        if 0 < self.fetch_seconds < 10:
            raise InvalidField("fetch_seconds", "0, or at least 10")
        if self.project.custody != Project.Custody.MANAGED:
            raise InvalidField("project", "only a managed project has a mirror that follows a remote")

    def pushes_to(self, branch: str) -> str:
        """The branch of the remote that gets what lands on `branch`; "" when nothing is pushed."""
        if self.landing == self.Landing.PUSH:
            return branch
        return f"signalbox/{branch}" if self.landing == self.Landing.BRANCH else ""

    def note_fetch(self, error: str, moved: list[dict[str, Any]], *, by: events.Actor) -> None:
        """Write how a fetch went. Recorded as `remote.fetch_failed` when the error is a new one, else as
        `remote.fetched` when a branch moved or an error is gone.
        """
        with in_transaction():
            current = self.lock_fresh()
            columns: dict[str, Any] = {"fetch_error": error}
            Remote.objects.filter(pk=self.pk).update(fetched_at=ClockNow(), **columns)
            changed = current.fetch_error != error
            if changed or moved:
                events.record(
                    "remote.fetch_failed" if error and changed else "remote.fetched",
                    self,
                    by=by,
                    reason=error,
                    data={"branches": moved} if moved else None,
                    before=self.tellable({"fetch_error": current.fetch_error}) if changed else None,
                    after=self.tellable(columns) if changed else None,
                )
        self.fetch_error = error

    def note_receipts(self, error: str, *, by: events.Actor) -> None:
        """Write why the remote has not got every receipt, "" when it has. Recorded as `remote.receipts_behind` or
        `remote.receipts_taken` when that is new.
        """
        with in_transaction():
            current = self.lock_fresh()
            if current.receipts_error != error:
                columns: dict[str, Any] = {"receipts_error": error}
                Remote.objects.filter(pk=self.pk).update(**columns)
                events.record(
                    "remote.receipts_behind" if error else "remote.receipts_taken",
                    self,
                    by=by,
                    reason=error,
                    before=self.tellable({"receipts_error": current.receipts_error}),
                    after=self.tellable(columns),
                )
        self.receipts_error = error


class PushQuerySet(models.QuerySet["Push"]):
    """The words for owing and asking about pushes."""

    def visible_to(self, principal: Any) -> Self:
        """The pushes of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(queue__project__in=ids)

    def waiting(self) -> Self:
        """Not there yet, oldest first."""
        return self.filter(state=Push.State.WAITING).order_by("pk")

    def due(self) -> Self:
        """Waiting, and not put off, by the database's clock."""
        return self.waiting().filter(due_at__lte=ClockNow())

    def owe(self, patch: Patch, remote: Remote, *, by: events.Actor) -> "tuple[Push, bool]":
        """The push of a committed patch, and whether it is new. Safe to repeat: one for each patch."""
        with in_transaction():
            queue = MergeQueue.objects.get(project=patch.project_id, target_branch=patch.target_branch)
            push, created = self.get_or_create(
                patch=patch,
                defaults={
                    "queue": queue,
                    "commit_sha": patch.commit_sha,
                    "target": remote.pushes_to(patch.target_branch),
                },
            )
            if created:
                push.born(by=by)
        return push, created


@held_by_postgres
class Push(Stateful):
    """One landed commit on its way to the remote.

        initial -> waiting -> pushed
        waiting <-> held

    Held: the remote has gone another way, and a person decides; nothing is ever forced.
    """

    NOUN = "push"

    class State(models.TextChoices):
        WAITING = "waiting", _("waiting")
        PUSHED = "pushed", _("pushed")
        HELD = "held", _("held")

    MOVES = {
        State.WAITING: {State.PUSHED, State.HELD},
        State.HELD: {State.WAITING, State.PUSHED},
        State.PUSHED: set(),
    }
    KINDS = {(State.HELD, State.WAITING): "push.resumed"}
    INITIAL = {State.WAITING}

    queue = models.ForeignKey(MergeQueue, models.PROTECT, related_name="pushes")
    patch = models.OneToOneField(Patch, models.PROTECT, related_name="push")
    commit_sha = models.CharField(max_length=64)
    target = models.CharField(max_length=300)
    state = models.CharField(max_length=7, choices=State, default=State.WAITING)
    attempts = models.PositiveIntegerField(default=0)
    due_at = models.DateTimeField(db_default=ClockNow())
    last_error = models.TextField(blank=True)
    request_title = models.CharField(max_length=200, blank=True)
    request_text = models.TextField(blank=True)
    pushed_at = models.DateTimeField(null=True)

    objects = PushQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(name="push_names_target", condition=~Q(target="") & ~Q(commit_sha="")),
            models.CheckConstraint(
                name="push_pushed_has_time",
                condition=Q(state="pushed", pushed_at__isnull=False) | (~Q(state="pushed") & Q(pushed_at=None)),
            ),
        ]
        indexes = [
            models.Index(F("due_at"), name="push_due", condition=Q(state="waiting")),
            models.Index(fields=["queue", "state"], name="push_of_queue", condition=~Q(state="pushed")),
        ]

    def __str__(self) -> str:
        return f"push of {self.commit_sha[:12]} to {self.target}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a push belong to its patch."""
        return self.patch.correlation()

    def arrive(self, *, by: events.Actor, title: str = "", text: str = "") -> bool:
        """waiting, held -> pushed: the remote has the commit. With the text of the pull request, if one is needed."""
        return self.move(
            self.State.PUSHED,
            by=by,
            verb="push",
            pushed_at=NOW,
            last_error="",
            request_title=title[:200],
            request_text=text,
        )

    def retry(self, error: str, *, by: events.Actor) -> None:
        """Put it off after a failure, each time for longer, recorded as `push.retrying`."""
        with in_transaction():
            current = Push.objects.select_for_update(no_key=True, of=("self",)).get(pk=self.pk)
            if current.state != self.State.WAITING:
                return
            wait = delay(current.attempts)
            Push.objects.filter(pk=self.pk).update(
                attempts=current.attempts + 1, last_error=error[:2000], due_at=ClockNow() + wait
            )
            self.refresh_from_db()
            names = ("attempts", "last_error", "due_at")
            events.record(
                "push.retrying",
                self,
                by=by,
                reason=error[:2000],
                before=self.tellable({name: getattr(current, name) for name in names}),
                after=self.tellable({name: getattr(self, name) for name in names}),
            )

    def hold(self, reason: str, *, by: events.Actor) -> bool:
        """waiting -> held: the remote's branch holds what ours does not. Quiet."""
        return self.move(self.State.HELD, by=by, reason=reason, verb="hold", last_error=reason[:2000])

    def resume(self, *, by: events.Actor) -> bool:
        """held -> waiting, due at once: what was in the way is gone. Quiet."""
        return self.move(self.State.WAITING, by=by, verb="resume", due_at=NOW, attempts=0, last_error="")


def delay(attempts: int) -> timedelta:
    """How long to wait after `attempts` failures before this one: 10 s, doubling, 15 minutes at most."""
    return min(timedelta(seconds=10 * 2 ** min(attempts, 12)), timedelta(minutes=15))

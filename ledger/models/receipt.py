"""Receipts: for every landed commit one statement of where it comes from, written once."""

import hashlib
from typing import Any, Self

from django.db import models
from django.db.models import Q

from ledger.models.patch import Patch
from ledger.models.seal import FilledOnce
from pipeline import events
from pipeline.models import Project
from pipeline.rows import Immutable, Kept, NoDelete, NoTruncate, in_transaction


class ReceiptQuerySet(models.QuerySet["Receipt"]):
    """The words for writing and asking about receipts."""

    def visible_to(self, principal: Any) -> Self:
        """The receipts of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)

    def unnoted(self) -> Self:
        """Those that do not hang on their commit yet, oldest first."""
        return self.filter(note="").order_by("pk")

    def keep(self, patch: Patch, statement: str, *, by: events.Actor) -> "tuple[Receipt, bool]":
        """Store the statement (canonical JSON) about a committed patch, and whether it is new. The first one stays."""
        with in_transaction():
            receipt, created = self.get_or_create(
                patch=patch,
                defaults={
                    "project_id": patch.project_id,
                    "commit_sha": patch.commit_sha,
                    "statement": statement,
                    "sha256": hashlib.sha256(statement.encode()).hexdigest(),
                },
            )
            if created:
                told = {"sha256": receipt.sha256, "commit": receipt.commit_sha}
                events.record("receipt.written", receipt, by=by, data=told)
        return receipt, created


class Receipt(Kept):
    """An in-toto statement about one landed commit: its subject is the commit and its tree.

    Written once; `note` (the commit on refs/notes/signalbox that hung it on its commit) is filled in once. Its event
    holds the digest, so the sealed log vouches for it.
    """

    NOUN = "receipt"

    project = models.ForeignKey(Project, models.PROTECT, related_name="receipts")
    patch = models.OneToOneField(Patch, models.PROTECT, related_name="receipt")
    commit_sha = models.CharField(max_length=64)
    statement = models.TextField()
    sha256 = models.CharField(max_length=64)
    note = models.CharField(max_length=64, blank=True, default="")

    objects = ReceiptQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["id"], name="receipt_unnoted", condition=Q(note="")),
            models.Index(fields=["commit_sha"], name="receipt_of_commit"),
        ]
        triggers = [
            Immutable(name="written_once", except_for=("note",)),
            FilledOnce(name="filled_once", empty={"note": "= ''"}),
            NoDelete(name="never_deleted"),
            NoTruncate(name="never_truncated"),
        ]

    def __str__(self) -> str:
        return f"receipt of {self.commit_sha[:12]}"

    def is_intact(self) -> bool:
        """Whether the statement still has its digest. Whether both are those of the log is for `ledger.receipts`."""
        return hashlib.sha256(self.statement.encode()).hexdigest() == self.sha256

    def correlation(self) -> dict[str, str | None]:
        """Events about a receipt belong to its patch."""
        return self.patch.correlation()

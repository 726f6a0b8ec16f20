"""Who works here, on what: users, projects, and who may do what in which project."""

from pathlib import Path
from typing import Any, Self

from django.conf import settings
from django.contrib.auth.models import AbstractUser
from django.db import models
from django.utils.translation import gettext_lazy as _

from pipeline import events
from pipeline.definitions import Definition, DefinitionQuerySet
from pipeline.ids import ULIDField, new_id
from pipeline.questions import ask
from pipeline.refusals import InvalidField, Refused
from pipeline.rows import SLUG, versioned

ROLES = ("viewer", "operator", "approver", "admin")


def slug_rule(value: str) -> None:
    """Raises InvalidField unless `value` is a key: lower-case letters, digits, `.`, `_`, `-`, at most 64."""
    if not SLUG.fullmatch(value):
        raise InvalidField("key", f"“{value}” is not a key: lower-case letters, digits, '.', '_' and '-', at most 64")


class User(AbstractUser):
    """A person. Our own model from the first migration, since it cannot be swapped later."""

    NOUN = "user"

    id = ULIDField(primary_key=True, default=new_id, editable=False)
    time_zone = models.CharField(max_length=64, default="UTC")

    def noun(self) -> str:
        """The word for this row in events."""
        return self.NOUN

    def correlation(self) -> dict[str, str | None]:
        """No event about a person belongs to a project."""
        return {}


class ProjectQuerySet(DefinitionQuerySet["Project"]):
    """The words for asking about projects."""

    def visible_to(self, principal: Any) -> Self:
        """The projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(pk__in=ids)

    def live(self) -> Self:
        """Not archived."""
        return self.filter(archived_at=None)


@versioned()
class Project(Definition):
    """One repository under our care, and the rules that hold over it.

    `custody` says who moves the branch: Signalbox (`managed`) or something else of which Signalbox keeps the books
    (`recorded`).
    """

    NOUN = "project"

    class Custody(models.TextChoices):
        MANAGED = "managed", _("managed")
        RECORDED = "recorded", _("recorded")

    class Domain(models.TextChoices):
        SOFTWARE = "software-dev", _("software development")
        DATA = "data-pipeline", _("data pipeline")
        OPERATIONS = "operations", _("operations")
        DOCUMENTATION = "documentation", _("documentation")
        MIXED = "mixed", _("mixed")

    key = models.CharField(max_length=64, unique=True, validators=[slug_rule])
    name = models.CharField(max_length=200)
    repository_url = models.TextField(blank=True)
    default_branch = models.CharField(max_length=255, default="main")
    custody = models.CharField(max_length=8, choices=Custody, default=Custody.MANAGED)
    domain = models.CharField(max_length=16, choices=Domain, default=Domain.SOFTWARE)
    profile = models.JSONField(default=dict, blank=True)
    currency = models.CharField(max_length=3, default="USD")
    sandbox_level_min = models.PositiveSmallIntegerField(default=1)
    error_phase = models.ForeignKey("pipeline.Phase", models.SET_NULL, null=True, blank=True, related_name="+")
    archived_at = models.DateTimeField(null=True, blank=True)

    objects = ProjectQuerySet.as_manager()

    class Meta:
        ordering = ["key"]
        constraints = [
            models.CheckConstraint(
                name="project_managed_has_url",
                condition=~models.Q(custody="managed") | ~models.Q(repository_url=""),
            ),
            models.CheckConstraint(name="project_currency_is_iso", condition=models.Q(currency__regex=r"^[A-Z]{3}$")),
            models.CheckConstraint(
                name="project_custody_known", condition=models.Q(custody__in=["managed", "recorded"])
            ),
            models.CheckConstraint(name="project_sandbox_level_known", condition=models.Q(sandbox_level_min__lte=3)),
        ]

    def __str__(self) -> str:
        return self.key

    def correlation(self) -> dict[str, str | None]:
        """Events about a project belong to it."""
        return {"project_id": self.pk}

    def check_rules(self) -> None:
        """A managed project names its repository; its currency is three capitals."""
        if self.custody == self.Custody.MANAGED and not self.repository_url:
            raise InvalidField("repository_url", "a managed project names the repository that it looks after")
        if len(self.currency) != 3 or not (
            self.currency.isascii() and self.currency.isalpha() and self.currency.isupper()
        ):
            raise InvalidField("currency", "Currency must be three upper-case letters", code="invalid_currency")

    def edit(self, *, by: events.Actor, expected_version: int | None = None, **fields: Any) -> bool:
        """As of every definition; the branch is one that the repository has. Raises InvalidField besides."""
        branch = fields.get("default_branch", self.default_branch)
        if branch != self.default_branch:
            ask("project.branch", project=self, branch=branch)
        return super().edit(by=by, expected_version=expected_version, **fields)

    @property
    def mirror(self) -> Path:
        """The bare mirror that belongs to Signalbox; the only repository that it writes to."""
        return Path(settings.DATA_DIR) / "mirrors" / f"{self.pk}.git"

    def must_be_live(self) -> None:
        """Raises Refused `project_archived` when nothing may start here any more."""
        if self.archived_at is not None:
            raise Refused(f"Project {self.key} is archived, so nothing starts in it", code="project_archived")


class MembershipQuerySet(DefinitionQuerySet["Membership"]):
    """The words for asking about memberships."""

    def visible_to(self, principal: Any) -> Self:
        """The memberships of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)


@versioned()
class Membership(Definition):
    """What one user may do in one project (domain.md §1.8)."""

    NOUN = "membership"

    class Role(models.TextChoices):
        VIEWER = "viewer", _("viewer")
        OPERATOR = "operator", _("operator")
        APPROVER = "approver", _("approver")
        ADMIN = "admin", _("admin")

    project = models.ForeignKey(Project, models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=8, choices=Role)

    objects = MembershipQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "user"], name="membership_once_per_user"),
            models.CheckConstraint(name="membership_role_known", condition=models.Q(role__in=ROLES)),
        ]

    def __str__(self) -> str:
        return f"{self.user} in {self.project}: {self.role}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a membership belong to its project."""
        return {"project_id": self.project_id}

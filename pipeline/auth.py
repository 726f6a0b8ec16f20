"""Who is asking, and what they may do: API keys, browser sessions, and roles by project (domain.md §1.8)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import wraps
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from pipeline import events
from pipeline.models import ROLES, ApiKey, Membership, Project, User
from pipeline.refusals import Refused

LAST_USED_GRAIN = timedelta(minutes=1)


class Denied(Refused):
    """The caller may not do this."""

    code = "permission_denied"
    status = 403


@dataclass(frozen=True)
class Principal:
    """Whoever is asking: a person or a key, with a role in the whole installation, in single projects, or none.

    `everywhere` is the role that holds in every project; `roles` those by project id. A worker's key has the role
    `worker`, which stands apart: it reads nothing but what its own workers hold.
    """

    kind: str
    id: str
    name: str
    everywhere: str = ""
    roles: dict[str, str] = field(default_factory=dict)
    is_worker: bool = False
    user: User | None = None
    key: ApiKey | None = None

    @classmethod
    def of_user(cls, user: User) -> "Principal":
        """The person behind a session. One query; a superuser is admin of the installation."""
        if user.is_superuser:
            return cls("user", user.pk, user.get_username(), everywhere="admin", user=user)
        roles = dict(Membership.objects.filter(user=user).values_list("project_id", "role"))
        return cls("user", user.pk, user.get_username(), roles=roles, user=user)

    @classmethod
    def of_key(cls, key: ApiKey) -> "Principal":
        """The program behind a key."""
        if key.role == ApiKey.Role.WORKER:
            return cls("key", key.pk, key.name, is_worker=True, key=key)
        if key.project_id is None:
            return cls("key", key.pk, key.name, everywhere=key.role, key=key)
        return cls("key", key.pk, key.name, roles={key.project_id: key.role}, key=key)

    @property
    def actor(self) -> events.Actor:
        """This principal as the one who caused a change."""
        if self.kind == "user":
            return events.Actor("user", self.id, self.name)
        return events.Actor("worker" if self.is_worker else "integration", self.id, self.name)

    @property
    def caller(self) -> str:
        """The name of its bucket (pipeline.limits): what only the key's holder can send, or the person."""
        return self.key.secret_hash if self.key is not None else f"{self.kind}:{self.id}"

    @property
    def is_installation_admin(self) -> bool:
        """Whether it may make projects and see all: a superuser, or an admin key without a project."""
        return self.everywhere == "admin"

    def project_ids(self, at_least: str = "viewer") -> set[str] | None:
        """The projects in which it has the role or a higher one; None means every project."""
        if at_least_as(self.everywhere, at_least):
            return None
        return {project for project, role in self.roles.items() if at_least_as(role, at_least)}

    def may(self, role: str, project: "Project | str | None") -> bool:
        """Whether it has `role` or a higher one in `project`; without a project, in the whole installation."""
        if at_least_as(self.everywhere, role):
            return True
        if project is None:
            return False
        key = project if isinstance(project, str) else project.pk
        return at_least_as(self.roles.get(key, ""), role)

    def must(self, role: str, project: "Project | str | None") -> None:
        """Raises Denied unless it has `role` or a higher one there."""
        if not self.may(role, project):
            where = "this project" if project is not None else "the installation"
            raise Denied(f"This needs the role {role} in {where}", needs=role)


def at_least_as(role: str, needed: str) -> bool:
    """Whether `role` is `needed` or higher; the empty role is below all."""
    return role in ROLES and ROLES.index(role) >= ROLES.index(needed)


NOBODY = Principal("nobody", "", "nobody")


def principal_of(request: Any) -> Principal:
    """The principal behind a Django or DRF request, found once a request; NOBODY when nobody signed in."""
    bare = getattr(request, "_request", request)
    known: Principal | None = getattr(bare, "_principal", None)
    if known is not None:
        return known
    auth = getattr(request, "auth", None)
    user = getattr(request, "user", None)
    if isinstance(auth, ApiKey):
        found = Principal.of_key(auth)
    elif isinstance(user, User):
        found = Principal.of_user(user)
    else:
        return NOBODY
    bare._principal = found
    return found


class KeyUser(AnonymousUser):
    """What DRF sees as the user of a request that came with a key."""

    def __init__(self, key: ApiKey) -> None:
        super().__init__()
        self.key = key
        self.username = str(key)  # type: ignore[assignment]  # the stubs' anonymous user has no name

    @property
    def is_authenticated(self) -> bool:  # type: ignore[override]  # the stubs' anonymous user is nobody
        """A key is somebody."""
        return True


class KeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer sbx_<prefix>_<secret>`: one look-up by prefix, compared in constant time."""

    def authenticate(self, request: Request) -> tuple[KeyUser, ApiKey] | None:
        """The key's user and the key; None without such a header. Raises AuthenticationFailed for a key that is
        not good.
        """
        scheme, _space, text = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        key = find_key(text.strip())
        if key is None:
            raise AuthenticationFailed("This key is unknown, revoked or past its end", code="invalid_key")
        return KeyUser(key), key

    def authenticate_header(self, request: Request) -> str:
        """Makes a missing key a 401, not a 403."""
        return 'Bearer realm="signalbox"'


def find_key(text: str) -> ApiKey | None:
    """The live key with this text; None for any other. The secret may hold `_`, so the text is parted twice only."""
    mark, _sep, rest = text.partition("_")
    prefix, _sep, secret = rest.partition("_")
    if mark != "sbx" or len(prefix) != 8 or not secret or not prefix.isalnum() or not prefix.isascii():
        return None
    key = ApiKey.objects.live().select_related("project").filter(prefix=prefix).first()
    if key is None or not key.matches(secret):
        return None
    now = timezone.now()
    if key.last_used_at is None or now - key.last_used_at > LAST_USED_GRAIN:
        # Not an edit of the key: neither its version nor an event; once a minute, so that hot keys cost nothing.
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=now)
    return key


class BrowserAuthentication(SessionAuthentication):
    """The console's own session, with Django's CSRF check. Worker endpoints do not take it."""

    def enforce_csrf(self, request: Request) -> None:
        """Raises PermissionDenied without the token, RequestDataTooBig for a body that nobody would read."""
        # The check looks for its token in a form as well; it reads what Django has kept, or the handler finds nothing.
        request._request.body  # noqa: B018 - reading it is the point
        super().enforce_csrf(request)

    def authenticate_header(self, request: Request) -> str:
        """A missing sign-in is a 401 with the scheme that programs use."""
        return 'Bearer realm="signalbox"'


class HasRole(BasePermission):
    """Lets in whoever is signed in; what they may see and do is decided by `visible_to` and `Principal.must`."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """Whether anybody is signed in."""
        return principal_of(request) is not NOBODY


class KeyScheme(OpenApiAuthenticationExtension):
    """How the OpenAPI document names the keys."""

    target_class = "pipeline.auth.KeyAuthentication"
    name = "apiKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """A bearer token of our own form."""
        return {"type": "http", "scheme": "bearer", "bearerFormat": "sbx_<prefix>_<secret>"}


class SessionScheme(OpenApiAuthenticationExtension):
    """How the OpenAPI document names the console's session."""

    target_class = "pipeline.auth.BrowserAuthentication"
    name = "session"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """Django's session cookie."""
        return {"type": "apiKey", "in": "cookie", "name": "sessionid"}


class SignedInRequest(HttpRequest):
    """What a page under `signed_in` is given: a request, and who asks."""

    principal: Principal


View = Callable[..., HttpResponseBase]


def signed_in(view: View) -> View:
    """Page decorator: a person with a session; others go to the sign-in page. The view finds `request.principal`."""

    @wraps(view)
    def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not request.user.is_authenticated:
            return redirect_to_login(request.get_full_path(), settings.LOGIN_URL)
        request.principal = principal_of(request)  # type: ignore[attr-defined]  # it becomes a SignedInRequest
        try:
            return view(request, *args, **kwargs)
        except Denied as refusal:
            raise PermissionDenied(str(refusal)) from refusal

    return checked

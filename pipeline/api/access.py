"""Who may come in, over HTTP: memberships, keys, and who am I."""

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import OpenApiResponse, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from pipeline.ids import is_id
from pipeline.models import ROLES, ApiKey, Membership, User
from pipeline.refusals import NotFound
from pipeline.rest import (
    SIGNED_IN,
    DefinitionEndpoint,
    Endpoint,
    Filters,
    Listed,
    ProjectFilter,
    ProjectRef,
    Ref,
    Strict,
    StrictModel,
    etag,
)


@extend_schema_field({"type": "string", "description": "The person's user name or id; answers hold the id."})
class UserRef(Ref):
    """A person by user name or id, else `user_not_found`."""

    def to_internal_value(self, data: Any) -> User:
        """The person."""
        if not isinstance(data, str):
            raise serializers.ValidationError("a person's user name or id", code="invalid")
        person = User.objects.filter(**({"pk": data} if is_id(data) else {"username": data})).first()
        if person is None:
            raise NotFound.of("user", data[:80])
        return person


class MembershipSerializer(StrictModel):
    """What one person may do in one project."""

    user = UserRef(queryset=User.objects.all())

    class Meta:
        model = Membership
        fields = ("id", "version", "created_at", "updated_at", "project", "user", "role")


class MembershipFilters(Filters):
    """By project, person and role."""

    project = ProjectFilter("project")

    class Meta:
        model = Membership
        fields = ("user", "role")


class MembershipEndpoint(DefinitionEndpoint):
    """Memberships of a project."""

    queryset = Membership.objects.all()
    serializer_class = MembershipSerializer
    filterset_class = MembershipFilters
    fixed = ("project", "user")


class KeySerializer(StrictModel):
    """A key as it may be looked at: without its secret."""

    class Meta:
        model = ApiKey
        fields: tuple[str, ...] = (
            "id", "version", "created_at", "updated_at", "prefix", "name", "role", "project", "expires_at",
            "revoked_at", "last_used_at", "created_by",
        )  # fmt: skip
        read_only_fields = fields


class NewKeySerializer(KeySerializer):
    """A key at the only moment when its text is known."""

    key = serializers.CharField(read_only=True, help_text="The key itself, shown this once: sbx_<prefix>_<secret>.")

    class Meta(KeySerializer.Meta):
        fields = (*KeySerializer.Meta.fields, "key")
        read_only_fields = fields


class KeyRequest(Strict):
    """What a key is to be good for. Without a project it is good everywhere."""

    name = serializers.CharField(max_length=200)
    role = serializers.ChoiceField(choices=ApiKey.Role.choices)
    project = ProjectRef(required=False, allow_null=True, default=None)
    expires_at = serializers.DateTimeField(required=False, allow_null=True, default=None)


class KeyFilters(Filters):
    """By project and role."""

    project = ProjectFilter("project")

    class Meta:
        model = ApiKey
        fields = ("role", "prefix")


class KeyEndpoint(Listed, Endpoint):
    """Keys: made once, revoked by DELETE, never changed."""

    queryset = ApiKey.objects.all()
    serializer_class = KeySerializer
    filterset_class = KeyFilters
    noun = "api_key"
    secret_fields = ("key",)
    needs = {"list": "admin", "retrieve": "admin", "create": "admin", "destroy": "admin"}

    @extend_schema(request=KeyRequest, responses={201: NewKeySerializer})
    def create(self, request: Request) -> Response:
        """Make a key: 201 with its text, which nothing shows again, not even a repeat with the same Idempotency-Key."""
        given = self.body(KeyRequest)
        self.must_in(given["project"])
        end = given["expires_at"]
        life = None if end is None else end - timezone.now()
        made = ApiKey.objects.make(
            name=given["name"], role=given["role"], project=given["project"], life=life, by=self.by
        )
        row = self.get_queryset().get(pk=made.row.pk)
        data = {**self.get_serializer(row).data, "key": made.text}
        headers = {"ETag": etag(row), "Location": f"{request.path}{row.pk}/"}
        return Response(data, status=201, headers=headers)

    @extend_schema(responses={204: OpenApiResponse(description="Revoked.")})
    def destroy(self, request: Request, id: str) -> Response:
        """Revoke the key at once: 204. Quiet when it is revoked already."""
        self.get_object().revoke(by=self.by)
        return Response(status=204)


class MeSerializer(serializers.Serializer[Any]):
    """Who is asking, and the roles that it holds."""

    kind = serializers.ChoiceField(choices=["user", "key"])
    id = serializers.CharField()
    name = serializers.CharField()
    is_worker = serializers.BooleanField()
    everywhere = serializers.ChoiceField(choices=[*ROLES, ""], help_text="The role held in every project.")
    roles = serializers.DictField(child=serializers.ChoiceField(choices=ROLES), help_text="Roles by project id.")
    expires_at = serializers.DateTimeField(allow_null=True, help_text="When the key ends.")


class MeEndpoint(Endpoint):
    """Who am I, what may I do."""

    serializer_class = MeSerializer
    pagination_class = None
    filter_backends = []
    noun = "me"
    needs = {"list": SIGNED_IN}

    @extend_schema(operation_id="me_retrieve", responses=MeSerializer)
    def list(self, request: Request) -> Response:
        """The caller's own roles."""
        who = self.principal
        document = MeSerializer(
            {
                "kind": who.kind,
                "id": who.id,
                "name": who.name,
                "is_worker": who.is_worker,
                "everywhere": who.everywhere,
                "roles": who.roles,
                "expires_at": who.key.expires_at if who.key else None,
            }
        )
        return Response(document.data)

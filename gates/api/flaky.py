"""The API of flaky tests: put one into quarantine with owner, reason and expiry, and let it out again."""

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from gates.models import FlakyTest
from pipeline.rest import DefinitionEndpoint, Filters, ProjectFilter, Reason, StrictModel


class FlakyTestSerializer(StrictModel):
    """A test in quarantine. `consecutive_passes` counts up to 20, at which it is released.

    A node id as pytest prints it (`tests/test_a.py::test_b`) is kept as the key of its reports. A test that no run has
    reported is refused, with near names; before any run has reported a test it is taken, with a `warning`.
    """

    warning = serializers.CharField(read_only=True)

    class Meta:
        model = FlakyTest
        fields = (
            "id", "version", "created_at", "updated_at", "project", "test_key", "owner", "reason", "since",
            "expires_at", "consecutive_passes", "warning",
        )  # fmt: skip
        read_only_fields = ("id", "version", "created_at", "updated_at", "since", "consecutive_passes")
        extra_kwargs = {
            "reason": {"max_length": 2000},
            "owner": {"help_text": "The username of somebody who sees the project; told when the quarantine ends."},
        }


class FlakyTestFilters(Filters):
    """By project, test and owner."""

    project = ProjectFilter("project")

    class Meta:
        model = FlakyTest
        fields = ("test_key", "owner", "created_at")


class FlakyTestEndpoint(DefinitionEndpoint):
    """Tests in quarantine: they run and are reported, and their failure is not judged until the quarantine ends."""

    queryset = FlakyTest.objects.select_related("project")
    serializer_class = FlakyTestSerializer
    filterset_class = FlakyTestFilters
    ordering_fields = ("created_at", "expires_at")
    fixed = ("project", "test_key")
    heavy = ("warning",)
    needs = {
        "list": "viewer",
        "retrieve": "viewer",
        "create": "approver",
        "partial_update": "approver",
        "destroy": "approver",
        "release": "approver",
    }

    @extend_schema(request=Reason, responses={204: None})
    @action(detail=True, methods=["post"])
    def release(self, request: Request, id: str) -> Response:
        """End the quarantine: 204, and its test is judged again. Refuses with `reason_required`."""
        self.get_object().release(self.body(Reason)["reason"], by=self.by)
        return Response(status=204)

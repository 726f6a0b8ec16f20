"""The API of receipts."""

from typing import Any

from django.db.models import Q, QuerySet
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request

from ledger.models import Receipt
from pipeline.ids import is_id
from pipeline.rest import Endpoint, Filters, Listed, ProjectFilter, StrictModel


class ReceiptSerializer(StrictModel):
    """A receipt; its statement as it was written stands at `statement/`."""

    class Meta:
        model = Receipt
        fields = ("id", "created_at", "project", "patch", "commit_sha", "sha256", "note")
        read_only_fields = fields


class ReceiptFilters(Filters):
    """By project, patch and commit."""

    project = ProjectFilter("project")

    class Meta:
        model = Receipt
        fields = ("patch", "commit_sha", "sha256")


class ReceiptEndpoint(Listed, Endpoint):
    """Receipts. The id of the receipt, that of its patch, and the commit all find it."""

    queryset = Receipt.objects.select_related("patch").defer("statement")
    serializer_class = ReceiptSerializer
    filterset_class = ReceiptFilters
    needs = {"list": "viewer", "retrieve": "viewer", "statement": "viewer"}

    def find(self, queryset: QuerySet[Any], given: str) -> Receipt | None:
        """The receipt with this id, patch or commit."""
        named = Q(pk=given) | Q(patch=given) if is_id(given) else Q(commit_sha=given)
        return queryset.filter(named).first()

    @extend_schema(responses={(200, "application/vnd.in-toto+json"): OpenApiTypes.OBJECT})
    @action(detail=True, methods=["get"])
    def statement(self, request: Request, id: str) -> HttpResponse:
        """The in-toto statement, byte by byte as it hangs on the commit in refs/notes/signalbox."""
        receipt = self.get_object()
        return HttpResponse(
            receipt.statement.encode(),
            content_type="application/vnd.in-toto+json",
            headers={"ETag": f'"{receipt.sha256}"', "X-Content-Type-Options": "nosniff"},
        )

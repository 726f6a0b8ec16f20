"""The API of the seals: read by everybody who reads anything, so that a root can be kept elsewhere."""

from ledger.models import Seal
from pipeline.ids import PATTERN
from pipeline.rest import Endpoint, Filters, Listed, StrictModel


class SealSerializer(StrictModel):
    """One seal without its leaves, which the exported bundle holds."""

    class Meta:
        model = Seal
        fields = (
            "id", "created_at", "number", "month", "from_cursor", "to_cursor", "count", "root_hash", "prev_root",
            "anchor", "dropped_at",
        )  # fmt: skip
        read_only_fields = fields


class SealFilters(Filters):
    """By number, month and root."""

    class Meta:
        model = Seal
        fields = ("number", "month", "root_hash", "anchor")


class SealEndpoint(Listed, Endpoint):
    """What binds the log. Seals are written by the sealer alone."""

    queryset = Seal.objects.light()
    serializer_class = SealSerializer
    filterset_class = SealFilters
    lookup_value_regex = PATTERN.pattern
    needs = {"list": "viewer", "retrieve": "viewer"}

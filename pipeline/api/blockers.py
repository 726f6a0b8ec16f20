"""Why isn't this moving? One address for every noun that waits."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from pipeline.blockers import KINDS, blocker, find
from pipeline.rest import BadQuery, Endpoint


class HolderSerializer(serializers.Serializer[Any]):
    """The one party on which an object waits; `id` is empty for a group of people or for the engine itself."""

    kind = serializers.ChoiceField(choices=KINDS)
    id = serializers.CharField()
    label = serializers.CharField()  # type: ignore[assignment]  # DRF takes declared fields off the class


class ActionSerializer(serializers.Serializer[Any]):
    """What would remove the blocker: a verb, its address below `/api/v1`, and the role that it needs."""

    verb = serializers.CharField()
    address = serializers.CharField()
    role = serializers.CharField()


class LinkSerializer(serializers.Serializer[Any]):
    """One object of the chain, and why it waits."""

    noun = serializers.CharField()
    id = serializers.CharField()
    label = serializers.CharField()  # type: ignore[assignment]  # DRF takes declared fields off the class
    code = serializers.CharField()
    reason = serializers.CharField()


class BlockerSerializer(serializers.Serializer[Any]):
    """Who holds an object. A finished one waits for nobody: `holder` is null and `chain` empty."""

    noun = serializers.CharField()
    id = serializers.CharField()
    label = serializers.CharField()  # type: ignore[assignment]  # DRF takes declared fields off the class
    holder = HolderSerializer(allow_null=True)
    code = serializers.CharField()
    reason = serializers.CharField()
    since = serializers.DateTimeField(allow_null=True)
    eta = serializers.DateTimeField(allow_null=True)
    action = ActionSerializer(allow_null=True)
    chain = LinkSerializer(many=True)


def answer(row: Any) -> Response:
    """The blocker of `row` as the API tells it."""
    found = blocker(row)
    if found is not None:
        return Response(BlockerSerializer(found).data)
    nobody = {"holder": None, "code": "finished", "reason": "Nothing more happens to it", "since": None, "eta": None}
    return Response({"noun": row.noun(), "id": row.pk, "label": str(row), **nobody, "action": None, "chain": []})


class BlockerEndpoint(Endpoint):
    """`?subject_type=task&subject_id=…`: why it isn't moving."""

    needs = {"list": "viewer"}
    other_parameters = ("subject_type", "subject_id")
    serializer_class = BlockerSerializer
    noun = "blocker"

    @extend_schema(
        operation_id="blockers_retrieve",
        parameters=[
            OpenApiParameter("subject_type", str, required=True, description="Its noun: run, task, patch, gate_run …"),
            OpenApiParameter("subject_id", str, required=True, description="Its id."),
        ],
        responses=BlockerSerializer(many=False),
        filters=False,
    )
    def list(self, request: Request) -> Response:
        """Who holds this object, why, and what would help. 404 for one that the caller cannot see."""
        given = {name: request.query_params.get(name, "") for name in self.other_parameters}
        for name in request.query_params:
            if name not in given:
                raise BadQuery(name, "unknown filter; known are subject_id, subject_type", code="unknown_filter")
        for name, value in given.items():
            if not value:
                raise BadQuery(name, "names what is asked about, such as subject_type=task&subject_id=…")
        return answer(find(given["subject_type"], given["subject_id"], self.principal))

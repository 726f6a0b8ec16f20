"""How the OpenAPI document tells the manners of the API: ids, keys for repeats, versions, problem documents."""

from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter

from pipeline.ids import PATTERN

ID = {"type": "string", "pattern": f"^{PATTERN.pattern}$"}
PROBLEM = {
    "type": "object",
    "description": "Why a request was refused (RFC 9457). Some codes bring more: `state`, `allowed`, `retry_after`.",
    "required": ["type", "title", "status", "detail", "code", "errors", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string", "description": "The status in words."},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is the matter, in a sentence for people."},
        "code": {"type": "string", "description": "The same for programs; it does not change."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "code", "detail"],
                "properties": {
                    "field": {"type": "string", "description": "The path of the field; empty for the whole document."},
                    "code": {"type": "string"},
                    "detail": {"type": "string"},
                },
            },
        },
        "request_id": {"type": "string", "description": "Under this id our log tells more."},
    },
}
REPEAT = OpenApiParameter(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[\\x20-\\x7e]+$"},
    OpenApiParameter.HEADER,
    description="Makes a repeat harmless: for 24 hours the same key and body are given the same answer.",
)
VERSION = OpenApiParameter(
    "If-Match",
    {"type": "string", "pattern": '^"[0-9]{1,9}"$'},
    OpenApiParameter.HEADER,
    required=True,
    description="The ETag of the version that is to be changed.",
)


class ApiSchema(AutoSchema):
    """drf-spectacular's reading of an Endpoint, with what it cannot see."""

    def get_override_parameters(self) -> list[Any]:
        """The headers that our POSTs and PATCHes take."""
        if self.method == "POST" and getattr(self.view, "action", "") not in getattr(self.view, "unstored", ()):
            return [REPEAT]
        return [VERSION] if self.method == "PATCH" else []

    def _resolve_path_parameters(self, variables: list[str]) -> list[dict[str, Any]]:
        # mypy does not see through super() that this is one of `untyped_calls_exclude`.
        parameters: list[dict[str, Any]] = super()._resolve_path_parameters(variables)  # type: ignore[no-untyped-call]
        by_key = self.path.startswith("/api/v1/projects/")
        for one in parameters:
            if one["name"] == "id":
                one["schema"] = {"type": "string"} if by_key else ID
                one["description"] = "The key or the id." if by_key else "The id."
        return parameters


def finish(result: dict[str, Any], generator: Any, request: Any, public: bool) -> dict[str, Any]:
    """Postprocessing hook: every operation may answer with a problem document."""
    parts = result.setdefault("components", {})
    parts.setdefault("schemas", {})["Problem"] = PROBLEM
    parts.setdefault("responses", {})["Problem"] = {
        "description": "A problem document.",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for path in result.get("paths", {}).values():
        for operation in path.values():
            operation["responses"]["default"] = {"$ref": "#/components/responses/Problem"}
    _drop_enum_ids(result)
    return result


def _drop_enum_ids(part: Any) -> None:
    """drf-spectacular's marks for its own hook, which names every choice set anew; ours stay where they are used."""
    if isinstance(part, dict):
        part.pop("x-spec-enum-id", None)
        for inner in part.values():
            _drop_enum_ids(inner)
    elif isinstance(part, list):
        for inner in part:
            _drop_enum_ids(inner)

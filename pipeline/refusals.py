"""What the house says when it refuses: a sentence for people, a code for programs, a status for HTTP."""

from typing import Any


class Refused(Exception):
    """A verb did not do what was asked, and changed nothing.

    `code` is stable (domain.md §1.10), `status` is the HTTP status an edge answers with, `str(exc)` is a sentence
    for people, and `parts` holds what helps a program to go on (`state`, `allowed`, `retry_after` …).
    """

    code: str = "refused"
    status: int = 409

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None, **parts: Any) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status
        self.parts = parts


class NotFound(Refused):
    """No such object, or none that the caller may see."""

    code = "not_found"
    status = 404

    @classmethod
    def of(cls, noun: str, given: object = None) -> "NotFound":
        """The refusal for an unknown `noun`, such as `worker`: code `worker_not_found`, text "Worker not found"."""
        words = noun.replace("_", " ").capitalize()
        named = "" if given is None else f": {given}"
        return cls(f"{words} not found{named}", code=f"{noun}_not_found")


class InvalidField(Refused):
    """A document's field has a value it cannot have; `field` names it."""

    code = "invalid_field"
    status = 422

    def __init__(self, field: str, message: str, *, code: str | None = None, **parts: Any) -> None:
        super().__init__(f"{field}: {message}", code=code, field=field, **parts)


class MissingField(InvalidField):
    """A document lacks a field it must have."""

    code = "missing_required_field"

    def __init__(self, field: str) -> None:
        Refused.__init__(self, f"Missing required field: {field}", field=field)


class ReasonRequired(InvalidField):
    """This verb owes a reason (domain.md §1.8)."""

    code = "reason_required"

    def __init__(self) -> None:
        Refused.__init__(self, "A reason is required", field="reason")


def need_reason(reason: str) -> str:
    """`reason` without surrounding blanks; raises ReasonRequired when nothing is left."""
    reason = (reason or "").strip()
    if not reason:
        raise ReasonRequired
    return reason

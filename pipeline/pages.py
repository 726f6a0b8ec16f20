"""What every page of the console needs: the frame's context, filters and pages of lists, one way to answer a button."""

import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple, TypeVar

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import BadRequest
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import register_converter, reverse
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext as _

from pipeline import ids
from pipeline.auth import Denied, Principal, principal_of
from pipeline.clock import db_now
from pipeline.events import CORRELATION, Event
from pipeline.models import Project, StepAttempt, Task
from pipeline.refusals import InvalidField, Refused
from pipeline.selection import Selection

T = TypeVar("T")

DEMO_REMOVAL = "manage.py demo --remove"

# What an event is about -> the page that shows it.
PAGES = {"run": "runs:run", "worker": "workers:worker", "patch": "ledger:patch", "gate_run": "gates:run"}
# How many choices an error names, and how much of a mistyped value it keeps.
NAMED = 12
LONGEST_FILTER = 1000
EXAMPLE_ID = "01JD9ZQ4T8W6V2X0Y1N3M5K7RB"
# What an event is tied to and its log can be asked for by that name; for the others the log is asked for the subject.
TIED_FILTERS = ("project", "run", "task", "worker", "patch")
MOST_HOURS = 24 * 366


class ULIDConverter:
    """`<ulid:pk>` in an address: 26 characters of Crockford base 32, so that anything else is a plain 404."""

    regex = ids.PATTERN.pattern

    def to_python(self, value: str) -> str:
        """The id as it is."""
        return value

    def to_url(self, value: str) -> str:
        """The id as it is."""
        return value


register_converter(ULIDConverter, "ulid")


@cache
def version() -> str:
    """The version of this copy of Signalbox, as pyproject.toml says."""
    return str(tomllib.loads((settings.BASE_DIR / "pyproject.toml").read_text())["project"]["version"])


def frame(request: HttpRequest) -> dict[str, Any]:
    """Context processor: version, and the notice while a demo project can be seen. Asks nothing unless it is shown."""
    return {"version": version(), "banner": SimpleLazyObject(lambda: _banner(request)), "banner_command": DEMO_REMOVAL}


def _banner(request: HttpRequest) -> str:
    if not request.user.is_authenticated:
        return ""
    shown = Project.objects.visible_to(principal_of(request)).live().filter(profile__demo=True)
    if not shown.exists():
        return ""
    return _("This installation shows a demo: scripted agents work on a sample repository. To remove it:")


# -- lists -------------------------------------------------------------------------------------------------------


class Filters(dict[str, str]):
    """The filters of a list as the address names them; absent ones are empty.

    What is not understood stays here as it was typed, and `errors` says at its name what would be right. The page is
    then shown with its form and with an empty list: any other would not be what was asked for.
    """

    def __init__(self, request: HttpRequest, given: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.principal = principal_of(request)
        self.given = request.GET if given is None else given
        self.errors: dict[str, str] = {}

    @property
    def status(self) -> int:
        """The status of the page: 400 when a filter was not understood."""
        return 400 if self.errors else 200

    def must(self) -> None:
        """Raises BadRequest when a filter was not understood: for what is no page with a form."""
        if self.errors:
            raise BadRequest("; ".join(f"{name}: {error}" for name, error in self.errors.items()))

    def one_of(self, name: str, allowed: Collection[str]) -> str:
        """The filter's value; "" for one that is not `allowed`, which is an error."""

        def read(value: str) -> str:
            if value in allowed:
                return value
            if len(allowed) <= NAMED:
                raise InvalidField(name, _("one of %(allowed)s") % {"allowed": ", ".join(allowed)})
            raise InvalidField(name, _("none of the choices is called so"))

        return self.read(name, read) or ""

    def id(self, name: str) -> str:
        """The filter's value, an id; "" for anything else, which is an error."""

        def read(value: str) -> str:
            if ids.is_id(value.upper()):
                return value.upper()
            raise InvalidField(name, _("an id has 26 letters and digits, such as %(id)s") % {"id": EXAMPLE_ID})

        return self._written_so(name, read)

    def project(self, name: str = "project") -> str:
        """The id of the project that is named by id or key; "" for a key of none that the person may see: an error."""

        def read(value: str) -> str:
            if ids.is_id(value):
                return value
            found = Project.objects.visible_to(self.principal).filter(key=value).values_list("pk", flat=True).first()
            if found is None:
                raise InvalidField(name, _("no project that you may see has this key"))
            return found

        return self._written_so(name, read)

    def _written_so(self, name: str, read: Callable[[str], str]) -> str:
        """What `read` makes of the value, which the form then shows in its place."""
        found = self.read(name, read) or ""
        self[name] = found or self[name]
        return found

    def kinds(self, name: str = "kind") -> frozenset[str]:
        """The kinds of events that the filter names, parted by commas, exactly or as `run.*`; none for an error."""

        def read(value: str) -> frozenset[str]:
            return Selection.checked([one.strip() for one in value.split(",")], field=name).kinds

        return self.read(name, read) or frozenset()

    def time(self, name: str) -> datetime | None:
        """The time that the filter names, in UTC unless it says otherwise; None for an error, too."""

        def read(value: str) -> datetime:
            try:
                time = datetime.fromisoformat(value)
                return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
            except (ValueError, OverflowError):
                raise InvalidField(name, _("a day or a time, such as 2026-11-23 or 2026-11-23T06:30")) from None

        return self.read(name, read)

    def read(self, name: str, read: "Callable[[str], T]") -> "T | None":
        """What `read` makes of the value; None where there is none, and for one that it refuses, which is an error."""
        value = str(self.given.get(name, "")).strip().replace("\0", "")
        self[name] = value[:LONGEST_FILTER]
        try:
            return read(value) if value else None
        except InvalidField as refusal:
            self.errors[name] = str(refusal).removeprefix(f"{name}: ")
            return None


@dataclass(frozen=True)
class Page:
    """Some rows of a list, newest first, and the cursor of the next page ("" at its end)."""

    rows: list[Any]
    next_cursor: str


def page_of(rows: "QuerySet[Any]", filters: Filters) -> Page:
    """The page of `rows` that `?cursor=` names: the rows older than that id. One query, whatever the page's number.

    Empty when a filter was not understood, the cursor among them.
    """
    cursor = filters.id("cursor")
    if filters.errors:
        return Page([], "")
    if cursor:
        rows = rows.filter(pk__lt=cursor)
    size = settings.SIGNALBOX_LIST_LIMIT
    found = list(rows.order_by("-pk")[: size + 1])
    return Page(found[:size], found[size - 1].pk if len(found) > size else "")


def project_choices(principal: Principal) -> list[tuple[str, str]]:
    """(id, key) of every project that `principal` may read, for a filter. One query."""
    return list(Project.objects.visible_to(principal).order_by("key").values_list("pk", "key"))


def today() -> datetime:
    """Midnight UTC, where the figures of the day begin."""
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def with_addresses(events: Iterable[Event]) -> list[Event]:
    """The events, each with the `address` of the page that shows what it is about ("" when there is none)."""
    rows = list(events)
    for event in rows:
        about, pk = event.subject_type, event.subject_id
        if about not in PAGES and event.run_id:
            about, pk = "run", event.run_id
        address = reverse(PAGES[about], args=[pk]) if about in PAGES else ""
        event.address = address  # type: ignore[attr-defined]  # for templates; no column
    return rows


class Tie(NamedTuple):
    """Something that an event belongs to: its noun, its id, the page that shows it ("" when none does), its key."""

    noun: str
    pk: str
    address: str
    key: str = ""

    @property
    def history(self) -> str:
        """The query of the log for all that belongs to it, where the log has such a filter."""
        return f"{self.noun if self.noun in TIED_FILTERS else 'subject'}={self.pk}"


def ties_of(event: Event) -> list[Tie]:
    """What the event belongs to, from the project down. At most three queries, for what is addressed by a key."""
    known = {name.removesuffix("_id"): getattr(event, name) for name in CORRELATION if getattr(event, name)}
    return [_tie(noun, pk) for noun, pk in known.items()]


def _tie(noun: str, pk: str) -> Tie:
    if noun in PAGES:
        return Tie(noun, pk, reverse(PAGES[noun], args=[pk]))
    if noun == "project" and (project := Project.objects.only("key").filter(pk=pk).first()):
        return Tie(noun, pk, f"{reverse('runs:list')}?project={pk}", project.key)
    if noun == "task" and (task := Task.objects.only("key", "run_id").filter(pk=pk).first()):
        return Tie(noun, pk, f"{reverse('runs:run', args=[task.run_id])}#task-{task.key}", task.key)
    if noun == "step" and (step := StepAttempt.objects.only("run_id", "sequence").filter(pk=pk).first()):
        return Tie(noun, pk, reverse("runs:attempt", args=[step.run_id, step.sequence]))
    return Tie(noun, pk, "")


# -- buttons -----------------------------------------------------------------------------------------------------


def act(request: HttpRequest, verb: Callable[[], object], *, done: str, to: str) -> HttpResponse:
    """Call one verb, say how it went, and go to the address `to`.

    A refusal becomes a message in its own words; Denied goes on, to the page that says so. A verb that answers False
    changed nothing, and that is said.
    """
    try:
        changed = verb()
    except Denied:
        raise
    except Refused as refusal:
        messages.error(request, str(refusal))
    else:
        if changed is False:
            messages.info(request, _("Nothing changed: it was so already, or has been asked for."))
        else:
            messages.success(request, done)
    return redirect(to)


def end_after(hours: str) -> datetime | None:
    """The time so many hours from now, at most a year; None, which is without end, for an empty text only.

    Raises InvalidField for anything else, as nothing that was mistyped may last for ever.
    """
    hours = hours.strip()
    if not hours:
        return None
    if not (hours.isascii() and hours.isdigit() and len(hours) <= 4 and 0 < int(hours) <= MOST_HOURS):
        raise InvalidField("hours", _("a whole number from 1 to %(most)d, or nothing") % {"most": MOST_HOURS})
    return db_now() + timedelta(hours=int(hours))


def roles_in(principal: Principal, project: Project | str | None) -> dict[str, bool]:
    """Which buttons to show: whether `principal` may act as operator and as approver in `project`."""
    return {role: principal.may(role, project) for role in ("operator", "approver")}

"""The sealer: binds what is settled in the log by seals, and anchors each as a commit outside of the database.

One at a time, however many are started: a session's advisory lock. Killed between a seal's row and its commit it
leaves a row without `anchor`; the next sealer makes that commit first. The same row always gives the same commit.
"""

import json
import logging
import os
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from django.conf import settings
from django.db import connection, transaction

from ledger import git, proof
from ledger.models import Seal
from pipeline import locks
from pipeline.crashpoints import crashpoint
from pipeline.events import START, Cursor
from pipeline.refusals import Refused

log = logging.getLogger(__name__)

REF = "refs/ledger/seals"
LEAVES = "leaves"
"""The file of an anchor that holds its seal's leaves."""

MAX_EVENTS = 50_000
"""Events of one seal at most: 1.6 MB of leaves. What is more waits for the next, in the same run of the sealer."""

_LOCK = "the sealer"

SETTLED = "(xid < pg_snapshot_xmin(pg_current_snapshot()) OR epoch < (SELECT max(number) FROM pipeline_eventepoch))"
"""What no open transaction can still precede, as EventQuerySet.settled() asks it."""

CREATED_US = "(CASE WHEN isfinite(created_at) THEN extract(epoch FROM created_at) * 1000000 ELSE 0 END)::bigint"
"""In microseconds; 0 for a time that has no end, which somebody else wrote."""


class AnchorBroken(Refused):
    """The anchors outside and the seals inside do not belong together: nothing is sealed until a person has looked."""

    code = "anchor_broken"


def audit_repository() -> Path:
    """The bare repository that holds the anchors; it need not exist yet."""
    return Path(settings.SIGNALBOX_AUDIT_REPOSITORY or settings.DATA_DIR / "audit.git")


def seal() -> int:
    """Seal and anchor everything that is settled; returns how many seals were written. 0 when another does it.

    A seal's own event is sealed with the next event of another kind, so that a house at rest writes no seals.
    Raises AnchorBroken or GitFailed; what was sealed until then stays.
    """
    with alone() as mine:
        if not mine:
            return 0
        anchor_rest()
        written = 0
        while _seal_next():
            crashpoint("seal.written")
            anchor_rest()
            written += 1
        return written


def alone() -> AbstractContextManager[bool]:
    """Whether the sealer is this process, as long as the block lasts."""
    return locks.alone(_LOCK, 3)


def _seal_next() -> bool:
    """Write one seal over the next settled events of one month; False when there is nothing but seals' own events."""
    with transaction.atomic(), connection.cursor() as cursor:
        # After a long stop there may be more to read than a request may take.
        cursor.execute("SELECT set_config('statement_timeout', '10min', true)")
        last = Seal.objects.last_written()
        after = Cursor.parse(last.to_cursor) if last else START
        found = _read(cursor, after)
        if all(one.kind == "seal.written" for one in found):
            return False
        month = month_of(found[0].milliseconds)
        ends = _end_of(month)
        leaves = []
        for one in found:
            if not month_start(month) <= one.milliseconds < ends:
                break
            leaves.append(one.leaf)
        Seal.objects.write(last, Cursor(*found[len(leaves) - 1].place), month, leaves)
    return True


class _Settled(NamedTuple):
    place: tuple[int, int, int]
    milliseconds: int
    kind: str
    leaf: bytes


def _read(cursor: object, after: Cursor) -> list[_Settled]:
    """The next settled events behind `after`, at most MAX_EVENTS."""
    statement = f"""
        COPY (SELECT epoch, xid, seq, {CREATED_US}, hash, id, kind FROM pipeline_event
            WHERE (epoch, xid, seq) > ({int(after.epoch)}, '{int(after.xid)}'::xid8, {int(after.seq)}) AND {SETTLED}
            ORDER BY pipeline_event.epoch, pipeline_event.xid, pipeline_event.seq LIMIT {MAX_EVENTS}) TO STDOUT
        """
    found = []
    with cursor.copy(statement) as lines:  # type: ignore[attr-defined]
        for line in lines:
            epoch, xid, seq, created_us, own_hash, pk, kind = str(line, "utf-8")[:-1].split("\t")
            # A ULID begins with its milliseconds.
            milliseconds = int(pk[:8] + pk[9:13], 16)
            place = (int(epoch), int(xid), int(seq))
            found.append(_Settled(place, milliseconds, kind, proof.leaf(epoch, xid, seq, created_us, own_hash)))
    return found


def month_of(milliseconds: int) -> str:
    """The month in UTC, as `2026-11`, of a time since 1970."""
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m}"


def month_start(month: str) -> int:
    """The first millisecond since 1970 of a month such as `2026-11`."""
    year, number = month.split("-")
    return int(datetime(int(year), int(number), 1, tzinfo=UTC).timestamp() * 1000)


def _end_of(month: str) -> int:
    return month_start(following(month))


def following(month: str) -> str:
    """The month after `month`."""
    year, number = (int(part) for part in month.split("-"))
    return f"{year + number // 12:04}-{number % 12 + 1:02}"


# -- anchors -----------------------------------------------------------------------------------------------------


def anchor_rest() -> int:
    """Make the commit of every seal that has none, in order; returns how many. The caller holds the sealer's lock.

    Raises AnchorBroken when the ref is elsewhere than the last anchored seal says.
    """
    rest = list(Seal.objects.unanchored().values_list("pk", flat=True))
    if not rest:
        return 0
    first = Seal.objects.light().get(pk=rest[0])
    parent = _anchor_before(first)
    repository = audit_repository()
    if not parent and not (repository / "HEAD").is_file():
        git.init(repository)
    for pk in rest:
        one = Seal.objects.get(pk=pk)
        parent = _anchor(repository, one, parent)
        Seal.objects.filter(pk=pk).update(anchor=parent)
    _tell_outside(repository)
    return len(rest)


def _anchor_before(seal: Seal) -> str | None:
    if seal.number == 1:
        return None
    anchor: str = Seal.objects.values_list("anchor", flat=True).get(number=seal.number - 1)
    return anchor


def commit_of(repository: Path, seal: Seal, parent: str | None) -> str:
    """The commit that anchors `seal` on `parent`; no ref moves."""
    message = f"{seal}\n\n{seal.document()}\n"
    files = {LEAVES: bytes(seal.leaves)}
    try:
        return git.add_note(repository, files, parent, message, at=seal.created_at)
    except git.UnknownCommit as error:
        raise AnchorBroken(
            f"The audit repository does not hold commit {parent}, the anchor before {seal}: bring it back, or make it "
            "anew from the seals with verify-ledger --rebuild-anchors"
        ) from error


def _anchor(repository: Path, seal: Seal, parent: str | None) -> str:
    commit = commit_of(repository, seal, parent)
    found = git.note_head(repository, REF)
    if found != commit:  # else its maker was killed before it could say so
        if found != parent:
            raise AnchorBroken(
                f"{REF} is at {found or 'nothing'}, but {seal} follows {parent or 'nothing'}: the seals or their "
                "anchors were changed from outside; verify-ledger tells which"
            )
        git.move_note(repository, REF, commit, parent)
    crashpoint("seal.anchored")
    return commit


def _tell_outside(repository: Path) -> None:
    """Copy the anchors to where the settings say. A copy that fails is made with the next seal."""
    remote, file = settings.SIGNALBOX_ANCHOR_REMOTE, settings.SIGNALBOX_ANCHOR_FILE
    try:
        if remote:
            git.push(repository, remote, REF)
        if file:
            _append(Path(file))
    except (Refused, OSError) as problem:
        log.warning("the anchors are not copied outside yet: %s", problem)


def _append(file: Path) -> None:
    """Bring the copy in `file`, one seal a line, up to the last anchored seal."""
    written = 0
    if file.exists():
        with file.open("rb") as lines:
            lines.seek(max(0, file.stat().st_size - 4096))
            tail = lines.read().splitlines()
        written = json.loads(tail[-1])["number"] if tail else 0
    with file.open("a", encoding="utf-8") as lines:
        for seal in Seal.objects.light().filter(number__gt=written).exclude(anchor="").order_by("number").iterator():
            lines.write(json.dumps({**json.loads(seal.document()), "anchor": seal.anchor}, sort_keys=True) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def rebuild_anchors() -> int:
    """Make the commits of all anchored seals anew where the audit repository was lost; returns how many.

    Each must become the very commit that its row names: raises AnchorBroken at the first that does not.
    """
    repository = audit_repository()
    git.init(repository)
    before = git.note_head(repository, REF)
    parent: str | None = None
    count = 0
    for pk in Seal.objects.exclude(anchor="").order_by("number").values_list("pk", flat=True):
        one = Seal.objects.get(pk=pk)
        commit = commit_of(repository, one, parent)
        if commit != one.anchor:
            raise AnchorBroken(f"{one} gives commit {commit}, but was anchored as {one.anchor}: it was changed")
        parent, count = commit, count + 1
    if parent is not None and before is None:
        git.move_note(repository, REF, parent, None)
    return count

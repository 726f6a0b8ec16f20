"""Trying a policy on the last patches before it is switched on: beside reading the same facts and judging nothing."""

import json
from typing import Any

from django.db import connection, transaction

from ledger import reviewing
from ledger.models import Patch, PatchPolicy
from pipeline import events
from pipeline.ids import new_id, to_uuid
from pipeline.models import Project
from tests.bench.harness import Comparison, Operation, bench

BY = events.Actor("system", "", "bench")
GOAL = "1,000 patches in seconds"
FILES = 12


@bench("policy-replay", goal=GOAL, sizes=(100, 1_000, 5_000), smoke=20)
def replay(size: int) -> Comparison:
    """What a policy of four rules would have refused of so many patches of twelve files; figures are for each patch."""
    project, row = fill(size)

    def ours(_given: Any) -> None:
        found = reviewing.replay(row, size)
        if found["patches"] != size or not 0 < found["refused"] < size:
            raise RuntimeError(f"{found['refused']} of {found['patches']}")

    def facts_only(_given: Any) -> None:
        list(Patch.objects.filter(project=project).order_by("-pk").values_list("pk", "facts")[:size])

    return Comparison(
        Operation("signalbox", ours, items=size),
        [Operation("reading the facts", facts_only, items=size)],
        calls=3,
        note="The baseline reads the stored facts and judges nothing.",
    )


def fill(size: int) -> tuple[Project, PatchPolicy]:
    """A project of exactly `size` judged patches, copied from one in bulk, and a policy that does not hold yet."""
    number = new_id()[-12:].lower()
    project = Project.objects.add(by=BY, key=f"bench-{number}", name="Bench", custody="recorded")
    text = "".join(
        f"diff --git a/src/f{n}.py b/src/f{n}.py\nnew file mode 100644\n--- /dev/null\n+++ b/src/f{n}.py\n"
        f"@@ -0,0 +1 @@\n+{number}\n"
        for n in range(FILES)
    )
    first, _is_new = Patch.objects.submit(project=project, diff_text=text, base_commit="", by=BY)
    facts = reviewing.facts_of(first)
    if facts is None:
        raise RuntimeError("the diff cannot be read")
    names = [column.column for column in Patch._meta.concrete_fields]
    own = {"id": "m.id", "ledger_id": "m.ledger_id", "sha256": "m.sha256", "facts": "m.facts"}
    told = facts.document()
    chosen = ", ".join(own.get(name, f"p.{name}") for name in names)
    rows = [
        (
            to_uuid(new_id()),
            to_uuid(new_id()),
            f"{at:064x}",
            json.dumps({**told, "insertions": at % 4 * 100}),
        )
        for at in range(1, size)
    ]
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE ledger_patch DISABLE TRIGGER USER")
        cursor.execute(
            f"INSERT INTO ledger_patch ({', '.join(names)}) SELECT {chosen} FROM ledger_patch p, "
            "unnest(%s::uuid[], %s::uuid[], %s::text[], %s::jsonb[]) AS m (id, ledger_id, sha256, facts) "
            "WHERE p.id = %s",
            [*(list(column) for column in zip(*rows, strict=True)), to_uuid(first.pk)],
        )
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE ledger_patch ENABLE TRIGGER USER")
    constraints = {
        "max_lines_changed": 200, "forbid_touching_paths": ["infra/**", "**/secrets/**"],
        "max_lines_by_path": {"src/**": 500}, "min_reviewers": 1,
    }  # fmt: skip
    row = PatchPolicy.objects.add(by=BY, level="project", project=project, enabled=False, constraints=constraints)
    return project, row

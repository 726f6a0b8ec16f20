"""What the gates' pages and their panels on other pages share."""

from collections.abc import Mapping
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

ISOLATED_FROM = 2
"""From this level on a check sees neither the network nor other processes; below it the page says "not isolated"."""

# What no list shows of a gate run.
BULK_OF_GATE_RUN = ("output_tail", "evidence", "metadata", "verdicts", "criteria", "command")


def evidence_rows(evidence: Mapping[str, Any], kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each report of a gate run: its kind and shard, why it was not read or what it holds, size and hash."""
    rows = []
    for kind in kinds:
        said = evidence.get(kind)
        if not isinstance(said, Mapping):
            continue
        for shard, one in said["shards"].items() if "shards" in said else [("", said)]:
            problem = one.get("missing") or one.get("refused") or ""
            row = {"kind": kind, "shard": shard, "problem": problem, "holds": "" if problem else _holds(one)}
            rows.append({**row, "bytes": one.get("bytes"), "sha256": one.get("sha256")})
    return rows


def _holds(said: Mapping[str, Any]) -> str:
    if "tests" in said:
        return ngettext("%(n)d test", "%(n)d tests", said["tests"]) % {"n": said["tests"]}
    if "findings" in said:
        return ngettext("%(n)d finding", "%(n)d findings", said["findings"]) % {"n": said["findings"]}
    if "lines" in said:
        return _("%(covered)d of %(lines)d lines ran, in %(files)d files") % dict(said)
    return _("kept")

"""`python verify_bundle.py FILE [ROOT]`: verifies what `verify-ledger --export FILE` wrote, with Python alone.
Prints ok and the last root, or the first bad row; ROOT is that root as you know it from elsewhere (docs/audit.md)."""

import gzip
import json
import sys
from hashlib import sha256


def verify(lines, root="", before="0-0-0", at=0, position=0):
    """What is wrong first, or "", and the last root."""
    seals, heads, seen, waiting, let_go = [], {}, {}, {}, [0]
    for line in map(json.loads, lines):
        if "seal" in line:
            seal, claimed, leaves = line["seal"], line["seal"].pop("root_hash"), line["leaves"]
            text = json.dumps(seal, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
            if (seal["prev_root"], seal["from_cursor"], seal["number"]) != (root, before, len(seals) + 1):
                return f"seal {seal['number']} does not follow from the seal before it", root
            if sha256(text.encode() + bytes.fromhex(leaves)).hexdigest() != claimed:
                return f"seal {seal['number']}: its root is not that of what it holds", root
            root, before = claimed, seal["to_cursor"]
            seals.append(([int(part) for part in before.split("-")], None if line["dropped"] else leaves))
        elif "stream" in line:
            subject, _, *heads[subject] = line["stream"]
        elif "event" in line:
            *cursor, created, number, prev, own, told = line["event"]
            event, subject, *what = (json.loads(told)[name] for name in ("id", "subject_id", "subject_type", "kind"))
            if sha256(f"{prev}\n{number}\n{told}".encode()).hexdigest() != own:
                return f"event {event}: its hash is not that of its text", root
            while at < len(seals) and cursor > seals[at][0]:
                if position * 64 < len(seals[at][1] or ""):
                    return f"seal {at + 1}: an event before {event} is missing", root
                at, position = at + 1, 0
            leaf = sha256("{}-{}-{} {} {}".format(*cursor, created, own).encode()).hexdigest()
            if at < len(seals) and leaf != (seals[at][1] or "")[position * 64 : position * 64 + 64]:
                return f"event {event} is not what seal {at + 1} holds there", root
            if at < len(seals) and what == ["seal", "seal.dropped"]:
                let_go = max(let_go, [int(part) for part in json.loads(told)["data"]["to_cursor"].split("-")])
            position, waiting[subject, number] = position + 1, (prev, own)
            last, last_hash = seen.get(subject, (heads.get(subject, [1])[0] - 1, "" if number == 1 else prev))
            while (subject, last + 1) in waiting:
                prev, own = waiting.pop((subject, last + 1))
                if prev != last_hash:
                    return f"{subject} number {last + 1} does not follow from the event before it", root
                seen[subject] = last, last_hash = last + 1, own
    for number, (end, leaves) in enumerate(seals):
        if end > let_go if leaves is None else number >= at and len(leaves) > 64 * position * (number == at):
            return f"seal {number + 1}: events are missing, and no sealed event says that they were dropped", root
    for subject, (first, last, own) in heads.items():
        if seen.pop(subject, (first - 1, own)) != (last, own):
            return f"the history of {subject} does not reach its head, number {last}", root
    return "".join(f"{one} has no head" for one in [*seen, *waiting][:1]), root or "no seal, so no root" * bool(heads)


try:
    bad, last = verify(gzip.open(sys.argv[1] if sys.argv[1:] else sys.exit(__doc__), "rt", encoding="utf-8"))  # noqa: SIM115
except Exception as problem:
    bad, last = f"this is no whole bundle: {problem!r}", ""
bad = bad or (f"the last root is {last}" if sys.argv[2:] not in ([], [last]) else "" if last else "it holds nothing")
sys.exit(print(bad or f"ok {last}") or bool(bad))

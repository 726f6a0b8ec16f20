"""`python verify_bundle.py FILE [ROOT]`: verifies what `verify-ledger --export FILE` wrote, with Python alone.

Prints ok and the last root, or the first bad row; ROOT is that root as you know it from elsewhere (docs/audit.md)."""

import gzip
import json
import sys
from hashlib import sha256


def verify(lines, root="", before="0-0-0", at=0, position=0):
    """What is wrong first, or "", and the last root."""
    seals, heads, seen, waiting = [], {}, {}, {}
    for line in map(json.loads, lines):
        if "seal" in line:
            seal, leaves = line["seal"], [line["leaves"][i : i + 64] for i in range(0, len(line["leaves"]), 64)]
            sealed = {name: value for name, value in seal.items() if name != "root_hash"}
            text = json.dumps(sealed, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
            if (seal["prev_root"], seal["from_cursor"], seal["number"]) != (root, before, len(seals) + 1):
                return f"seal {seal['number']} does not follow from the seal before it", root
            if sha256(text.encode() + bytes.fromhex(line["leaves"])).hexdigest() != seal["root_hash"]:
                return f"seal {seal['number']}: its root is not that of what it holds", root
            root, before = seal["root_hash"], seal["to_cursor"]
            seals.append(([int(part) for part in before.split("-")], [] if line["dropped"] else leaves))
        elif "stream" in line:
            subject, _, *heads[subject] = line["stream"]
        elif "event" in line:
            *cursor, created, number, prev, own, told = line["event"]
            event, subject = json.loads(told)["id"], json.loads(told)["subject_id"]
            if sha256(f"{prev}\n{number}\n{told}".encode()).hexdigest() != own:
                return f"event {event}: its hash is not that of its text", root
            while at < len(seals) and cursor > seals[at][0]:
                if position < len(seals[at][1]):
                    return f"seal {at + 1}: an event before {event} is missing", root
                at, position = at + 1, 0
            leaf = sha256("{}-{}-{} {} {}".format(*cursor, created, own).encode()).hexdigest()
            if at < len(seals) and leaf not in seals[at][1][position : position + 1]:
                return f"event {event} is not what seal {at + 1} holds there", root
            position, waiting[subject, number] = position + 1, (prev, own)
            first = heads.get(subject, [1])[0]
            last, last_hash = seen.get(subject, (first - 1, "" if first == 1 else prev))
            while (subject, last + 1) in waiting:
                prev, own = waiting.pop((subject, last + 1))
                if prev != last_hash:
                    return f"{subject} number {last + 1} does not follow from the event before it", root
                seen[subject] = last, last_hash = last + 1, own
    if any(len(leaves) > (0, position)[number == at] for number, (_, leaves) in enumerate(seals) if number >= at):
        return f"seal {at + 1}: events at its end are missing", root
    for subject, (first, last, own) in heads.items():
        if seen.pop(subject, (first - 1, own)) != (last, own):
            return f"the history of {subject} does not reach its head, number {last}", root
    return "".join(f"{subject} has no head" for subject in [*seen, *waiting][:1]), root


if __name__ == "__main__":
    with gzip.open(sys.argv[1], "rt", encoding="utf-8") as bundle:
        bad, last_root = verify(bundle)
    bad = bad or (f"the last root is {last_root}" if sys.argv[2:] not in ([], [last_root]) else "")
    print(bad or f"ok {last_root}")
    sys.exit(bool(bad))

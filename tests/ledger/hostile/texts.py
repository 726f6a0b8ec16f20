"""Makes the texts of diffs, whole or broken, part by part."""

import base64
import hashlib
import zlib

ONE, TWO, ZERO = "1" * 40, "2" * 40, "0" * 40
HUNK = "@@ -1 +1 @@\n-a\n+b\n"
END = "\\ No newline at end of file\n"


def changed(path="x", body=HUNK, old=None, new=None, names=None, index=f"index {ONE}..{TWO} 100644\n"):
    old, new = old or f"a/{path}", new or f"b/{path}"
    return f"diff --git {names or f'a/{path} b/{path}'}\n{index}--- {old}\n+++ {new}\n{body}"


def added(path="x", mode="100644", body="@@ -0,0 +1 @@\n+a\n"):
    head = f"diff --git a/{path} b/{path}\nnew file mode {mode}\nindex {ZERO}..{ONE}\n"
    return head + (f"--- /dev/null\n+++ b/{path}\n{body}" if body else "")


def deleted(path="x", mode="100644", body="@@ -1 +0,0 @@\n-a\n"):
    head = f"diff --git a/{path} b/{path}\ndeleted file mode {mode}\nindex {ONE}..{ZERO}\n"
    return head + (f"--- a/{path}\n+++ /dev/null\n{body}" if body else "")


def quoted(inner):
    return changed(names=f'"a/{inner}" "b/{inner}"', old=f'"a/{inner}"', new=f'"b/{inner}"')


def moved(old="x", new="y", how="rename", percent=100):
    """A rename or copy that changes nothing, or the head of one that does."""
    return f"diff --git a/{old} b/{new}\nsimilarity index {percent}%\n{how} from {old}\n{how} to {new}\n"


def moved_body(old="x", new="y", index=f"index {ONE}..{TWO} 100644\n"):
    return f"{index}--- a/{old}\n+++ b/{new}\n{HUNK}"


def varint(number):
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def part_of(data, word="literal"):
    """A binary part as git writes it: deflated, base 85, 52 bytes a line."""
    packed = zlib.compress(data)
    letters = " ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    pieces = [packed[at : at + 52] for at in range(0, len(packed), 52)]
    lines = [letters[len(piece)] + base64.b85encode(piece, pad=True).decode() + "\n" for piece in pieces]
    return f"{word} {len(data)}\n{''.join(lines)}\n"


NUL_NAME = hashlib.sha1(b"blob 1\0\0").hexdigest()
NUL = part_of(b"\0")
NOTHING = part_of(b"")


def binary(part=NUL, back=NOTHING, index=f"index {ZERO}..{NUL_NAME}\n", mode="new file mode 100644\n"):
    return f"diff --git a/x b/x\n{mode}{index}GIT binary patch\n{part}{back}"

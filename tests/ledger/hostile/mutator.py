"""Changes good diffs a little, by dice, so that they are almost what git writes."""

import random
from collections.abc import Iterator, Sequence

TOKENS = (
    "../", "/", ".git/", ".GIT", "\0", "\x1b[31m", "\u202e", '"', "\\", "\\056", " ", "\t", "\r", "-", "a/", "b/",
    "/dev/null", "@@ -1 +1 @@", "@@ -0,0 +1,99 @@", "120000", "160000", "040000", "100755", "99999999999999999999",
    "rename from src/b.py", "rename to link/x", "copy from link", "old mode 100644", "new file mode 120000",
    "GIT binary patch", "literal 99999999", "delta 4", "\\ No newline at end of file", "diff --git a/link/x b/link/x",
    "similarity index 100%", "index 0000000..1111111", "+", "é", "e\u0301", "\ud800",
)  # fmt: skip


def mutants(good: Sequence[str], count: int, seed: str) -> Iterator[str]:
    """`count` texts, each one of `good` with one to four changes; the same seed gives the same texts."""
    dice = random.Random(seed)
    for _ in range(count):
        text = dice.choice(good)
        for _ in range(dice.choice((1, 1, 1, 2, 4))):
            text = _changed(text, good, dice)
        yield text


def _changed(text: str, good: Sequence[str], dice: random.Random) -> str:
    lines = text.splitlines(keepends=True) or ["\n"]
    at, other = dice.randrange(len(lines)), dice.randrange(len(lines))
    column = dice.randrange(len(lines[at]))
    match dice.randrange(10):
        case 0:
            del lines[at]
        case 1:
            lines.insert(other, lines[at])
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines.insert(at, dice.choice(TOKENS) + "\n")
        case 4:
            lines[at] = lines[at][:column] + dice.choice(TOKENS) + lines[at][column:]
        case 5:
            lines[at] = lines[at][:column] + chr(dice.randrange(1, 128)) + lines[at][column + 1 :]
        case 6:
            digits = [place for place, letter in enumerate(lines[at]) if letter.isdigit()]
            if digits:
                place = dice.choice(digits)
                lines[at] = lines[at][:place] + str(dice.randrange(10)) + lines[at][place + 1 :]
        case 7:
            lines[at] = lines[at].replace("b.py", dice.choice(("a.py", "B.py", "../b.py", "b.py ", "new.py")))
        case 8:
            return text + dice.choice(good)
        case 9:
            return text[: dice.randrange(len(text) + 1)]
    return "".join(lines)

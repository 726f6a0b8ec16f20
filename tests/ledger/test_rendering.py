"""The diff viewer's rows: numbers, colours, hostile content, garbage, bounds."""

import random
import re
from html.parser import HTMLParser

import pytest

from ledger import rendering
from ledger.rendering import ROWS_MAX, FileView, hidden, render, reveal

SIMPLE = '''diff --git a/sample/text.py b/sample/text.py
index 3b18e51..a9c1f02 100644
--- a/sample/text.py
+++ b/sample/text.py
@@ -1,4 +1,5 @@ def words(text):
 """Small functions on text."""
-def title(text):
-    return text.title()
+def title(text: str) -> str:
+    """As a title."""
+    return text.strip().title()
 # end
'''


class Shown(HTMLParser):
    """What a browser would show of some HTML, and which elements it would make."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.elements = "", []
        self.feed(html)
        self.close()

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def texts(view: FileView) -> list[str]:
    return [Shown(row.html).text for row in view.rows]


def new_file(path: str, *lines: str) -> str:
    added = "".join(f"+{line}\n" for line in lines)
    heading = f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
    return f"{heading}@@ -0,0 +1,{len(lines)} @@\n{added}"


def test_every_line_carries_its_numbers_and_its_kind():
    (view,) = render(SIMPLE)
    assert [(row.old_no, row.new_no, row.kind) for row in view.rows] == [
        (None, None, "hunk"),
        (1, 1, "context"),
        (2, None, "removed"),
        (3, None, "removed"),
        (None, 2, "added"),
        (None, 3, "added"),
        (None, 4, "added"),
        (4, 5, "context"),
    ]
    assert (view.path, view.change, view.insertions, view.deletions, view.cut) == (
        "sample/text.py",
        "modified",
        3,
        2,
        False,
    )


def test_colouring_changes_no_character():
    (view,) = render(SIMPLE)
    assert view.language == "Python"
    assert texts(view)[1:] == [line[1:] for line in SIMPLE.splitlines()[5:]]
    assert '<span class="tok-k">def</span>' in view.rows[2].html
    assert "tok-s" in view.rows[5].html


def test_a_string_of_several_lines_is_coloured_as_one():
    (view,) = render(new_file("a.py", 'x = """one', "def two", 'three"""', "y = 1"))
    assert "tok-k" not in view.rows[2].html
    assert "tok-s" in view.rows[2].html
    assert "tok-mi" in view.rows[4].html


@pytest.mark.parametrize(
    "name", ["evil.py", "evil.html", "evil.js", "evil.md", "evil.diff", "evil.unknown", "evil.json", "Makefile"]
)
def test_markup_in_content_stays_text(name):
    content = "<script>alert(1)</script>&amp;\"'<img src=x onerror=alert(1)>"
    (view,) = render(new_file(name, content))
    shown = Shown(view.rows[1].html)
    assert shown.text == content
    assert all(tag == "span" and set(attrs) <= {"class", "title"} for tag, attrs in shown.elements)


def test_markup_in_a_path_stays_text():
    (view,) = render(new_file("<b>x\u202egnp.py", "x = 1"))
    assert "<b>" not in view.title
    assert "U+202E" in view.title
    assert view.has_hidden


def test_bidirectional_and_invisible_characters_are_shown():
    line = "if level != 'user\u202e \u2066// admin\u2069':\u200b\u3164\x1b[31m\x9b"
    (view,) = render(new_file("access.py", line))
    html = view.rows[1].html
    assert not any(hidden(character) for character in html)
    badges = [attrs["title"] for _, attrs in Shown(html).elements if attrs.get("class") == "hidden-character"]
    assert badges == [
        "RIGHT-TO-LEFT OVERRIDE",
        "LEFT-TO-RIGHT ISOLATE",
        "POP DIRECTIONAL ISOLATE",
        "ZERO WIDTH SPACE",
        "HANGUL FILLER",
        "ESCAPE",
        "CONTROL OR UNASSIGNED CHARACTER",
    ]
    assert view.has_hidden
    assert not render(SIMPLE)[0].has_hidden


def test_carriage_returns_and_byte_order_marks_are_shown_though_the_lexer_would_drop_them():
    (view,) = render(new_file("a.py", "\ufeffx = 1\r", "safe()\revil()"))
    assert [Shown(row.html).text for row in view.rows[1:]] == ["U+FEFFx = 1U+000D", "safe()U+000Devil()"]


def test_reveal_keeps_ordinary_text():
    assert reveal("naïve\t日本語 🙂 <") == "naïve\t日本語 🙂 &lt;"


def test_content_that_looks_like_a_heading_stays_content():
    text = (
        "diff --git a/n.sql b/n.sql\n--- a/n.sql\n+++ b/n.sql\n@@ -1,2 +1,2 @@\n"
        "--- old comment\n+++ new comment\n-diff --git a/x b/x\n+@@ -1 +1 @@\n"
    )
    (view,) = render(text)
    assert [row.kind for row in view.rows] == ["hunk", "removed", "added", "removed", "added"]
    assert texts(view)[1] == "-- old comment"


def test_new_deleted_renamed_copied_and_binary_files_say_so():
    text = (
        new_file("a.txt", "a")
        + "diff --git a/b.sh b/b.sh\ndeleted file mode 100755\n--- a/b.sh\n+++ /dev/null\n@@ -1 +0,0 @@\n-b\n"
        + "diff --git a/old name b/new name\nsimilarity index 100%\nrename from old name\nrename to new name\n"
        + "diff --git a/c b/d\nsimilarity index 100%\ncopy from c\ncopy to d\n"
        + "diff --git a/l.png b/l.png\nindex 1..2 100644\nBinary files a/l.png and b/l.png differ\n"
        + "diff --git a/run b/run\nold mode 100644\nnew mode 100755\n"
        + "diff --git a/z.bin b/z.bin\nGIT binary patch\nliteral 3\nKcmZ\n\nliteral 0\n\n"
    )
    views = render(text)
    assert [(view.path, view.change, view.binary) for view in views] == [
        ("a.txt", "added", False),
        ("b.sh", "deleted", False),
        ("new name", "renamed", False),
        ("d", "copied", False),
        ("l.png", "modified", True),
        ("run", "modified", False),
        ("z.bin", "modified", True),
    ]
    assert views[2].title == "old name → new name"
    assert views[1].notes == ["deleted file mode 100755"]
    assert views[5].notes == ["old mode 100644", "new mode 100755"]
    assert views[6].rows == []


def test_quoted_paths_are_read_as_git_writes_them():
    text = 'diff --git "a/\\303\\251 \\"x\\".py" "b/\\303\\251 \\"x\\".py"\nnew file mode 100644\n'
    assert render(text)[0].path == 'é "x".py'


def test_a_diff_without_git_headings_is_read():
    text = (
        "--- a/one\t2026-01-01\n+++ b/one\t2026-01-02\n@@ -1 +1 @@\n-a\n+b\n"
        "--- /dev/null\n+++ b/two\n@@ -0,0 +1 @@\n+c\n"
    )
    assert [(view.path, view.change, view.insertions) for view in render(text)] == [
        ("one", "modified", 1),
        ("two", "added", 1),
    ]


def test_a_missing_last_newline_is_a_note():
    (view,) = render(new_file("a", "x") + "\\ No newline at end of file\n")
    assert (view.rows[-1].kind, view.rows[-1].html) == ("note", "No newline at end of file")


def test_text_that_is_no_diff_is_one_raw_file():
    (view,) = render("hello <b>\nworld")
    assert (view.change, texts(view)) == ("raw", ["hello <b>", "world"])
    assert render("") == []


def test_no_garbage_raises_and_every_shown_line_is_safe():
    rng = random.Random(7)
    pieces = [
        *("diff --git a/x.py b/x.py", 'diff --git "a/\\', "--- a/x", "+++ b/x", "+++ ", "--- ", "GIT binary patch"),
        *("@@ -1,3 +1,2 @@ f", "@@ -0 +0 @@", "@@ -9999999999 +1 @@", "@@ -1 +1 @@\x85", "rename from ", 'rename to "'),
        *("+<x>", "-<y>", " ctx", "", "\\", "\\ No newline", "new file mode", "Binary files ", "\x00\ud800"),
        *("\u2028+x", "'''", "/* "),
    ]
    for _ in range(400):
        text = "\n".join(rng.choice(pieces) for _ in range(rng.randrange(1, 24)))
        for view in render(text):
            for html in [view.title, *(row.html for row in view.rows)]:
                assert {tag for tag, _ in Shown(html).elements} <= {"span"}


def test_rows_are_bounded_and_the_cut_is_told():
    many = [f"x = {number}" for number in range(ROWS_MAX + 500)]
    (view,) = render(new_file("big.py", *many))
    assert (len(view.rows), view.cut, view.language) == (ROWS_MAX - 1, True, "")
    files = render("".join(f"diff --git a/{n} b/{n}\nnew file mode 100644\n" for n in range(ROWS_MAX + 10)))
    assert (len(files), files[-1].cut, files[0].cut) == (ROWS_MAX, True, False)
    raw = render("x\n" * (ROWS_MAX + 1))
    assert (len(raw[0].rows), raw[0].cut) == (ROWS_MAX, True)


def test_a_diff_of_just_the_bound_is_not_cut():
    (view,) = render(new_file("big.txt", *["x"] * (ROWS_MAX - 2)))
    assert (len(view.rows), view.cut) == (ROWS_MAX - 1, False)


def test_long_files_and_long_lines_stay_plain_and_long_lines_are_cut():
    (long_file,) = render(new_file("a.py", *["x = 1"] * 5_001))
    assert (long_file.language, long_file.rows[1].html) == ("", "x = 1")
    (long_line,) = render(new_file("a.js", "a" * 10_000))
    assert long_line.language == ""
    assert re.fullmatch(r'a{4000}<span class="line-cut">\+6,000</span>', long_line.rows[1].html)


def test_the_characters_coloured_in_one_diff_are_bounded(monkeypatch):
    monkeypatch.setattr(rendering, "HIGHLIGHT_CHARACTERS_MAX", 20)
    first, second = render(new_file("a.py", "x = 'first'") + new_file("b.py", "y = 'second'"))
    assert (first.language, second.language) == ("", "")
    monkeypatch.setattr(rendering, "HIGHLIGHT_CHARACTERS_MAX", 40)
    first, second = render(new_file("a.py", "x = 'first'") + new_file("b.py", "y = 'second'"))
    assert (first.language, second.language) == ("Python", "")


def test_colours_end_when_their_time_is_up(monkeypatch):
    monkeypatch.setattr(rendering, "HIGHLIGHT_SECONDS_MAX", -1.0)
    (view,) = render(new_file("a.py", "x = 1"))
    assert (view.language, view.rows[1].html) == ("", "x = 1")


class Failing:
    """A lexer that breaks in one way."""

    name = "Failing"

    def __init__(self, tokens):
        self.tokens = tokens

    def get_tokens_unprocessed(self, text):
        yield from self.tokens(text)


def _raises(text):
    raise RecursionError


@pytest.mark.parametrize(
    "tokens",
    [
        _raises,
        lambda text: [(0, None, text.replace("x", "y"))],
        lambda text: [],
    ],
    ids=["raises", "changes the text", "drops the text"],
)
def test_a_lexer_that_fails_costs_the_colours_only(monkeypatch, tokens):
    monkeypatch.setattr(rendering, "_lexer", lambda path: Failing(tokens))
    (view,) = render(new_file("a.py", "x = '<1>'"))
    assert (view.language, view.rows[1].html) == ("", "x = &#x27;&lt;1&gt;&#x27;")

"""Values of JSON as people read them, and what differs inside two of them: no database."""

from pipeline import readable
from pipeline.readable import Difference, differences, shown, words


def told(before, after):
    return [(one.what, " › ".join(one.path), one.old, one.new) for one in differences(before, after)]


def test_what_was_added_removed_and_changed_in_an_object_is_told_by_its_place():
    before = {"max_failures": 3, "coverage": {"line": 80, "branch": 60}, "old": True}
    after = {"max_failures": 5, "coverage": {"line": 80, "branch": 70}, "new": None}

    assert told(before, after) == [
        ("changed", "max_failures", 3, 5),
        ("changed", "coverage › branch", 60, 70),
        ("removed", "old", True, None),
        ("added", "new", None, None),
    ]


def test_items_of_a_list_are_compared_by_what_stands_in_them():
    assert told(["*.py", "docs/**"], ["docs/**", "*.md"]) == [
        ("removed", "", "*.py", None),
        ("added", "", None, "*.md"),
    ]
    assert told([1, 1, 2], [1, 2]) == [("removed", "", 1, None)]
    assert told(["a", "b"], ["b", "a"]) == [("moved", "", ["a", "b"], ["b", "a"])]
    assert told([{"a": 1}], [{"a": 2}]) == [("removed", "", {"a": 1}, None), ("added", "", None, {"a": 2})]


def test_objects_of_a_list_are_compared_by_their_names():
    before = [{"kind": "junit", "path": "a.xml"}, {"kind": "sarif", "path": "s.json"}]
    after = [{"kind": "sarif", "path": "s.json"}, {"kind": "junit", "path": "b.xml"}]

    assert [one[:2] for one in told(before, after)] == [("removed", "a.xml"), ("added", "b.xml")]
    assert told([{"key": "a", "n": 1}], [{"key": "a", "n": 2}]) == [("changed", "a › n", 1, 2)]
    assert [one.what for one in differences([{"key": "a"}, {"key": "b"}], [{"key": "b"}, {"key": "a"}])] == ["moved"]


def test_texts_of_several_lines_are_compared_by_line():
    assert told("make\nmake test\n", "make\nmake check\n") == [
        ("removed", "line 2", "make test", None),
        ("added", "line 2", None, "make check"),
    ]


def test_where_there_is_no_inside_there_are_no_differences():
    for before, after in [
        (1, 2),
        ("a", "b"),
        (None, {"a": 1}),
        ({}, {"a": 1}),
        (["a"], []),
        ({"a": 1}, ["a"]),
        ({"a": 1}, {"a": 1}),
    ]:
        assert differences(before, after) == []


def test_yes_is_not_one():
    assert differences({"a": True}, {"a": 1}) == [Difference("changed", ("a",), True, 1)]


def test_values_are_shown_as_people_write_them():
    assert "—" in shown(None)
    assert (shown(True), shown(False)) == ("yes", "no")
    assert shown(["*.py", "docs/**"]) == '<ul class="items"><li>*.py</li><li>docs/**</li></ul>'
    assert "<dt><code>max_failures</code></dt>" in shown({"max_failures": 3})
    assert "nothing" in shown([])
    assert "nothing" in shown({})
    assert "empty" in shown("")


def test_long_texts_and_long_lists_are_folded_and_the_longest_say_what_is_left_out():
    text = shown("first\n" + "x" * 1000)
    assert text.startswith('<details class="fold"><summary>first… <small>1,006 characters</small>')
    assert "20 items" not in shown(["a"] * 20)
    assert "21 items" in shown(["a"] * 21)
    assert "and 100 more" in shown(["a"] * 600)
    assert "and 100 more" in shown({str(n): n for n in range(600)})
    assert shown(["a"] * 600).count("<li>") == readable.MOST_SHOWN + 1


def test_everything_is_escaped():
    evil = "<script>"
    for markup in (shown(evil), shown([evil]), shown({evil: evil}), shown(evil * 100)):
        assert evil not in markup
    for found in (differences({evil: evil}, {"b": 1}), differences([evil], [1]), differences({"a": evil}, {"a": 1})):
        assert found
        assert evil not in readable.shown_differences(found)


def test_what_is_nested_deeply_is_shown_as_json_and_beyond_all_measure_not_at_all():
    deep = {}
    for _ in range(20):
        deep = {"in": deep}
    assert "<pre" in shown(deep)
    assert [one.what for one in differences({"a": deep}, {"a": {**deep, "b": 1}})] == ["added"]
    for _ in range(5000):
        deep = [deep]
    assert "too deeply" in shown(deep)
    assert "too deeply" in words(deep)


def test_words_are_one_line_for_a_sentence():
    assert words(["*.py", "docs/**"]) == "*.py, docs/**"
    assert words({"max_failures": 3, "strict": True}) == "max_failures: 3, strict: yes"
    assert words([]) == "nothing"
    assert words(None) == "—"
    assert words([{"a": None}]) == '[{"a": null}]'

"""What is told now, what later, and in words that do no harm."""

from datetime import UTC, datetime, timedelta

import pytest

from pipeline.digest import MAX_CHARACTERS, Fact, Limits, Message, Past, Wait, decide, harmless

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
EVERY = timedelta(minutes=5)
LIMITS = Limits(EVERY, max_per_day=20, digest_above=5, gather=False)
GATHER = Limits(EVERY, max_per_day=20, digest_above=5, gather=True)
SILENT = Past(None, 0)


def fact(number: int = 1, **given: object) -> Fact:
    facts = {
        "at": NOW - timedelta(seconds=10 - number % 10), "kind": "task.failed", "severity": "error",
        "subject_id": f"T{number}", "where": "demo / fix-it run …ABCDEF", "reason": f"reason {number}",
    }  # fmt: skip
    return Fact(**{**facts, **given})  # type: ignore[arg-type]


def told(*arguments: object, **options: object) -> Message:
    message = decide(*arguments, **options)  # type: ignore[arg-type]
    assert isinstance(message, Message)
    return message


def test_nothing_is_said_of_nothing() -> None:
    assert decide([], LIMITS, SILENT, NOW) is None


def test_one_event_is_told_at_once_with_its_kind_place_reason_and_page() -> None:
    message = told([fact(link="https://box.example/events/E1/")], LIMITS, SILENT, NOW)
    assert message.title == "ERROR task.failed · demo / fix-it run …ABCDEF"
    assert message.body == (
        "ERROR task.failed · demo / fix-it run …ABCDEF · reason 1\n  https://box.example/events/E1/"
    )
    assert message.severity == "error"


def test_a_rule_that_has_spoken_is_silent_for_an_interval() -> None:
    spoke = Past(NOW - timedelta(minutes=2), 1)
    assert decide([fact()], LIMITS, spoke, NOW) == Wait(NOW + timedelta(minutes=3))
    assert isinstance(decide([fact()], LIMITS, spoke, NOW + timedelta(minutes=3)), Message)


def test_a_rule_that_gathers_waits_an_interval_from_the_oldest_event() -> None:
    facts = [fact(1, at=NOW - timedelta(minutes=1)), fact(2)]
    assert decide(facts, GATHER, SILENT, NOW) == Wait(NOW + timedelta(minutes=4))
    assert "2 events" in told(facts, GATHER, SILENT, NOW + timedelta(minutes=4)).title


def test_a_few_events_are_told_one_by_one_and_many_as_a_digest() -> None:
    same = [fact(number, subject_id="T1") for number in range(1, 6)]
    few = told(same, LIMITS, SILENT, NOW)
    assert few.body.count("task.failed") == 5
    many = told([*same, fact(6, subject_id="T1")], LIMITS, SILENT, NOW)
    assert many.body == "ERROR task.failed ×6 · demo / fix-it run …ABCDEF · reason 6"
    assert many.title == "Signalbox: 6 events (6 error)"


def test_the_worst_stands_first_and_gives_the_message_its_severity() -> None:
    facts = [
        fact(1, severity="info", kind="run.started"),
        fact(2, severity="critical", kind="seal.broken"),
        fact(3, severity="warning", kind="hold.placed"),
    ]
    message = told(facts, LIMITS, SILENT, NOW)
    assert [line.split()[0] for line in message.body.splitlines()] == ["CRITICAL", "WARNING", "INFO"]
    assert message.title == "Signalbox: 3 events (1 critical, 1 warning, 1 info)"
    assert message.severity == "critical"


def test_the_days_messages_end_at_their_number_and_the_last_one_says_so() -> None:
    last = told([fact()], LIMITS, Past(None, 19), NOW)
    assert "the last message of today" in last.body
    assert decide([fact()], LIMITS, Past(None, 20), NOW) == Wait(datetime(2026, 3, 2, tzinfo=UTC))


@pytest.mark.parametrize("link", ["", "https://box.example/events/01JD9Z6X8Q4W2M5T7R3B1C0VNK/"])
def test_a_flood_fits_one_message_that_counts_what_it_leaves_out(link: str) -> None:
    facts = [fact(number, reason="x" * 5000, link=link) for number in range(2000)]
    message = told(facts, LIMITS, SILENT, NOW, more=True, console="https://box.example/events/")
    assert len(message.body) <= MAX_CHARACTERS
    lines = message.body.count("ERROR")
    assert lines > 5
    assert f"… and {2000 - lines} events more: https://box.example/events/" in message.body
    assert message.body.endswith("More events wait; they follow in the next message.")


def test_a_digest_tells_the_last_reason_that_was_given() -> None:
    facts = [fact(number, subject_id="T1", reason="disk full" if number == 3 else "") for number in range(8)]
    assert told(facts, LIMITS, SILENT, NOW).body.endswith("· disk full")


@pytest.mark.parametrize(
    ("text", "harmless_text"),
    [
        ("hey @everyone and @here", "hey ＠everyone and ＠here"),
        ("<!channel> <@U123>", "‹!channel› ‹＠U123›"),
        ("[click](https://evil.example/x)", "(click)(https: //evil.example/x)"),
        ("<https://evil.example|our page>", "‹https: //evil.example¦our page›"),
        ("see www.evil.example", "see www .evil.example"),
        ("HTTP://evil.example", "HTTP: //evil.example"),
        ("<img src=x onerror=alert(1)>", "‹img src=x onerror=alert(1)›"),
        ("`code` and **bold**", "'code' and ∗∗bold∗∗"),
        ("one\r\nTwo: header\n\n\tthree", "one Two: header three"),
        ("a\u202egnp.exe\u2066b\u200bc\ufeffd", "agnp.exebcd"),
        ("nul\x00bell\x07esc\x1b[31m", "nul bell esc (31m"),
        ("half \ud800 pair", "half pair"),
        ("para\u2028graph", "para graph"),
        ("plain text: 3 of 4 tests, 99 % of src/__init__.py", "plain text: 3 of 4 tests, 99 % of src/__init__.py"),
    ],
)
def test_what_a_worker_wrote_mentions_links_and_formats_nothing(text: str, harmless_text: str) -> None:
    assert harmless(text, 200) == harmless_text


def test_a_long_text_is_cut_with_a_mark() -> None:
    assert harmless("word " * 1000, 20) == "word word word word…"
    assert len(harmless("w" * 1000, 20)) == 20


def test_a_reason_cannot_pass_for_another_line_of_the_message() -> None:
    message = told([fact(reason="ok\nCRITICAL seal.broken · demo")], LIMITS, SILENT, NOW)
    assert len(message.body.splitlines()) == 1

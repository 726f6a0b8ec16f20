"""The console's tags and parts: what they show, that they escape, and that their colours can be read."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.template import Context, Engine, engines
from django.test import RequestFactory

from ledger.rendering import render
from pipeline.templatetags import console

ROOT = Path(__file__).resolve().parents[2]
STYLE = (ROOT / "pipeline/static/console/console.css").read_text()
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))
HOSTILE = "<img src=x onerror=alert(1)>\"'"
NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
ENGINE = Engine(
    dirs=[ROOT / "templates"],
    libraries={
        "console": "pipeline.templatetags.console",
        "i18n": "django.templatetags.i18n",
        "static": "django.templatetags.static",
    },
)


def shown(source: str, **context: object) -> str:
    """`source` rendered with the tags loaded."""
    return ENGINE.from_string("{% load console %}" + source).render(Context(context))


def words(html: str) -> str:
    """The text of `html` without its elements."""
    return re.sub(r"<[^>]*>", "", html)


@pytest.mark.parametrize(
    ("noun", "states"),
    [
        ("run", "pending running succeeded failed quarantined canceled"),
        ("task", "pending queued blocked running validating retrying completed failed cancelled"),
        ("step", "pending running succeeded failed canceled"),
        ("hold", "active released"),
        ("worker", "idle busy paused stopped crashed"),
        ("patch", "created validated queued applied apply_failed verified committed rolled_back quarantined dropped"),
        ("merge_queue", "running paused draining"),
        ("queue_item", "waiting building testing passing failing landed evicted withdrawn"),
        ("gate_run", "pending running passed failed skipped error"),
    ],
)
def test_every_state_of_a_noun_has_its_own_look(noun, states):
    assert set(console.STATES[noun]) == set(states.split())
    assert len(set(console.STATES[noun].values())) == len(states.split())


def test_every_sign_has_a_shape_a_word_and_a_colour_in_the_style_sheet():
    for signs in [*console.STATES.values(), console.HEALTH, console.SEVERITIES]:
        for value, (tone, shape) in signs.items():
            assert shape in console.SHAPES
            assert value in console.WORDS
            assert f".tone-{tone} {{ --tone: var(--{tone}); }}" in STYLE


def test_a_badge_is_colour_shape_and_word():
    html = shown('{% state_badge "patch" state %}', state="apply_failed")
    assert "tone-bad" in html
    assert console.SHAPES["cross"] in html
    assert words(html) == "apply failed"


def test_an_unknown_state_is_shown_and_an_unknown_noun_is_an_error():
    assert words(shown('{% state_badge "patch" "new_state" %}')) == "new state"
    with pytest.raises(KeyError):
        shown('{% state_badge "paches" "created" %}')


def test_tone_and_word_can_be_had_alone():
    assert shown('{% state_tone "task" "failed" %} {% state_word "rolled_back" %}') == "tone-bad rolled back"


@pytest.mark.parametrize(
    "source",
    [
        '{% state_badge "run" x %}',
        "{% health_badge x %}",
        "{% severity_badge x %}",
        "{% severity_sign x %}",
        "{% state_word x %}",
        "{% ulid x %}",
        "{% ulid x href=x %}",
        "{% copy_button x %}",
        '{% money "1" x %}',
        "{% progress 1 2 label=x %}",
        "{% sparkline values label=x %}",
        '{% include "_parts/page_head.html" with title=x lead=x %}',
        '{% include "_parts/empty.html" with what=x how=x command=x %}',
        '{% include "_parts/figure.html" with label=x value=x note=x unit=x href=x %}',
    ],
)
def test_nothing_given_becomes_markup(source):
    html = shown(source, x=HOSTILE, values=[1, 2])
    assert "<img" not in html
    assert "&lt;img src=x" in html


@pytest.mark.parametrize(
    ("distance", "text"),
    [
        (timedelta(seconds=2), "now"),
        (timedelta(seconds=42), "42 s ago"),
        (timedelta(minutes=3, seconds=50), "3 min ago"),
        (timedelta(hours=26), "26 h ago"),
        (timedelta(days=3), "3 days ago"),
        (timedelta(days=40), "2025-12-22"),
        (timedelta(minutes=-5), "in 5 min"),
        (timedelta(hours=-2), "in 2 h"),
    ],
)
def test_ago_says_how_far_and_keeps_exact_utc(distance, text):
    html = console.ago(NOON - distance, now=NOON)
    assert words(html) == text
    exact = NOON - distance
    assert f'datetime="{exact:%Y-%m-%dT%H:%M:%S.%f}Z"' in html
    assert f'title="{exact:%Y-%m-%d %H:%M:%S} UTC"' in html


def test_ago_refuses_a_naive_time():
    with pytest.raises(ValueError, match="aware"):
        console.ago(datetime(2026, 1, 31))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.85, "850 ms"),
        (Decimal("4.2"), "4.2 s"),
        (59.9, "59 s"),
        (185, "3 min 05 s"),
        (timedelta(hours=1, minutes=3), "1 h 03 min"),
        (2 * 86400 + 4 * 3600, "2 d 04 h"),
    ],
)
def test_durations_have_two_units_at_most(seconds, text):
    assert words(console.duration(seconds)) == text


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        ("12.5", "USD", "$12.50"),
        ("0", "USD", "$0.00"),
        ("0.004250", "USD", "$0.0042"),
        ("0.000001", "USD", "&lt;$0.0001"),
        ("1234567.891", "EUR", "€1,234,567.89"),
        ("3", "CHF", "CHF\u00a03.00"),
        ("-2", "GBP", "-£2.00"),
    ],
)
def test_money_is_short_in_sight_and_exact_on_hover(amount, currency, text):
    html = console.money(Decimal(amount), currency)
    assert words(html) == text
    assert f'title="{amount} {currency}"' in html


def test_money_refuses_what_is_no_amount():
    with pytest.raises(ValueError, match="no amount"):
        console.money("much", "USD")


def test_numbers_are_grouped_and_sizes_have_units():
    assert words(shown("{% number 1234567 %} {% number x 1 %}", x=Decimal("86.25"))) in (
        "1,234,567 86.3",
        "1,234,567 86.2",
    )
    sizes = [words(console.byte_size(size)) for size in (0, 999, 1_000, 123_456, 5_400_000)]
    assert sizes == ["0 B", "999 B", "1.0 kB", "123 kB", "5.4 MB"]


@pytest.mark.parametrize("tag", ["ago x", "duration x", "money x", "number x", "bytes x", "ulid x"])
def test_nothing_is_a_dash(tag):
    assert words(shown("{% " + tag + " %}", x=None)) == "—"
    assert words(shown("{% " + tag + " %}")) == "—"


def test_an_id_is_short_in_sight_and_copied_whole():
    whole = "01KAQ7Z3M4N5P6R7S8T9VWXYZ2"
    html = shown("{% ulid x href='/runs/1/' %}", x=whole)
    assert words(html) == "01KA…VWXYZ2"
    assert f'data-copy="{whole}"' in html
    assert f'title="{whole}"' in html
    assert '<a href="/runs/1/">' in html
    assert words(shown("{% ulid 'unit-tests' %}")) == "unit-tests"


def bars(html: str) -> list[tuple[str, float, float]]:
    found = re.findall(r'class="fill-(\w+)" x="([\d.]+)" width="([\d.]+)"', html)
    return [(tone, float(start), float(width)) for tone, start, width in found]


def test_progress_draws_what_ended_well_badly_and_moves():
    html = console.progress(4, 8, failed=1, running=2)
    assert bars(html) == [("good", 0, 50), ("bad", 50, 12.5), ("move", 62.5, 25)]
    assert 'aria-valuenow="62"' in html
    assert words(html) == "4/8"


def test_progress_of_nothing_is_complete_and_too_much_is_cut():
    assert bars(console.progress(0, 0)) == [("good", 0, 100)]
    assert 'aria-valuenow="100"' in console.progress(0, 0)
    assert bars(console.progress(9, 8, running=3)) == [("good", 0, 100)]


def test_a_sparkline_needs_two_numbers_and_bridges_gaps():
    assert console.sparkline([3]) == ""
    assert console.sparkline([None, 3, None]) == ""
    html = console.sparkline([0, None, 10, 5])
    assert '<polyline points="0.0,22.0 66.7,2.0 100.0,12.0"/>' in html
    assert 'aria-hidden="true"' in html
    assert 'role="img" aria-label="Spend"' in console.sparkline([0, 0], "Spend")


def test_query_replace_keeps_filters_and_begins_at_the_first_page():
    request = RequestFactory().get("/runs/", {"state": "running", "q": "a b&c", "cursor": "xyz"})
    assert console.query_replace(request, state="failed") == "?state=failed&q=a+b%26c"
    assert console.query_replace(request, state=None) == "?q=a+b%26c"
    assert console.query_replace(request, cursor="next") == "?state=running&q=a+b%26c&cursor=next"
    assert shown('<a href="{% query_replace r q="<" %}">', r=request) == '<a href="?state=running&amp;q=%3C">'


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (SimpleNamespace(namespace="runs", url_name="list"), "runs"),
        (SimpleNamespace(namespace="", url_name="overview"), "overview"),
        (SimpleNamespace(namespace="webhooks", url_name="list", route="webhooks/"), "events"),
        (SimpleNamespace(namespace="ledger", url_name="seals", route="events/seals/"), "events"),
        (SimpleNamespace(namespace="ledger", url_name="list", route="ledger/"), "ledger"),
        (None, ""),
    ],
    ids=["by namespace", "by name", "webhooks", "seals", "ledger", "nowhere"],
)
def test_a_page_belongs_to_the_section_of_its_address(match, expected):
    assert shown("{% section %}", request=SimpleNamespace(resolver_match=match)) == expected


def test_the_diff_part_shows_hostile_content_as_text():
    text = (
        "diff --git a/<b>.html b/<b>.html\nnew file mode 100755\n--- /dev/null\n+++ b/<b>.html\n@@ -0,0 +1 @@\n"
        "+<script>alert(1)</script>\u202e\n"
    )
    html = shown('{% include "_parts/diff.html" %}', files=render(text))
    assert "<script" not in html
    assert "<b>" not in html
    assert "\u202e" not in html
    assert 'data-no="1"' in html
    assert "hidden characters" in html
    assert "added" in html


def test_text_in_a_row_that_does_not_say_it_is_html_is_escaped():
    row = SimpleNamespace(old_no=None, new_no=1, kind="added", html="<script>")
    assert "<script>" not in console.diff_rows([row])


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_template_parses_and_holds_nothing_that_the_content_policy_refuses(path):
    source = path.read_text()
    engines["django"].get_template(str(path.relative_to(ROOT / "templates")))
    assert not re.search(r"\sstyle\s*=|<style|\son[a-z]+\s*=|javascript:|https?://", source)
    assert not re.search(r"<script(?![^>]*\ssrc=)", source)
    assert "|safe" not in source
    assert "autoescape off" not in source


def colour(name: str, theme: int) -> tuple[float, float, float]:
    """The token's red, green and blue (0-1) in the light (0) or the dark (1) theme."""
    pair = re.search(rf"--{name}: light-dark\(#(\w{{6}}), #(\w{{6}})\)", STYLE)
    assert pair, name
    number = pair.group(theme + 1)
    red, green, blue = (int(number[place : place + 2], 16) / 255 for place in (0, 2, 4))
    return red, green, blue


def mixed(top: tuple[float, ...], ground: tuple[float, ...], share: float) -> tuple[float, ...]:
    return tuple(share * a + (1 - share) * b for a, b in zip(top, ground, strict=True))


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Contrast ratio of WCAG 2.2, 1 to 21."""

    def luminance(parts: tuple[float, ...]) -> float:
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


TONES = ["quiet", "wait", "move", "good", "warn", "bad", "park"]
CODE = [f"tok-{name}" for name in ("comment", "keyword", "string", "number", "name", "type")]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_text_can_be_read_on_its_ground(theme):
    grounds = {name: colour(name, theme) for name in ("ground", "surface", "raised", "sunk", "added", "removed")}
    pairs = [
        (name, name_of) for name in ("text", "dim", "accent") for name_of in ("ground", "surface", "raised", "sunk")
    ]
    pairs += [(name, name_of) for name in [*CODE, "text"] for name_of in ("surface", "added", "removed")]
    pairs += [("good", "added"), ("bad", "removed")]
    poor = {pair: contrast(colour(pair[0], theme), grounds[pair[1]]) for pair in pairs}
    for tone in TONES:
        for name in ("surface", "raised"):
            badge = mixed(colour(tone, theme), grounds[name], 0.10)
            poor[tone, f"badge on {name}"] = contrast(colour(tone, theme), badge)
    poor["on-accent", "accent"] = contrast(colour("on-accent", theme), colour("accent", theme))
    poor["surface", "warn"] = contrast(colour("surface", theme), colour("warn", theme))
    assert {pair: round(ratio, 2) for pair, ratio in poor.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_edges_of_controls_can_be_seen(theme):
    assert contrast(colour("line-strong", theme), colour("surface", theme)) >= 3


def test_every_tone_that_a_part_or_tag_draws_with_is_a_token():
    used = set(re.findall(r"var\(--([\w-]+)", STYLE)) - {"tone"}
    assert {name for name in used if not re.search(rf"--{name}:", STYLE)} == set()

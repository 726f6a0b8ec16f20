"""Lines, tokens, quota and claims, without processes."""

import json
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from workers.agent import claim, quota
from workers.agent.claim import InvalidRequest
from workers.agent.lines import Lines, Tail, read_object
from workers.agent.output import Redactor
from workers.agent.tokens import Allowance, Rates, Tokens, from_total_input, usage_item


@pytest.mark.parametrize("size", [1, 3, 7, 64, 10_000])
def test_lines_are_the_same_wherever_the_pieces_are_cut(size):
    raw = "".join(f'{{"n": {n}, "text": "Grüße 🚂"}}\n' for n in range(50)).encode() + b"last"
    lines = Lines()
    found = [line for at in range(0, len(raw), size) for line in lines.feed(raw[at : at + size])] + lines.flush()
    assert found == raw.split(b"\n")
    assert lines.left_out == 0


@pytest.mark.parametrize("size", [1, 7, 30, 1000])
def test_a_line_that_is_too_long_is_left_out_alone(size):
    raw = b"a" * 10 + b"\n" + b"b" * 31 + b"\n" + b"c" * 30 + b"\n" + b"d" * 99
    lines = Lines(limit_bytes=30)
    found = [line for at in range(0, len(raw), size) for line in lines.feed(raw[at : at + size])] + lines.flush()
    assert found == [b"a" * 10, b"c" * 30]
    assert lines.left_out == 2


def test_random_bytes_never_break_the_reader():
    source = random.Random(4)
    lines = Lines(limit_bytes=200)
    for _ in range(300):
        for line in lines.feed(source.randbytes(97)):
            assert read_object(line) is None or isinstance(read_object(line), dict)


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"7", b'"x"', b"{", b"[" * 9999, b'{"a":' * 9999, b'{"a": ' + b"9" * 5000]
)
def test_what_is_no_object_is_none(line):
    assert read_object(line) is None


def test_a_file_that_grows_is_read_line_by_line_and_may_come_late(tmp_path):
    tail = Tail(tmp_path / "log")
    assert tail.read() == []
    with tail.path.open("a") as file:
        file.write('{"n": 1}\n{"n"')
        file.flush()
        assert tail.read() == [{"n": 1}]
        file.write(': 2}\nnonsense\n{"n": 3}\n')
    assert tail.read() == [{"n": 2}, {"n": 3}]
    assert tail.read_all() == []


def test_a_log_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text('{"n": 1}\n')
    (tmp_path / "log").symlink_to(tmp_path / "secret")
    assert Tail(tmp_path / "log").read() == []


def test_tokens_cost_what_their_class_costs():
    rates = Rates(*map(Decimal, ("3", "0.3", "3.75", "6", "15")))
    tokens = Tokens(uncached_input=1_000_000, cache_read=2_000_000, cache_write_5m=100_000, output=10_000)
    assert rates.cost(tokens) == Decimal("4.125")
    assert Allowance(Decimal("4.125"), "USD", rates).is_spent(tokens)
    assert not Allowance(Decimal("4.126"), "USD", rates).is_spent(tokens)
    assert not Allowance(Decimal("0.01"), "USD").is_spent(tokens), "nobody can tell without prices"


def test_input_that_includes_what_was_cached_is_taken_apart():
    given = {"input_tokens": 100, "cached_input_tokens": 60, "cache_write_input_tokens": 10, "output_tokens": 5}
    assert from_total_input(given, count=int) == (
        Tokens(uncached_input=30, cache_read=60, cache_write_5m=10, output=5),
        True,
    )
    impossible = {"input_tokens": 100, "cached_input_tokens": 101, "cache_write_input_tokens": 0, "output_tokens": 5}
    assert from_total_input(impossible, count=int) == (Tokens(uncached_input=100, output=5), False)


def test_a_name_from_a_stream_cannot_spoil_a_report():
    item = usage_item("L1", "codex", "gpt\0\ud800" + "x" * 500, "openai", Tokens(output=1))
    assert item["model"].startswith("gpt??xxx")
    assert len(item["model"]) <= 200
    assert len(item["idempotency_key"]) <= 200
    json.dumps(item).encode()


def test_a_reset_is_read_from_what_providers_say():
    now = datetime.now().astimezone()
    in_two_hours = (now + timedelta(hours=2)).replace(second=0, microsecond=0)
    said = {
        f"Claude AI usage limit reached|{int(in_two_hours.timestamp())}",
        f"try again at {in_two_hours:%I:%M %p}.".replace(" 0", " "),
        f"or try again at {in_two_hours:%b} {in_two_hours.day}th, {in_two_hours:%Y %I:%M %p}.",
    }
    for message in said:
        assert datetime.fromisoformat(quota.reset_in(message)) == in_two_hours.astimezone(UTC), message
    in_days = datetime.fromisoformat(quota.reset_in("try again in 3 days 4 hours 5 minutes."))
    assert abs(in_days - now - timedelta(days=3, hours=4, minutes=5)) < timedelta(seconds=5)


@pytest.mark.parametrize(
    "message",
    ["", "try again later", "try again at 99:99 PM", "limit reached|9999999999", "try again at Foo 3rd, 2026 1:00 PM"],
)
def test_what_is_no_credible_reset_is_none(message):
    assert quota.reset_in(message) == ""


@pytest.mark.parametrize("written", [True, None, "soon", -1, float("inf"), float("nan"), 1e300, 0, [], 10**30])
def test_what_is_no_time_soon_is_none(written):
    assert quota.moment(written) == ""


def test_seconds_and_milliseconds_are_told_apart():
    then = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    told = then.isoformat().replace("+00:00", "Z")
    assert quota.moment(int(then.timestamp())) == quota.moment(int(then.timestamp()) * 1000) == told


@pytest.mark.parametrize(
    ("message", "refusal", "outage"),
    [
        ("You've hit your usage limit. Try again later.", True, False),
        ("You've hit your limit · resets 3pm", True, False),
        ("litellm.RateLimitError: RateLimitError", True, False),
        ("exceeded retry limit, last status: 429 Too Many Requests", True, False),
        ("exceeded retry limit, last status: 503 Service Unavailable", False, True),
        ("Selected model is at capacity. Please try a different model.", False, True),
        ("stream disconnected before completion: error sending request", False, True),
        ("prompt is too long", False, False),
        ("all 42 tests passed; the limit of x is 3", False, False),
    ],
)
def test_want_of_quota_and_an_outage_are_told_apart(message, refusal, outage):
    assert (quota.is_refusal_for_now(message), quota.is_outage(message)) == (refusal, outage)


def test_a_question_is_clean_and_bounded():
    deep: object = "x"
    for _ in range(50):
        deep = {"in": deep}
    asked = {"text": "a\0 correct-horse-battery", "list": list(range(999)), "deep": deep, "nan": float("nan")}
    redactor = Redactor(["correct-horse-battery"])
    clean = redactor.question(asked)
    assert clean["text"] == "a\ufffd [redacted]"
    assert clean["list"] == list(range(20))
    assert len(json.dumps(clean, allow_nan=False)) < 1000
    many = redactor.question([["y" * 2000] * 20] * 20)
    assert set(many) == {"text"}
    assert len(many["text"]) == 2000


def with_money(make_claim, **parts):
    """A claim with what is set aside for it."""
    return claim.read({**make_claim(["true"]), **parts})


def test_the_rest_of_the_reservation_is_what_may_be_spent(make_claim):
    ceiling = {"currency": "EUR", **dict.fromkeys(("uncached_input", "cache_read", "output"), "1")}
    ceiling |= dict.fromkeys(("cache_write_5m", "cache_write_1h"), "2")
    reservation = {"id": "x", "amount": "2.50", "used": "0.75", "currency": "EUR"}
    allowance = with_money(make_claim, reservation=reservation, price_ceiling=ceiling).allowance
    assert (allowance.amount, allowance.currency) == (Decimal("1.75"), "EUR")
    assert allowance.rates.cache_write_1h == 2
    foreign = {**ceiling, "currency": "USD"}
    assert with_money(make_claim, reservation=reservation, price_ceiling=foreign).allowance.rates is None
    assert with_money(make_claim).allowance is None


@pytest.mark.parametrize(
    ("reservation", "named"),
    [
        ({"amount": "-1", "currency": "USD"}, "amount"),
        ({"amount": "much", "currency": "USD"}, "amount"),
        ({"amount": 1.5, "currency": "USD"}, "amount"),
        ({"amount": "1", "used": "1", "currency": "USD"}, "amount"),
        ({"amount": "1", "currency": "dollars"}, "currency"),
    ],
)
def test_money_that_makes_no_sense_is_an_invalid_request(make_claim, reservation, named):
    with pytest.raises(InvalidRequest, match=f"Invalid request: {named}"):
        with_money(make_claim, reservation=reservation)

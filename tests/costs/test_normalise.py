"""Each source's shape of usage gives the five classes; each known way to count twice gives its label."""

import json
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import normalise, truth
from costs.normalise import Reading, Use
from costs.pricing import CLASSES, Quote, Tier
from pipeline.refusals import InvalidField

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))
READERS: dict[str, Callable[..., Reading]] = {
    "read": normalise.read,
    "codex_thread": normalise.codex_thread,
    "claude_stream": normalise.claude_stream,
    "claude_requests": normalise.claude_requests,
}


def fixture(path: Path) -> dict[str, Any]:
    """A golden document, with what it must give."""
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def rates(told: dict[str, str]) -> dict[str, Decimal]:
    """Five rates, written as texts."""
    return {name: Decimal(told[name]) for name in CLASSES}


def quotes(golden: dict[str, Any]) -> truth.Quotes:
    """The prices that stand in the fixture."""
    tiers = {
        model: tuple(Tier(row["above"], rates(row["rates"])) for row in rows)
        for model, rows in golden.get("tiers", {}).items()
    }
    book = {
        model: Quote("p", model, rates(told), "golden", "1", date(2026, 1, 1), tiers=tiers.get(model, ()))
        for model, told in golden["prices"].items()
    }
    return lambda use: book.get(use.model)


def reading_of(golden: dict[str, Any]) -> Reading:
    """What the fixture's reader makes of its document."""
    named = {"shape": golden["shape"]} if golden["read"] == "read" else {}
    return READERS[golden["read"]](golden["document"], **named, **golden["given"])


def told(use: Use) -> dict[str, Any]:
    """A use as the fixtures write it: what is empty is left out."""
    facts: dict[str, Any] = {"model": use.model, "tokens": dict(use.tokens)}
    if use.key:
        facts["key"] = use.key
    if use.reasoning:
        facts["reasoning"] = use.reasoning
    if use.web_searches:
        facts["web_searches"] = use.web_searches
    if use.flags - {normalise.SUBAGENTS_UNKNOWN}:
        facts["flags"] = sorted(use.flags)
    if use.reported is not None:
        facts["reported"] = str(use.reported)
    return facts


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_golden_document_gives_its_classes_and_its_price(path: Path) -> None:
    golden = fixture(path)
    reading = reading_of(golden)
    assert [told(use) for use in reading.uses] == golden["expect"]["uses"]
    assert str(truth.compare(reading, quotes(golden)).ours) == golden["expect"]["ours"]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_truth_meter_names_the_cause_of_a_golden_difference(path: Path) -> None:
    golden = fixture(path)
    reported = Decimal(golden["reported"]) if "reported" in golden else None
    gateway = Decimal(golden["gateway"]) if "gateway" in golden else None
    verdict = truth.compare(reading_of(golden), quotes(golden), reported=reported, gateway=gateway)
    assert verdict.label == golden["expect"]["label"], golden["because"]
    assert verdict.near == golden["expect"].get("near", "")


def test_every_shape_and_every_reader_has_a_golden_document() -> None:
    documents = [fixture(path) for path in GOLDEN]
    assert {one["shape"] for one in documents} - {""} == set(normalise.SHAPES)
    assert {one["read"] for one in documents} == set(READERS)


@pytest.mark.parametrize(
    "path", [path for path in GOLDEN if fixture(path)["read"] == "read"], ids=lambda path: path.stem
)
def test_a_shape_is_recognised_by_its_fields_or_asked_for(path: Path) -> None:
    golden = fixture(path)
    if golden["shape"] == "claude_metric":  # our own shape of points put together: nobody sends it
        with pytest.raises(InvalidField, match="no known shape"):
            normalise.recognise(golden["document"])
        return
    assert normalise.recognise(golden["document"]) == golden["shape"]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({}, "no known shape"),
        ({"tokens": 5}, "no known shape"),
        ({"usage": {"input_tokens": 1, "output_tokens": 2}}, "name its shape, one of anthropic, openai_chat"),
        (
            {"usage": {"input_tokens": 1, "output_tokens": 2, "cache_creation": {}, "cached_input_tokens": 0}},
            "it could be anthropic or codex",
        ),
        ([], "a JSON object"),
        ("usage", "a JSON object"),
        (None, "a JSON object"),
        ({"usage": 7}, "no known shape"),
    ],
)
def test_an_unknown_shape_is_refused_with_what_would_be_right(document: Any, says: str) -> None:
    with pytest.raises(InvalidField, match=says) as problem:
        normalise.read(document)
    assert problem.value.status == 422


def test_a_shape_that_does_not_exist_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidField, match=r"shape: one of anthropic.*not “cohere”"):
        normalise.read({}, shape="cohere")


@pytest.mark.parametrize(
    "count",
    [-1, 1.0, 1.5, float("nan"), float("inf"), "12", "NaN", True, 10**15 + 1, 2**63, [1], {"n": 1}],
)
@pytest.mark.parametrize(
    ("shape", "document", "field"),
    [
        ("anthropic", {"input_tokens": 1, "output_tokens": 1}, "input_tokens"),
        ("anthropic", {"input_tokens": 1, "output_tokens": 1}, "cache_read_input_tokens"),
        ("openai_chat", {"prompt_tokens": 1, "completion_tokens": 1}, "completion_tokens"),
        ("openai_responses", {"input_tokens": 1, "output_tokens": 1}, "input_tokens"),
        ("google", {"promptTokenCount": 1}, "thoughtsTokenCount"),
        ("litellm", {"prompt_tokens": 1, "completion_tokens": 1}, "cache_creation_input_tokens"),
        ("codex", {"input_tokens": 1, "output_tokens": 1}, "reasoning_output_tokens"),
        ("aider", {"prompt_tokens": 1, "completion_tokens": 1}, "prompt_tokens"),
        ("claude_api_request", {"input_tokens": 1, "output_tokens": 1}, "cache_read_tokens"),
        ("codex_log", {"input_token_count": 1, "output_token_count": 1}, "output_token_count"),
        ("genai", {"gen_ai.usage.input_tokens": 1}, "gen_ai.usage.output_tokens"),
        ("langfuse", {"input": 1, "output": 1}, "output"),
    ],
)
def test_a_count_that_is_no_whole_number_is_refused_and_named(
    shape: str, document: dict[str, Any], field: str, count: Any
) -> None:
    with pytest.raises(InvalidField) as problem:
        normalise.read({**document, field: count}, shape=shape)
    assert problem.value.parts["field"] == f"usage.{field}"


@pytest.mark.parametrize("cost", [-0.01, float("nan"), float("inf"), "0.5", True, 10**10, [1]])
def test_a_cost_that_is_no_amount_is_refused(cost: Any) -> None:
    for shape, document in (
        ("litellm", {"prompt_tokens": 1, "completion_tokens": 1, "response_cost": cost}),
        ("aider", {"prompt_tokens": 1, "completion_tokens": 1, "cost": cost}),
        ("claude_result", {"modelUsage": {"m": {"inputTokens": 1, "outputTokens": 1}}, "total_cost_usd": cost}),
        ("claude_api_request", {"input_tokens": 1, "output_tokens": 1, "cost_usd": cost}),
    ):
        with pytest.raises(InvalidField):
            normalise.read(document, shape=shape)


@pytest.mark.parametrize(
    ("shape", "document"),
    [
        (
            "openai_chat",
            {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 6}},
        ),
        (
            "openai_responses",
            {"input_tokens": 5, "output_tokens": 1, "output_tokens_details": {"reasoning_tokens": 2}},
        ),
        ("litellm", {"prompt_tokens": 5, "completion_tokens": 1, "cache_read_input_tokens": 50_000}),
        ("codex", {"input_tokens": 5, "cached_input_tokens": 6, "output_tokens": 1}),
        ("google", {"promptTokenCount": 5, "cachedContentTokenCount": 6}),
        ("genai", {"gen_ai.usage.input_tokens": 5, "gen_ai.usage.cache_read.input_tokens": 6}),
        ("aider", {"prompt_tokens": 5, "cached_tokens": 6, "completion_tokens": 1}),
        ("codex_log", {"input_token_count": 5, "cached_token_count": 6, "output_token_count": 1}),
    ],
)
def test_parts_that_exceed_their_total_are_refused_since_no_class_is_negative(
    shape: str, document: dict[str, Any]
) -> None:
    with pytest.raises(InvalidField, match="in its parts; which shape is it"):
        normalise.read(document, shape=shape)


def test_lifetimes_that_contradict_the_written_tokens_are_refused() -> None:
    split = {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 1}
    usage = {"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": 3, "cache_creation": split}
    with pytest.raises(InvalidField, match="add up to 2, not to 3"):
        normalise.read(usage)


@pytest.mark.parametrize("field", ["model", "id"])
@pytest.mark.parametrize("value", [7, ["m"], {"m": 1}, "m\0"])
def test_a_name_that_is_no_text_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidField, match="a text"):
        normalise.read({"usage": {"prompt_tokens": 1, "completion_tokens": 1}, field: value}, shape="openai_chat")


def test_names_that_are_given_beside_a_document_fill_what_it_lacks() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    bare = normalise.read(usage, model="azure/gpt-5").uses[0]
    assert (bare.provider, bare.model) == ("openai", "azure/gpt-5")
    assert normalise.read(usage, model="gpt-5", provider="azure").uses[0].provider == "azure"
    proxied = normalise.read({**usage, "response_cost": 0.1}, model="vertex_ai/gemini-2.5-pro").uses[0]
    assert (proxied.provider, proxied.model) == ("vertex_ai", "gemini-2.5-pro")


def test_a_count_that_began_anew_within_a_session_is_added() -> None:
    def result(number: int, cost: float, tokens: int) -> dict[str, Any]:
        usage = {"m": {"inputTokens": tokens, "outputTokens": 0, "costUSD": cost}}
        return {
            "type": "result", "session_id": "s", "uuid": f"u{number}", "total_cost_usd": cost, "modelUsage": usage,
        }  # fmt: skip

    reading = normalise.claude_stream([result(1, 0.5, 100), result(2, 0.9, 180), result(3, 0.2, 40)])
    assert [use.tokens["uncached_input"] for use in reading.uses] == [180, 40]
    assert reading.reported == Decimal("1.1")


def test_an_earlier_result_holds_when_the_crashed_one_tells_nothing() -> None:
    row = {"m": {"inputTokens": 100, "outputTokens": 5, "costUSD": 0.5}}
    good = {"type": "result", "session_id": "s", "uuid": "1", "total_cost_usd": 0.5, "modelUsage": row}
    empty = {"type": "result", "session_id": "s", "uuid": "2", "total_cost_usd": 0, "modelUsage": {}, "usage": None}
    step = {
        "type": "assistant", "session_id": "s",
        "message": {"id": "m1", "usage": {"input_tokens": 7, "output_tokens": 1}},
    }  # fmt: skip
    reading = normalise.claude_stream([step, good, empty])
    assert [use.tokens["uncached_input"] for use in reading.uses] == [100]
    assert reading.reported == Decimal("0.5")


def test_a_thread_without_a_completed_turn_used_nothing_that_is_known() -> None:
    events = [{"type": "thread.started", "thread_id": "t"}, {"type": "turn.failed", "error": {"message": "no"}}]
    assert normalise.codex_thread(events).uses == ()


def test_the_usage_before_cannot_exceed_the_threads() -> None:
    turn = {"type": "turn.completed", "usage": {"input_tokens": 5, "cached_input_tokens": 0, "output_tokens": 1}}
    with pytest.raises(InvalidField, match="another thread"):
        normalise.codex_thread([turn], before={"input_tokens": 6, "output_tokens": 1})


def test_a_flood_of_documents_is_refused() -> None:
    with pytest.raises(InvalidField, match="at most 10000 documents"):
        normalise.codex_thread({} for _ in range(10_001))


counts = st.integers(0, 10**9)


@given(fresh=counts, cached=counts, written=counts, output=counts)
def test_all_shapes_of_one_use_give_the_same_classes(fresh: int, cached: int, written: int, output: int) -> None:
    total = fresh + cached + written
    documents: dict[str, dict[str, Any]] = {
        "anthropic": {
            "input_tokens": fresh, "cache_read_input_tokens": cached, "cache_creation_input_tokens": written,
            "output_tokens": output,
        },
        "litellm": {
            "prompt_tokens": total, "cache_read_input_tokens": cached, "cache_creation_input_tokens": written,
            "completion_tokens": output,
        },
        "openai_chat": {
            "prompt_tokens": total, "completion_tokens": output,
            "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        },
        "codex": {
            "input_tokens": total, "cached_input_tokens": cached, "cache_write_input_tokens": written,
            "output_tokens": output,
        },
        "claude_api_request": {
            "input_tokens": fresh, "cache_read_tokens": cached, "cache_creation_tokens": written,
            "output_tokens": output,
        },
        "genai": {
            "gen_ai.usage.input_tokens": total, "gen_ai.usage.cache_read.input_tokens": cached,
            "gen_ai.usage.cache_creation.input_tokens": written, "gen_ai.usage.output_tokens": output,
        },
        "claude_metric": {
            "tokens": {"input": fresh, "cacheRead": cached, "cacheCreation": written, "output": output},
        },
    }  # fmt: skip
    expected = dict(zip(CLASSES, (fresh, cached, written, 0, output), strict=True))
    assert {
        shape: normalise.read(one, shape=shape).uses[0].tokens for shape, one in documents.items()
    } == dict.fromkeys(documents, expected)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["usage", "input_tokens", "output_tokens", "prompt_tokens", "model", "modelUsage", "message"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(document=junk, shape=st.sampled_from(["", *normalise.SHAPES]))
def test_whatever_is_sent_is_read_or_refused(document: Any, shape: str) -> None:
    try:
        reading = normalise.read(document, shape=shape)
    except InvalidField:
        return
    assert all(count >= 0 for use in reading.uses for count in use.tokens.values())


@given(documents=st.lists(junk, max_size=4))
def test_whatever_stream_is_sent_is_read_or_refused(documents: list[Any]) -> None:
    for read in (normalise.claude_stream, normalise.codex_thread, normalise.claude_requests):
        try:
            read(documents)
        except InvalidField:
            continue

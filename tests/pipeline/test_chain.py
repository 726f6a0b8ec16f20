"""The chain of one subject's events: any change to it shows, and PostgreSQL computes it as Python does."""

import pytest

from pipeline import chain, events
from pipeline.models import Event
from tests import factories
from tests.factories import BY


def make_links(count: int = 4) -> list[chain.Link]:
    """A chain that holds."""
    links, prev = [], ""
    for seq in range(1, count + 1):
        text = chain.canonical({"n": seq})
        links.append(chain.Link(seq, prev, chain.link_hash(prev, seq, text), text))
        prev = links[-1].hash
    return links


def test_canonical_json_is_one_text_for_one_document():
    assert chain.canonical({"b": [1, True, None], "a": "ä\n"}) == '{"a":"ä\\n","b":[1,true,null]}'
    assert chain.canonical({"a": 1, "b": 2}) == chain.canonical({"b": 2, "a": 1})


@pytest.mark.parametrize("document", [{"a": 1.5}, {"a": [{"b": float("nan")}]}, {"a": {"b": (0.0,)}}, {"a": object()}])
def test_what_json_cannot_hold_exactly_is_refused(document):
    with pytest.raises(TypeError):
        chain.canonical(document)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_chain_that_holds_has_no_broken_link(count):
    assert chain.first_broken(make_links(count)) is None


def test_a_changed_text_breaks_the_chain_at_its_link():
    links = make_links()
    links[2] = links[2]._replace(canonical=chain.canonical({"n": 99}))
    assert chain.first_broken(links) == 3


def test_a_changed_text_with_a_recomputed_hash_breaks_it_at_the_next_link():
    links = make_links()
    text = chain.canonical({"n": 99})
    links[2] = links[2]._replace(canonical=text, hash=chain.link_hash(links[2].prev_hash, 3, text))
    assert chain.first_broken(links) == 4


def test_a_missing_link_is_the_broken_one():
    links = make_links()
    assert chain.first_broken(links[:1] + links[2:]) == 2
    assert chain.first_broken(links[1:]) == 1


def test_two_links_that_changed_places_break_the_chain():
    links = make_links()
    assert chain.first_broken([links[0], links[2], links[1], links[3]]) == 2


def test_a_link_put_in_between_breaks_the_chain():
    links = make_links()
    text = chain.canonical({"n": 99})
    forged = chain.Link(2, "f" * 64, chain.link_hash("f" * 64, 2, text), text)
    assert chain.first_broken([links[0], forged, *links[2:]]) == 2


def test_a_chain_without_its_old_head_takes_its_first_link_on_trust_and_checks_the_rest():
    links = make_links()
    assert chain.first_broken(links[2:], first_seq=3) is None
    links[3] = links[3]._replace(prev_hash="0" * 64)
    assert chain.first_broken(links[2:], first_seq=3) == 4


@pytest.mark.django_db
def test_postgres_links_a_subjects_events_as_python_computes_it():
    project = factories.make_project()
    for text in ("Ärger", "zwei\nZeilen", '"quoted" \\ back', "💡"):
        events.record("note.added", project, by=BY, message=text)
    history = list(Event.objects.about(project))
    links = [chain.Link(event.stream_seq, event.prev_hash, event.hash, event.canonical) for event in history]
    assert [link.stream_seq for link in links] == [1, 2, 3, 4, 5]
    assert chain.first_broken(links) is None


@pytest.mark.django_db
def test_the_canonical_text_holds_every_fact_of_the_event():
    project = factories.make_project()
    event = events.record("note.added", project, by=BY, reason="r", message="m", data={"n": 1}, after={"a": "b"})
    event.refresh_from_db()
    names = [field.name for field in Event._meta.fields]
    facts = names[: names.index("gate_run_id") + 1]
    assert event.canonical == chain.canonical({name: getattr(event, name) for name in facts})

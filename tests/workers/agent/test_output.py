"""Redaction and capture, without processes."""

import random

import pytest

from workers.agent.adapters import Adapter, Registry
from workers.agent.adapters.shell import Shell
from workers.agent.attempt import Timing
from workers.agent.client import Patience
from workers.agent.output import Capture, Redactor

SECRET = "correct-horse-battery"
BLOCK = "-----BEGIN OPENSSH PRIVATE KEY-----\n" + "b3BlbnNzaC1rZXk\n" * 300 + "-----END OPENSSH PRIVATE KEY-----"
TEXT = ("x" * 3000 + f" {SECRET} " + "y" * 5000 + f" sbx_ab12cd34_{'s' * 43}\n{BLOCK}\nbetween {SECRET}{SECRET}\n") * 3


@pytest.mark.parametrize("size", [1, 7, 100, 4096, 65536])
def test_a_secret_is_found_wherever_the_chunks_are_cut(size):
    stream = Redactor([SECRET]).stream()
    raw = TEXT.encode()
    clean = b"".join(stream.feed(raw[at : at + size]) for at in range(0, len(raw), size)) + stream.flush()
    expected = TEXT.replace(BLOCK, "[redacted]").replace(SECRET, "[redacted]")
    expected = expected.replace(f"sbx_ab12cd34_{'s' * 43}", "[redacted]")
    assert clean.decode() == expected
    assert stream.count == 15


def test_a_key_block_that_never_ends_hides_no_more_than_32_kib():
    clean = Redactor().text("before -----BEGIN PRIVATE KEY-----" + "A" * 100_000 + "after")
    assert clean.startswith("before [redacted]A")
    assert clean.endswith("after")
    assert 100_000 - 33 * 1024 < len(clean) < 100_000 - 31 * 1024


def test_a_key_block_that_is_cut_off_is_hidden_to_its_end():
    assert Redactor().text("before -----BEGIN RSA PRIVATE KEY-----\nAAAA") == "before [redacted]"


def test_text_without_secrets_is_left_as_it_is():
    text = "".join(random.Random(1).choices("ab_-sghpx \n", k=20_000))
    assert Redactor(["short"]).text(text + "short") == text + "short"


def test_head_and_tail_are_kept_and_the_gap_is_shown():
    capture = Capture(Redactor(), limit_bytes=1000)
    for number in range(10_000):
        capture.add(b"%09d\n" % number)
    capture.close()
    text = capture.text()
    assert text.startswith("000000000\n")
    assert text.endswith("000009999\n")
    assert "\n[99000 bytes left out]\n" in text
    assert len(text) < 1100
    assert capture.tail(20) == "000009998\n000009999\n"
    assert capture.total_bytes == 100_000


def test_a_short_output_is_whole_in_text_and_tail():
    capture = Capture(Redactor(), limit_bytes=1000)
    capture.add(b"a\0b\xff" + b"c" * 596)
    capture.close()
    assert capture.text() == capture.tail(8192) == "a\ufffdb\ufffd" + "c" * 596
    assert capture.tail(550) == "c" * 550


def test_stops_are_drawn_together_before_the_end_of_the_lease():
    usual = Timing()
    assert [at for at, _ in usual.ladder(100.0, 1000.0)] == [100.0, 115.0, 125.0]
    assert [at for at, _ in usual.ladder(100.0, 105.0)] == [100.0, 103.0, 105.0]
    assert [at for at, _ in usual.ladder(100.0, 90.0)] == [100.0, 100.0, 100.0]
    assert usual.margin_seconds(60) == 5
    assert usual.margin_seconds(3) == 1


def test_waits_between_tries_grow_to_a_cap_and_obey_the_server():
    calm = Patience(draw=lambda low, high: 1.0)
    assert [calm.wait_seconds(n) for n in (1, 2, 3, 6, 100)] == [0.5, 1.0, 2.0, 15.0, 15.0]
    assert calm.wait_seconds(1, 40.0) == 40.0
    assert calm.wait_seconds(1, 1e9) == 300.0
    draws = {round(Patience().wait_seconds(1), 6) for _ in range(20)}
    assert len(draws) > 1
    assert all(0.25 <= draw <= 0.75 for draw in draws)


def test_adapters_are_found_by_name_and_by_what_they_can_do():
    class Writer(Shell):
        name = "writer"
        kinds = frozenset({"docs"})
        domains = frozenset({"manual"})

    registry = Registry()
    assert registry.register(Shell) is Shell
    registry.register(Writer)
    assert registry.list() == ("shell", "writer")
    assert registry.get("shell") is Shell
    assert registry.get("nobody") is None
    assert registry.find_for("code_edit") == [Shell]
    assert registry.find_for("docs", "manual") == [Shell, Writer]
    assert registry.find_for("docs", "other") == [Shell]

    class Impostor(Shell):
        name = "shell"

    with pytest.raises(ValueError, match="already registered"):
        registry.register(Impostor)
    assert issubclass(Shell, Adapter)

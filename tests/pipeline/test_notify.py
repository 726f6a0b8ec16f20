"""Where messages may go: which targets are taken, what of them is shown, and the guard before every connection."""

from typing import Any

import pytest

from pipeline import messenger, notify
from pipeline.refusals import InvalidField

SECRET = "hunter2-Zx9Qw"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("", "begins with one of"),
        ("ops@example.org", "begins with one of"),
        ("file:///etc/passwd", "begins with one of"),
        ("exec://true", "begins with one of"),
        ("dbus://", "begins with one of"),
        ("syslog://", "begins with one of"),
        ("windows://", "begins with one of"),
        ("https://hooks.slack.com/services/T1/B1/x", "begins with one of"),
        ("json://10.1.2.3/x", "internal"),
        ("json://[::1]/x", "internal"),
        ("json://0x7f.1/x", "internal"),
        ("json://localhost/x", "internal"),
        ("json://2130706433/x", "internal"),
        ("mailto://a:b@example.org?to=x@example.org&smtp=192.168.1.1", "internal"),
        ("mailto://a:b@example.org?pgppub=/etc/passwd", "not taken here"),
        ("jsons://example.org/x?verify=no", "not taken here"),
        ("jsons://example.org/x?redirect=yes", "not taken here"),
        ("discord://1/2?template=/etc/passwd", "not taken here"),
        ("jsons://example.org, jsons://example.com", "without blanks"),
        ("jsons://example.org\n", "without blanks"),
        ("json://[bad/x", "told apart"),
        ("slack://TokenA", "something in it is missing"),
        ("mailto://a:b@", "something in it is missing"),
        ("env:SECRET_KEY", "SIGNALBOX_NOTIFY_"),
        ("env:SIGNALBOX_NOTIFY_NOWHERE", "is not set"),
        (f"jsons://example.org/{'x' * 3000}", "2000"),
    ],
)
def test_a_target_that_may_not_be_is_refused_at_once_with_a_sentence(target: str, says: str) -> None:
    with pytest.raises(InvalidField) as refusal:
        notify.check(target)
    assert refusal.value.parts["field"] == "target"
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#ops", "slack://hooks.slack.com"),
        ("discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js", "discord://discord.com"),
        ("tgram://123456789:abcdefg_hijklmnop/12315544", "tgram://api.telegram.org"),
        ("mailtos://me:secret@example.org?to=ops@example.org", "mailtos://example.org"),
        ("matrixs://user:secret@matrix.example.org/%23ops", "matrixs://matrix.example.org"),
        ("ntfys://my-secret-topic", "ntfys://ntfy.sh"),
        ("matrix://my-secret-token", "matrix://…"),
        ("jsons://user:secret@example.org:8443/a/b", "jsons://example.org"),
        ("env:SIGNALBOX_NOTIFY_OPS", "env:SIGNALBOX_NOTIFY_OPS"),
        ("env:SECRET_KEY", "env:…"),
        ("something else", "…"),
    ],
)
def test_of_a_target_scheme_and_host_are_shown(target: str, shown: str) -> None:
    assert notify.shown(target) == shown


def test_an_answer_that_repeats_the_secret_is_concealed() -> None:
    url = f"slack://T1JJ3T3L2/A1BRTD4JD/{SECRET}/%23ops"
    said = notify.conceal(f"hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/{SECRET} not found", url)
    assert said == "hooks.slack.com/services/…/…/… not found"


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("subprocess.Popen", ("sh", ["sh"], None, None)),
        ("os.system", ("true",)),
        ("socket.connect", (None, "/run/postgres/.s.PGSQL.5432")),
        ("socket.connect", (None, ("169.254.169.254", 80))),
        ("socket.connect", (None, ("::ffff:127.0.0.1", 80, 0, 0))),
        ("socket.connect", (None, ("fe80::1%eth0", 80, 0, 2))),
        ("socket.connect", (None, ("localhost", 80))),
        ("socket.sendto", (None, ("127.0.0.1", 53))),
    ],
)
def test_the_messenger_starts_nothing_and_reaches_nothing_inside(event: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(PermissionError):
        messenger.Guard()(event, arguments)


def test_the_messenger_reaches_the_open_network() -> None:
    guard = messenger.Guard()
    guard("socket.connect", (None, ("93.184.215.14", 443)))
    guard("socket.connect", (None, ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", 443, 0, 0)))
    assert guard.refused == []

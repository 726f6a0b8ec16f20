"""The way out: what is refused before and after the look-up, and an exchange that always ends, against real sockets."""

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import egress
from pipeline.egress import AddressRefused, Limits, TimedOut, Unreachable
from tests.pipeline.receivers import Receiver, says

QUICK = Limits(connect_seconds=0.3, total_seconds=0.6)

# Of the name hooks.example.test, valid from 2020 to 2120, made for this test and trusted by nobody else.
CERTIFICATE = """
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg28YTyJXNMoxnIPyj
Vat/5EpZveM1+Vh9T95+bi9o3yyhRANCAASLzxNX41nPFbw/xKS7Zjg33R3Q8vsQ
O+bCe1KQc9/Ff7r6fw19WJuOOMuPggk959ulTKGLW/QxbQMyogy95gMH
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBfDCCASKgAwIBAgIBATAKBggqhkjOPQQDAjAdMRswGQYDVQQDDBJob29rcy5l
eGFtcGxlLnRlc3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMB0x
GzAZBgNVBAMMEmhvb2tzLmV4YW1wbGUudGVzdDBZMBMGByqGSM49AgEGCCqGSM49
AwEHA0IABIvPE1fjWc8VvD/EpLtmODfdHdDy+xA75sJ7UpBz38V/uvp/DX1Ym444
y4+CCT3n26VMoYtb9DFtAzKiDL3mAwejUTBPMB0GA1UdEQQWMBSCEmhvb2tzLmV4
YW1wbGUudGVzdDAPBgNVHRMBAf8EBTADAQH/MB0GA1UdDgQWBBQN29Qsghya8lnN
oxPlOgj8NZweSTAKBggqhkjOPQQDAgNIADBFAiEAyeCUijb2qgFGzoxYTpvKtgUC
w63+V0T5QOsa/XNA7qQCIHAuf5dix/4/Svgt2h1Pc33FQIdsTy5tBNQXYE8HhMmR
-----END CERTIFICATE-----
"""


@pytest.fixture
def receive(settings: Any) -> Iterator[Callable[..., Receiver]]:
    """Makes receivers on loopback, which is let through for the test, as is http."""
    settings.SIGNALBOX_WEBHOOK_HTTP = True
    settings.SIGNALBOX_WEBHOOK_ALLOW_NETS = ["127.0.0.1/32"]
    made: list[Receiver] = []

    def make(answer: Callable[[socket.socket], object], **how: Any) -> Receiver:
        made.append(Receiver(answer, **how))
        return made[-1]

    yield make
    for one in made:
        one.close()


OK = says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def resolver(*answers: list[str]) -> Any:
    """A name server that says each of `answers` in turn, and counts how often it was asked."""

    def look_up(host: str, port: int, **_how: Any) -> list[Any]:
        look_up.asked.append(host)  # type: ignore[attr-defined]
        found = answers[min(len(look_up.asked), len(answers)) - 1]  # type: ignore[attr-defined]
        return [(0, 0, 0, "", (address, port)) for address in found]

    look_up.asked = []  # type: ignore[attr-defined]
    return look_up


# -- which addresses ---------------------------------------------------------------------------------------------

INTERNAL = [
    "127.0.0.1", "127.8.8.8", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "100.127.255.255", "100.100.100.200", "0.0.0.0", "0.1.2.3", "192.0.0.170",
    "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250",
    "240.0.0.1", "255.255.255.255",
    "::1", "::", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1",
    "2002:7f00:1::", "2001::1", "2001:db8::1", "3fff::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1",
    "100::1", "5f00::1",
]  # fmt: skip


@pytest.mark.parametrize("address", INTERNAL)
def test_an_internal_or_reserved_address_is_refused(address: str) -> None:
    with pytest.raises(AddressRefused) as refusal:
        egress.refuse_internal(address)
    assert refusal.value.code == "address_refused"
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(AddressRefused):
        egress.check_url(f"https://{host}/hook")


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"])
def test_a_machine_of_the_open_network_is_let_through(address: str) -> None:
    egress.refuse_internal(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.1",
        "0x7f.1",
        "2130706433",
        "0177.0.0.1",
        "0x7f000001",
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
        "127.0.0.1.",
        "localhost",
        "LocalHost.",
        "a.localhost",
    ],
)
def test_loopback_in_disguise_is_refused_before_any_look_up(host: str) -> None:
    with pytest.raises(AddressRefused, match=r"127\.0\.0\.1 is an internal"):
        egress.check_url(f"https://{host}/hook")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.org/", "begins with https://"),
        ("ftp://example.org/", "begins with https://"),
        ("//example.org/", "begins with https://"),
        ("file:///etc/passwd", "begins with https://"),
        ("https://user:word@example.org/", "user name"),
        ("https://example.org@127.0.0.1/", "user name"),
        ("https://example.org/a b", "blanks"),
        ("https://example.org/\r\nX-Evil: 1", "blanks"),
        ("https://exa\tmple.org/", "blanks"),
        ("https://example.org\\@127.0.0.1/", "backslashes"),
        ("https://example.org/#part", "fragment"),
        ("https://example.org:0/", "Port 0"),
        ("https://example.org:99999/", "no address"),
        ("https://example.org:x/", "no address"),
        ("https:///path", "no host name"),
        ("https://exa%6dple.org/", "no host name"),
        ("https://[fe80::1%25eth0]/", "no IPv6 address|no address|internal"),
        ("https://[::1/", "no address"),
        ("https://example.org/ä", "plain ASCII"),
        ("https://" + "a" * 70 + ".org/", "no host name"),
        ("https://example.org/" + "x" * 2000, "1 to 2000 characters"),
        ("", "1 to 2000 characters"),
    ],
)
def test_what_is_no_address_is_refused_with_a_sentence(url: str, why: str) -> None:
    with pytest.raises(AddressRefused, match=why):
        egress.check_url(url)


def test_the_parts_of_an_address_are_what_is_asked_for() -> None:
    target = egress.check_url("https://Bücher.Example:8443/a/b?c=d%20e")
    assert target == ("https", "xn--bcher-kva.example", 8443, "/a/b?c=d%20e")
    assert target.authority == "xn--bcher-kva.example:8443"
    assert egress.check_url("https://example.org").authority == "example.org"
    assert egress.check_url("https://[2606:4700::1111]:8443/").authority == "[2606:4700::1111]:8443"


def test_a_name_with_one_internal_address_is_refused_and_nobody_is_connected_to(receive: Any) -> None:
    receiver = receive(OK)
    inside = resolver(["127.0.0.1", "10.0.0.7"])
    with pytest.raises(AddressRefused, match=r"10\.0\.0\.7"):
        egress.post(f"http://hooks.example.test:{receiver.port}/", b"{}", {}, resolver=inside)
    assert receiver.connections == 0


def test_a_name_is_looked_up_once_and_another_answer_later_gains_nothing(receive: Any) -> None:
    receiver = receive(OK)
    rebinding = resolver(["127.0.0.1"], ["127.0.0.2"], ["169.254.169.254"])
    answer = egress.post(f"http://hooks.example.test:{receiver.port}/", b"{}", {}, resolver=rebinding)
    assert (answer.status, answer.body) == (200, b"ok")
    assert rebinding.asked == ["hooks.example.test"]
    assert f"Host: hooks.example.test:{receiver.port}\r\n".encode() in receiver.requests[0]


def test_a_connection_that_ends_elsewhere_is_not_spoken_to(receive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = receive(OK)

    class Led(socket.socket):
        """A socket whose other end is not who was asked for."""

        def getpeername(self) -> Any:
            return ("10.0.0.1", 80)

    monkeypatch.setattr(egress.socket, "socket", Led)
    with pytest.raises(AddressRefused, match=r"ended at 10\.0\.0\.1"):
        egress.post(f"http://hooks.example.test:{receiver.port}/", b"{}", {}, resolver=resolver(["127.0.0.1"]))
    assert receiver.requests == []


def test_an_unknown_name_is_refused_not_skipped() -> None:
    def unknown(*_what: Any, **_how: Any) -> list[Any]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(Unreachable, match="no known name"):
        egress.post("https://hooks.example.test/", b"", {}, resolver=unknown)
    with pytest.raises(Unreachable, match="has no address"):
        egress.post("https://hooks.example.test/", b"", {}, resolver=resolver([]))


def test_a_name_server_that_hangs_keeps_nobody_past_the_deadline() -> None:
    over = threading.Event()

    def hangs(*_what: Any, **_how: Any) -> list[Any]:
        over.wait(20)
        return []

    started = time.monotonic()
    with pytest.raises(TimedOut, match="name server"):
        egress.post("https://hooks.example.test/", b"", {}, resolver=hangs, limits=QUICK)
    over.set()
    assert time.monotonic() - started < 5


# -- one exchange ------------------------------------------------------------------------------------------------


def test_what_is_sent_is_one_plain_post_with_the_headers_given(receive: Any) -> None:
    receiver = receive(says(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy"))
    url = f"http://127.0.0.1:{receiver.port}/in?x=1"
    answer = egress.post(url, "{“é”}".encode(), {"Content-Type": "application/json"})
    assert answer == (503, "7", b"busy")
    head, _blank, body = receiver.requests[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /in?x=1 HTTP/1.1",
        f"Host: 127.0.0.1:{receiver.port}".encode(),
        b"Content-Length: 10",
        b"Accept-Encoding: identity",
        b"Connection: close",
        b"Content-Type: application/json",
    ]
    assert body.decode() == "{“é”}"


def test_a_header_cannot_carry_another(receive: Any) -> None:
    receiver = receive(OK)
    for name, value in (("X-One", "1\r\nX-Two: 2"), ("X One", "1"), ("X-One\r\nX-Two", "1"), ("X-One", "ü")):
        with pytest.raises(ValueError, match="is no header"):
            egress.post(f"http://127.0.0.1:{receiver.port}/", b"", {name: value})
    assert receiver.connections == 0


def test_a_redirect_is_an_answer_and_nobody_goes_there(receive: Any) -> None:
    inner = receive(OK)
    outer = receive(says(f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{inner.port}/\r\n\r\n".encode()))
    answer = egress.post(f"http://127.0.0.1:{outer.port}/", b"{}", {})
    assert answer.status == 302
    assert (outer.connections, inner.connections) == (1, 0)


def drip(text: bytes) -> Callable[[socket.socket], None]:
    """An answer of one byte every 50 ms, for ever after its text."""

    def answer(connection: socket.socket) -> None:
        for number in range(1000):
            connection.sendall(text[number : number + 1] or b"x")
            time.sleep(0.05)

    return answer


@pytest.mark.parametrize(
    "text", [b"", b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 100 Continue\r\n\r\n" * 20, b"HTTP/1.1 200 OK\r\n\r\n"]
)
def test_a_slow_loris_meets_the_deadline_wherever_it_drips(receive: Any, text: bytes) -> None:
    receiver = receive(drip(text))
    started = time.monotonic()
    with pytest.raises(TimedOut, match="was not done"):
        egress.post(f"http://127.0.0.1:{receiver.port}/", b"{}", {}, limits=QUICK)
    assert 0.5 < time.monotonic() - started < 5


def test_a_receiver_that_reads_nothing_meets_the_deadline_too(settings: Any) -> None:
    settings.SIGNALBOX_WEBHOOK_HTTP = True
    settings.SIGNALBOX_WEBHOOK_ALLOW_NETS = ["127.0.0.1/32"]
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        started = time.monotonic()
        with pytest.raises(TimedOut):
            egress.post(f"http://127.0.0.1:{deaf.getsockname()[1]}/", b"x" * 30_000_000, {}, limits=QUICK)
        assert time.monotonic() - started < 5


def test_of_ten_gigabytes_64_kb_are_read(receive: Any) -> None:
    sent = []

    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\n")
        for _block in range(10 * 1024):
            connection.sendall(b"x" * 1024 * 1024)
            sent.append(1)

    receiver = receive(flood)
    answer = egress.post(f"http://127.0.0.1:{receiver.port}/", b"{}", {})
    assert (answer.status, len(answer.body)) == (200, 64 * 1024)
    receiver.close()
    assert len(sent) < 100  # MB: the connection was closed on it


def test_a_chunked_flood_is_cut_as_well(receive: Any) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _chunk in range(10 * 1024):
            connection.sendall(b"100000\r\n" + b"x" * 1024 * 1024 + b"\r\n")

    answer = egress.post(f"http://127.0.0.1:{receive(flood).port}/", b"{}", {})
    assert (answer.status, len(answer.body)) == (200, 64 * 1024)


def test_a_gzip_bomb_stays_packed(receive: Any) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    answer = egress.post(f"http://127.0.0.1:{receive(says(head + bomb)).port}/", b"{}", {})
    assert answer.body == bomb[: 64 * 1024]


@pytest.mark.parametrize(
    "text", [b"", b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 banana\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200]
)
def test_what_speaks_no_http_is_unreachable(receive: Any, text: bytes) -> None:
    with pytest.raises(Unreachable):
        egress.post(f"http://127.0.0.1:{receive(says(text)).port}/", b"{}", {})


def test_a_closed_port_is_unreachable_at_once(receive: Any) -> None:
    receiver = receive(OK)
    receiver.close()
    with pytest.raises(Unreachable, match="takes no connection"):
        egress.post(f"http://127.0.0.1:{receiver.port}/", b"{}", {})


def test_who_takes_no_connection_is_waited_for_only_shortly(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.SIGNALBOX_WEBHOOK_HTTP = True
    settings.SIGNALBOX_WEBHOOK_ALLOW_NETS = ["127.0.0.1/32"]
    waited = []

    class Deaf(socket.socket):
        """A socket whose other end never takes the connection."""

        def connect(self, _address: Any) -> None:
            waited.append(self.gettimeout())
            raise TimeoutError

    monkeypatch.setattr(egress.socket, "socket", Deaf)
    with pytest.raises(TimedOut, match="took no connection"):
        egress.post("http://127.0.0.1/", b"{}", {})
    assert [2.5 < seconds <= 3 for seconds in waited] == [True]


# -- TLS ---------------------------------------------------------------------------------------------------------


class Keys:
    """A server's context with our certificate, which notes the name that it was asked for, and a client's trust."""

    def __init__(self, folder: Path) -> None:
        pem = folder / "receiver.pem"
        pem.write_text(CERTIFICATE)
        self.names: list[str | None] = []
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(pem)
        self.server.sni_callback = lambda _socket, name, _context: self.names.append(name)
        self.trust = ssl.create_default_context(cadata=CERTIFICATE[CERTIFICATE.index("-----BEGIN CERT") :])


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def test_over_tls_the_name_is_kept_though_the_address_is_pinned(receive: Any, keys: Keys) -> None:
    receiver = receive(OK, wrap=keys.server)
    url = f"https://hooks.example.test:{receiver.port}/"
    answer = egress.post(url, b"{}", {}, resolver=resolver(["127.0.0.1"]), trust=keys.trust)
    assert (answer.status, answer.body) == (200, b"ok")
    assert keys.names == ["hooks.example.test"]


def test_a_certificate_that_nobody_trusts_is_refused(receive: Any, keys: Keys) -> None:
    receiver = receive(OK, wrap=keys.server)
    with pytest.raises(Unreachable, match=r"certificate of .* does not hold"):
        egress.post(f"https://hooks.example.test:{receiver.port}/", b"{}", {}, resolver=resolver(["127.0.0.1"]))
    assert receiver.requests == []


def test_a_certificate_of_another_name_is_refused(receive: Any, keys: Keys) -> None:
    receiver = receive(OK, wrap=keys.server)
    url = f"https://other.example.test:{receiver.port}/"
    with pytest.raises(Unreachable, match="does not hold"):
        egress.post(url, b"{}", {}, resolver=resolver(["127.0.0.1"]), trust=keys.trust)
    assert receiver.requests == []

"""The one way out to addresses that people typed: resolved once, judged by our own list, pinned, bounded, one POST.

A name is resolved one time, every address that it has is judged, and the connection goes to one of exactly these; so
a name that means another machine at the second look-up gains nothing. Redirects are answers like any other, nothing is
unpacked, and the whole exchange has an end.
"""

import io
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException, HTTPResponse
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from django.conf import settings

from pipeline.refusals import Refused

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[..., list[Any]]

MAX_URL_LENGTH = 2000
MAX_ADDRESSES = 8

# Our own list: `ipaddress.is_global` says True for many of these on Python 3.10 to 3.12.1 (reliability.md, case 63).
# Source: the IANA special-purpose address registries for IPv4 and IPv6, as of 2025-10.
DENIED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # "this" network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by carriers; some clouds' metadata
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local; most clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # old 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "2001::/23",  # protocol assignments: Teredo, ORCHID …
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: carries any IPv4 address
        "3fff::/20",  # documentation
    )
)
# Of IPv6 only global unicast passes: no loopback, mapped or translated IPv4, unique local, link-local or multicast.
GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")

_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_PATH = re.compile(r"/[\x21-\x7e]*")
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")


class AddressRefused(Refused):
    """We do not speak to this address: it is none, or it lies inside."""

    code = "address_refused"
    status = 422


class Unreachable(Exception):
    """Nobody answered there as a web server has to: no such name, no connection, a bad certificate, no HTTP."""


class TimedOut(Exception):
    """The exchange was not over when its time was."""


@dataclass(frozen=True)
class Limits:
    """How long to wait for a connection and for everything together, and how much of an answer is read."""

    connect_seconds: float = 3.0
    total_seconds: float = 15.0
    body_bytes: int = 64 * 1024


LIMITS = Limits()


class Target(NamedTuple):
    """The parts of an address: `host` in ASCII as it is asked for, `path` with its query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """What the `Host` header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"https": 443, "http": 80}[self.scheme] else f"{host}:{self.port}"


class Answer(NamedTuple):
    """What came back: at most `Limits.body_bytes` of the body, as it came, packed or not."""

    status: int
    retry_after: str
    body: bytes


# -- which addresses ---------------------------------------------------------------------------------------------


def check_url(url: str) -> Target:
    """The parts of an `https://` address. No look-up: a name is judged when it is used, numbers now.

    `http://` is good where SIGNALBOX_WEBHOOK_HTTP says so. Raises AddressRefused with what is wrong.
    """
    if not isinstance(url, str) or not url or len(url) > MAX_URL_LENGTH:
        raise AddressRefused(f"An address has 1 to {MAX_URL_LENGTH} characters")
    if any(sign <= " " or sign in "\\\x7f" for sign in url):
        raise AddressRefused("An address holds no blanks, control characters or backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as problem:
        raise AddressRefused(f"This is no address: {problem}") from problem
    schemes = ("https", "http") if settings.SIGNALBOX_WEBHOOK_HTTP else ("https",)
    if parts.scheme not in schemes:
        raise AddressRefused(f"An address begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if "@" in parts.netloc:
        raise AddressRefused("An address holds no user name or password")
    if "#" in url:
        raise AddressRefused("An address to send to holds no #fragment")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not _PATH.fullmatch(path):
        raise AddressRefused("The path of an address is plain ASCII; write other letters as %C3%A4")
    if port == 0:
        raise AddressRefused("Port 0 is no port")
    host = _ascii_host(parts.hostname or "")
    # These names are this machine's by RFC 6761, whoever resolves them.
    literal = literal_address("127.0.0.1" if host == "localhost" or host.endswith(".localhost") else host)
    if literal is not None:
        refuse_internal(literal)
    return Target(parts.scheme, host, port or {"https": 443, "http": 80}[parts.scheme], path)


def _ascii_host(host: str) -> str:
    """The host as the resolver and the certificate see it: `①②⑦.⓪.⓪.①` is 127.0.0.1."""
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError as problem:
            raise AddressRefused(f"“{host[:80]}” is no IPv6 address") from problem
    try:
        name = host.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError as problem:
        raise AddressRefused(f"“{host[:80]}” is no host name") from problem
    if not _NAME.fullmatch(name):
        raise AddressRefused(f"“{host[:80]}” is no host name")
    return name


def literal_address(host: str) -> Address | None:
    """The address that `host` writes in numbers, also as `0x7f.1` or `2130706433`; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def refuse_internal(address: Address | str) -> None:
    """Raises AddressRefused unless `address` is a machine of the open network, or in SIGNALBOX_WEBHOOK_ALLOW_NETS."""
    one = ipaddress.ip_address(address) if isinstance(address, str) else address
    if any(one in ipaddress.ip_network(text) for text in settings.SIGNALBOX_WEBHOOK_ALLOW_NETS):
        return
    inside = one.version == 6 and one not in GLOBAL_IPV6
    if inside or any(one in network for network in DENIED):
        raise AddressRefused(f"{one} is an internal or reserved address; we send to the open network only")


def addresses_of(
    host: str, port: int, *, seconds: float = LIMITS.total_seconds, resolver: Resolver = socket.getaddrinfo
) -> list[Address]:
    """Every address of `host`, looked up once, each of them one that we may speak to, in the resolver's order.

    Raises AddressRefused when one of them lies inside, Unreachable for an unknown name, TimedOut after `seconds`.
    """
    literal = literal_address(host)
    if literal is not None:
        refuse_internal(literal)
        return [literal]
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found.put([row[4][0] for row in resolver(host, port, type=socket.SOCK_STREAM)])
        except (OSError, UnicodeError) as problem:
            found.put(problem)

    # The C library's look-up has no deadline of ours: a name server that hangs keeps this thread, not the caller.
    threading.Thread(target=look_up, daemon=True, name=f"resolve-{host}").start()
    try:
        answer = found.get(timeout=max(seconds, 0))
    except queue.Empty as problem:
        raise TimedOut(f"no name server said within {seconds:.0f} s who {host} is") from problem
    if isinstance(answer, Exception):
        raise Unreachable(f"{host} is no known name: {answer}") from answer
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in dict.fromkeys(answer)][:MAX_ADDRESSES]
    for address in addresses:
        refuse_internal(address)
    if not addresses:
        raise Unreachable(f"{host} has no address")
    return addresses


# -- one exchange ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _trust() -> ssl.SSLContext:
    """The certificates that this machine trusts, read once a process."""
    return ssl.create_default_context()


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    limits: Limits = LIMITS,
    resolver: Resolver = socket.getaddrinfo,
    trust: ssl.SSLContext | None = None,
) -> Answer:
    """POST `body` to `url`: one exchange over one fresh connection, no redirect followed, nothing unpacked.

    Raises AddressRefused, Unreachable or TimedOut. Whatever status came back is an Answer.
    """
    target = check_url(url)
    request = _request(target, body, headers)
    deadline = _Deadline(limits.total_seconds)
    addresses = addresses_of(target.host, target.port, seconds=deadline.left(), resolver=resolver)
    connection = _connect(addresses, target.port, deadline, limits)
    try:
        if target.scheme == "https":
            connection.settimeout(deadline.left())
            connection = (trust or _trust()).wrap_socket(connection, server_hostname=target.host)
        return _exchange(connection, request, deadline, limits)
    except TimeoutError as problem:
        raise TimedOut(f"The exchange was not done within {limits.total_seconds:.0f} s") from problem
    except ssl.SSLCertVerificationError as problem:
        raise Unreachable(f"the certificate of {target.host} does not hold: {problem.verify_message}") from problem
    except HTTPException as problem:
        raise Unreachable(
            f"{target.host} does not answer in HTTP: {type(problem).__name__} {problem}"[:300]
        ) from problem
    except OSError as problem:
        raise Unreachable(f"the connection to {target.host} broke: {problem}") from problem
    finally:
        connection.close()


class _Deadline:
    """The end of an exchange, however many steps it takes."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.at = time.monotonic() + seconds

    def left(self) -> float:
        """The seconds that are left. Raises TimedOut when none are."""
        seconds = self.at - time.monotonic()
        if seconds <= 0:
            raise TimedOut(f"The exchange was not done within {self.seconds:.0f} s")
        return seconds


def _connect(addresses: list[Address], port: int, deadline: _Deadline, limits: Limits) -> socket.socket:
    """A connection to the first of `addresses` that takes one; all of them together have the time for connecting."""
    patience = _Deadline(min(limits.connect_seconds, deadline.left()))
    problem: Exception | None = None
    for address in addresses:
        connection = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
        try:
            connection.settimeout(patience.left())
            connection.connect((str(address), port))
            peer = ipaddress.ip_address(connection.getpeername()[0])
            if peer != address:
                raise AddressRefused(f"The connection to {address} ended at {peer}")
            return connection
        except TimeoutError as late:
            connection.close()
            raise TimedOut(f"{address} took no connection within {limits.connect_seconds:.0f} s") from late
        except OSError as refused:
            connection.close()
            problem = refused
        except BaseException:
            connection.close()
            raise
    raise Unreachable(f"{addresses[-1]} takes no connection: {problem}") from problem


def _request(target: Target, body: bytes, headers: Mapping[str, str]) -> bytes:
    """The whole request as bytes. Raises ValueError for a header that could carry another: an error of the program."""
    fixed = {
        "Host": target.authority,
        "Content-Length": str(len(body)),
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    lines = [f"POST {target.path} HTTP/1.1"]
    for name, value in {**fixed, **headers}.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"{name!r}: {value!r} is no header")
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def _exchange(connection: socket.socket, request: bytes, deadline: _Deadline, limits: Limits) -> Answer:
    waiting = memoryview(request)
    while waiting:
        connection.settimeout(deadline.left())
        waiting = waiting[connection.send(waiting) :]
    # It asks a socket for `makefile` alone.
    response = HTTPResponse(_Reader(connection, deadline), method="POST")  # type: ignore[arg-type]
    try:
        response.begin()
        return Answer(response.status, response.headers.get("Retry-After", ""), response.read(limits.body_bytes))
    finally:
        response.close()


class _Reader:
    """What HTTPResponse asks of a socket: a file to read from, which knows the deadline."""

    def __init__(self, connection: socket.socket, deadline: _Deadline) -> None:
        self.raw = _Timed(connection, deadline)

    def makefile(self, mode: str) -> io.BufferedReader:
        """The bytes of the answer."""
        return io.BufferedReader(self.raw)


class _Timed(io.RawIOBase):
    """Reads a socket until the deadline: a sender of one byte a second meets it as everybody does."""

    def __init__(self, connection: socket.socket, deadline: _Deadline) -> None:
        super().__init__()
        self.connection, self.deadline = connection, deadline

    def readable(self) -> bool:
        """It is there to be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """What has come. Raises TimeoutError or TimedOut at the deadline."""
        self.connection.settimeout(self.deadline.left())
        return self.connection.recv_into(buffer)

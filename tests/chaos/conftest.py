"""The whole product as processes, started once for every test here that needs it."""

from collections.abc import Iterator

import pytest

from tests.kill.stack import Stack


@pytest.fixture(scope="package")
def stack() -> Iterator[Stack]:
    """Web, workers, beat and servers, without the demo."""
    found = Stack()
    try:
        found.start()
        yield found
    finally:
        found.end()

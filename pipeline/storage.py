"""Where static files are kept: compressed, and named after their content so that browsers may keep them for ever."""

from typing import Any

from whitenoise.storage import CompressedManifestStaticFilesStorage


class StaticStorage(CompressedManifestStaticFilesStorage):
    """WhiteNoise's storage, which here serves a file under its plain name when it was not collected.

    Tests and one-off commands render pages without `collectstatic`, and some libraries' style sheets name source maps
    that they do not ship.
    """

    manifest_strict = False

    def hashed_name(self, name: str, content: Any = None, filename: str | None = None) -> str:
        """The name with the hash of the content, or `name` itself when there is no such file."""
        try:
            hashed: str = super().hashed_name(name, content, filename)
        except ValueError:
            return name
        return hashed

"""Kinds of fields that the documents of the gates share."""

from typing import Any

from rest_framework import serializers

from gates.definition import MAX_WORD_CHARS, MAX_WORDS


def texts(**kwargs: Any) -> serializers.ListField:
    """A list of texts, kept as they are: an argument may begin with a blank."""
    child = serializers.CharField(allow_blank=True, trim_whitespace=False, max_length=MAX_WORD_CHARS)
    return serializers.ListField(child=child, max_length=MAX_WORDS, **kwargs)


class Whole(serializers.IntegerField):
    """A whole number: 0, and neither "0" nor 0.0. What a program sends as text, it may not have meant as a number."""

    def to_internal_value(self, data: Any) -> int:
        """The number itself."""
        if not isinstance(data, int) or isinstance(data, bool):
            self.fail("invalid")
        return data


def codes() -> serializers.ListField:
    """A list of exit codes."""
    child = Whole(min_value=0, max_value=255)
    return serializers.ListField(child=child, required=False, max_length=MAX_WORDS)

"""Why isn't this moving? As a part of any page about something that waits."""

from typing import Any

from django import template

from pipeline.blockers import blocker

register = template.Library()


@register.inclusion_tag("_parts/why.html")
def why(subject: Any) -> dict[str, Any]:
    """Who holds `subject`, why, and what would help; nothing when it is finished."""
    return {"blocker": blocker(subject, to_the_root=False)}

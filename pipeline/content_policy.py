"""The Content-Security-Policy header: strict everywhere, relaxed only where somebody else's pages need it."""

from csp.middleware import CSPMiddleware, PolicyParts
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase


class ContentPolicyMiddleware(CSPMiddleware):
    """django-csp's middleware with a second policy for the admin site and the API's browser (stack.md §8)."""

    def get_policy_parts(
        self, request: HttpRequest, response: HttpResponseBase, report_only: bool = False
    ) -> PolicyParts:
        """The settings' policy, replaced below the prefixes of `RELAXED_POLICY_PREFIXES`."""
        parts = super().get_policy_parts(request, response, report_only)
        if not report_only and request.path_info.startswith(settings.RELAXED_POLICY_PREFIXES):
            parts.config = settings.RELAXED_POLICY
        return parts

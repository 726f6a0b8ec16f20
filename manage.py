#!/usr/bin/env python3
"""Runs one command of Signalbox, beside the embedded servers when no URL names others."""

import os
import sys

from pipeline.embedded import around


def main() -> None:
    """Run the command; what the machine refuses (a folder, a file, a database) is one sentence, not a stack trace."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "pipeline.settings")
    try:
        with around(sys.argv[1:], os.environ):
            from django.core.exceptions import ImproperlyConfigured
            from django.core.management import execute_from_command_line
            from django.db import OperationalError

            try:
                execute_from_command_line(sys.argv)
            except (ImproperlyConfigured, OperationalError) as problem:
                sys.exit(f"Cannot run: {str(problem).strip()}")
    except OSError as problem:
        sys.exit(f"Cannot run: {problem.strerror or problem}: {problem.filename or ''}".rstrip(": "))


if __name__ == "__main__":
    main()

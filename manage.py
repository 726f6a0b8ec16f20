#!/usr/bin/env python3
"""Runs one command of Signalbox, beside the embedded servers when no URL names others."""

import os
import sys

from pipeline.embedded import around


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "pipeline.settings")
    with around(sys.argv[1:], os.environ):
        from django.core.management import execute_from_command_line

        execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()

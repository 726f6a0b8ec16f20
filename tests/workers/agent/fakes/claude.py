"""A stand-in for Claude Code: takes the documented flags, and no others, and plays a scenario of its script."""

import argparse
import sys
import uuid
from pathlib import Path

from player import Player

options = argparse.ArgumentParser(allow_abbrev=False)
options.add_argument("--scenario", required=True)
options.add_argument("--gate", default="")
options.add_argument("--resets", default="0")
options.add_argument("-p", "--print", action="store_true", required=True)
options.add_argument("--output-format", choices=["stream-json"], required=True)
options.add_argument("--verbose", action="store_true", required=True)  # stream-json needs it
options.add_argument("--session-id", type=uuid.UUID, required=True)
options.add_argument("--model", default="claude-sonnet-4-5")
options.add_argument("--max-budget-usd", type=float)
options.add_argument("--permission-mode", choices=["acceptEdits", "default", "plan", "bypassPermissions", "dontAsk"])
given = options.parse_args()
prompt = sys.stdin.read()
if not prompt:
    sys.exit("Error: Input must be provided either through stdin or as a prompt argument when using --print")
if given.permission_mode is None:
    sys.exit("edits would be denied")
names = {
    "session": str(given.session_id),
    "model": given.model,
    "budget": str(given.max_budget_usd),
    "mode": given.permission_mode,
    "prompt": prompt.strip(),
    "gate": given.gate,
    "resets": given.resets,
}
Player(Path(__file__).with_name("claude-2.1.217.play"), names).play(given.scenario)

"""A stand-in for Codex: takes the documented flags of `codex exec`, and no others, and plays a scenario."""

import argparse
import os
import sys
from pathlib import Path

from player import Player

options = argparse.ArgumentParser(allow_abbrev=False)
options.add_argument("--scenario", required=True)
options.add_argument("--gate", default="")
options.add_argument("--resets", default="0")
options.add_argument("--script", default="codex-08a1f30c.play")
options.add_argument("command", choices=["exec"])
options.add_argument("--json", action="store_true", required=True)
options.add_argument("--color", choices=["always", "never", "auto"])
options.add_argument("--sandbox", "-s", choices=["read-only", "workspace-write", "danger-full-access"], required=True)
options.add_argument("--model", "-m", default="gpt-5.2-codex")
options.add_argument("prompt", choices=["-"])
given = options.parse_args()
prompt = sys.stdin.read()
if not prompt:
    sys.exit("No prompt provided via stdin.")
home = Path(os.environ.get("CODEX_HOME") or Path(os.environ["HOME"]) / ".codex")
thread = "0199a213-81c0-7800-8aa1-bbab2a035a53"
names = {
    "thread": thread,
    "model": given.model,
    "rollout": str(home / "sessions/2026/01/31" / f"rollout-2026-01-31T08-15-30-{thread}.jsonl"),
    "prompt": prompt.strip(),
    "sandbox": given.sandbox,
    "gate": given.gate,
    "resets": given.resets,
}
Player(Path(__file__).with_name(given.script), names).play(given.scenario)

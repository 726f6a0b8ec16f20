"""A stand-in for aider: takes the documented flags, and no others, and plays a scenario of its script."""

import argparse
from pathlib import Path

from player import Player

options = argparse.ArgumentParser(allow_abbrev=False)
options.add_argument("--scenario", required=True)
options.add_argument("--gate", default="")
options.add_argument("--resets", default="0")
for flag in ("yes-always", "no-auto-commits", "no-dirty-commits", "no-stream", "no-gitignore", "no-analytics"):
    options.add_argument(f"--{flag}", action="store_true", required=True)
options.add_argument("--no-pretty", action="store_true")
options.add_argument("--no-check-update", action="store_true")
options.add_argument("--analytics-log", required=True)
options.add_argument("--chat-history-file", type=Path, required=True)
options.add_argument("--input-history-file", type=Path, required=True)
options.add_argument("--message-file", "-f", type=Path, required=True)
options.add_argument("--model", default="gpt-4o")
given = options.parse_args()
given.chat_history_file.write_text("# aider chat\n")
Path(".aider.tags.cache.v4").mkdir()
Path(".aider.tags.cache.v4/cache.db").write_text("its own\n")
names = {
    "log": given.analytics_log,
    "model": given.model,
    "prompt": given.message_file.read_text().strip(),
    "gate": given.gate,
}
Player(Path(__file__).with_name("aider-5dc9490b.play"), names).play(given.scenario)

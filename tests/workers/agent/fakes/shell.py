"""A stand-in for any program that is run as it stands: reads its prompt, and plays a scenario of its script."""

import argparse
import sys
from pathlib import Path

from player import Player

options = argparse.ArgumentParser(allow_abbrev=False)
options.add_argument("--scenario", required=True)
options.add_argument("--gate", default="")
options.add_argument("--resets", default="0")
given = options.parse_args()
names = {"prompt": sys.stdin.read().strip(), "gate": given.gate}
Player(Path(__file__).with_name("shell.play"), names).play(given.scenario)

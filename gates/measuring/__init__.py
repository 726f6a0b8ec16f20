"""What a run of a gate measured: evidence gathered, failed tests once more, coverage, goalposts, judged."""

from gates.measuring.gathering import Again, look, look_in_mirror
from gates.measuring.goalposts import lay_over
from gates.measuring.measure import measure

__all__ = ["Again", "lay_over", "look", "look_in_mirror", "measure"]

"""What the gates' pages and their panels on other pages share."""

ISOLATED_FROM = 2
"""From this level on a check sees neither the network nor other processes; below it the page says "not isolated"."""

# What no list shows of a gate run.
BULK_OF_GATE_RUN = ("output_tail", "evidence", "metadata", "verdicts", "criteria", "command")

"""What a run shows of itself while it runs: its phase, and the one line on a terminal."""

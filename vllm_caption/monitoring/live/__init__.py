"""What a terminal shows during a run: its phase, and the live line."""

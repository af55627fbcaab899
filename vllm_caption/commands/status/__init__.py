"""``status``: what the run in an output folder is doing, or how it ended."""

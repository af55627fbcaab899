"""The loop that feeds the engines and records their answers."""

"""Everything in an output folder, and its only writer."""

"""The figures of a run and how they are shown."""

"""``report``: one HTML page about one output folder, or about several side by side."""

"""The text of a request, and the rules for its caption."""

"""The text of a request, and the rules that its caption must keep."""

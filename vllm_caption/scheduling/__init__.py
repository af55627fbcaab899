"""Pure decisions: which item goes where, what is retried, what is given up."""

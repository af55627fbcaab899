"""``python -m vllm_caption tune``: the fastest settings of one engine, measured on the user's own
items."""

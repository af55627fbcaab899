"""``python -m vllm_caption verify``: .txt files, manifest and input against each other."""

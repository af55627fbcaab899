"""What `import vllm_caption` offers: a run in a process of its own, and its table."""

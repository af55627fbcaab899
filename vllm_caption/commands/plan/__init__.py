"""``python -m vllm_caption plan``: what a run would do, without a GPU, vLLM or a written byte."""

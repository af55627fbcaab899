"""``python -m vllm_caption plan``: what a run would do, without a GPU or vLLM; writes nothing."""

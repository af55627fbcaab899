"""What to run first on a machine with a GPU: `make gpu`, or `python -m tools.gpu` in an environment
with vLLM's CUDA build."""

"""vLLM engines: what runs in a worker process, and where workers run."""

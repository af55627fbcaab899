"""Offline, high-throughput captioning of design elements on data-parallel vLLM engines."""

__version__ = "0.1.0"

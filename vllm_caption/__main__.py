"""``python -m vllm_caption``."""

from vllm_caption.cli import command

if __name__ == "__main__":
    command()

"""``python -m vllm_caption``."""

import sys

from vllm_caption.cli import main

if __name__ == "__main__":
    sys.exit(main())

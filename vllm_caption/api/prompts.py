"""A prompt file, read as a run reads it."""

from __future__ import annotations

import os

from vllm_caption.api.arguments import in_python
from vllm_caption.captions import prompt
from vllm_caption.captions.prompt import Prompt
from vllm_caption.errors import UsageError


def load_prompt(prompt_file: str | os.PathLike[str]) -> Prompt:
    """Load and try out a prompt: a path, or the name of a file in a prompts/ folder.

    Raises UsageError with the file, line and name.
    """
    try:
        return prompt.load_prompt(prompt_file)
    except UsageError as error:
        raise in_python(error) from None

"""Chooses the source for an input: the only module that knows all kinds."""

from __future__ import annotations

from vllm_caption.config import InputConfig, is_archive, is_table
from vllm_caption.inputs.archives import Archives
from vllm_caption.inputs.designs import Designs
from vllm_caption.inputs.image_folders import ImageFolder
from vllm_caption.inputs.source import Source
from vllm_caption.inputs.tables import Table


def open_source(config: InputConfig) -> Source:
    """The source for ``--input``; without it, the designs."""
    if config.input is None:
        return Designs(config)
    if is_table(config.input):
        return Table(config, config.input)
    if is_archive(config.input):
        return Archives(config, config.input)
    return ImageFolder(config, config.input)

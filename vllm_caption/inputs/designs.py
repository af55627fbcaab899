"""The source for two folders of JSON: NAME.json of a design lists its elements, and NAME.json of
its details their types."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vllm_caption.config import InputConfig, check_folder
from vllm_caption.errors import DocumentError, UsageError
from vllm_caption.formatting import counted, encodable_name
from vllm_caption.inputs.documents import SUFFIX, read_document
from vllm_caption.inputs.source import Group, Nouns, refuse_prompt_columns
from vllm_caption.items import SkippedDocument


class Designs:
    """Every design of ``--jsons``, sorted by name."""

    def __init__(self, config: InputConfig) -> None:
        self._config = config
        self.left_out: Counter[str] = Counter()
        self.nouns = Nouns("design")

    def check(self) -> None:
        """Check that both are folders and that there is a design."""
        config = self._config
        is_default = config.jsons == InputConfig().jsons
        if is_default and not os.path.exists(config.jsons):  # noqa: PTH110 (never raises)
            remedy = (
                "name a folder of images, a table or a .tar as the first argument, or designs with"
                f" --jsons (the default, {config.jsons}, does not exist)"
            )
            raise UsageError("no input", None, remedy)
        check_folder("--jsons", config.jsons, "the folder with one NAME.json per design")
        role = "the folder with the details of each NAME"
        check_folder("--json-detail", config.json_detail, role)
        if not document_names(config.jsons):
            remedy = "holds no file ending in .json; name the folder that holds the designs"
            raise UsageError("--jsons", config.jsons, remedy)
        refuse_prompt_columns(config, "designs have")

    def num_documents(self) -> int:
        """The number of designs."""
        return len(document_names(self._config.jsons))

    def documents(self) -> Iterator[Group | SkippedDocument]:
        """Each is accepted as a whole, or skipped with a kind and a sentence."""
        wanted = self._config.documents
        for name in document_names(self._config.jsons):
            if wanted is not None and encodable_name(name) not in wanted:
                continue
            try:
                yield Group(*read_document(self._config, name))
            except DocumentError as error:
                yield SkippedDocument(encodable_name(name), error.kind, error.reason)

    def empty_error(self) -> UsageError:
        """The error if no design has an element."""
        number = counted(self.num_documents(), "design")
        return UsageError("--jsons", self._config.jsons, f"its {number} list no images")


def document_names(jsons: Path) -> list[str]:
    """NAME of each NAME.json directly in the folder, sorted by code points.

    Names that are not UTF-8 contain surrogate escapes, so that they can still be opened; records
    show them as ``encodable_name`` does.
    """
    with os.scandir(jsons) as entries:
        return sorted(e.name[: -len(SUFFIX)] for e in entries if _is_design(e.name))


def _is_design(filename: str) -> bool:
    return filename.endswith(SUFFIX) and not filename.startswith(".")

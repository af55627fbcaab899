"""What each kind and each flag means, and what the reader can do about it.

Invariant: every kind of `errors` and every flag of `checks` is here.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Meaning(NamedTuple):
    """Two sentences for the page."""

    what: str
    remedy: str


_AGAIN: Final = "Run the same line again: failed items are tried again."
_MEND_FILE: Final = "Mend or export the file again, then run the same line again."
_MEND_DOCUMENT: Final = "Mend the document, then run the same line again; its items are then found."
_REDO: Final = (
    "Look at some; `--redo flagged` makes them anew, with another prompt if you name one."
)

ITEM_MEANINGS: Final[dict[str, Meaning]] = {
    "bad_name": Meaning("The element names no file that can be one.", _MEND_DOCUMENT),
    "path_escape": Meaning(
        "The name leads out of the images root.",
        "Name files below --images-root; such names are never followed.",
    ),
    "missing_file": Meaning(
        "There is no file of this name below the images root.",
        "Check --images-root, or bring the files; then run the same line again.",
    ),
    "not_a_file": Meaning("The name leads to a folder or a device.", _MEND_DOCUMENT),
    "unreadable": Meaning(
        "The file is there and cannot be read.", "Mend its rights or the disk; then run again."
    ),
    "not_an_image": Meaning("The content is of no image format that is read.", _MEND_FILE),
    "decode_error": Meaning("The image data is damaged, or shows nothing.", _MEND_FILE),
    "too_large": Meaning(
        "The image has more pixels than are decoded.",
        "Run again with a higher --max-image-pixels if you trust the file.",
    ),
    "output_conflict": Meaning(
        "The caption's path is taken by something else.", "Rename one of the two; then run again."
    ),
    "engine_error": Meaning("The engine refused the request.", _AGAIN),
    "poison": Meaning(
        "The item killed an engine twice while it was alone there.",
        "Look at the image; `--redo-kind poison` tries only these again.",
    ),
    "caption_rejected": Meaning(
        "Every attempt was empty or a loop.",
        "Try another prompt, or --temperature 0.3: `--redo-kind caption_rejected`.",
    ),
}
DOCUMENT_MEANINGS: Final[dict[str, Meaning]] = {
    "missing_detail": Meaning("--json-detail has no file of the same name.", _MEND_DOCUMENT),
    "invalid_json": Meaning("The text is not JSON.", _MEND_DOCUMENT),
    "bad_encoding": Meaning("The bytes are not UTF-8.", _MEND_DOCUMENT),
    "not_object": Meaning("The JSON is not an object.", _MEND_DOCUMENT),
    "missing_key": Meaning("A list that is needed is not there.", _MEND_DOCUMENT),
    "bad_type": Meaning("A value is of another type than it must be.", _MEND_DOCUMENT),
    "length_mismatch": Meaning("The two files list different numbers of images.", _MEND_DOCUMENT),
    "types_length": Meaning("There are more or fewer types than images.", _MEND_DOCUMENT),
    "not_a_file": Meaning("The name leads to a folder or a device.", _MEND_DOCUMENT),
    "unreadable": Meaning("The file is there and cannot be read.", _MEND_DOCUMENT),
}
FLAG_MEANINGS: Final[dict[str, Meaning]] = {
    "empty": Meaning("Nothing was said.", _REDO),
    "loop": Meaning("The same words come again and again.", _REDO),
    "refusal": Meaning("The model speaks about itself instead of the image.", _REDO),
    "prompt_echo": Meaning("The caption repeats the prompt.", _REDO),
    "forbidden_opening": Meaning("It begins with words that the prompt forbids.", _REDO),
    "too_long": Meaning("It has more words than the prompt's max_words.", _REDO),
    "cut_off": Meaning(
        "It ended at --max-tokens, in the middle of a sentence.",
        "Raise --max-tokens; `--redo-kind cut_off` makes these anew.",
    ),
}
UNKNOWN: Final = Meaning("This version does not know it.", "Look at the examples.")

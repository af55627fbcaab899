"""What each kind and each flag means, and what the reader can do about it.

Invariant: every kind and every flag of `errors` is here.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Meaning(NamedTuple):
    """Two sentences for the page."""

    what: str
    remedy: str


_AGAIN: Final = "Rerun the job: failed items are tried again."
_FIX_FILE: Final = "Repair the file or export it again, then rerun the job."
_FIX_DOCUMENT: Final = "Fix the document, then rerun the job."
_REDO: Final = "Look at some; `--redo flagged` captions them again, best with another `--prompt`."

ITEM_MEANINGS: Final[dict[str, Meaning]] = {
    "bad_name": Meaning("The element has no usable file name.", _FIX_DOCUMENT),
    "path_escape": Meaning(
        "The name leads out of the images root.",
        "Name files below --images-root; such names are never followed.",
    ),
    "missing_file": Meaning(
        "There is no file of this name below the images root.",
        "Check --images-root, or add the files; then rerun the job.",
    ),
    "not_a_file": Meaning("The name is that of a folder or a device.", _FIX_DOCUMENT),
    "unreadable": Meaning(
        "The file exists but cannot be read.",
        "Fix its permissions or the disk, then rerun.",
    ),
    "not_an_image": Meaning("The content is not in a supported image format.", _FIX_FILE),
    "decode_error": Meaning("The image data is damaged, or shows nothing.", _FIX_FILE),
    "too_large": Meaning(
        "The image has more pixels than the limit.",
        "Rerun with a higher --max-image-pixels if you trust the file.",
    ),
    "output_conflict": Meaning(
        "Something else has the path of the caption.", "Rename one of the two; then rerun the job."
    ),
    "engine_error": Meaning("The engine refused the request.", _AGAIN),
    "poison": Meaning(
        "The item killed an engine twice while no other item was in it.",
        "Look at the image; `--redo-kind poison` tries only these again.",
    ),
    "caption_rejected": Meaning(
        "Every attempt was empty or a loop.",
        "Try another prompt, or --temperature 0.3: `--redo-kind caption_rejected`.",
    ),
}
DOCUMENT_MEANINGS: Final[dict[str, Meaning]] = {
    "missing_detail": Meaning("--json-detail has no file of the same name.", _FIX_DOCUMENT),
    "invalid_json": Meaning("The text is not JSON.", _FIX_DOCUMENT),
    "bad_encoding": Meaning("The bytes are not UTF-8.", _FIX_DOCUMENT),
    "not_object": Meaning("The JSON is not an object.", _FIX_DOCUMENT),
    "missing_key": Meaning("A required list is missing.", _FIX_DOCUMENT),
    "bad_type": Meaning("A value has the wrong type.", _FIX_DOCUMENT),
    "length_mismatch": Meaning("The two files list different numbers of images.", _FIX_DOCUMENT),
    "types_length": Meaning("There are more or fewer types than images.", _FIX_DOCUMENT),
    "not_a_file": Meaning("The name is that of a folder or a device.", _FIX_DOCUMENT),
    "unreadable": Meaning("The file exists but cannot be read.", _FIX_DOCUMENT),
}
FLAG_MEANINGS: Final[dict[str, Meaning]] = {
    "empty": Meaning("The caption is empty.", _REDO),
    "loop": Meaning("The same words are repeated over and over.", _REDO),
    "refusal": Meaning("The model speaks about itself instead of the image.", _REDO),
    "prompt_echo": Meaning("The caption repeats the prompt.", _REDO),
    "forbidden_opening": Meaning("It begins with words that the prompt forbids.", _REDO),
    "too_long": Meaning("It has more words than the prompt's max_words.", _REDO),
    "cut_off": Meaning(
        "It was cut off at --max-tokens.",
        "Raise --max-tokens; `--redo-kind cut_off` captions these again.",
    ),
}
UNKNOWN: Final = Meaning("This version does not know this kind.", "Look at the examples.")

"""What each kind of failure and each flag means, and what the reader can do about it.

Invariant: every kind and every flag in `errors` has an entry.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from vllm_caption.images.files import MAX_FILE_BYTES


class Meaning(NamedTuple):
    """Two sentences for the page."""

    what: str
    remedy: str


_FIX_NAMED: Final = "Fix what the error names, then run again."
_FIX_FILE: Final = "Repair the file or export it again, then run again."
_FIX_INPUT: Final = "Fix the name in the input, then run again."
_FIX_DOCUMENT: Final = "Fix the document, then run again."
_REDO: Final = "Look at a few; `--redo flagged` re-captions them, ideally with another `--prompt`."

ITEM_MEANINGS: Final[dict[str, Meaning]] = {
    "bad_name": Meaning("The input gives no usable file name.", _FIX_INPUT),
    "path_escape": Meaning(
        "The name points outside the images root.",
        "Use names below --images-root; a name that leaves it is never opened.",
    ),
    "missing_file": Meaning(
        "There is no file of this name below the images root.",
        "Check --images-root, or add the files; then run again.",
    ),
    "not_a_file": Meaning("The name is that of a folder or a device.", _FIX_DOCUMENT),
    "unreadable": Meaning(
        "The file exists but cannot be read.",
        "Fix its permissions or the disk, then run again.",
    ),
    "timeout": Meaning(
        "Reading and decoding the image took longer than --item-timeout.",
        "Check the drive that the images are on; then run again.",
    ),
    "not_an_image": Meaning("The content is not in a supported image format.", _FIX_FILE),
    "decode_error": Meaning("The image data is damaged, or shows nothing.", _FIX_FILE),
    "too_large": Meaning(
        "The image has more pixels than --max-image-pixels, or its file is larger than"
        f" {MAX_FILE_BYTES // 2**20} MiB.",
        "If the error names pixels and you trust the file, run again with a higher"
        " --max-image-pixels; otherwise make the file smaller.",
    ),
    "output_conflict": Meaning(
        "Something else is at the caption's path, or the .txt cannot be read or written.",
        _FIX_NAMED,
    ),
    "engine_error": Meaning(
        "The prompt could not be made for this item, or the engine refused the request; the error"
        " says which.",
        _FIX_NAMED,
    ),
    "poison": Meaning(
        "The item killed an engine twice while it was the only item there.",
        "Look at the image; `--redo-kind poison` retries only these.",
    ),
    "caption_rejected": Meaning(
        "Every answer was empty, was only reasoning, repeated itself, or broke the prompt's"
        " schema.",
        "Try another prompt or --temperature 0.3, with `--redo-kind caption_rejected`.",
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
    "not_a_file": Meaning(
        "It is a folder, a link to one, or a device.",
        "Name the folder itself as --input, or put a file in its place; then run again.",
    ),
    "unreadable": Meaning("It exists but cannot be read.", "Fix its permissions, then run again."),
}
FLAG_MEANINGS: Final[dict[str, Meaning]] = {
    "empty": Meaning("The caption is empty.", _REDO),
    "reasoning": Meaning(
        "The model reasoned and gave no answer.", "Raise --max-tokens, or use an instruct model."
    ),
    "bad_json": Meaning(
        "The answer is not JSON that follows the prompt's schema.",
        "Raise --max-tokens if it is cut off; otherwise simplify the schema.",
    ),
    "loop": Meaning("The same words are repeated over and over.", _REDO),
    "refusal": Meaning("The model speaks about itself instead of the image.", _REDO),
    "prompt_echo": Meaning("The caption repeats the prompt.", _REDO),
    "wrong_script": Meaning("The caption is not in the script of the prompt's language.", _REDO),
    "preface": Meaning("Words about the answer, or a role's name, precede the caption.", _REDO),
    "code_fence": Meaning("The caption stands in a block of code.", _REDO),
    "punctuation_tail": Meaning("The caption ends in the same punctuation over and over.", _REDO),
    "forbidden_opening": Meaning("The caption begins with words that the prompt forbids.", _REDO),
    "too_long": Meaning("The caption has more words than the prompt's max_words.", _REDO),
    "cut_off": Meaning(
        "The caption was cut off at --max-tokens.",
        "Raise --max-tokens; `--redo-kind cut_off` re-captions these.",
    ),
}
UNKNOWN: Final = Meaning("This version does not know the kind.", "Look at the examples.")

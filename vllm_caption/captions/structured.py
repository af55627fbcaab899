"""An answer → its caption, its flags and, if the prompt has a schema, its fields as JSON.

Pure functions of text. Invariants: fields are kept only if they follow the schema, even if the
other rules are off; with a schema, a caption is made from these fields alone.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from vllm_caption.captions.fields import FieldsError, decode_answer, encode
from vllm_caption.captions.prompt import Prompt, render_caption
from vllm_caption.captions.reasoning import answer_of
from vllm_caption.captions.rules import CaptionRules, check_caption, clean_caption, judge
from vllm_caption.errors import CaptionFlag

CUT_OFF: Final = "the JSON is cut off at --max-tokens; raise it"


class Judged(NamedTuple):
    """What is stored of an answer. ``structured``: its fields, as compact JSON; ``problem``:
    explains the flag `bad_json`."""

    caption: str
    flags: tuple[CaptionFlag, ...]
    structured: str | None = None
    problem: str = ""


def judge_answer(
    answer: str, finish_reason: str | None, rules: CaptionRules, prompt: Prompt
) -> Judged:
    """The verdict on a model's answer to a prompt."""
    asked = f"{prompt.user}\n{prompt.system or ''}"
    schema = prompt.options.schema
    if schema is None:
        return Judged(*judge(answer, finish_reason, rules, asked))
    # What starts as JSON holds no reasoning, whatever its values look like.
    text = answer if answer.lstrip().startswith("{") else answer_of(answer)
    if text is None:
        return Judged(*judge(answer, finish_reason, rules, asked))
    try:
        values = decode_answer(text, schema)
        fields = encode(values)
        if prompt.caption is None:
            return Judged(fields, (), fields)
        rendered = render_caption(prompt.caption, schema, values)
    except FieldsError as error:
        shown = clean_caption(text)
        if finish_reason == "length":
            return Judged(shown, ("bad_json", "cut_off"), problem=CUT_OFF)
        return Judged(shown, ("bad_json",), problem=error.problem)
    caption = clean_caption(rendered, single_line=rules.single_line)
    return Judged(caption, check_caption(caption, None, rules, asked), fields)

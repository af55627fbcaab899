"""Fields instead of free text: what a prompt file may ask for, and what is kept of an answer."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.job import (
    FAKE,
    QUICK,
    Result,
    captions,
    draw_shape,
    input_flags,
    make_input,
    rows,
    run,
    run_here,
    write_document,
)

from vllm_caption.captions.prompt import Prompt, RequestOptions, load_prompt, render
from vllm_caption.captions.rules import CaptionRules, verdict
from vllm_caption.captions.structured import CUT_OFF, Judged, judge_answer
from vllm_caption.config import EngineConfig, ImageConfig, SamplingConfig
from vllm_caption.demo import MODEL_DIR
from vllm_caption.errors import UsageError
from vllm_caption.items import Document, Item
from vllm_caption.store.recipe import make_recipe

ITEM = Item("a.png", Document("design"), 0, "SvgElement")
FIELDS = """\
---
fields:
  shape: [star, circle]
  title: what the lettering says
---
Describe it.
"""
CAPTION = FIELDS.replace("---\nDescribe", "caption: A {{ shape }}, {{ title }}.\n---\nDescribe")
STAR = '{"shape":"star","title":"Sale"}'
Load = Callable[[str], Prompt]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a prompt with this text."""

    def load_text(content: str) -> Prompt:
        path = tmp_path / "mine.md"
        path.write_text(content, "utf-8")
        return load_prompt(str(path))

    return load_text


def refusal(load: Load, front_matter: str) -> str:
    """The error about a prompt file with this front matter, without the file's name."""
    with pytest.raises(UsageError) as caught:
        load(f"---\n{front_matter}\n---\nDescribe it.\n")
    said = str(caught.value)
    assert said.startswith("--prompt ")
    assert "\n" not in said
    return said.partition("mine.md: ")[2]


def schema_of(prompt: Prompt) -> dict[str, object]:
    assert prompt.options.schema is not None
    return json.loads(prompt.options.schema)  # type: ignore[no-any-return]


def judged(
    prompt: Prompt, answer: str, finish: str = "stop", rules: CaptionRules | None = None
) -> Judged:
    return judge_answer(answer, finish, rules or CaptionRules.from_prompt(prompt), prompt)


# --- the prompt file ------------------------------------------------------------------------------


def test_fields_become_a_schema_of_descriptions_and_allowed_values_in_order(
    load: Load,
) -> None:
    assert schema_of(load(FIELDS)) == {
        "type": "object",
        "properties": {
            "shape": {"type": "string", "enum": ["star", "circle"]},
            "title": {"type": "string", "description": "what the lettering says"},
        },
        "required": ["shape", "title"],
        "additionalProperties": False,
    }


def test_numbers_may_be_allowed_values(load: Load) -> None:
    prompt = load("---\nfields:\n  corners: [3, 4, 4.5, many]\n---\nDescribe it.\n")
    assert schema_of(prompt)["properties"] == {"corners": {"enum": [3, 4, 4.5, "many"]}}


def test_schema_is_taken_as_it_is(load: Load) -> None:
    schema = {
        "type": "object",
        "properties": {"tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}}},
        "$defs": {"tag": {"type": "string"}},
    }
    assert schema_of(load(f"---\njson_schema: {json.dumps(schema)}\n---\nDescribe.\n")) == schema


def test_prompt_can_list_its_fields_for_the_model(load: Load) -> None:
    prompt = load(FIELDS + "{{ fields }}\n")
    assert render(prompt, ITEM).user == (
        "Describe it.\n- shape: one of star, circle\n- title: what the lettering says"
    )


def test_changed_field_is_another_recipe(load: Load) -> None:
    def recipe_id(content: str) -> str:
        parts = EngineConfig(model="m"), load(content), SamplingConfig(), ImageConfig()
        return make_recipe(*parts).id

    assert recipe_id(FIELDS) == recipe_id(FIELDS)
    assert recipe_id(FIELDS) != recipe_id(FIELDS.replace("circle", "square"))


def test_options_of_a_prompt_can_be_sent_to_a_worker(load: Load) -> None:
    options = load(CAPTION).options
    assert pickle.loads(pickle.dumps(options)) == options


@pytest.mark.parametrize(
    ("front_matter", "said"),
    [
        (
            "fields: {a: [b]}\njson_schema: {type: object}",
            "line 3: `fields` and `json_schema` exclude each other; keep one",
        ),
        (
            "name: x\ncaption: A {{ shape }}.",
            "line 3: `caption` is a template over fields; list them under `fields`",
        ),
        (
            "fields: {a: [b]}\nmax_words: 9",
            "line 3: `max_words` is a rule for text, and the captions are JSON; add a `caption`"
            " template",
        ),
        ("fields: {}", "line 2: `fields`: names no field"),
        ("fields: [a, b]", "`fields` in the front matter: it must be a mapping, not a list"),
        (
            "fields:\n  a: [b]\n  two words: [c]",
            "line 4: `fields.two words`: `two words` cannot be a field; a name is letters, digits"
            " and _, and does not start with a digit",
        ),
        (
            "fields:\n  a: [b]\n  on: [c]",
            "line 2: `fields`: the field `True` is not text; YAML reads yes, no, on, off, true and"
            " false as booleans: put it in quotes",
        ),
        (
            "fields:\n  round:\n    - yes\n    - no",
            "line 4: `fields.round.0`: the field `round`: `True` is not text; YAML reads yes, no,"
            " on, off, true and false as booleans: put it in quotes",
        ),
        (
            "fields:\n  shape: [star, circle, star]",
            "line 3: `fields.shape.2`: the field `shape` lists `star` twice",
        ),
        (
            "fields:\n  shape:",
            "line 3: `fields.shape`: the field `shape` needs a description, or the list of its"
            " allowed values",
        ),
        (
            "fields:\n  shape: [[star]]",
            "line 3: `fields.shape.0`: the field `shape`: an allowed value is text or a number, not"
            " ['star']",
        ),
        (
            "json_schema:\n  type: object\n  properties:\n    shape:\n      type: text",
            "line 6: `json_schema.properties.shape.type`: is not a JSON schema: 'text' is not valid"
            " under any of the given schemas",
        ),
        (
            "json_schema: {type: array}",
            "line 2: `json_schema`: must have `type: object`, and name its fields under"
            " `properties`",
        ),
        (
            "json_schema: {type: object}",
            "line 2: `json_schema`: names no field; list them under `properties`",
        ),
        (
            "json_schema:\n  type: object\n  properties:\n    a: {$ref: '#/$defs/b'}",
            "line 5: `json_schema.properties.a.$ref`: `$ref: #/$defs/b` cannot be resolved; a"
            " schema can only refer to its own parts (#/$defs/…)",
        ),
        (
            "json_schema:\n  type: object\n  properties:\n    a: {$ref: 'https://x.org/s.json'}",
            "line 5: `json_schema.properties.a.$ref`: `$ref: https://x.org/s.json` cannot be"
            " resolved; a schema can only refer to its own parts (#/$defs/…)",
        ),
        (
            "fields:\n  shape: [star]\ncaption: A {{ shap }}.",
            "line 4: `caption`: unknown field `shap` (did you mean `shape`?); known: shape",
        ),
        (
            "fields:\n  shape: [star]\ncaption: A {{ title }}.",
            "line 4: `caption`: unknown field `title`; known: shape",
        ),
        (
            "fields: {shape: [star]}\ncaption: A {{ shape.",
            "line 3: `caption`: expected name or number",
        ),
        (
            "fields: {shape: [star]}\ncaption: A {{ shape + 1 }}.",
            'line 3: `caption`: TypeError: can only concatenate str (not "int") to str',
        ),
        (
            "fields: {shape: [star]}\ncaption: '{{ shape if shape == 3 else None }}'",
            "line 3: `caption`: is empty for a sample answer; print at least one field",
        ),
        (
            "json_schema:\n  type: object\n  properties: {n: {type: integer}}\n"
            "caption: '{{ n + 1 }}'",
            "line 5: `caption`: an answer without what is not required: TypeError: unsupported"
            " operand type(s) for +: 'NoneType' and 'int'",
        ),
        (
            "chat_template_kwargs: {add_generation_prompt: false}",
            "line 2: `chat_template_kwargs`: `add_generation_prompt` is set by the job; leave it"
            " out",
        ),
        (
            "chat_template_kwargs:\n  two words: 1",
            "line 3: `chat_template_kwargs`: `two words` cannot be a variable of a chat template",
        ),
        (
            "fields: &f\n  a: *f",
            "line 3: `fields.a`: the field `a` needs a description, or the list of its allowed"
            " values",
        ),
    ],
)
def test_mistake_in_a_prompt_file_is_named_with_its_line(
    load: Load, front_matter: str, said: str
) -> None:
    assert refusal(load, front_matter) == said


def test_fields_are_not_a_variable_of_a_prompt_without_fields(load: Load) -> None:
    with pytest.raises(UsageError, match="line 1: unknown variable `fields`"):
        load("Describe it. {{ fields }}\n")


@pytest.mark.parametrize(
    "field",
    [
        {"type": "array", "items": {"type": "string"}, "minItems": 2},
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
        {"$ref": "#/$defs/part"},
        {"type": "string", "pattern": "^#[0-9a-f]{6}$"},
        {"type": "object", "properties": {"name": {"type": "string"}}},
        True,
    ],
)
def test_template_is_not_refused_for_a_field_of_any_kind(load: Load, field: object) -> None:
    schema = {
        "type": "object",
        "properties": {"a": field},
        "required": ["a"],
        "$defs": {"part": {"const": "x"}},
    }
    front_matter = f"json_schema: {json.dumps(schema)}\ncaption: It has {{{{ a }}}}."
    assert load(f"---\n{front_matter}\n---\nDescribe.\n").caption == "It has {{ a }}."


def test_variables_of_the_chat_template_are_passed_on_unchanged(load: Load) -> None:
    prompt = load("---\nchat_template_kwargs: {enable_thinking: false, effort: low}\n---\nHello.\n")
    assert prompt.options.chat_template_kwargs == {"enable_thinking": False, "effort": "low"}


# --- the answer -----------------------------------------------------------------------------------


def test_caption_is_compact_json_if_the_prompt_has_no_template(load: Load) -> None:
    answer = ' {"shape": "star",\n "title": "Été \\u5b57"}'
    compact = '{"shape":"star","title":"Été 字"}'
    assert judged(load(FIELDS), answer) == Judged(compact, (), compact)


def test_caption_is_the_template_rendered_with_the_fields(load: Load) -> None:
    assert judged(load(CAPTION), STAR) == Judged("A star, Sale.", (), STAR)


def test_field_that_an_answer_leaves_out_prints_as_nothing(load: Load) -> None:
    schema = '{"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}'
    prompt = load(f"---\njson_schema: {schema}\ncaption: '{{{{ a }}}} {{{{ b }}}}.'\n---\nSay.\n")
    assert judged(prompt, '{"b":"star"}').caption == "star."


def test_rules_apply_to_the_text_that_the_template_makes(load: Load) -> None:
    prompt = load(CAPTION.replace("fields:", "max_words: 3\nsingle_line: true\nfields:"))
    found = judged(prompt, '{"shape":"star","title":"one\\ntwo three"}')
    assert found[:2] == ("A star, one two three.", ("too_long",))
    assert found.structured == '{"shape":"star","title":"one\\ntwo three"}'


def test_rules_for_text_do_not_flag_the_json_itself(load: Load) -> None:
    answer = json.dumps({"shape": "star", "title": "red " * 40}, separators=(",", ":"))
    assert judged(load(FIELDS), answer).flags == ()


@pytest.mark.parametrize("rules", [CaptionRules(), CaptionRules(enabled=False)])
@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ('{"shape":"sun","title":"x"}', "shape: 'sun' is not one of ['star', 'circle']"),
        ('{"shape":"star"}', "'title' is a required property"),
        ('{"shape":"star","title":3}', "title: 3 is not of type 'string'"),
        ('["star"]', "['star'] is not of type 'object'"),
        ("A star.", "it is not JSON (JSON is malformed: invalid character (byte 0))"),
        ("", "it is not JSON (Input data was truncated)"),
        (STAR + " and more", "it is not JSON (JSON is malformed: trailing characters (byte 33))"),
        ('{"shape":NaN}', "it is not JSON (JSON is malformed: invalid character (byte 9))"),
    ],
)
def test_answer_that_breaks_the_schema_is_retried_and_never_kept(
    load: Load, rules: CaptionRules, answer: str, problem: str
) -> None:
    found = judged(load(FIELDS), answer, rules=rules)
    assert (found.flags, found.structured, found.problem) == (("bad_json",), None, problem)
    assert verdict(found.flags) == "retry_or_fail"


def test_json_that_is_cut_off_names_the_flag_to_raise(load: Load) -> None:
    found = judged(load(FIELDS), '{"shape":"star","title":"Sal', "length")
    assert (found.flags, found.problem) == (("bad_json", "cut_off"), CUT_OFF)
    assert "--max-tokens" in CUT_OFF


def test_json_that_is_complete_at_the_last_token_is_accepted(load: Load) -> None:
    assert judged(load(CAPTION), STAR, "length").flags == ()


def test_template_that_fails_on_an_answer_is_a_bad_answer(load: Load) -> None:
    prompt = load(CAPTION.replace("{{ title }}", "{{ title | int(none) + 1 if title == '?' }}"))
    assert judged(prompt, STAR).flags == ()
    found = judged(prompt, STAR.replace("Sale", "?"))
    assert found.flags == ("bad_json",)
    assert found.problem.startswith("the `caption` template fails on it: TypeError")


def test_reasoning_before_the_json_is_removed(load: Load) -> None:
    prompt = load(FIELDS)
    assert judged(prompt, f"<think>A star?</think>\n{STAR}").structured == STAR
    assert judged(prompt, "<think>A st", "length").flags == ("reasoning", "cut_off")


def test_text_within_a_field_is_never_mistaken_for_reasoning(load: Load) -> None:
    answer = '{"shape":"star","title":"a </think> b\\n<think> Here\'s my response: c"}'
    assert judged(load(FIELDS), answer).structured == answer


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_kept_part_of_any_answer_follows_the_schema(answer: dict[str, object]) -> None:
    schema = '{"type":"object","properties":{"a":{"type":"string"}}}'
    prompt = Prompt("p", "Describe.", options=RequestOptions(schema))
    found = judge_answer(json.dumps(answer), "stop", CaptionRules(), prompt)
    if isinstance(answer.get("a", ""), str):
        assert found.structured is not None
        assert json.loads(found.structured) == answer
    else:
        assert found.flags == ("bad_json",)


# --- the whole job --------------------------------------------------------------------------------

SHAPES = "---\nfields: {shape: [star], file: its name}\n---\nDescribe it.\n"


def job(folder: Path, files: list[str], prompt: str, *flags: str) -> Result:
    """A run with engines that answer any JSON, over one drawn image per file."""
    for number, file in enumerate(files):
        (folder / "raw").mkdir(exist_ok=True)
        draw_shape(number).save(folder / "raw" / file)
    write_document(folder, "design", files, ["SvgElement"] * len(files))
    (folder / "mine.md").write_text(prompt, "utf-8")
    where = (f"--output={folder / 'out'}", f"--prompt={folder / 'mine.md'}")
    return run(*input_flags(folder), *where, *QUICK, *flags, command=FAKE)


def test_fields_reach_the_text_files_and_their_column(tmp_path: Path) -> None:
    result = job(tmp_path, ["a.png", "b.png"], SHAPES)
    assert result.exit_code == 0, result.stderr
    expected = {file: f'{{"shape":"star","file":"{file}"}}' for file in ("a.png", "b.png")}
    assert captions(tmp_path / "out") == expected
    assert {f: row["structured"] for f, row in rows(tmp_path / "out").items()} == expected


def test_caption_template_makes_the_text_and_the_column_keeps_the_json(tmp_path: Path) -> None:
    prompt = SHAPES.replace(
        "---\nDescribe", 'caption: "A {{ shape }} in {{ file }}."\n---\nDescribe'
    )
    assert job(tmp_path, ["a.png"], prompt).exit_code == 0
    assert captions(tmp_path / "out") == {"a.png": "A star in a.png."}
    row = rows(tmp_path / "out")["a.png"]
    assert (row["caption"], row["structured"]) == (
        "A star in a.png.",
        '{"shape":"star","file":"a.png"}',
    )


def test_answers_that_break_the_schema_are_retried_and_then_fail(tmp_path: Path) -> None:
    files = ["a.png", "fickle.png", "wrong.png", "clipped.png"]
    result = job(tmp_path, files, SHAPES, "--max-retries=2", "--no-checks")
    assert result.exit_code == 1, result.stderr
    kept = rows(tmp_path / "out")
    assert captions(tmp_path / "out").keys() == {"a.png", "fickle.png"}
    assert (kept["fickle.png"]["attempts"], kept["fickle.png"]["flags"]) == (2, [])
    for file, problem in {
        "wrong.png": "bad_json (shape: 'sun' is not one of ['star'])",
        "clipped.png": "bad_json, cut_off (the JSON is cut off at --max-tokens; raise it)",
    }.items():
        row = kept[file]
        assert (row["error_kind"], row["attempts"]) == ("caption_rejected", 3)
        assert row["error"] == (
            f"none of 3 captions passed the checks; flags of the best one: {problem}"
        )
        assert (row["caption"], row["structured"]) == (None, None)


def test_run_whose_every_answer_is_cut_off_stops_and_names_the_flag_to_raise(
    tmp_path: Path,
) -> None:
    files = [f"clipped{number}.png" for number in range(20)]
    result = job(tmp_path, files, SHAPES, "--max-same-errors=10")
    assert result.exit_code == 3
    assert "JSON that is cut off at --max-tokens; raise --max-tokens" in result.stderr
    assert rows(tmp_path / "out") == {}


def test_twin_has_the_fields_of_its_leader_in_the_same_run_and_in_a_later_one(
    tmp_path: Path,
) -> None:
    prompt = SHAPES.replace("---\nDescribe", "caption: A {{ shape }}.\n---\nDescribe")
    files = ["a.png", "b.png"]
    assert job(tmp_path, files, prompt).exit_code == 0
    for number, twin in enumerate(("c.png", "d.png")):
        shutil.copy(tmp_path / "raw" / files[number], tmp_path / "raw" / twin)
    write_document(tmp_path, "more", ["c.png", "d.png"], ["SvgElement"] * 2)
    where = (f"--output={tmp_path / 'out'}", f"--prompt={tmp_path / 'mine.md'}")
    assert run(*input_flags(tmp_path), *where, *QUICK, command=FAKE).exit_code == 0
    kept = rows(tmp_path / "out")
    assert kept["c.png"]["same_as"] == "a.png"
    assert kept["c.png"]["structured"] == kept["a.png"]["structured"]
    assert kept["d.png"]["structured"] == '{"shape":"star","file":"b.png"}'


def test_edited_text_has_no_fields(tmp_path: Path) -> None:
    assert job(tmp_path, ["a.png"], SHAPES).exit_code == 0
    (tmp_path / "out/a.png.txt").write_text("Mine.", "utf-8")
    where = (f"--output={tmp_path / 'out'}", "--repair")
    run("verify", *input_flags(tmp_path), *where)
    row = rows(tmp_path / "out")["a.png"]
    assert (row["caption"], row["structured"]) == ("Mine.", None)


# --- the real engine ------------------------------------------------------------------------------


def real_job(folder: Path, prompt: str, model: str = "demo") -> Result:
    """A run of the bundled model over three drawn images."""
    make_input(folder, 3)
    (folder / "mine.md").write_text(prompt, "utf-8")
    where = (f"--output={folder / 'out'}", f"--prompt={folder / 'mine.md'}")
    return run_here(*input_flags(folder), *where, f"--model={model}", "-dp=1", "--quiet")


@pytest.mark.engine
def test_real_engine_is_constrained_to_the_fields(tmp_path: Path) -> None:
    shipped = load_prompt("shape-fields")
    result = real_job(tmp_path, shipped.source)
    assert result.exit_code == 0, result.stderr
    said = captions(tmp_path / "out")
    assert len(said) == 3
    for file, row in rows(tmp_path / "out").items():
        fields = json.loads(row["structured"])
        assert judged(shipped, row["structured"]).structured == row["structured"]
        place = "{size} {fill} {colour} {shape} {position}.".format(**fields)
        assert said[file] == place[0].upper() + place[1:]
        assert row["finish_reason"] == "stop", "a model could write blanks for ever"


@pytest.mark.engine
def test_variables_of_the_chat_template_reach_the_check_and_the_engine(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL_DIR, model)
    template = model / "chat_template.jinja"
    wants = "{% if effort != 'low' %}{{ raise_exception('no effort') }}{% endif %}"
    template.write_text(wants + template.read_text())
    prompt = "---\nchat_template_kwargs: {effort: low}\n---\nDescribe it.\n"
    result = real_job(tmp_path, prompt, str(model))
    assert result.exit_code == 0, result.stderr
    assert len(captions(tmp_path / "out")) == 3


@pytest.mark.engine
@pytest.mark.parametrize(
    ("front_matter", "said"),
    [
        (
            "json_schema: {type: object, properties: {a: {type: array, contains: {const: b}}}}",
            "--prompt mine: vLLM cannot force its schema on a model (Grammar error: Unimplemented"
            ' keys: ["contains"]); simplify it, or name another'
            " --structured-outputs-config.backend",
        ),
        (
            "chat_template_kwargs: {enable_thinkin: false}",
            f"--prompt mine: the chat template of {MODEL_DIR} has no variable `enable_thinkin`;"
            " take it out of `chat_template_kwargs`, or correct its name",
        ),
    ],
)
def test_unsupported_request_is_refused_before_an_engine_starts(
    tmp_path: Path, front_matter: str, said: str
) -> None:
    result = real_job(tmp_path, f"---\n{front_matter}\n---\nDescribe it.\n")
    assert result.exit_code == 2
    assert said in result.stderr
    assert not list(tmp_path.glob("out/logs/engine-*.log"))

"""Prompt files → the text of a request: Jinja2 templates with optional YAML front matter.

Invariants:
- a mistake in a prompt file is a UsageError when it is loaded, naming the file, line and name;
- a template that loads renders for an element with all metadata and for one with none;
- text from a document is data: it cannot be template code, a special token of a model, or a new
  line;
- a template cannot run code: prompt files are shared, so the environment is sandboxed.
"""

from __future__ import annotations

import difflib
import os
import re
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import jinja2
import msgspec
import yaml
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vllm_caption.captions import fields
from vllm_caption.captions.fields import FieldsError, Json, Schema
from vllm_caption.captions.scripts import SCRIPTS, language_code
from vllm_caption.config import ALL_COLUMNS, is_folder
from vllm_caption.errors import ItemError, UsageError
from vllm_caption.items import Document, Item

MAX_RENDERED_CHARS: Final = 50_000
"""A longer text is a runaway loop, better found at load than by the engine, item by item."""
MAX_VALUE_CHARS: Final = 500

# What a template can raise for unexpected values.
_RENDER_ERRORS: Final = (
    *(jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError),
    *(RecursionError, TypeError, ValueError),
)
_ANGLES: Final = str.maketrans("<>＜＞﹤﹥", "‹›‹›‹›")
_BRACKET_TOKEN: Final = re.compile(r"\[(/?[A-Za-z_]+)\]")
_JOINERS: Final = "\u200c\u200d"  # needed by emoji and some scripts
_PACKAGE: Final = Path(__file__).resolve().parents[1]
_ROW: Final = "row"
"""The variable that holds a table's columns."""
_FULL: Final = Document("a", "poster", "Summer sale", ("red", "sun"), 1080, 1920.5)
_SAMPLES: Final = (Item("a.png", _FULL, 3, "SvgElement"), Item("a.png", Document("a"), 0, ""))
_Text = Annotated[str, msgspec.Meta(pattern=r"\S")]
_TEXT_RULES: Final = ("max_words", "forbid_openings", "language", "single_line")
_OWN_TEMPLATE_ARGUMENTS: Final = (
    *("add_generation_prompt", "chat_template", "continue_final_message", "conversation"),
    *("messages", "padding", "return_dict", "return_tensors", "tokenize", "truncation"),
)
"""Arguments of a chat template that a prompt may not set."""


class _FrontMatter(msgspec.Struct, frozen=True):
    name: _Text | None = None
    system: _Text | None = None
    max_words: Annotated[int, msgspec.Meta(gt=0)] | None = None
    forbid_openings: tuple[_Text, ...] | None = None
    language: _Text | None = None
    single_line: bool | None = None
    fields: dict[Any, Any] | None = None
    json_schema: dict[Any, Any] | None = None
    caption: _Text | None = None
    chat_template_kwargs: dict[Any, Any] | None = None


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What a prompt asks of vLLM besides its texts. ``schema``: the JSON schema of every answer, as
    JSON text; ``chat_template_kwargs``: variables of the model's chat template."""

    schema: str | None = None
    chat_template_kwargs: Mapping[str, Json] = field(default_factory=dict)


NO_OPTIONS: Final = RequestOptions()


@dataclass(frozen=True, slots=True)
class Prompt:
    """One loaded prompt: its templates as text, and ``source``, the text of its file.

    ``caption``: the template that turns an answer's fields into a caption; None if the caption is
    their JSON; ``fields_text``: the fields in words.
    """

    name: str
    user: str
    system: str | None = None
    max_words: int | None = None
    forbid_openings: tuple[str, ...] = ()
    language: str | None = None
    single_line: bool = False
    columns: tuple[str, ...] = ()
    """The columns of a table that the templates use, for example as `row.title`."""
    source: str = ""
    options: RequestOptions = NO_OPTIONS
    caption: str | None = None
    fields_text: str = ""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """The messages of one request, before the model's chat template is applied."""

    system: str | None
    user: str


def available_prompts() -> list[str]:
    """The names that ``load_prompt`` finds without a path."""
    return sorted(_by_name())


def _by_name() -> dict[str, Path]:
    # Those of the working directory win over the shipped ones (in the wheel, or in a checkout).
    folders = (Path("prompts"), _PACKAGE / "_prompts", _PACKAGE.parent / "prompts")
    there = filter(is_folder, reversed(folders))
    files = (path for folder in there for path in folder.glob("[!.]*.md"))
    return {path.stem: path for path in files if os.path.isfile(path)}  # noqa: PTH113 (never raises)


def load_prompt(reference: str | os.PathLike[str]) -> Prompt:
    """Load and try out a prompt: a path, or the name of a file in a prompts/ folder.

    Raises UsageError with the file, line and name.
    """
    reference = os.fspath(reference)
    path = _find(reference)
    source = _read(path, reference)
    front_matter, body, first_line = _split(source, reference)
    settings = _settings(front_matter, reference)
    schema = _schema(settings, front_matter, reference)
    arguments = _template_arguments(settings, front_matter, reference)
    prompt = Prompt(
        name=settings.name or path.stem,
        user=body,
        system=settings.system,
        max_words=settings.max_words,
        forbid_openings=settings.forbid_openings or (),
        language=_language(settings.language, reference),
        single_line=bool(settings.single_line),
        columns=_columns(f"{settings.system or ''}\n{body}"),
        source=source,
        options=RequestOptions(fields.encode(schema) if schema else None, arguments),
        caption=settings.caption,
        fields_text=fields.described(schema) if schema else "",
    )
    _try_out(prompt, reference, first_line)
    if prompt.caption is not None and schema is not None:
        _try_caption(prompt.caption, schema, front_matter, reference)
    return prompt


def _find(reference: str) -> Path:
    # Not Path.is_file: it raises if the reference is a whole sentence, too long for a name.
    if "/" in reference or os.path.isfile(reference):  # noqa: PTH113
        return Path(reference)
    stem, found = reference.removesuffix(".md"), _by_name()
    if stem not in found:
        meant, names = _meant(stem, found), ", ".join(sorted(found))
        raise _refusal(reference, f"no such prompt{meant}; available: {names}")
    return found[stem]


def _read(path: Path, reference: str) -> str:
    try:
        if not path.is_file():
            raise _refusal(reference, f"is not a file; available: {', '.join(available_prompts())}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refusal(reference, f"is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise _refusal(reference, f"cannot be read ({error.strerror})") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader as documented: a library that vLLM imports changes how it reads
    dates."""

    yaml_constructors: ClassVar = yaml.SafeLoader.yaml_constructors | {
        "tag:yaml.org,2002:timestamp": yaml.constructor.SafeConstructor.construct_yaml_timestamp
    }


def _split(source: str, reference: str) -> tuple[str, str, int]:
    """Front matter, body, and the line on which the body starts."""
    lines = source.split("\n")
    if lines[0].rstrip() != "---":
        return "", source, 1
    for number, line in enumerate(lines[1:], start=2):
        if line.rstrip() == "---":
            return "\n".join(lines[1 : number - 1]), "\n".join(lines[number:]), number + 1
    raise _refusal(reference, "line 1: the front matter opens with --- and is never closed")


def _settings(front_matter: str, reference: str) -> _FrontMatter:
    try:
        found = yaml.load(front_matter, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 2}: " if mark else ""
        problem = getattr(error, "problem", None) or error
        raise _refusal(reference, f"{where}the front matter is not YAML ({problem})") from None
    if not isinstance(found, dict | None):
        raise _refusal(reference, "the front matter must be `key: value` lines")
    known = _FrontMatter.__struct_fields__
    for key in found or {}:
        if key not in known:
            hint = f"{_meant(str(key), known)}; known: {', '.join(known)}"
            raise _refusal(reference, f"unknown key `{key}` in the front matter{hint}")
    try:
        return msgspec.convert(found or {}, _FrontMatter)
    except msgspec.ValidationError as error:
        problem, _, key = str(error).partition(" - at `$.")
        problem = _WRONG_TYPE.sub(_type_in_words, problem)
        raise _refusal(reference, f"`{key} in the front matter: {problem}") from None


_WRONG_TYPE: Final = re.compile(r"Expected `([^`]+)`, got `([^`]+)`$")
"""What msgspec says of a value of another type."""
_TYPES: Final = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}


def _type_in_words(found: re.Match[str]) -> str:
    wanted = [_TYPES.get(name, name) for name in found[1].split(" | ") if name != "null"]
    return f"it must be {' or '.join(wanted)}, not {_TYPES.get(found[2], found[2])}"


def _language(given: str | None, reference: str) -> str | None:
    if given is None:
        return None
    code = language_code(given)
    if code not in SCRIPTS:
        hint = f"known: {', '.join(sorted(SCRIPTS))}"
        raise _refusal(reference, f"unknown `language: {given}` in the front matter; {hint}")
    return code


def _schema(settings: _FrontMatter, front_matter: str, reference: str) -> Schema | None:
    given = [name for name in ("fields", "json_schema") if getattr(settings, name) is not None]
    if len(given) > 1:
        at = _line(front_matter, given[1])
        raise _refusal(reference, f"{at}`fields` and `json_schema` exclude each other; keep one")
    if not given:
        if settings.caption is not None:
            remedy = "`caption` is a template over fields; list them under `fields`"
            raise _refusal(reference, f"{_line(front_matter, 'caption')}{remedy}")
        return None
    for rule in _TEXT_RULES if settings.caption is None else ():
        if getattr(settings, rule) is not None:
            remedy = "is a rule for text, and the captions are JSON; add a `caption` template"
            raise _refusal(reference, f"{_line(front_matter, rule)}`{rule}` {remedy}")
    try:
        if settings.fields is not None:
            return fields.schema_of_fields(settings.fields)
        return fields.check_schema(settings.json_schema or {})
    except FieldsError as error:
        path = (*given, *error.path)
        at, where = _line(front_matter, *path), ".".join(map(str, path))
        raise _refusal(reference, f"{at}`{where}`: {error.problem}") from None


def _template_arguments(
    settings: _FrontMatter, front_matter: str, reference: str
) -> dict[str, Json]:
    given = settings.chat_template_kwargs or {}
    for name in given:
        at = _line(front_matter, "chat_template_kwargs", str(name))
        if not isinstance(name, str) or not name.isidentifier():
            remedy = "cannot be a variable of a chat template"
        elif name in _OWN_TEMPLATE_ARGUMENTS:
            remedy = "is set by the job; leave it out"
        else:
            continue
        raise _refusal(reference, f"{at}`chat_template_kwargs`: `{name}` {remedy}")
    try:
        return msgspec.json.decode(msgspec.json.encode(given), type=dict[str, Any])
    except (TypeError, ValueError, RecursionError) as error:
        at = _line(front_matter, "chat_template_kwargs")
        raise _refusal(reference, f"{at}`chat_template_kwargs` is not JSON ({error})") from None


def _line(front_matter: str, *path: str | int) -> str:
    """The line that these keys, as far as they exist, lead to; for messages."""
    node, line = yaml.compose(front_matter, _Loader), 0
    for part in path:
        found = []
        if isinstance(node, yaml.MappingNode):
            entries = ((key.value, key.start_mark.line, value) for key, value in node.value)
            found = [(at, value) for key, at, value in entries if key == str(part)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            found = [(inner.start_mark.line, inner) for inner in node.value[part : part + 1]]
        if not found:
            break
        line, node = found[0]
    return f"line {line + 2}: "


def _printed(value: object) -> object:
    """Missing metadata prints as nothing; a forgotten bracket or filter is an error."""
    if callable(value) and not isinstance(value, jinja2.Undefined):
        raise TypeError("a method is printed here; the variables have no attributes, use filters")
    return "" if value is None else value


# No lipsum: filler text in a prompt is a slip, and it differs each time.
_environment: Final = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, autoescape=False, finalize=_printed
)
del _environment.globals["lipsum"]


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    return _environment.from_string(template)


def render(prompt: Prompt, item: Item) -> RenderedPrompt:
    """The request's text for one element. Raises ItemError if the template fails on it."""
    try:
        text = _rendered(prompt, item)
    except _RENDER_ERRORS as error:
        reason = f"the prompt {prompt.name} fails on this element: {_in_words(error)}"
        raise ItemError("engine_error", reason) from None
    if not text.user:
        raise ItemError("engine_error", f"the prompt {prompt.name} is empty for this element")
    return text


def _rendered(prompt: Prompt, item: Item) -> RenderedPrompt:
    varies = _varies(prompt.user) or _varies(prompt.system or "")
    values = _values(item) | _prompt_values(prompt) if varies else {}
    system = "" if prompt.system is None else _render(prompt.system, values)
    return RenderedPrompt(system or None, _render(prompt.user, values))


def _prompt_values(prompt: Prompt) -> dict[str, object]:
    return {"fields": prompt.fields_text} if prompt.fields_text else {}


def render_caption(template: str, schema: str, values: Mapping[str, Json]) -> str:
    """The caption made from an answer's fields. Raises FieldsError if the template fails."""
    names = _names(schema)
    try:
        return _render(template, {**dict.fromkeys(names), **values})
    except _RENDER_ERRORS as error:
        raise FieldsError(f"the `caption` template fails on it: {_in_words(error)}") from None


@lru_cache(maxsize=16)
def _names(schema: str) -> tuple[str, ...]:
    return fields.field_names(msgspec.json.decode(schema))


def _varies(template: str) -> bool:
    """Whether a template must be rendered for each element; most prompts have no variable."""
    return "{" in template or "\r" in template


def _render(template: str, values: Mapping[str, object]) -> str:
    if not _varies(template):
        return template.strip()
    text = _compiled(template).render(values).strip()
    if len(text) > MAX_RENDERED_CHARS:
        raise ValueError(f"the text is longer than {MAX_RENDERED_CHARS} characters")
    return text


def _try_out(prompt: Prompt, reference: str, first_line: int) -> None:
    if not prompt.user.strip():
        raise _refusal(reference, "is empty; write the user message below the front matter")
    own = _prompt_values(prompt)
    trials = [
        (which, _values(sample) | own)
        for which, sample in zip(("", "an element without metadata: "), _SAMPLES, strict=True)
    ]
    names = (*VARIABLES, *own)
    if prompt.system is not None:
        _check(prompt.system, reference, lambda _: "in `system`: ", names, trials)
    _check(prompt.user, reference, lambda line: f"line {line + first_line - 1}: ", names, trials)
    row = dict.fromkeys(prompt.columns, _SomeText())  # the whole prompt may be one column
    samples = (msgspec.structs.replace(sample, row=row) for sample in _SAMPLES)
    if not all(_rendered(prompt, sample).user for sample in samples):
        raise _refusal(
            reference,
            "is empty for an element without metadata; add text that does not depend on it",
        )


def _try_caption(template: str, schema: Schema, front_matter: str, reference: str) -> None:
    names = fields.field_names(schema)
    samples = fields.samples(schema)
    whiches = ("", "an answer without what is not required: ")
    trials = [
        (which, {**dict.fromkeys(names), **sample})
        for which, sample in zip(whiches, samples, strict=False)
    ]
    at = f"{_line(front_matter, 'caption')}`caption`: "
    _check(template, reference, lambda _: at, names, trials, "field")
    if not all(_render(template, values) for _, values in trials[:1]):
        raise _refusal(reference, f"{at}is empty for a sample answer; print at least one field")


def _check(
    template: str,
    reference: str,
    where: Callable[[int], str],
    names: Sequence[str],
    trials: Iterable[tuple[str, Mapping[str, object]]],
    kind: str = "variable",
) -> None:
    """Refuse a template that does not compile, uses an unknown name, or fails on a sample."""
    try:
        _compiled(template)
        unknown = _first_unknown(template, names)
    except jinja2.TemplateSyntaxError as error:
        raise _refusal(reference, f"{where(error.lineno)}{error.message}") from None
    except (RecursionError, SyntaxError, MemoryError):
        raise _refusal(reference, "the template is nested too deeply") from None
    if unknown is not None:
        hint = f"{_meant(unknown.name, names)}; known: {', '.join(names)}"
        at = where(unknown.lineno)
        raise _refusal(reference, f"{at}unknown {kind} `{unknown.name}`{hint}")
    for which, values in trials:
        try:
            _render(template, values)
        except _RENDER_ERRORS as error:
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == "<template>"]
            at = where(lines[-1] or 1) if lines else ""
            raise _refusal(reference, f"{at}{which}{_in_words(error)}") from None


class _Row(dict[str, object]):
    """A row of a table. A missing value is empty, since a line of JSON may leave out a key; whether
    a table has the columns that a prompt names is checked before a run."""

    def __missing__(self, name: str) -> object:
        return jinja2.ChainableUndefined()


class _SomeText(jinja2.ChainableUndefined):
    """A value that is not known yet, but prints as some text."""

    def __str__(self) -> str:
        return "text"


def _columns(templates: str) -> tuple[str, ...]:
    """The columns that templates name; ALL_COLUMNS if they use the row as a whole."""
    try:
        tree = _environment.parse(templates)
    except (jinja2.TemplateSyntaxError, RecursionError, MemoryError):
        return ()  # refused later, when each template is checked, with a better message
    names: dict[str, None] = {}
    num_named = 0
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        name = _column(node)
        if name is not None:
            names[name] = None
            num_named += 1
    whole = sum(name.name == _ROW for name in tree.find_all(nodes.Name)) > num_named
    return (ALL_COLUMNS,) if whole else tuple(names)


def _column(node: nodes.Expr) -> str | None:
    """The name in `row.title` or `row["title"]`; None for other expressions."""
    if not isinstance(node, nodes.Getattr | nodes.Getitem):
        return None
    if not (isinstance(node.node, nodes.Name) and node.node.name == _ROW):
        return None
    if isinstance(node, nodes.Getattr):
        return node.attr
    key = node.arg
    return key.value if isinstance(key, nodes.Const) and isinstance(key.value, str) else None


def _first_unknown(template: str, names: Iterable[str]) -> nodes.Name | None:
    tree = _environment.parse(template)
    unknown = meta.find_undeclared_variables(tree) - {*names, *_environment.globals}
    return next((name for name in tree.find_all(nodes.Name) if name.name in unknown), None)


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""


def _refusal(reference: str, remedy: str) -> UsageError:
    return UsageError("--prompt", " ".join(reference.split())[:200], remedy)


def _values(item: Item) -> dict[str, object]:
    document = item.document
    return {
        "category": document.category and as_data(document.category),
        "title": document.title and as_data(document.title),
        "keywords": [as_data(keyword) for keyword in document.keywords],
        "element_type": as_data(item.element_type),
        "element_index": item.element_index,
        "document": as_data(document.name),
        "file": as_data(item.file),
        "canvas_width": document.canvas_width,
        "canvas_height": document.canvas_height,
        _ROW: _row_as_data(item.row or {}),
    }


def _row_as_data(value: object) -> object:
    if isinstance(value, str):
        return as_data(value)
    if isinstance(value, dict):
        return _Row({as_data(str(key)): _row_as_data(held) for key, held in value.items()})
    return [_row_as_data(held) for held in value] if isinstance(value, list) else value


def as_data(text: str) -> str:
    """One line of visible text in which no tokenizer finds a special token.

    Control and formatting characters are removed, white space becomes single spaces, ``<`` and
    ``>`` become ``‹`` and ``›`` (``<|im_end|>``, ``</s>``, ``<image>``), ``[INST]`` becomes
    ``(INST)``.
    """
    if not text.isprintable():
        text = "".join(map(_visible, text))
    text = " ".join(text.split())[:MAX_VALUE_CHARS]
    return _BRACKET_TOKEN.sub(r"(\1)", text.translate(_ANGLES))


def _visible(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Cf" and char not in _JOINERS:
        return ""
    return " " if category in ("Cc", "Zs", "Zl", "Zp") else char


VARIABLES: Final = tuple(_values(_SAMPLES[0]))

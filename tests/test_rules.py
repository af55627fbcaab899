from __future__ import annotations

import itertools
import json
import random
import time
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vllm_caption.demo
from tools.demo_model.captions import Style
from tools.demo_model.captions import caption as true_caption
from tools.demo_model.scenes import sample_scene
from vllm_caption.captions.prompt import Prompt, load_prompt
from vllm_caption.captions.rules import (
    CaptionRules,
    check_caption,
    clean_caption,
    judge,
    opens_with,
    rank,
    verdict,
    words,
)
from vllm_caption.errors import CAPTION_FLAGS, CaptionFlag

NO_RULES = CaptionRules()
BRIEF = CaptionRules(30, ("the image", "this image", "I can see", "here is", "sure"))
CHINESE = CaptionRules(60, ("这张图", "图中", "我看到", "好的"))
BRIEF_PROMPT = (
    "Describe this graphic design element in at most 30 words. Start with the description itself: "
    "name the shape, its colour, whether it is solid or outlined, and its size and position."
)
CHINESE_PROMPT = (
    "用一句中文描述这个设计元素的颜色、形状、大小和位置，并说明是实心还是描边。"
    "直接给出描述，不要以“这张图片”开头。"
)

HONEST = [
    "A solid red circle, small, in the centre.",
    "Red, green and blue dots.",
    "A very very large star.",
    "Dots, dots and more dots.",
    "A very very very very large star, left, right, left, right.",
    "Star",
    "红色",
    "一个红色的实心圆形，位于画面中央，大小适中。",
    "红色、绿色和蓝色的圆点，大大小小，密密麻麻。",
    "一个一个的红红火火的灯笼，圆圆的，亮亮的。",
    "红色的圆点，蓝色的圆点，绿色的圆点，黄色的圆点，黑色的圆点，白色的圆点，围成一圈。",
    "A blue circle on the left, a red circle on the right, a green circle on the top and a "
    "yellow circle on the bottom, each with a thin black outline and a small white dot inside.",
    "Black clock face with the numbers 1 2 3 4 5 6 7 8 9 10 11 12 around a thin ring.",
    "A row of five stars: ★ ★ ★ ★ ★, gold, outlined, #FFFFFF background, 1000000 px wide.",
    "Lettering that says “Ha ha ha!” in hand-drawn black script.",
    "Ein dünner schwarzer Kreis. Большая красная звезда. 큰 빨간 별.",
    "Two arrows: one points left, one points right.",
    "Left arrow, right arrow and left arrow, right arrow.",
    "A red star, a red star.",
    "红星，红星，蓝星，蓝星。",
    "A blue leaf at the top, a large gold star near the bottom edge, a large gold star near the "
    "bottom edge, a small arrow.",
]


def flags(
    caption: str, rules: CaptionRules = NO_RULES, prompt: str = ""
) -> tuple[CaptionFlag, ...]:
    return check_caption(caption, "stop", rules, prompt)


@pytest.mark.parametrize("caption", HONEST)
@pytest.mark.parametrize("rules", [NO_RULES, BRIEF, CHINESE], ids=["none", "brief", "zh"])
def test_honest_caption_is_never_flagged(caption: str, rules: CaptionRules) -> None:
    found = check_caption(caption, "stop", rules, BRIEF_PROMPT + CHINESE_PROMPT)
    assert set(found) <= {"too_long"}
    assert flags(caption) == ()


# --------------------------------------------------------------------------------------- empty
@pytest.mark.parametrize("caption", ["", " \n", ".", "!!!!!", "…", "“”", "**", "\u200b", "❤️"])
def test_caption_without_a_letter_or_digit_is_empty(caption: str) -> None:
    assert "empty" in flags(caption)


@pytest.mark.parametrize("caption", ["O", "7", "圆", "красный", "★ star"])
def test_caption_with_a_letter_or_digit_is_not_empty(caption: str) -> None:
    assert "empty" not in flags(caption)


# ---------------------------------------------------------------------------------------- loop
@pytest.mark.parametrize(
    "caption",
    [
        "a a a a a",
        "A red red red red red dot",
        "red dot red dot red dot red dot",
        "a star on a line, a star on a line, a star on a line",
        "A red circle. A red circle. A red circle. A red circle.",
        "The shape is a small red circle on white. The shape is a small red circle on white.",
        "A dot. The shape is a small red circle that lies in the upper left corner. The shape is "
        "a small red circle that lies in the upper left corner.",
        "It is red. It is round. It is red. It is round. It is red. It is round.",
        "A dot and then " + "round and round it goes until " * 5,
        "aaaaaaaaaaaaaaaaaaaa",
        "hahahahahahahaha",
        "-=-=-=-=-=-=-=-=-=",
        "红色红色红色红色",
        "哈哈哈哈哈",
        "红色的圆点红色的圆点红色的圆点",
        "这是一个红色的实心圆形图案，这是一个红色的实心圆形图案，",
        "一个圆，一个圆，一个圆，一个圆，一个圆，",
        "まるまるまるまる",
        "จุดจุดจุดจุดจุดจุดจุดจุด",
    ],
)
def test_repetition_is_a_loop(caption: str) -> None:
    assert "loop" in flags(caption)


def test_loop_that_comes_after_a_good_start_is_found() -> None:
    assert "loop" in flags(HONEST[0] + " Also " + "left and " * 20)


def test_text_with_hardly_any_variety_is_a_loop() -> None:
    sentences = ["it is a big red star", "it is a big blue star", "it is a big gold star"]
    caption = " ".join(". ".join(order) + "." for order in itertools.permutations(sentences))
    assert "loop" in flags(caption)


def test_long_caption_is_checked_quickly() -> None:
    text = " ".join(f"w{i % 997}" for i in range(20_000))
    started = time.process_time()
    flags(text + "ab" * 3 + " " * 20_000 + "x" * 11, BRIEF, BRIEF_PROMPT)
    assert time.process_time() - started < 2


# ------------------------------------------------------------------------------------- refusal
@pytest.mark.parametrize(
    "caption",
    [
        "I'm sorry, but I can't assist with that.",
        "I’m sorry, I cannot see the image.",
        "Sorry, I am unable to describe it.",
        "Unfortunately, I don't have access to the picture.",
        "I cannot view images.",
        "I am not able to see it.",
        "**I can't help** with that.",
        "As an AI language model, I describe text only.",
        "No image was provided.",
        "Could you please provide the image?",
        "抱歉，我无法看到图片。",
        "很抱歉，但这个请求不合适。",
        "对不起，我不能描述这张图片。",
        "我无法识别这个图形。",
        "作为一个AI助手，我只能处理文字。",
        "作为人工智能，我无法查看。",
        "请提供图片，我来描述。",
        "抱歉，我無法看到圖片。",
        "對不起，我不能描述這張圖片。",
        "作為一個AI助手，我只能處理文字。",
        "請上傳圖片。",
        "申し訳ありませんが、この画像を説明することはできません。",
        "すみません、画像を見ることができません。",
        "죄송합니다. 이미지를 볼 수 없습니다.",
        "Lo siento, pero no puedo ver la imagen.",
        "Je suis désolé, mais je ne peux pas voir l'image.",
        "De\u0301sole\u0301e, je ne vois pas l’image.",
        "Es tut mir leid, aber ich kann das Bild nicht sehen.",
        "Извините, но я не могу описать изображение.",
        "Desculpe, não posso ver a imagem.",
        "Ｉ ｃａｎｎｏｔ ｖｉｅｗ ｉｍａｇｅｓ．",
        "I\u200b'm sor\u00adry, I can't see it.",
        "Sorry, I can't see it. " + "It is a shape. " * 2000,
    ],
)
def test_model_that_speaks_about_itself_has_refused(caption: str) -> None:
    assert "refusal" in flags(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "“Sorry, I can't” in pink script lettering.",
        "Sorry we are closed sign, black on white.",
        "I'm sorry card with a red heart.",
        "I need coffee: brown lettering on a mug.",
        "I can do it, motivational lettering.",
        "A robot saying that it cannot see.",
        "Icon of a picture frame with a cross, meaning that an image is missing.",
        "“抱歉”字样的红色标志。",
        "抱歉我们打烊了字样的木牌。",
        "我爱你字样的粉色心形。",
        "请勿触摸的黄色警示牌。",
        "抱歉二字，黑體，白底。",
        "ごめんなさいと書かれたピンクのカード。",
        "죄송합니다라고 적힌 노란 팻말.",
        "Lo siento en letras rojas sobre fondo blanco.",
        "Désolé, écrit en lettres bleues.",
        "Tut mir leid als schwarzer Schriftzug.",
        "Извините — чёрная надпись на белом.",
        "Lettering: please share the love, in pink.",
        "A sad robot: " + "gray, square, small. " * 2000,
    ],
)
def test_refusal_as_lettering_on_a_design_is_not_one(caption: str) -> None:
    assert "refusal" not in flags(caption)


# --------------------------------------------------------------------------------- prompt echo
@pytest.mark.parametrize(
    ("caption", "prompt"),
    [
        (BRIEF_PROMPT, BRIEF_PROMPT),
        ("name the shape, its colour, whether it is solid or outlined", BRIEF_PROMPT),
        ("A dot. Start with the description itself: name the shape, its size.", BRIEF_PROMPT),
        ("Its colour, whether it is SOLID", BRIEF_PROMPT),
        (CHINESE_PROMPT, CHINESE_PROMPT),
        ("这个设计元素的颜色、形状、大小和位置", CHINESE_PROMPT),
        ("好，描述这个设计元素的颜色、形状、大小：红。", CHINESE_PROMPT),
        (
            "You are a terse art director of a magazine.",
            "You are a terse art director of a magazine",
        ),
        ("A dot. " * 3 + BRIEF_PROMPT * 40, BRIEF_PROMPT),
    ],
)
def test_caption_that_repeats_the_prompt_is_an_echo(caption: str, prompt: str) -> None:
    assert "prompt_echo" in flags(caption, prompt=prompt)


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [
        ("Solid or outlined", BRIEF_PROMPT),
        ("A graphic design element in red, solid, small, in the centre.", BRIEF_PROMPT),
        ("Summer sale", 'A design titled "Summer sale".'),
        ("Red dot beside the words Summer sale", 'A design titled "Summer sale".'),
        ("实心", CHINESE_PROMPT),
        ("红色的实心圆形，大小和位置适中。", CHINESE_PROMPT),
        ("A red dot in the centre of it", ""),
    ],
)
def test_caption_that_shares_some_words_with_the_prompt_is_not_an_echo(
    caption: str, prompt: str
) -> None:
    assert "prompt_echo" not in flags(caption, prompt=prompt)


# --------------------------------------------------------------------------- forbidden opening
@pytest.mark.parametrize(
    ("caption", "opening"),
    [
        ("The image shows a dot.", "the image"),
        ("  THE   IMAGE: a dot", "The image"),
        ("“The image” is a dot", "the image"),
        ("**The image** shows", "the image"),
        ("- > The image", "the image"),
        ("The image's centre", "the image"),
        ("The image", "the image"),
        ("Sure, a dot", "sure"),
        ("Sure!", "sure"),
        ("Sure红色", "sure"),
        ("I can’t tell", "I can't"),
        ("图中是一个圆", "图中"),
        ("“图中”是一个圆", "图中"),
        ("好的，这是一个圆", "好的"),
        ("**Caption**: a dot", "**caption"),
        ("Answer:a dot", "answer:"),
        ("Ｔｈｅ ｉｍａｇｅ shows", "the image"),
        ("\u200bThe\u00a0image shows", "the image"),
        ("\u202eThe image shows", "the image"),
        ("Le dessin re\u0301pe\u0300te", "le dessin répète"),
        ("THE İMAGE", "the i\u0307mage"),
        ("图中：一个圆", "图中"),
        ("這張圖是", "這張圖"),
        ("> “ The image", "the image"),
        ("The image" + " x" * 20_000, "the image"),
    ],
)
def test_forbidden_opening_is_found_despite_case_quotes_and_markup(
    caption: str, opening: str
) -> None:
    assert opens_with(caption, opening)
    assert "forbidden_opening" in flags(caption, CaptionRules(forbid_openings=("x", opening)))


@pytest.mark.parametrize(
    ("caption", "opening"),
    [
        ("Surely a dot", "sure"),
        ("The images of dots", "the image"),
        ("A dot in the image", "the image"),
        ("红色圆形，图中央", "图中"),
        ("The red image", "the image"),
        ("A dot", ""),
        ("A dot", "  "),
        ("", "the image"),
        ("\u200b\u200b", "the image"),
        ("Imagé", "image"),
        ("Thé image", "the image"),
        ("The im age", "the image"),
    ],
)
def test_opening_elsewhere_or_inside_a_longer_word_is_allowed(caption: str, opening: str) -> None:
    assert not opens_with(caption, opening)


# ------------------------------------------------------------------------------------ too long
@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("a well-known, 24.5 px wide star", 6),
        ("red - green & blue", 3),
        ("  one\n two\tthree ", 3),
        ("一个红色的圆。", 6),
        ("一个 logo，24 px", 5),
        ("红circle蓝", 3),
        ("まるい 形", 4),
        ("큰 빨간 별", 3),
        ("It's red—very red", 3),
    ],
)
def test_words_are_counted_in_spaced_and_unspaced_scripts(text: str, count: int) -> None:
    assert len(words(text)) == count


@pytest.mark.parametrize(
    ("caption", "limit", "too_long"),
    [
        ("one two three", 3, False),
        ("one two three four", 3, True),
        ("红色的圆", 4, False),
        ("红色的圆形", 4, True),
        ("红色的圆，、。", 4, False),
        ("红色 logo", 2, True),
        ("one two three four", None, False),
    ],
)
def test_caption_is_too_long_from_the_first_word_above_the_limit(
    caption: str, limit: int | None, too_long: bool
) -> None:
    assert ("too_long" in flags(caption, CaptionRules(limit))) is too_long


# ------------------------------------------------------------------------------------- cut off
@pytest.mark.parametrize(
    ("finish_reason", "cut_off"),
    [("length", True), ("stop", False), ("abort", False), (None, False)],
)
def test_cut_off_follows_the_finish_reason(finish_reason: str | None, cut_off: bool) -> None:
    assert ("cut_off" in check_caption("A red", finish_reason, NO_RULES)) is cut_off


# --------------------------------------------------------------------- what stands around a caption
@pytest.mark.parametrize(
    "caption",
    [
        "Sure! Here is a short description: a red dot.",
        "Sure, here's the caption you asked for.",
        "Certainly! The element is a red dot.",
        "Of course. I will describe it.",
        "Sure!",
        "Here is a concise description of the shape: a red dot.",
        "Here's the description: a red dot",
        "**Here is the caption:** a red dot",
        "Below is a description of the design element.",
        "This is a description of a red dot.",
        "Description: a red dot.",
        "**Caption**: a red dot.",
        "Answer:a red dot",
        "Image description: a red dot",
        "### Response\nA red dot",
        "assistant\nA red dot.",
        "Assistant: a red dot",
        "assistant",
        "user\nDescribe it.",
        "addCriterion\nA red dot.",
        "A red dot. addCriterion",
        "<|im_start|>A red dot",
        "A red dot.<|endoftext|>",
        "[/INST] A red dot",
        "好的，这是一个红色的圆点。",
        "好的！以下是描述：红色的圆点",
        "当然，以下是对该元素的描述：红色的圆点。",
        "當然可以！這是紅色的圓點。",
        "以下是对该设计元素的简短描述：红色的圆点",
        "描述：红色的圆点",
        "はい、以下は画像の説明です：赤い丸",
        "네, 다음은 설명입니다: 빨간 원",
        "Natürlich! Hier ist die Beschreibung: ein roter Punkt.",
        "Bien sûr ! Voici une description : un point rouge.",
        "Claro! Aquí está la descripción: un punto rojo.",
        "Конечно! Вот описание: красная точка.",
        "Ｓｕｒｅ！ Ｈｅｒｅ ｉｓ a red dot",
    ],
)
def test_words_before_the_caption_are_a_preface(caption: str) -> None:
    assert "preface" in flags(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "“Sure! Here is your coupon” in pink lettering.",
        "Sure-fire logo with a flame.",
        "Here lies a gravestone, gray, with a cross.",
        "Assistant icon: a robot head with a headset.",
        "User",
        "User avatar, a gray circle with a head.",
        "A speech bubble that says “Answer: 42”.",
        "Caption bar, black, at the bottom.",
        "OK: the hand gesture, yellow.",
        "Okay sign, green on white.",
        "Model of a house, isometric.",
        "System tray icon, blue.",
        "This is a red dot.",
        "Below the star is a red dot.",
        "A description field with three gray lines.",
        "好的字样，红色书法。",
        "当然二字的黑色印章。",
        "以下划线装饰的标题框。",
        "描述性图标，灰色。",
        "はい・いいえボタン、青色。",
        "네모난 빨간 상자.",
    ],
)
def test_caption_about_such_words_has_no_preface(caption: str) -> None:
    assert "preface" not in flags(caption)


@pytest.mark.parametrize(
    "caption", ["```\nA red dot\n```", "```json\n{}", "A red dot\n```", "A dot:\n  ```\nred\n```"]
)
def test_block_of_code_is_flagged(caption: str) -> None:
    assert "code_fence" in flags(caption)


@pytest.mark.parametrize("caption", ["A `code` tag in gray.", "Three backticks ``` in black."])
def test_marks_of_code_within_a_line_are_not_flagged(caption: str) -> None:
    assert "code_fence" not in flags(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "A red dot!!!!!",
        "A red dot" + "." * 7,
        "红色的圆点。。。。。",
        "A red dot,,,,,,,,",
        "红色……………",
    ],
)
def test_tail_of_the_same_punctuation_is_flagged(caption: str) -> None:
    assert "punctuation_tail" in flags(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "A red dot...",
        "Wow!!! in red",
        "The lettering “Sale!!!!!!” in red.",
        "红色的圆点……",
        "等等......",
        "Five stars ★★★★★",
        "A password field: •••••••",
        "A dashed line -------",
        "Waves ~~~~~~~~",
    ],
)
def test_shapes_made_of_characters_are_not_a_tail_of_punctuation(caption: str) -> None:
    assert "punctuation_tail" not in flags(caption)


# -------------------------------------------------------------------------------------- script
@pytest.mark.parametrize(
    ("language", "caption"),
    [
        ("zh", "A solid red circle in the centre."),
        ("zh", "赤い丸が中央にあります。"),
        ("zh", "빨간 원."),
        ("en", "一个红色的实心圆形，位于画面中央。"),
        ("en", "Красная точка в центре."),
        ("ja", "一个红色的实心圆形，位于画面中央"),
        ("ja", "A red circle"),
        ("ko", "A red circle"),
        ("ko", "红色的圆"),
        ("ru", "A red circle in the centre"),
        ("ru", "红色的圆"),
        ("ar", "A red circle"),
        ("de", "Красная точка"),
        ("he", "A red circle"),
        ("th", "A red circle"),
        ("el", "Ａ ｒｅｄ circle"),
        ("hi", "A red circle"),
    ],
)
def test_caption_in_another_script_than_the_language_is_flagged(
    language: str, caption: str
) -> None:
    assert "wrong_script" in flags(caption, CaptionRules(language=language))
    assert "wrong_script" not in flags(caption)


@pytest.mark.parametrize(
    ("language", "caption"),
    [
        ("zh", "白色的“HAPPY BIRTHDAY TO YOU MY FRIEND”字样。"),
        ("zh", "红色 SALE 字样"),
        ("zh", "圆角矩形 logo，24 px，#FF0000"),
        ("zh", "日式的「のり」字样图标"),
        ("zh", "紅色的實心圓形。"),
        ("en", "Red Chinese characters 新年快乐 on a white banner."),
        ("en", "The characters “恭喜发财大吉大利” in gold."),
        ("en", "Café sign, naïve style, 50 µm."),
        ("en", "24"),
        ("en", "★ ★ ★"),
        ("en", "𝐁𝐨𝐥𝐝 lettering"),
        ("ja", "赤い丸が中央にあります。"),
        ("ja", "赤色円形"),
        ("ja", "ロゴ「OPEN」"),
        ("ja", "時々"),
        ("ko", "중앙의 빨간 원, 로고 SALE."),
        ("ru", "Красная надпись SALE на белом."),
        ("ar", "دائرة حمراء في الوسط"),
        ("fa", "دایره قرمز"),
        ("he", "עיגול אדום"),
        ("th", "วงกลมสีแดง"),
        ("hi", "एक लाल वृत्त"),
        ("el", "Ένας κόκκινος κύκλος"),
        ("de", "Ein dünner schwarzer Kreis."),
        ("vi", "Một hình tròn màu đỏ"),
        ("sr", "Crveni krug"),
        ("sr", "Црвени круг"),
    ],
)
def test_caption_in_the_script_of_the_language_may_name_foreign_lettering(
    language: str, caption: str
) -> None:
    assert "wrong_script" not in flags(caption, CaptionRules(language=language))


# -------------------------------------------------------------------------- captions that are true
def true_captions() -> list[str]:
    """Labels of two corpora of real shapes, and the training captions of the bundled model."""
    data = Path(__file__).parent / "data" / "crello_like" / "expected.json"
    sample = Path(vllm_caption.demo.__file__).parent / "sample" / "labels.json"
    items = [*json.loads(data.read_text())["items"].values()]
    items += json.loads(sample.read_text()).values()
    texts = [item["label"] for item in items if "label" in item]
    chance = random.Random(1)
    for style in get_args(Style):
        texts += [true_caption(sample_scene(chance).words, style) for _ in range(200)]
    return texts


def test_no_reference_caption_breaks_a_rule() -> None:
    texts = true_captions()
    assert len(texts) > 1000
    for text in texts:
        language = "zh" if any("\u4e00" <= c <= "\u9fff" for c in text) else "en"
        found = check_caption(text, "stop", CaptionRules(language=language))
        assert (judge(text, "stop", NO_RULES)[0], found) == (text, ())


# ----------------------------------------------------------------------------- rules, verdicts
def test_flags_come_in_one_order_worst_first() -> None:
    rules = CaptionRules(3, ("the image",))
    caption = "The image the image the image the image"
    assert check_caption(caption, "length", rules) == (
        "loop",
        "forbidden_opening",
        "too_long",
        "cut_off",
    )


def test_rules_that_are_off_flag_nothing() -> None:
    assert check_caption("", "length", CaptionRules(1, ("a",), enabled=False)) == ()


@pytest.mark.parametrize("enabled", [True, False])
def test_rules_are_those_of_the_prompt(enabled: bool) -> None:
    prompt = load_prompt("shape-brief")
    rules = CaptionRules.from_prompt(prompt, enabled)
    assert rules == CaptionRules(prompt.max_words, prompt.forbid_openings, enabled)


def test_rules_include_language_and_single_line_of_the_prompt() -> None:
    prompt = Prompt("p", "Describe.", language="zh", single_line=True)
    rules = CaptionRules.from_prompt(prompt)
    assert (rules.language, rules.single_line) == ("zh", True)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((), "accept"),
        (("cut_off",), "accept"),
        (("too_long",), "retry_or_flag"),
        (("too_long", "cut_off"), "retry_or_flag"),
        (("forbidden_opening",), "retry_or_flag"),
        (("prompt_echo",), "retry_or_flag"),
        (("refusal",), "retry_or_flag"),
        (("wrong_script",), "retry_or_flag"),
        (("preface",), "retry_or_flag"),
        (("code_fence",), "retry_or_flag"),
        (("punctuation_tail",), "retry_or_flag"),
        (("reasoning",), "retry_or_fail"),
        (("empty", "cut_off"), "retry_or_fail"),
        (("loop", "too_long"), "retry_or_fail"),
    ],
)
def test_verdict_follows_the_worst_flag(found: tuple[CaptionFlag, ...], expected: str) -> None:
    assert verdict(found) == expected


def test_rank_puts_the_worst_flag_first_and_then_the_next() -> None:
    attempts: list[tuple[CaptionFlag, ...]] = [
        ("empty",),
        ("loop",),
        ("refusal", "too_long", "cut_off"),
        ("refusal",),
        ("prompt_echo",),
        ("forbidden_opening",),
        ("too_long", "cut_off"),
        ("too_long",),
        ("cut_off",),
        (),
    ]
    assert sorted(attempts, key=rank) == attempts[::-1]
    assert rank(()) == 0


# -------------------------------------------------------------------------------------- cleaning
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" \n A dot.\t\n", "A dot."),
        ("\ufeff\u200bA dot\u3000", "A dot"),
        ("One\r\nTwo\n\tThree", "One\nTwo\n\tThree"),
        ("One\rTwo\r\r\nThree\r", "One Two \nThree"),
        ("One\x0bTwo\x0cThree\x85Four", "One Two Three Four"),
        ("A\0 d\x1bo\x07t", "A dot"),
        ('"A dot"', '"A dot"'),
        ("**A dot**", "**A dot**"),
        ("红色\ufffd", "红色"),
        ("红\ufffd色", "红\ufffd色"),
        ("A \ud800 dot", "A \ufffd dot"),
        (" \n\ufffd ", ""),
    ],
)
def test_cleaning_removes_only_outer_white_space_and_control_characters(
    text: str, expected: str
) -> None:
    assert clean_caption(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One\nTwo", "One Two"),
        ("One \r\n\n\tTwo\rThree\n", "One Two Three"),
        ("One\u2028Two\u2029Three", "One Two Three"),
        ("One  two\tthree", "One  two\tthree"),
    ],
)
def test_single_line_caption_has_blanks_for_its_line_breaks(text: str, expected: str) -> None:
    caption, _ = judge(text, "stop", CaptionRules(single_line=True))
    assert caption == expected
    assert len(caption.splitlines()) == 1


@given(st.text(st.characters() | st.characters(categories=["Cs", "Cc"]), max_size=60))
def test_clean_caption_can_be_written_and_stays_as_it_is(text: str) -> None:
    for single_line in (False, True):
        cleaned = clean_caption(text, single_line=single_line)
        cleaned.encode()
        assert clean_caption(cleaned, single_line=single_line) == cleaned
    assert len(cleaned.splitlines()) <= 1


@given(st.text(max_size=60), st.text(max_size=60), st.lists(st.text(max_size=5), max_size=3))
def test_any_caption_has_its_flags_in_order(text: str, prompt: str, openings: list[str]) -> None:
    found = check_caption(text, None, CaptionRules(3, tuple(openings)), prompt)
    assert list(found) == sorted(set(found), key=CAPTION_FLAGS.index)

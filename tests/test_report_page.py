"""The report in a real browser: no errors, no network, search, filters, keys, light and dark."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.contrast import Colour, contrast
from support.job import draw_shape
from support.report_folder import chromium, many_rows, row, write_folder, write_series

from vllm_caption.commands.report.command import make_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if chromium() is None:
    pytest.skip("no Chromium here: apt-get install chromium", allow_module_level=True)

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
HOSTILE = '"><img src=x onerror=alert(1)></script><script>alert(2)</script>\u2028end'
SCREENSHOTS = os.environ.get("REPORT_SCREENSHOTS")
"""A folder in which tests leave their screenshots."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of a few drawn images, of two folders, of 100,000 items, of a single item."""
    tmp = tmp_path_factory.mktemp("pages")
    small, other = write_folder(tmp / "brief", small_rows(tmp)), write_folder(tmp / "wordy", more())
    big = write_folder(tmp / "big", many_rows(100_000))
    write_series(small, 300)
    fields = write_folder(tmp / "fields", with_fields())
    made = {name: tmp / f"{name}.html" for name in ("small", "both", "big", "fields", "single")}
    make_report([fields], made["fields"])
    singles = [write_folder(tmp / name, [row(caption="Circle.")]) for name in ("one", "same")]
    make_report(singles, made["single"])
    make_report([small], made["small"])
    make_report([small, other], made["both"])
    make_report([big], made["big"])
    return made


def small_rows(tmp: Path) -> list[Any]:
    """60 items: one failed, one is flagged, one is hostile, one Chinese, one without type."""
    (tmp / "raw").mkdir()
    made = []
    for number in range(60):
        file = f"{number:02}.png"
        draw_shape(number).save(tmp / "raw" / file)
        columns: dict[str, Any] = {
            "caption": f"A shape of number {number}.",
            "document": f"design_{number // 10}",
            "element_type": "ColoredBackground" if number % 6 == 0 else "SvgElement",
            "backdrop": "black" if number % 9 == 0 else "white",
            "image_path": f"{tmp / 'raw'}/{file}",
        }
        if number == 7:
            columns |= {"error_kind": "poison", "error": "it killed two engines", "caption": None}
        if number == 8:
            columns |= {"flags": ("too_long",), "caption": "Word after word after word."}
        if number == 9:
            columns |= {"caption": HOSTILE, "document": HOSTILE, "element_type": HOSTILE}
        if number == 10:
            columns |= {"caption": "左上角的红色圆形"}
        if number == 11:
            columns |= {"element_type": ""}
        made.append(row(file, **columns))
    return made


def more() -> list[Any]:
    """The same files with other captions, except for the first."""
    others = [row("00.png", caption="A shape of number 0.")]
    others += [row(f"{n:02}.png", caption=f"A wide shape of the number {n}.") for n in range(1, 60)]
    others[10] = row("10.png", caption="左上角的蓝色圆形")
    return others


def with_fields() -> list[Any]:
    """One caption that is JSON, one made of fields, one without any, one whose JSON is too long."""
    star = '{"shape":"star","tags":["red","new"],"note":"<b>sale</b>"}'
    return [
        row("0.png", caption=star, structured=star),
        row("1.png", caption="A ring.", structured='{"shape":"ring","tags":[],"note":"none"}'),
        row("2.png", caption="Adopted."),
        row("3.png", caption="Long.", structured='{"shape":"' + "x" * 3000 + '"}'),
    ]


@pytest.fixture(scope="module")
def browser(pages: dict[str, Path]) -> Iterator[Any]:
    """Chromium; started after the pages are made, since its driver holds an event loop."""
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any, pages: dict[str, Path]) -> Iterator[Callable[..., Any]]:
    """Opens a page; anything it requests, logs or throws is a failure at the end."""
    complaints: list[str] = []
    contexts = []

    def open_page(name: str, address: str = "", width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 850}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: asked(request.url))
        page.goto(pages[name].as_uri() + address)
        page.wait_for_selector("html[data-ready]", timeout=20_000)
        return page

    def asked(url: str) -> None:
        if not url.startswith(("data:", *(path.as_uri() for path in pages.values()))):
            complaints.append(f"asked for {url}")

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def found(page: Any) -> str:
    """What the gallery says it shows, once it is stable."""
    page.wait_for_selector("#cards[aria-busy=false]", state="attached")
    return str(page.inner_text("#found"))


def test_page_opens_without_an_error_and_shows_pictures_with_captions(visit: Any) -> None:
    page = visit("small")
    assert found(page) == "All 60 items"
    cards = page.locator(".card")
    assert cards.count() == 48
    assert "A shape of number 0." in cards.nth(1).inner_text()
    page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.locator(".card img").count() == 48


def test_a_single_item_and_a_single_word_are_named_in_the_singular(visit: Any) -> None:
    page = visit("single")
    assert found(page) == "1 item"
    assert re.findall(r"\b1 \w+", page.locator(".card").inner_text()) == ["1 word", "1 word"]
    page.fill("#q", "nothing like it")
    assert found(page).startswith("No items match.")


def test_fields_of_an_answer_are_shown_with_their_names(visit: Any) -> None:
    page = visit("fields")
    assert found(page) == "All 4 items"
    card = page.locator('[data-item="0"]')
    assert card.locator(".field").all_inner_texts() == [
        "shape: star",
        'tags: ["red","new"]',
        "note: <b>sale</b>",
    ]
    assert card.locator(".text").count() == 0, "the same JSON is not shown twice"
    assert page.locator('[data-item="1"] .text').inner_text() == "A ring."
    assert page.locator('[data-item="2"] .field').count() == 0
    assert page.locator('[data-item="3"] .field').inner_text().startswith('fields: {"shape":"xxx')


def test_search_finds_fields_by_name_and_value(visit: Any) -> None:
    page = visit("fields")
    for words, expected in (
        ("star", "1 of 4 items"),
        ('"shape: ring"', "1 of 4 items"),
        ('"tags: "', "2 of 4 items"),
        ("adopted", "1 of 4 items"),
    ):
        page.fill("#q", words)
        assert (words, found(page)) == (words, expected)


def test_search_finds_words_in_captions_reasons_files_and_documents(visit: Any) -> None:
    page = visit("small")
    for words, expected in (
        ("number 33", "1 of 60 items"),
        ("NUMBER SHAPE", "56 of 60 items"),
        ('"of number 3"', "11 of 60 items"),
        ("design_2", "10 of 60 items"),
        ("红色", "1 of 60 items"),
        ("killed", "1 of 60 items"),
        ("59.png", "1 of 60 items"),
        ("onerror=alert", "1 of 60 items"),
        ("nothing like it", "No items match. Clear a filter, or search for fewer words."),
    ):
        page.fill("#q", words)
        assert (words, found(page)) == (words, expected)


def test_filters_work_alone_and_together_and_clear_again(visit: Any) -> None:
    page = visit("small")
    page.select_option("#status", "failed")
    assert found(page) == "1 of 60 items"
    page.select_option("#status", "")
    page.select_option("#flag", "too_long")
    assert found(page) == "1 of 60 items"
    page.select_option("#flag", "")
    page.select_option("#type", "ColoredBackground")
    assert found(page) == "10 of 60 items"
    page.select_option("#backdrop", "black")
    assert found(page) == "4 of 60 items"
    page.get_by_role("button", name="Clear").click()
    assert found(page) == "All 60 items"


def test_button_beside_a_kind_or_flag_shows_its_items(visit: Any) -> None:
    page = visit("small")
    page.get_by_role("button", name="show poison in the gallery").click()
    assert found(page) == "1 of 60 items"
    assert "it killed two engines" in page.locator(".card").inner_text()
    page.get_by_role("button", name="show too_long in the gallery").click()
    assert found(page) == "1 of 60 items"
    assert "Word after word" in page.locator(".card").inner_text()


def test_hostile_caption_is_shown_as_text(visit: Any) -> None:
    page = visit("small")
    page.fill("#q", "onerror")
    assert found(page) == "1 of 60 items"
    text = page.locator(".card .text").text_content()
    assert text == HOSTILE
    page.locator(".card").click()
    assert HOSTILE in page.locator("#detail").text_content()


def test_keyboard_alone_reaches_search_pages_and_details(visit: Any) -> None:
    page = visit("small")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type("shape")
    assert found(page) == "56 of 60 items"
    page.locator(".card").first.focus()
    page.keyboard.press("Enter")
    assert page.inner_text("#detail-place") == "1 of 56"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#detail-place") == "3 of 56"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()
    await_focus_on_card(page, "2")
    page.locator("#next").focus()
    page.keyboard.press("Enter")
    assert page.locator(".card").count() == 8


def await_focus_on_card(page: Any, item: str) -> None:
    """The browser tells the page only in a later task that the dialog was closed; then the page
    moves the focus. Fails if it never does."""
    focused = "item => document.activeElement.dataset.item === item"
    page.wait_for_function(focused, arg=item, timeout=10_000)


@pytest.mark.parametrize("width", [390, 1280])
def test_tab_reaches_everything_visibly_and_leaves_the_page_again(visit: Any, width: int) -> None:
    page = visit("small", width=width)
    reached: list[str] = []
    for _ in range(200):
        page.keyboard.press("Tab")
        seen = page.evaluate(FOCUS)
        if seen is None:
            break
        assert seen["outlined"], seen
        assert seen["uncovered"], seen
        reached.append(seen["name"])
    else:
        pytest.fail(f"no end: {reached[-5:]}")
    assert len(reached) == len(set(reached)), "nothing is reached twice"
    usable = page.locator("a, button:enabled, input, select, summary").locator("visible=true")
    assert len(reached) == usable.count()


FOCUS = """() => {
  const element = document.activeElement;
  if (element === document.body) return null;
  const box = element.getBoundingClientRect(), style = getComputedStyle(element);
  const middle = [box.left + box.width / 2, box.top + Math.min(box.height / 2, 20)];
  const top = document.elementFromPoint(...middle);
  window.reached = [...(window.reached || []), element];
  return {
    name: [window.reached.indexOf(element), element.tagName, element.innerText].join(" "),
    outlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
    uncovered: element === top || element.contains(top),
  };
}"""


def test_an_open_item_keeps_the_focus_until_escape(visit: Any) -> None:
    page = visit("small")
    page.locator(".card").first.focus()
    page.keyboard.press("Enter")
    in_dialog = "document.activeElement.closest('dialog') ? document.activeElement.id : null"
    assert page.evaluate(in_dialog) == "detail", "it scrolls with the arrows, and says its title"
    tabbed = []
    for _ in range(3):
        page.keyboard.press("Tab")
        tabbed.append(page.evaluate(in_dialog))
    assert tabbed == ["", "detail-next", "detail-close"], "the link, then the buttons"
    page.keyboard.press("Escape")
    await_focus_on_card(page, "0")


def test_button_at_the_last_item_or_page_passes_the_focus_on(visit: Any) -> None:
    page = visit("small")
    page.locator("#next").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "previous"
    page.locator(".card").nth(10).focus()
    page.keyboard.press("Enter")
    page.locator("#detail-next").focus()
    page.keyboard.press("Enter")
    assert page.inner_text("#detail-place") == "60 of 60"
    assert page.evaluate("document.activeElement.id") == "detail-previous"


def test_open_item_has_its_file_as_title_and_names_the_prompt_of_each_caption(visit: Any) -> None:
    page = visit("both")
    page.locator(".card").first.click()
    assert page.get_by_role("dialog", name="09.png").is_visible()
    facts = page.locator("#detail dl").all_inner_texts()
    assert len(facts) == 3
    assert [re.sub(r"\s+", " ", fact)[:20] for fact in facts[1:]] == [
        *("A prompt shape-brief", "B prompt shape-brief"),
    ]


def test_filters_without_matches_are_not_shown(visit: Any) -> None:
    page = visit("fields")
    labels = [text.split()[0] for text in page.locator("#filters label:visible").all_inner_texts()]
    assert labels == ["Search", "Status", "Type", "Order"]
    assert not page.locator("#pager").is_visible(), "there is one page"


def test_filters_that_have_nothing_to_choose_from_yet_are_not_shown(
    browser: Any, pages: Any
) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["both"].as_uri())
    labels = [text.split()[0] for text in page.locator("#filters label:visible").all_inner_texts()]
    context.close()
    assert labels == ["Search", "Difference", "Order"]


def test_address_keeps_search_filters_and_page(visit: Any) -> None:
    page = visit("small")
    page.select_option("#backdrop", "white")
    page.locator("#next").click()
    address = page.evaluate("location.hash")
    again = visit("small", address)
    assert again.locator("#page").input_value() == "2"
    assert found(again) == "53 of 60 items"


def test_two_folders_are_shown_side_by_side_with_their_differences(visit: Any) -> None:
    page = visit("both")
    page.select_option("#difference", "text")
    assert found(page) == "58 of 60 items"
    page.fill("#q", '"number 33"')
    assert found(page) == "1 of 60 items"
    sides = page.locator(".card .side")
    assert sides.count() == 2
    assert page.locator(".card ins").all_inner_texts() == ["wide", "the"]
    page.fill("#q", "左上角")
    found(page)
    assert page.locator(".card .text").all_text_contents()[1].strip() == "左上角的红蓝色圆形"
    assert page.locator(".card del").all_inner_texts() == ["红"]
    page.fill("#q", "")
    page.select_option("#difference", "same")
    assert found(page) == "1 of 60 items"
    page.select_option("#difference", "status")
    assert found(page) == "1 of 60 items"
    page.select_option("#difference", "")
    page.select_option("#order", "gap")
    found(page)
    assert "07.png" not in page.locator(".card").nth(1).inner_text()


def test_a_hundred_thousand_items_open_and_are_searched(visit: Any, pages: dict[str, Path]) -> None:
    """How fast: benchmarks/report_page.py."""
    page = visit("big")
    assert found(page) == "All 100,000 items"
    assert pages["big"].stat().st_size < 9_000_000
    page.fill("#q", "soft blue")
    assert found(page) == "81,373 of 100,000 items"
    page.fill("#q", "nothing like it")
    assert found(page).startswith("No items match.")
    page.fill("#q", "")
    page.select_option("#order", "slow")
    found(page)
    page.select_option("#status", "failed")
    assert found(page) == "1,000 of 100,000 items"
    assert page.locator(".card").count() == 48


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["small", "both", "fields"])
def test_nothing_is_wider_than_the_screen_and_text_can_be_read(
    visit: Any, name: str, width: int, scheme: str
) -> None:
    page = visit(name, width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shown = ("body", ".note", ".card .meta", ".chip", ".tile span", ".remedy")
    for selector in shown if name != "fields" else shown[:3]:
        assert contrast_of(page, selector) >= 4.5, selector
    if SCREENSHOTS:
        page.screenshot(path=f"{SCREENSHOTS}/{name}-{width}-{scheme}.png", full_page=True)


def test_theme_button_changes_light_to_dark(visit: Any) -> None:
    page = visit("small", color_scheme="light")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_everything_that_is_used_has_a_name_for_a_screen_reader(visit: Any) -> None:
    page = visit("both")
    tree = page.locator("body").aria_snapshot()
    assert not re.search(r"^\s*- (button|combobox|searchbox|img|checkbox)\s*:?$", tree, re.M)
    assert "searchbox" in tree
    assert re.search(r'img "Speed. on average', tree)


def contrast_of(page: Any, selector: str) -> float:
    """The contrast of an element's text with its background."""
    colours = page.evaluate(
        """(selector) => {
          let element = document.querySelector(selector), under = element;
          const clear = (e) => getComputedStyle(e).backgroundColor === "rgba(0, 0, 0, 0)";
          while (clear(under) && under.parentElement) under = under.parentElement;
          return [getComputedStyle(element).color, getComputedStyle(under).backgroundColor];
        }""",
        selector,
    )
    return contrast(*(rgb(colour) for colour in colours))


def rgb(colour: str) -> Colour:
    red, green, blue = (int(part) for part in re.findall(r"\d+", colour)[:3])
    return red, green, blue

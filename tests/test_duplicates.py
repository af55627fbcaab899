"""Which of several byte-identical images is captioned, and when the others get the caption."""

from __future__ import annotations

from vllm_caption.items import Document, Item
from vllm_caption.messages import ImageFacts
from vllm_caption.scheduling.duplicates import Made, Standing, Twin, Twins, twin_key

KEY, OTHER = b"k" * 16, b"o" * 16
HASH = 7
MADE = Made("a", HASH, structured='{"shape":"star"}')


def item(file: str) -> Item:
    return Item(file, Document("design"), 0, "SvgElement")


def twin(file: str, key: bytes = KEY) -> Twin:
    return Twin(item(file), ImageFacts(10, 10, "none", "00", key))


def test_first_image_leads_and_its_twins_wait() -> None:
    twins = Twins()
    assert twins.claim(twin("a")) == Standing("leads")
    assert twins.claim(twin("b")) == Standing("waits")
    assert twins.claim(twin("c", OTHER)) == Standing("leads")


def test_waiting_twins_are_returned_once_when_the_leader_is_captioned() -> None:
    twins = Twins()
    for file in "abc":
        twins.claim(twin(file))
    assert [waited.item.file for waited in twins.end(item("a"), MADE)] == ["b", "c"]
    assert twins.end(item("a"), MADE) == []


def test_later_twin_gets_the_caption_at_once() -> None:
    twins = Twins()
    twins.claim(twin("a"))
    twins.end(item("a"), MADE)
    assert twins.claim(twin("b")) == Standing("done", MADE)


def test_image_that_is_captioned_again_does_not_get_its_own_caption() -> None:
    twins = Twins({KEY: Made("a", HASH)})
    assert twins.claim(twin("a")) == Standing("leads")
    assert twins.claim(twin("b")) == Standing("waits")


def test_leader_that_is_retried_stays_the_leader() -> None:
    twins = Twins()
    twins.claim(twin("a"))
    twins.claim(twin("b"))
    assert twins.claim(twin("a")) == Standing("leads")


def test_failed_leader_leaves_no_caption_to_later_twins() -> None:
    twins = Twins()
    twins.claim(twin("a"))
    twins.end(item("a"), None)
    assert twins.claim(twin("b")) == Standing("leads")


def test_leader_whose_file_changed_between_attempts_no_longer_leads_its_first_twins() -> None:
    twins = Twins()
    twins.claim(twin("a"))
    twins.claim(twin("b"))
    assert twins.changed(twin("a")) == []
    assert [waited.item.file for waited in twins.changed(twin("a", OTHER))] == ["b"]
    assert twins.claim(twin("a", OTHER)) == Standing("leads")
    assert twins.claim(twin("b")) == Standing("leads")
    assert twins.end(item("a"), MADE) == []


def test_caption_of_an_earlier_run_is_as_good_as_one_of_this_run() -> None:
    twins = Twins({KEY: Made("old", HASH)})
    assert twins.claim(twin("a")) == Standing("done", Made("old", HASH))
    assert twins.claim(twin("b", OTHER)) == Standing("leads")


def test_twin_whose_caption_was_removed_leads_and_later_ones_wait_for_it() -> None:
    twins = Twins({KEY: Made("old", HASH)})
    twins.lead(twin("a"))
    assert twins.claim(twin("a")) == Standing("leads")
    assert twins.claim(twin("b")) == Standing("waits")
    assert [waited.item.file for waited in twins.end(item("a"), MADE)] == ["b"]


def test_key_distinguishes_contents_prompts_and_system_messages() -> None:
    keys = {
        twin_key("00", None, "Describe it."),
        twin_key("01", None, "Describe it."),
        twin_key("00", None, "Name it."),
        twin_key("00", "Be terse.", "Describe it."),
    }
    assert len(keys) == 4
    assert twin_key("00", None, "x") == twin_key("00", "", "x")

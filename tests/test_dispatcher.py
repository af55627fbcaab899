"""Who gets what, what is retried, who is to blame: each rule of the dispatcher."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm_caption.messages import Captioned, Failed, ImageFacts, Timings
from vllm_caption.scheduling.dispatcher import Accept, Dispatcher, GiveUp, TryAgain

FACTS = ImageFacts(10, 10, "none", "00", b"k" * 16)


def captioned(lease: int, text: str = "a red circle") -> Captioned:
    return Captioned(lease, text, "stop", 10, 4, FACTS, Timings())


def failed(lease: int, *, retryable: bool) -> Failed:
    kind = "engine_error" if retryable else "missing_file"
    return Failed(lease, kind, "it did not work", retryable)


def make(num_engines: int = 2, items: str = "", **limits: int) -> Dispatcher[str]:
    dispatcher: Dispatcher[str] = Dispatcher(
        num_engines,
        max_retries=limits.get("max_retries", 3),
        max_engine_restarts=limits.get("max_engine_restarts", 3),
    )
    dispatcher.add(items)
    dispatcher.end_input()
    return dispatcher


def test_engine_gets_items_in_order_up_to_its_window() -> None:
    dispatcher = make(items="abcde")
    assert [leased.item for leased in dispatcher.take(0, 3)] == ["a", "b", "c"]
    assert dispatcher.take(0, 3) == []


def test_finished_item_makes_room_for_another() -> None:
    dispatcher = make(items="abcde")
    first, *_ = dispatcher.take(0, 3)
    dispatcher.captioned(0, captioned(first.lease), ())
    assert [leased.item for leased in dispatcher.take(0, 3)] == ["d"]


def test_slow_engine_takes_fewer_items() -> None:
    dispatcher = make(items="abcdefgh")
    dispatcher.take(0, 2)
    taken = 0
    while leased := dispatcher.take(1, 2):
        taken += len(leased)
        for one in leased:
            dispatcher.captioned(1, captioned(one.lease), ())
    assert taken == 6


def test_run_is_finished_only_when_nothing_waits_and_nothing_is_in_flight() -> None:
    dispatcher = make(items="a")
    assert not dispatcher.finished
    (leased,) = dispatcher.take(0, 8)
    assert not dispatcher.finished
    dispatcher.captioned(0, captioned(leased.lease), ())
    assert dispatcher.finished


def test_run_is_not_finished_while_the_input_is_being_read() -> None:
    dispatcher: Dispatcher[str] = Dispatcher(1, max_retries=3, max_engine_restarts=3)
    assert not dispatcher.finished
    dispatcher.end_input()
    assert dispatcher.finished


def test_good_caption_is_accepted_with_its_number_of_attempts() -> None:
    dispatcher = make(items="a")
    (leased,) = dispatcher.take(0, 8)
    decision = dispatcher.captioned(0, captioned(leased.lease), ())
    assert isinstance(decision, Accept)
    assert (decision.item, decision.attempts, decision.flags) == ("a", 1, ())


def test_cut_off_caption_is_accepted_with_its_flag() -> None:
    dispatcher = make(items="a")
    (leased,) = dispatcher.take(0, 8)
    decision = dispatcher.captioned(0, captioned(leased.lease), ("cut_off",))
    assert isinstance(decision, Accept)
    assert decision.flags == ("cut_off",)


def test_caption_that_breaks_a_rule_is_retried_with_other_sampling() -> None:
    dispatcher = make(items="a")
    (leased,) = dispatcher.take(0, 8)
    assert leased.rejected == 0
    decision = dispatcher.captioned(0, captioned(leased.lease), ("too_long",))
    assert isinstance(decision, TryAgain)
    (again,) = dispatcher.take(1, 8)
    assert (again.item, again.rejected) == ("a", 1)


def test_caption_that_keeps_breaking_a_style_rule_keeps_its_best_attempt_and_is_flagged() -> None:
    dispatcher = make(items="a", max_retries=2)
    decision = None
    for flags in (("too_long",), ("empty",), ("too_long",)):
        (leased,) = dispatcher.take(0, 8)
        decision = dispatcher.captioned(0, captioned(leased.lease, flags[0]), flags)
    assert isinstance(decision, Accept)
    assert (decision.result.caption, decision.flags, decision.attempts) == (
        "too_long",
        ("too_long",),
        3,
    )


def test_caption_that_stays_empty_fails_as_caption_rejected() -> None:
    dispatcher = make(items="a", max_retries=1)
    decision = None
    for _ in range(2):
        (leased,) = dispatcher.take(0, 8)
        decision = dispatcher.captioned(0, captioned(leased.lease, ""), ("empty",))
    assert isinstance(decision, GiveUp)
    assert (decision.kind, decision.attempts) == ("caption_rejected", 2)


def test_flagged_caption_is_kept_when_every_later_attempt_fails_in_the_engine() -> None:
    dispatcher = make(items="a", max_retries=1)
    (leased,) = dispatcher.take(0, 8)
    dispatcher.captioned(0, captioned(leased.lease, "long"), ("too_long",))
    (leased,) = dispatcher.take(0, 8)
    decision = dispatcher.failed(0, failed(leased.lease, retryable=True))
    assert isinstance(decision, Accept)
    assert decision.result.caption == "long"


def test_failed_item_goes_to_another_engine_while_this_one_has_other_work() -> None:
    dispatcher = make(items="abcd")
    for _ in range(2):
        (lease,) = dispatcher.take(0, 1)
        dispatcher.failed(0, failed(lease.lease, retryable=True))
    assert [leased.item for leased in dispatcher.take(1, 2)] == ["a", "b"]
    (lease,) = dispatcher.take(0, 1)
    dispatcher.failed(0, failed(lease.lease, retryable=True))
    assert [leased.item for leased in dispatcher.take(0, 2)] == ["d", "c"]


def test_failed_item_waits_for_another_engine_that_captions() -> None:
    dispatcher = make(items="ab")
    (good,), (bad,) = dispatcher.take(1, 1), dispatcher.take(0, 1)
    dispatcher.captioned(1, captioned(good.lease), ())
    dispatcher.failed(0, failed(bad.lease, retryable=True))
    assert dispatcher.take(0, 2) == []
    (again,) = dispatcher.take(1, 2)
    assert again.item == "b"
    dispatcher.engine_lost(1)
    dispatcher.end_input()
    assert [leased.item for leased in dispatcher.take(0, 2)] == ["b"]


def test_only_engine_retries_its_failures_before_new_items() -> None:
    dispatcher = make(num_engines=1, items="ab")
    (lease,) = dispatcher.take(0, 1)
    dispatcher.failed(0, failed(lease.lease, retryable=True))
    assert [leased.item for leased in dispatcher.take(0, 2)] == ["a", "b"]


def test_broken_input_fails_at_once() -> None:
    dispatcher = make(items="a")
    (leased,) = dispatcher.take(0, 8)
    decision = dispatcher.failed(0, failed(leased.lease, retryable=False))
    assert isinstance(decision, GiveUp)
    assert (decision.kind, decision.attempts) == ("missing_file", 1)


def test_engine_error_is_retried_with_the_same_sampling_at_most_max_retries_times() -> None:
    dispatcher = make(items="a", max_retries=2)
    decisions = []
    for _ in range(3):
        (leased,) = dispatcher.take(0, 8)
        assert leased.rejected == 0
        decisions.append(dispatcher.failed(0, failed(leased.lease, retryable=True)))
    assert [type(d) for d in decisions] == [TryAgain, TryAgain, GiveUp]


def test_late_or_duplicate_answer_is_ignored() -> None:
    dispatcher = make(items="a")
    (leased,) = dispatcher.take(0, 8)
    assert dispatcher.captioned(1, captioned(leased.lease), ()) is None
    assert dispatcher.captioned(0, captioned(leased.lease), ()) is not None
    assert dispatcher.captioned(0, captioned(leased.lease), ()) is None
    assert dispatcher.failed(0, failed(leased.lease, retryable=True)) is None


def test_items_of_a_lost_engine_are_leased_again_without_costing_an_attempt() -> None:
    dispatcher = make(items="ab")
    dispatcher.take(0, 8)
    dispatcher.engine_lost(0)
    (leased,) = dispatcher.take(1, 8)
    decision = dispatcher.captioned(1, captioned(leased.lease), ())
    assert isinstance(decision, Accept)
    assert decision.attempts == 1


def test_suspects_run_one_at_a_time_and_alone() -> None:
    dispatcher = make(items="ab")
    dispatcher.take(0, 8)
    dispatcher.engine_lost(0)
    (first,) = dispatcher.take(1, 8)
    assert dispatcher.take(1, 8) == []
    dispatcher.captioned(1, captioned(first.lease), ())
    (second,) = dispatcher.take(1, 8)
    assert {first.item, second.item} == {"a", "b"}


def test_suspect_waits_for_a_proven_engine_while_there_is_other_work() -> None:
    dispatcher = make(num_engines=1, items="abcd")
    dispatcher.take(0, 2)
    dispatcher.engine_lost(0)
    fresh = dispatcher.take(0, 2)
    assert [leased.item for leased in fresh] == ["c", "d"]
    dispatcher.captioned(0, captioned(fresh[0].lease), ())
    assert dispatcher.take(0, 2) == []  # finishes its items first
    dispatcher.captioned(0, captioned(fresh[1].lease), ())
    assert [leased.item for leased in dispatcher.take(0, 2)] == ["a"]


def test_one_suspect_empties_only_one_engine() -> None:
    dispatcher = make(num_engines=3, items="abcdefghijkl")
    dispatcher.take(0, 1)
    leases = {engine: dispatcher.take(engine, 2) for engine in (1, 2)}
    dispatcher.engine_lost(0)
    for engine in (1, 2):
        dispatcher.captioned(engine, captioned(leases[engine][0].lease), ())
    assert [len(dispatcher.take(engine, 2)) for engine in (1, 2)] == [0, 1]


def drain_with_poison(dispatcher: Dispatcher[str], poison: str, window: int = 4) -> Counter[str]:
    """Run one engine that dies of certain items, until nothing is left. Counts deaths as `!`."""
    ends: Counter[str] = Counter()
    while not dispatcher.finished and dispatcher.num_usable:
        dispatcher.engine_started(0)
        held = dispatcher.take(0, window)
        while held:
            deadly = next((one for one in held if one.item in poison), None)
            if deadly is not None:
                ends["!"] += 1
                for gone in dispatcher.engine_lost(0):
                    ends[f"{gone.item}:{gone.kind}"] += 1
                break
            one = held.pop(0)
            decision = dispatcher.captioned(0, captioned(one.lease), ())
            assert isinstance(decision, Accept)
            assert decision.attempts == 1
            ends[one.item] += 1
            held += dispatcher.take(0, window)
    return ends


def test_item_that_kills_twice_alone_is_poison_and_everyone_else_is_captioned() -> None:
    ends = drain_with_poison(make(num_engines=1, items="abcdefghijkl"), poison="c")
    assert ends.pop("!") <= 3
    assert ends == Counter({**dict.fromkeys("abdefghijkl", 1), "c:poison": 1})


@pytest.mark.parametrize("poison", ["a", "l", "al", "bck", "jkl", "abcdef"])
def test_k_poison_items_cost_at_most_two_deaths_each_plus_those_that_isolate_them(
    poison: str,
) -> None:
    ends = drain_with_poison(make(num_engines=1, items="abcdefghijkl"), poison)
    deaths = ends.pop("!")
    assert deaths <= 3 * len(poison)
    expected = {item: 1 for item in "abcdefghijkl" if item not in poison}
    assert ends == Counter({**expected, **{f"{item}:poison": 1 for item in poison}})


def test_no_suspect_runs_on_an_engine_that_still_holds_a_withdrawn_item() -> None:
    dispatcher = make(num_engines=2, items="abc")
    dispatcher.take(0, 1)
    dispatcher.engine_lost(0)  # a is a suspect
    twin, other = dispatcher.take(1, 2)
    dispatcher.captioned(1, captioned(other.lease), ())
    dispatcher.withdraw(1, twin.lease)
    assert dispatcher.take(1, 2) == []
    dispatcher.cancelled(1, twin.lease)
    assert [leased.item for leased in dispatcher.take(1, 2)] == ["a"]


def test_answer_to_a_withdrawn_lease_ends_it() -> None:
    dispatcher = make(num_engines=1, items="abc")
    first, _ = dispatcher.take(0, 2)
    dispatcher.withdraw(0, first.lease)
    assert dispatcher.take(0, 2) == []
    assert dispatcher.captioned(0, captioned(first.lease), ()) is None
    assert [leased.item for leased in dispatcher.take(0, 2)] == ["c"]


def test_second_trial_of_a_suspect_is_on_another_engine_if_there_is_one() -> None:
    dispatcher = make(num_engines=2, items="a")
    dispatcher.take(0, 8)
    dispatcher.engine_lost(0)
    dispatcher.take(0, 8)
    dispatcher.engine_lost(0)
    assert dispatcher.take(0, 8) == []
    assert [leased.item for leased in dispatcher.take(1, 8)] == ["a"]


def test_engine_that_keeps_dying_without_finishing_anything_is_retired() -> None:
    dispatcher = make(num_engines=2, items="ab", max_engine_restarts=2)
    for _ in range(3):
        assert dispatcher.may_restart(0)
        dispatcher.engine_lost(0)
    assert not dispatcher.may_restart(0)
    assert dispatcher.take(0, 8) == []
    assert dispatcher.num_usable == 1


def test_slot_whose_process_does_not_end_stays_retired_even_if_an_item_is_to_blame() -> None:
    dispatcher = make(num_engines=1, items="a")
    dispatcher.take(0, 8)
    for _ in range(2):  # as one of many, then alone
        dispatcher.engine_lost(0)
        dispatcher.take(0, 8)
    dispatcher.retire(0)
    assert [poison.kind for poison in dispatcher.engine_lost(0)] == ["poison"]
    assert not dispatcher.may_restart(0)


def test_engine_that_keeps_dying_between_empty_captions_is_retired() -> None:
    dispatcher = make(items="abcdefgh", max_engine_restarts=1)
    for _ in range(2):
        (lease,) = dispatcher.take(0, 1)
        dispatcher.captioned(0, captioned(lease.lease, ""), ("empty",))
        dispatcher.engine_lost(0)
    assert not dispatcher.may_restart(0)


def test_engine_that_finishes_something_between_deaths_is_kept() -> None:
    dispatcher = make(num_engines=1, items="abcdefghij", max_engine_restarts=1)
    for _ in range(4):
        leased = dispatcher.take(0, 1)
        dispatcher.captioned(0, captioned(leased[0].lease), ())
        dispatcher.engine_lost(0)
    assert dispatcher.may_restart(0)


def test_only_a_caption_proves_that_an_engine_works() -> None:
    dispatcher = make(num_engines=1, items="abcdefgh", max_engine_restarts=2)
    for _ in range(3):
        leased = dispatcher.take(0, 2)
        dispatcher.failed(0, failed(leased[0].lease, retryable=False))  # its file is missing
        assert dispatcher.engine_lost(0) == []
    assert not dispatcher.may_restart(0)


def test_engine_that_died_twice_in_a_row_gets_one_item_at_a_time_until_a_caption() -> None:
    dispatcher = make(num_engines=1, items="abcdefghijkl")
    for _ in range(2):
        dispatcher.take(0, 2)
        dispatcher.engine_lost(0)
    (leased,) = dispatcher.take(0, 2)
    dispatcher.captioned(0, captioned(leased.lease), ())
    assert [leased.item for leased in dispatcher.take(0, 2)] == ["a"]  # the suspect, alone


def test_engines_that_die_on_every_item_are_retired_after_eight_of_them() -> None:
    dispatcher = make(num_engines=2, items="abcdefghijklmnop", max_engine_restarts=99)
    blamed: list[str] = []
    for engine in [0, 1] * 30:
        if dispatcher.may_restart(engine) and dispatcher.take(engine, 16):
            blamed += [end.item for end in dispatcher.engine_lost(engine)]
    assert len(blamed) == 8
    assert dispatcher.num_usable == 0


def test_engine_restarts_at_once_then_after_increasing_delays() -> None:
    dispatcher = make(num_engines=1, items="abcdefgh", max_engine_restarts=9)
    delays = []
    for _ in range(6):
        dispatcher.engine_lost(0)
        delays.append(dispatcher.restart_delay_s(0))
    assert delays == [0, 1, 5, 25, 60, 60]


def test_unreadable_item_waits_before_its_retry() -> None:
    dispatcher = make(num_engines=1, items="a")
    now_s = 100.0
    dispatcher.advance(now_s)
    for rest_s in (1.0, 4.0, 16.0):
        (leased,) = dispatcher.take(0, 8)
        unreadable = Failed(leased.lease, "unreadable", "input/output error", retryable=True)
        assert isinstance(dispatcher.failed(0, unreadable), TryAgain)
        assert dispatcher.take(0, 8) == []
        assert not dispatcher.finished
        dispatcher.advance(now_s + rest_s - 0.1)
        assert dispatcher.take(0, 8) == []
        now_s += rest_s
        dispatcher.advance(now_s)
    (leased,) = dispatcher.take(0, 8)
    unreadable = Failed(leased.lease, "unreadable", "input/output error", retryable=True)
    assert isinstance(dispatcher.failed(0, unreadable), GiveUp)


def test_closed_dispatcher_hands_out_nothing_and_finishes_with_the_items_in_flight() -> None:
    dispatcher = make(items="abc")
    (leased,) = dispatcher.take(0, 1)
    dispatcher.close()
    assert dispatcher.take(1, 8) == []
    assert not dispatcher.finished
    assert isinstance(dispatcher.captioned(0, captioned(leased.lease), ()), Accept)
    assert dispatcher.finished


class AnythingHappens(RuleBasedStateMachine):
    """Engines work, fail, die and answer twice in any order; no item may be lost or blamed."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatcher: Dispatcher[int] = Dispatcher(3, max_retries=2, max_engine_restarts=2)
        self.added = 0
        self.poison: set[int] = set()
        self.held: dict[int, dict[int, int]] = {0: {}, 1: {}, 2: {}}
        self.old_leases: list[tuple[int, int]] = []
        self.ends: Counter[int] = Counter()
        self.blamed: set[int] = set()
        self.now_s = 0.0

    def settle(self, decision: object) -> None:
        if isinstance(decision, Accept | GiveUp):
            self.ends[decision.item] += 1
            if isinstance(decision, GiveUp) and decision.kind == "poison":
                self.blamed.add(decision.item)

    @rule(count=st.integers(1, 5), poisoned=st.booleans())
    def items_are_found(self, count: int, poisoned: bool) -> None:
        new = range(self.added, self.added + count)
        if poisoned:
            self.poison.add(new[0])
        self.dispatcher.add(new)
        self.added += count

    @rule(engine=st.integers(0, 2))
    def engine_takes(self, engine: int) -> None:
        for leased in self.dispatcher.take(engine, 4):
            assert leased.lease not in self.held[engine]
            self.held[engine][leased.lease] = leased.item

    @rule(engine=st.integers(0, 2), flag=st.sampled_from(["", "empty", "too_long", "cut_off"]))
    def engine_captions(self, engine: int, flag: str) -> None:
        harmless = [n for n, item in self.held[engine].items() if item not in self.poison]
        if harmless:
            self.held[engine].pop(harmless[0])
            flags = (flag,) if flag else ()
            decision = self.dispatcher.captioned(engine, captioned(harmless[0]), flags)  # type: ignore[arg-type]
            assert decision is not None
            self.settle(decision)
            self.old_leases.append((engine, harmless[0]))

    @rule(engine=st.integers(0, 2), retryable=st.booleans())
    def engine_refuses(self, engine: int, retryable: bool) -> None:
        harmless = [n for n, item in self.held[engine].items() if item not in self.poison]
        if harmless:
            self.held[engine].pop(harmless[0])
            self.settle(self.dispatcher.failed(engine, failed(harmless[0], retryable=retryable)))

    @precondition(lambda self: self.old_leases)
    @rule()
    def an_answer_comes_twice(self) -> None:
        engine, lease = self.old_leases[-1]
        assert self.dispatcher.captioned(engine, captioned(lease), ()) is None

    @rule(engine=st.integers(0, 2))
    def engine_cannot_read_for_a_moment(self, engine: int) -> None:
        for lease in list(self.held[engine])[:1]:
            self.held[engine].pop(lease)
            failure = Failed(lease, "unreadable", "input/output error", retryable=True)
            self.settle(self.dispatcher.failed(engine, failure))

    @rule(seconds=st.floats(0.1, 20))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.dispatcher.advance(self.now_s)

    @rule(engine=st.integers(0, 2))
    def engine_dies_of_itself(self, engine: int) -> None:
        if len(self.held[engine]) != 1:  # with one item, it could be the item
            self.held[engine].clear()
            assert self.dispatcher.engine_lost(engine) == []
            self.dispatcher.engine_started(engine)

    @rule(engine=st.integers(0, 2))
    def engine_dies_of_poison(self, engine: int) -> None:
        if self.poison & set(self.held[engine].values()):
            self.held[engine].clear()
            for gone in self.dispatcher.engine_lost(engine):
                self.settle(gone)
            self.dispatcher.engine_started(engine)

    @invariant()
    def every_item_is_waiting_held_or_ended_exactly_once(self) -> None:
        waiting, held = self.dispatcher.num_waiting, self.dispatcher.num_in_flight
        assert waiting + held + len(self.ends) == self.added
        assert held == sum(len(items) for items in self.held.values())
        assert set(self.ends.values()) <= {1}

    @invariant()
    def only_poison_is_blamed(self) -> None:
        assert self.blamed <= self.poison


AnythingHappens.TestCase.settings = settings(max_examples=150, stateful_step_count=60)
TestAnythingHappens = AnythingHappens.TestCase

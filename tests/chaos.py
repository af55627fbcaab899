"""Kill the driver at random moments, again and again, and check what it leaves.

`python tests/chaos.py --kills 1000 [--seed N]` is the long proof; the tests run a hundred. Half of
the kills come at a random time, half before a random file operation of the driver, so that each
gap between two operations is hit. With `--faulty`, each 50th operation of each kind on the output
also fails with EIO once (needs a C compiler). After every kill: nothing of the run is alive, no
.txt is torn, empty, foreign or touched again, no row is without its .txt. A run that gets through
must have every item in one row, and nothing temporary left; then a new input begins.

With `--no-txt` the rows are the captions. With and without, none that a driver had saved when it
died is gone or made again.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import importlib
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from support.fake_job import fake_main
from support.faulty_disk import Fault, faulty_disk, set_faults
from support.job import captions, draw_shape, input_flags, rows, write_document

from vllm_caption.store.journal import read_journal
from vllm_caption.store.layout import SAMPLES, is_temporary, temporary_name
from vllm_caption.store.output import NewCaption, Output
from vllm_caption.store.rows import Row

MARK = "VLLM_CAPTION_CHAOS"
PR_SET_NAME = 15
UNFORESEEN = 70
"""The exit code of a driver that raises."""
SAID = "stderr.txt"
"""What the last driver said, beside its input."""
NUM_GOOD, NUM_TWINS, NUM_ABSENT = 60, 8, 4
FAULTY_CALLS = (
    "open",
    "write",
    "rename",
    "mkdir",
    "stat",
    "fsync",
    "syncfs",
    "ftruncate",
    "unlink",
)
FAULT_EVERY = 50
SAVED = "chaos.saved"
"""The event name of a saved caption."""
FILE_EVENTS = ("open", "os.rename", "os.truncate", "os.remove", "os.mkdir", "os.link", SAVED)
SAVED_NAMES = "saved.txt"
"""The items whose captions drivers have saved, beside their input."""


@dataclass
class Chaos:
    """Kills so far, and the output folder that is being filled."""

    random: random.Random
    work: Path
    kills: int = 0
    rounds: int = 0
    left: Counter[str] = field(default_factory=Counter)
    longest_s: float = 1.0
    most_events: int = 200
    faulty: bool = False
    no_txt: bool = False

    def run(self, kills: int) -> None:
        """Run until this many runs were killed and the last input is complete."""
        while self.kills < kills or self.rounds == 0:
            self._round(kills)

    def _round(self, kills: int) -> None:
        folder = self.work / f"input_{self.rounds}"
        good, twins = make_chaos_input(folder)
        output = folder / "out"
        stamps: dict[str, tuple[object, ...]] = {}
        while True:
            code = self._one_run(folder, output, kill=self.kills < kills)
            now = self._what_is_left(output, twins)
            check_saved(folder, output)
            changed = [path for path, was in stamps.items() if now.get(path) != was]
            assert not changed, f"captioned again, or gone: {changed}"
            stamps = now
            if code != -signal.SIGKILL:
                break
            self.left["some" if 0 < len(now) < len(good) else "all" if now else "none"] += 1
        said = (folder / SAID).read_text()
        assert code == 1, f"exit code {code}: {said}"  # some images are missing
        made = rows(output)
        captioned = {file for file, row in made.items() if row["status"] == "captioned"}
        failed = {
            file: row["error"]
            for file, row in made.items()
            if file in good and file not in captioned
        }
        texts = set(captions(output))
        assert texts == (set() if self.no_txt else captioned), f"{failed=}, {len(texts)} files"
        assert captioned == set(good), f"{failed=}"
        assert len(made) == len(good) + NUM_ABSENT
        assert not (output / "journal.jsonl").read_bytes()
        below = (path.relative_to(output) for path in output.rglob("*"))
        left = {str(path) for path in below if is_temporary(str(path))}
        if "The monitor continues without" in said:  # its only write failed, and may be left behind
            left.discard(temporary_name(SAMPLES))
        assert not left, f"{left}: {said}"
        self.rounds += 1

    def _what_is_left(self, output: Path, twins: dict[str, str]) -> dict[str, tuple[object, ...]]:
        """Each caption, with what changes if it is written again."""
        if not self.no_txt:
            check_what_is_left(output, twins)
            return {str(path): stamp(path) for path in output.rglob("*.txt")}
        assert not list(output.rglob("*.txt"))
        found = captioned_rows(output)
        for file, (text, *_) in found.items():
            check_text(file, text, twins)
        return found

    def _one_run(self, folder: Path, output: Path, *, kill: bool) -> int:
        mark = f"{os.getpid():x}-{self.kills:x}-{self.rounds:x}"  # a name has at most 15 bytes
        by_event = kill and self.random.random() < 0.5
        last_event = self.random.randrange(self.most_events) if by_event else None
        began = time.monotonic()
        faults = self._faults(output) if self.faulty else ()
        flags = ("--no-txt",) if self.no_txt else ()
        driver = start_driver(folder, output, mark, last_event, faults, flags)
        if kill and not by_event:
            end_within(driver, self.random.uniform(0.05, self.longest_s))
        code = wait(driver)
        if code == -signal.SIGKILL:
            self.kills += 1
        else:
            self.longest_s = max(time.monotonic() - began, 0.3)
        nothing_is_alive(mark)
        return code

    def _faults(self, output: Path) -> tuple[Fault, ...]:
        """Each 50th operation of each kind fails once, beginning anywhere; of opening, which every
        attempt to read many parts does many times, each 200th."""
        part, every = f"{output}/", FAULT_EVERY
        firsts = {call: self.random.randint(1, every) for call in FAULTY_CALLS}
        return tuple(
            Fault(call, errno.EIO, part, first, every=every * (4 if call == "open" else 1))
            for call, first in firsts.items()
        )


def start_driver(
    folder: Path,
    output: Path,
    mark: str,
    last_event: int | None,
    faults: tuple[Fault, ...],
    more: tuple[str, ...],
) -> int:
    """Fork a driver; it kills itself before its file operation number ``last_event``."""
    pid = os.fork()
    if pid:
        return pid
    os.environ[MARK] = mark
    name_process(mark)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(os.open(folder / SAID, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if faults:
        os.environ["FAKE_WAITS_S"] = "0.01"
        set_faults(*faults)
    tell_what_is_saved(folder / SAVED_NAMES)
    if last_event is not None:
        die_before_event(last_event, os.fspath(output))
    flags = ("--checkpoint-interval=7", "--max-num-seqs=2", "-dp=2", "--quiet")
    code = UNFORESEEN
    try:  # an exception must not leave this function a second time, in the driver's process
        code = fake_main(*input_flags(folder), f"--output={output}", *flags, *more)
    except BaseException:  # noqa: BLE001 - whatever it is, the test is to show it
        traceback.print_exc()
    os._exit(code)


def name_process(name: str) -> None:
    """Give this process a name, which its forks inherit."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())


def die_before_event(number: int, below: str) -> None:
    """SIGKILL this process before its n-th file operation below a folder."""
    count, driver = 0, os.getpid()

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if os.getpid() != driver:  # in one of its workers
            return
        if event in FILE_EVENTS and any(str(a).startswith(below) for a in arguments):
            count += 1
            if count > number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def tell_what_is_saved(path: Path) -> None:
    """Have this process record each caption that was saved."""
    save = Output.save_captions
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def save_and_tell(output: Output, batch: Sequence[NewCaption]) -> list[Any]:
        outcomes = save(output, batch)
        saved = [outcome.file for outcome in outcomes if isinstance(outcome, Row)]
        os.write(descriptor, "".join(f"{file}\n" for file in saved).encode())
        sys.audit(SAVED, str(output.root))
        return list(outcomes)

    Output.save_captions = save_and_tell  # type: ignore[method-assign]


def check_saved(folder: Path, output: Path) -> None:
    """Every caption that was saved has its row, and was saved once."""
    path = folder / SAVED_NAMES
    names = path.read_text().splitlines() if path.exists() else []
    twice = {name for name, times in Counter(names).items() if times > 1}
    assert not twice, f"saved twice: {twice}"
    lost = set(names) - set(captioned_rows(output))
    assert not lost, f"saved, and not there: {lost}"


def end_within(pid: int, seconds: float) -> None:
    """Kill the driver after some time, unless it ends first."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)


def wait(pid: int) -> int:
    """The exit code; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def nothing_is_alive(mark: str) -> None:
    """Everything that a driver started is gone within 30 s of its end."""
    deadline = time.monotonic() + 30
    while alive := list(marked(mark)):
        assert time.monotonic() < deadline, f"alive 30 s after their driver: {alive}"
        time.sleep(0.01)


def marked(mark: str) -> Iterator[psutil.Process]:
    """Processes that were forked with this name or executed with this mark."""
    for process in psutil.process_iter():
        try:
            is_marked = process.name() == mark or process.environ().get(MARK) == mark
            if is_marked and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue


def make_chaos_input(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Images, some missing and some copies; returns the good ones, and copy → original."""
    good = [f"d{number % 5}/{number}.png" for number in range(NUM_GOOD)]
    for number, file in enumerate(good):
        path = folder / "raw" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_shape(number).resize((32, 32)).save(path)
    twins = {f"twins/{number}.png": good[number * 3] for number in range(NUM_TWINS)}
    (folder / "raw/twins").mkdir()
    for twin, of in twins.items():
        (folder / "raw" / twin).write_bytes((folder / "raw" / of).read_bytes())
    absent = [f"absent/{number}.png" for number in range(NUM_ABSENT)]
    for name in ("jsons", "json_detail"):
        (folder / name).mkdir()
    files = [*good, *twins, *absent]
    for first in range(0, len(files), 6):
        chunk = files[first : first + 6]
        write_document(folder, f"design_{first:03}", chunk, ["SvgElement"] * len(chunk))
    return [*good, *twins], twins


def check_what_is_left(output: Path, twins: dict[str, str]) -> None:
    """Check that no .txt is torn, empty or foreign, and no row lacks its .txt."""
    texts = captions(output)
    for file, text in texts.items():
        check_text(file, text, twins)
    recorded: dict[str, str | None] = {}
    if (output / "manifest.parquet").exists():
        recorded = {file: row["caption"] for file, row in rows(output).items()}
    journal, _ = read_journal(output)
    recorded |= {row.file: row.caption for row in journal}
    for file, caption in recorded.items():
        assert texts.get(file) == caption, (file, caption)


def check_text(file: str, text: object, twins: dict[str, str]) -> None:
    """Check that a caption is that of its image, or of a copy."""
    group = {file, twins.get(file), *(twin for twin, of in twins.items() if of == file)}
    others = {twin for twin, of in twins.items() if of == twins.get(file)}
    assert text in {f"caption of {name}" for name in group | others}, (file, text)


def captioned_rows(output: Path) -> dict[str, tuple[object, ...]]:
    """file → caption, with the time and run that made it, from parts and journal."""
    made: dict[str, tuple[object, ...]] = {}
    if (output / "manifest.parquet").exists():
        for file, row in rows(output).items():
            if row["status"] == "captioned":
                made[file] = row["caption"], us(row["finished_at"]), row["run_id"]
    for row in read_journal(output).rows:
        if row.status == "captioned":
            made[row.file] = row.caption, row.finished_at, row.run_id
    return made


def us(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def stamp(path: Path) -> tuple[int, int]:
    """What changes if a file is written again."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faulty", action="store_true", help="the disk fails for moments, too")
    parser.add_argument("--no-txt", action="store_true", help="the rows are the captions")
    arguments = parser.parse_args()
    if arguments.faulty and "FAULTY_DISK" not in os.environ:
        again = [sys.executable, "-c", "import chaos; chaos.main()", *sys.argv[1:]]
        os.chdir(Path(__file__).parent)
        os.execve(sys.executable, again, os.environ | faulty_disk())
    for name in ("pandas", "vllm_caption.job"):  # once, not in every driver
        importlib.import_module(name)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        chaos = Chaos(
            random.Random(arguments.seed),
            Path(work),
            faulty=arguments.faulty,
            no_txt=arguments.no_txt,
        )
        chaos.run(arguments.kills)
    spread = ", ".join(f"{number} with {what}" for what, number in sorted(chaos.left.items()))
    print(
        f"{chaos.kills} kills ({spread} of the captions there), {chaos.rounds} inputs finished,"
        f" nothing lost, in {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()

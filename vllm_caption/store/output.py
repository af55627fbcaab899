"""The only writer of an output folder: the .txt of a caption is written first, then its row.

Invariant: whenever a public method returns, a rerun would lose nothing.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from vllm_caption.config import CaptionName, Shard
from vllm_caption.errors import ItemError, RunStopped, UsageError
from vllm_caption.items import SkippedDocument
from vllm_caption.store.atomic import write_file
from vllm_caption.store.caption_files import open_captions
from vllm_caption.store.checkpoint import Checkpoint
from vllm_caption.store.disk.access import first_denied
from vllm_caption.store.disk.attempts import Disk
from vllm_caption.store.disk.folder_identity import FolderIdentity
from vllm_caption.store.disk.folding import probe_folding
from vllm_caption.store.disk.helper_threads import HelperThreads
from vllm_caption.store.documents import write_documents
from vllm_caption.store.earlier_captions import EarlierCaptions, read_earlier
from vllm_caption.store.journal import Journal, read_journal
from vllm_caption.store.layout import (
    DAMAGED_PARTS,
    DOCUMENTS,
    LOGS,
    MANIFEST,
    REWRITING,
    TEMPORARY_FILES,
    parts,
    shard_folders,
    state_folder,
)
from vllm_caption.store.lock import OutputLock, check_count
from vllm_caption.store.naming import naming_of, record_naming
from vllm_caption.store.reader import read_captions, read_rows, read_states
from vllm_caption.store.recipe import Recipe, ids_of, read_recipes, record_recipe
from vllm_caption.store.rows import KnownItems, Row, hash_of

T = TypeVar("T")
_REMEDIES: Final = {
    errno.ENOSPC: "make room (`df -h`, and `df -i` for inodes)",
    errno.EDQUOT: "make room (`quota`)",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`)",
    errno.EROFS: "mount it for writing",
}


class NewCaption(NamedTuple):
    """A row whose caption is to be written as a .txt, after which the row is recorded.

    ``replaced``: the hash of the text to replace; None if there was none. ``had_caption``:
    whether the item's row already holds a caption, even if its .txt is missing.
    """

    row: Row
    replaced: int | None = None
    had_caption: bool = False


class Output:
    """One output folder, locked from construction to `close`."""

    def __init__(
        self,
        root: Path,
        checkpoint_interval: int,
        shard: Shard | None = None,
        choose_naming: Callable[[Path], CaptionName] = naming_of,
    ) -> None:
        """``shard``: the part that this run captions; without one, the rows of all shards are
        merged. ``choose_naming``: decides how captions are named in this folder; may raise
        UsageError.

        Raises UsageError if the folder cannot be written or another run holds it.
        """
        self._captions_root = root
        self.root = state_folder(root, shard)
        """The folder for everything but the captions."""
        self.logs = self.root / LOGS
        self.shard = shard
        self.writing_s = 0.0
        self._disk = Disk()
        self._helpers = HelperThreads()
        self._announced: Journal | None = None
        with _stopping(), _refusing(root):  # before a refused shard has a folder
            check_count(root, shard)
        try:
            make = partial(self.logs.mkdir, parents=True, exist_ok=True)
            self._disk.attempt("start", make)
            self._lock = OutputLock(root, shard, self._disk)
        except OSError as error:
            at = f" at {error.filename}" if error.filename else ""
            problem = f"cannot be written{at} ({error.strerror})"
            remedy = f"{problem}; choose another folder or fix its permissions"
            raise UsageError("--output", root, remedy) from error
        try:
            with _stopping(), _refusing(root):
                check_count(root, shard)  # again, now that it is locked
                if denied := first_denied(self.root):
                    raise _denied(root, denied)
                for name in TEMPORARY_FILES:  # left by a killed run
                    self._remove(self.root / name)
                naming = self._settle_naming(choose_naming)
                self.files = open_captions(root, naming, self._disk, probe_folding(root))
                self._identity = FolderIdentity(root)
                self._checkpoint = self._open_checkpoint(self.root, checkpoint_interval)
                if shard is None:
                    self._merge_shards()
        except (RunStopped, UsageError):
            self._lock.release()
            raise

    def _settle_naming(self, choose: Callable[[Path], CaptionName]) -> CaptionName:
        """Decide how captions are named, and record it before the first one is written."""
        root, number = self._captions_root, self.shard.index if self.shard else 0
        naming = self._disk.attempt("file", lambda: choose(root))
        self._disk.attempt("file", lambda: record_naming(root, naming, number))
        return naming

    def _open_checkpoint(self, folder: Path, interval: int) -> Checkpoint:
        checkpoint = Checkpoint(folder, interval, self._reconcile, self._disk)
        self._finish_rewriting(folder, checkpoint)
        return checkpoint

    def _finish_rewriting(self, folder: Path, checkpoint: Checkpoint) -> None:
        """Add the rows of captions that a killed run had announced and written: otherwise their
        texts would count as edits, or as captions of unknown origin."""
        announced = self._disk.attempt("file", lambda: read_journal(folder, REWRITING))
        for row in announced.rows:
            with suppress(ItemError):
                if self.files.read(row.file) == row.caption:
                    checkpoint.append(row)
        checkpoint.write_part()
        self._remove(folder / REWRITING)

    def _reconcile(self, row: Row) -> Row:
        """Compare a row from a killed run's journal with its .txt. A .txt lost in a power failure
        is restored; if the two differ, the .txt counts."""
        if row.caption is None or row.error_kind == "output_conflict":  # the .txt is another item's
            return row
        try:
            text = self.files.read(row.file)
        except ItemError:  # it exists, but cannot be read
            return row
        if text is None:
            with suppress(ItemError):
                self.files.write(row.file, row.caption)
        elif text != row.caption:
            return row.of_unknown_origin(text)
        return row

    def _merge_shards(self) -> None:
        """Move the parts of shards into this manifest; their logs and samples stay."""
        for folder in shard_folders(self.root).values():
            # Turns the rows in a killed shard's journal into a part.
            self._open_checkpoint(folder, 1).close()
            for path in parts(folder / MANIFEST):
                self._checkpoint.take_over(path)
            for recipe in read_recipes(folder).values():
                self.record_recipe(recipe)
            documents = folder / DOCUMENTS
            if documents.exists():
                target = self.root / documents.name
                move = partial(documents.replace, target)
                self._disk.try_once("inform", move, f"{target} cannot be written")

    def look_up(self, read: Callable[[Path], T]) -> T:
        """The result of ``read`` on the folder with this run's state; retried if the disk fails for
        a moment."""
        with _stopping():
            return self._disk.attempt("file", lambda: read(self.root))

    def item_states(self) -> KnownItems:
        """The state of every item that has a row; for a shard, including the rows of the output
        folder's manifest."""
        with _stopping():
            states = self._disk.attempt("file", lambda: read_states(self._known_parts()))
        self.files.claims.record(states.txt_owners())
        return states

    def captions_of(self, files: Container[str]) -> list[tuple[str, str]]:
        """(file, caption) for those of ``files`` whose last row in a part holds a caption."""
        with _stopping():
            read = partial(read_captions, self._known_parts(), files)
            return self._disk.attempt("file", lambda: list(read()))

    def captioned_rows(self, files: Container[str]) -> dict[str, Row]:
        """file → last row in a part, for those of ``files`` that have a caption there."""
        with _stopping():
            read = partial(read_rows, self._known_parts(), files)
            rows = self._disk.attempt("file", lambda: list(read()))
        return {row.file: row for row in rows if row.status == "captioned"}

    def _known_parts(self) -> list[Path]:
        """The parts with known rows, oldest first."""
        of_whole = [] if self.shard is None else parts(self._captions_root / MANIFEST)
        return [*of_whole, *parts(self.root / MANIFEST)]

    def ids_of(self, recipe: Recipe) -> frozenset[str]:
        """The ids that a recipe has in the rows of this folder."""
        with _stopping():
            return self._disk.attempt("file", lambda: ids_of(recipe, self._captions_root))

    def earlier_captions(self, recipe_ids: Collection[str], num_known: int) -> EarlierCaptions:
        """See `read_earlier`."""
        with _stopping():
            with_captions = self.files.naming == "none"  # no .txt to read them from
            read = partial(read_earlier, self.root, recipe_ids, num_known, with_captions)
            return self._disk.attempt("file", read)

    def record_recipe(self, recipe: Recipe) -> str | None:
        """Record how this run makes its captions; returns a sentence if the file was damaged."""
        with _stopping():
            return self._disk.attempt("file", lambda: record_recipe(self.root, recipe))

    def record_documents(self, skipped: list[SkippedDocument]) -> None:
        """Record which documents this run skipped, and why."""
        self._inform(DOCUMENTS, lambda: write_documents(self.root, skipped))

    def replace(self, name: str, content: bytes) -> None:
        """Write a file that is replaced every few seconds; a failure is only noted. Raises
        RunStopped if the path leads to another folder now, or another run has taken the folder."""
        if self._identity.is_another():
            with _stopping():
                raise OSError(errno.ESTALE, "the path now leads to another folder", str(self.root))
        self._lock.check()
        self._inform(name, lambda: write_file(self.root / name, content))

    def keep(self, name: str, content: bytes) -> None:
        """Write a file that a rerun needs. Raises RunStopped."""
        with _stopping():
            self._disk.attempt("file", lambda: write_file(self.root / name, content))

    def _inform(self, name: str, write: Callable[[], object]) -> None:
        without = f"{self.root / name} cannot be written now; the run does not need it"
        self._disk.try_once("inform", write, without)

    def take_notes(self) -> Iterator[str]:
        """What this file system cannot do, and what failed for a moment; each sentence once."""
        return self._disk.take_notes()

    def read_caption(self, file: str) -> str | None:
        """The caption on disk; None if there is none."""
        with _stopping(), suppress(ItemError):
            return self.files.read(file)
        return None

    def save_caption(self, row: Row, replaced: int | None = None, had_caption: bool = False) -> Row:
        """Write one caption, then its row; returns the row as recorded (see `save_captions`).

        Raises ItemError if this caption cannot be written, RunStopped if none can.
        """
        (outcome,) = self.save_captions([NewCaption(row, replaced, had_caption)])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def save_captions(self, batch: Sequence[NewCaption]) -> list[Row | ItemError | RunStopped]:
        """Write captions of different items, several at once, then the rows of those that were
        written. If somebody wrote a caption while the item was in flight, theirs stays: any text
        other than the one to replace, whatever its mtime.

        Returns for each caption its row as recorded, an ItemError if this caption cannot be
        written, or a RunStopped if none can; after the first such error no other caption is begun.
        """
        began_s = time.perf_counter()
        failed: list[OSError] = []

        def write(new: NewCaption) -> Row | ItemError | OSError:
            try:
                return failed[0] if failed else self._write_caption(new.row, new.replaced)
            except ItemError as error:
                return error
            except OSError as error:
                failed.append(error)
                return error

        try:
            with _stopping():
                is_announced = len(batch) > 1 or any(new.had_caption for new in batch)
                if is_announced:
                    self._announcements().append([new.row for new in batch])
                outcomes = self._helpers.each(write, batch)
                if failed and any(isinstance(found, Row) for found in outcomes):
                    failed.clear()  # the disk accepted others: try the failed ones once more
                    outcomes = [
                        write(new) if isinstance(found, OSError) else found
                        for new, found in zip(batch, outcomes, strict=True)
                    ]
                self._checkpoint.append(*(row for row in outcomes if isinstance(row, Row)))
                if is_announced:
                    self._announcements().clear()
        except RunStopped as stopped:
            return [stopped] * len(batch)
        finally:
            self.writing_s += time.perf_counter() - began_s
        return [_stopped_by(found) if isinstance(found, OSError) else found for found in outcomes]

    def _write_caption(self, row: Row, replaced: int | None) -> Row:
        """The row to record. Raises ItemError, and OSError for the disk."""
        caption = row.caption
        assert caption is not None
        present = self.files.read(row.file)
        if present is None or hash_of(present) == replaced:
            self.files.write(row.file, caption)
            return row
        return row if present == caption else row.of_unknown_origin(present)

    def _announcements(self) -> Journal:
        """Rows of captions that are being written, if a kill could leave several captions without
        their rows, or a new caption with its old row: see `_finish_rewriting`."""
        if self._announced is None:
            self._announced = Journal(self.root, self._disk, REWRITING)
        return self._announced

    def restore_caption(self, file: str, caption: str) -> bool:
        """Restore the .txt of a row; False if somebody has put one there meanwhile, which stays.
        Raises what `save_caption` raises."""
        with _stopping():
            self.files.check_name(file)
            if self.files.read(file) is not None:
                return False
            self.files.write(file, caption)
        return True

    def remove_leftover(self, path: str) -> None:
        """Remove a temporary file that a killed run left."""
        self._remove(self._captions_root / path)

    def _remove(self, path: Path) -> None:
        remove = partial(path.unlink, missing_ok=True)
        self._disk.try_once("remove", remove, f"{path} cannot be removed")

    def set_part_aside(self, path: Path) -> None:
        """Move an unreadable part out of the manifest; nothing is deleted."""
        with _stopping():
            aside = self.root / DAMAGED_PARTS
            aside.mkdir(exist_ok=True)
            target = aside / f"{time.time_ns()}-{path.name}"
            self._disk.attempt("file", lambda: path.replace(target))

    def save_row(self, row: Row) -> None:
        """Record a failed item, or a caption whose .txt already exists."""
        with _stopping():
            self._checkpoint.append(row)

    def finish(self, *, complete: bool) -> None:
        """Write the last part; after a complete run, compact to one row per item."""
        self._helpers.close()
        if self._announced is not None:
            self._announced.close()
        with _stopping():
            self._remove(self.root / REWRITING)
            if complete:
                self._checkpoint.compact()
            self._checkpoint.close()

    def release(self) -> None:
        """Let another run use the folder."""
        self._lock.release()

    def close(self, *, complete: bool) -> None:
        """Call `finish`, then `release`."""
        try:
            self.finish(complete=complete)
        finally:
            self.release()


@contextmanager
def _refusing(root: Path) -> Iterator[None]:
    """Turn a denial, before anything is captioned, into a UsageError."""
    try:
        yield
    except PermissionError as error:
        raise _denied(root, error.filename or root) from error


def _denied(root: Path, path: str | Path) -> UsageError:
    problem = f"cannot be used by this user at {path} (Permission denied)"
    return UsageError("--output", root, f"{problem}; choose another folder or fix its permissions")


@contextmanager
def _stopping() -> Iterator[None]:
    """Turn an error of the output's disk into RunStopped."""
    try:
        yield
    except OSError as error:
        raise _stopped_by(error) from error


def _stopped_by(error: OSError) -> RunStopped:
    where = f" at {error.filename}" if error.filename else ""
    remedy = _REMEDIES.get(error.errno or 0, "fix the folder")
    return RunStopped(
        f"the output cannot be read or written{where}: {error.strerror};"
        f" what was finished is saved; {remedy}, and run again"
    )

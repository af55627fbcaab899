"""The one writer: a caption's .txt first, its row second, and what is already there.

Invariant: every public method leaves the folder in a state from which a rerun loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_caption.caption_files import CaptionFiles
from vllm_caption.checkpoint import Checkpoint, Known, Row, write_documents
from vllm_caption.errors import RunStopped, UsageError
from vllm_caption.lock import OutputLock
from vllm_caption.manifest import SkippedDocument
from vllm_caption.recipe import Recipe, record_recipe
from vllm_caption.status import RunStatus, write_status


class Output:
    """One output folder, held under its lock from construction to `close`."""

    def __init__(self, root: Path, checkpoint_interval: int) -> None:
        """Raises UsageError when the folder cannot be written or another run holds it."""
        self.root = root
        try:
            (root / "logs").mkdir(parents=True, exist_ok=True)
            self._lock = OutputLock(root)
        except OSError as error:
            remedy = (
                f"cannot be written ({error.strerror}); choose another folder or mend its rights"
            )
            raise UsageError("--output", root, remedy) from error
        try:
            with _stopping():
                self._checkpoint = Checkpoint(root, checkpoint_interval)
        except RunStopped:
            self._lock.release()
            raise
        self.files = CaptionFiles(root)

    def known(self) -> dict[str, Known]:
        """The last row of every item."""
        return self._checkpoint.known()

    def record_recipe(self, recipe: Recipe) -> None:
        """Keep what the run's captions are made with."""
        with _stopping():
            record_recipe(self.root, recipe)

    def record_documents(self, skipped: list[SkippedDocument]) -> None:
        """Keep which documents were left out of this run, and why."""
        with _stopping():
            write_documents(self.root, [(s.document, s.kind, s.reason) for s in skipped])

    def record_status(self, status: RunStatus) -> None:
        """Replace status.json."""
        with _stopping():
            write_status(self.root, status)

    def save_caption(self, row: Row) -> None:
        """Write a caption, then its row.

        Raises ItemError when this caption cannot be placed, RunStopped when nothing can.
        """
        assert row.caption is not None
        with _stopping():
            self.files.write(row.file, row.caption)
            self._checkpoint.append(row)

    def save_row(self, row: Row) -> None:
        """Record an item that failed, or a caption whose .txt is there already."""
        with _stopping():
            self._checkpoint.append(row)

    def close(self, *, complete: bool) -> None:
        """Write the last part; after a complete run leave one row per item."""
        try:
            with _stopping():
                if complete:
                    self._checkpoint.compact()
                self._checkpoint.close()
        finally:
            self._lock.release()


@contextmanager
def _stopping() -> Iterator[None]:
    """A disk that does not take what must be written ends the run."""
    try:
        yield
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        raise RunStopped(
            f"the output cannot be written{where}: {error.strerror};"
            " what was finished is saved, make room or mend the folder and run again"
        ) from error

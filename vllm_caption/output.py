"""The one writer: a caption's .txt first, its row second, and what is already there.

Invariant: every public method leaves the folder in a state from which a rerun loses nothing.
"""

from __future__ import annotations

from pathlib import Path

from vllm_caption.caption_files import CaptionFiles
from vllm_caption.checkpoint import Checkpoint, Known, Row, write_documents
from vllm_caption.errors import ItemError, RunStopped, UsageError
from vllm_caption.lock import OutputLock
from vllm_caption.manifest import SkippedDocument
from vllm_caption.recipe import Recipe, record_recipe


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
            self._checkpoint = Checkpoint(root, checkpoint_interval)
        except OSError as error:
            self._lock.release()
            raise _stopped(error) from error
        self.files = CaptionFiles(root)

    def known(self) -> dict[str, Known]:
        """The last row of every item."""
        return self._checkpoint.known()

    def record_recipe(self, recipe: Recipe) -> None:
        """Keep what the run's captions are made with."""
        record_recipe(self.root, recipe)

    def record_documents(self, skipped: list[SkippedDocument]) -> None:
        """Keep which documents were left out of this run, and why."""
        write_documents(self.root, [(s.document, s.kind, s.reason) for s in skipped])

    def save_caption(self, row: Row) -> None:
        """Write a caption, then its row.

        Raises ItemError when this caption cannot be placed, RunStopped when nothing can.
        """
        assert row.caption is not None
        try:
            self.files.write(row.file, row.caption)
            self._checkpoint.append(row)
        except ItemError:
            raise
        except OSError as error:
            raise _stopped(error) from error

    def save_row(self, row: Row) -> None:
        """Record an item that failed, or a caption whose .txt is there already."""
        try:
            self._checkpoint.append(row)
        except OSError as error:
            raise _stopped(error) from error

    def close(self, *, complete: bool) -> None:
        """Write the last part; after a complete run leave one row per item."""
        try:
            if complete:
                self._checkpoint.compact()
            self._checkpoint.close()
        except OSError as error:
            raise _stopped(error) from error
        finally:
            self._lock.release()


def _stopped(error: OSError) -> RunStopped:
    where = f" at {error.filename}" if error.filename else ""
    return RunStopped(
        f"the output cannot be written{where}: {error.strerror};"
        " what was finished is saved, make room or mend the folder and run again"
    )

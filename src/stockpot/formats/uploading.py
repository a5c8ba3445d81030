"""Writing an output to a disk or into a store; which of the two, its name says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stockpot.formats import hub, output
from stockpot.formats.output import CARD, RECORD, Output, OutputPlan
from stockpot.io.objects import is_remote
from stockpot.io.storage import ScratchFolder
from stockpot.io.uploads import Upload, staged_objects

if TYPE_CHECKING:
    from collections.abc import Sequence


class _UploadedOutput(Output):
    """An output whose weights go into a store as they are made."""

    def __init__(self, plan: OutputPlan, folder: Path | None, uploads: Sequence[Upload]) -> None:
        super().__init__(plan, folder, range(len(uploads)))
        self._uploads = uploads

    def _put(self, place: int, view: memoryview, offset: int) -> None:
        self._uploads[place].write(view, offset)

    def small(self, older: set[str]) -> dict[str, bytes]:
        """What goes with the weights: in a folder by name there, else the record."""
        self.refuse_incomplete()
        if self._folder is None:
            return {} if self._record is None else {RECORD: self._record}
        files = (path for path in sorted(self._folder.rglob("*")) if path.is_file())
        found = {path.relative_to(self._folder).as_posix(): path.read_bytes() for path in files}
        if self._record is not None:
            found[RECORD] = self._record
        # A page of somebody else's stays.
        if self._card is not None and (RECORD in older or CARD not in older):
            found[CARD] = self._card
        return found


@contextmanager
def open_output(plan: OutputPlan, *, force: bool = False) -> Iterator[Output]:
    """Carry out a plan, on a disk (`output.open_output`), in a store or on the hub.

    In a store, weights are uploaded in parts while they are made, and nothing is visible before all
    of them are there; then weights become visible, then the small files, and last those that a
    reader looks for first. What a run that was killed left is removed by the next one.

    Raises:
        OutputExistsError: there is an output and `force` is false.
        CheckpointError: it cannot be written, or tensors were not written.
    """
    if hub.is_hub(plan.path):
        with _pushed(plan, force=force) as made:
            yield made
        return
    if not is_remote(plan.path):
        with output.open_output(plan, force=force) as found:
            yield found
        return
    here = ScratchFolder()
    with staged_objects(plan.path, folder=plan.folder, replaces=plan.replaces) as staged:
        older = staged.clean(force=force)
        folder = Path(here.name, "small")  # beside the lock that scratch folders hold
        folder.mkdir()
        output.write_side_files(plan, folder)
        uploads = []
        for file in plan.files:
            uploads.append(upload := staged.open(file.name, file.size))
            for offset, data in file.fixed:
                upload.write(memoryview(data), offset)
        made = _UploadedOutput(plan, folder if plan.folder else None, uploads)
        yield made
        small = made.small(older)
        if not plan.folder:
            small = {f"{staged.key}.{name}": data for name, data in small.items()}
        staged.commit(small, force=force)


@contextmanager
def _pushed(plan: OutputPlan, *, force: bool) -> Iterator[Output]:
    """A folder that is made on this machine and pushed as one commit, which is whole or not there.

    The room for one copy of the output has to be in the folder for temporary files.
    """
    older = hub.refuse_existing(plan.path, force=force)
    here = ScratchFolder()
    place = Path(here.name, "model")
    with output.open_output(replace(plan, request=replace(plan.request, path=place))) as made:
        yield made
    if CARD in older and RECORD not in older:  # a page of somebody else's stays
        (place / CARD).unlink(missing_ok=True)
    written = {path.relative_to(place).as_posix() for path in place.rglob("*")}
    gone = sorted(name for name in older - written if plan.replaces(name))
    hub.push(place, plan.path, gone=gone)

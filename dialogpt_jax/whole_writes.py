"""Folders and files that stand whole in their places or not at all, however many processes write to one place.

    target ─folder_beside→ a hidden folder, this process's own ─filled─put_in_place→ target
    target ─whole_file→ a hidden file, this process's own ─written→ target

Two that put a folder in the same place take turns: the second waits a moment, and the last one stays. A file that grows
for hours has one writer: `only_writer` refuses a second at once.

The locks are the system's (`flock`), which takes them back when a process ends, however it does. Where there are none
(Windows, some network file systems) nothing is locked, and two processes must not write to one place.
"""

import contextlib
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class BusyError(ValueError):
    """Another process is writing there; the message names the place."""


@contextlib.contextmanager
def locked(path: Path, *, wait: bool, place: Path | None = None) -> Iterator[bool]:
    """Holds the lock of a folder, or of a file, which is made if there is none; gives False where there are no locks.

    Args:
      path: what is locked.
      wait: for another's end, rather than raise.
      place: what an error names; by default the path.

    Raises:
      BusyError: another holds it.
      OSError: it cannot be opened.
    """
    if fcntl is None:
        yield False
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        is_held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BusyError(f"{place or path}: another process is writing there; wait for its end") from None
        except OSError:  # this file system has no locks
            is_held = False
        yield is_held
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def only_writer(file: Path) -> Iterator[None]:
    """Holds a lock that stands beside a file, so that the file itself may be replaced; its folder is made.

    Raises:
      BusyError: another process writes to it.
      OSError: nothing can be written there.
    """
    folder = file.resolve().parent
    _make(folder)
    lock = folder / f".{file.resolve().name}.lock"
    with contextlib.ExitStack() as held:
        with locked(folder, wait=True):  # or another might lock what the end of a third has just taken away
            held.enter_context(locked(lock, wait=False, place=file))
        try:
            yield
        finally:
            with locked(folder, wait=True):
                lock.unlink(missing_ok=True)
                held.close()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A hidden file beside a place, to be written; in the end it stands in the place, and after an error nowhere.

    Raises:
      OSError: it cannot be written; the error names the place.
    """
    part = path.parent / f".{path.name}.{os.getpid()}.part"  # `with_name` refuses "."
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_beside(target: Path, *, stays: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """A new hidden folder beside a place, to be filled; it is gone in the end, unless `put_in_place` has moved it.

    What killed processes left there goes too; what a living one writes is locked, and stays.

    Args:
      target: the place.
      stays: as for `put_in_place`.

    Raises:
      OSError: it cannot be made.
    """
    folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    _make(target.parent)
    with contextlib.ExitStack() as held:
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        with locked(target.parent, wait=True):
            _clean_up(target, stays)
            folder.mkdir()
            held.enter_context(locked(folder, wait=True))
        yield folder


def put_in_place(new: Path, target: Path, *, stays: Callable[[Path], bool] = lambda _: False) -> None:
    """Moves a finished folder to its place. What was there is replaced.

    Args:
      new: of `folder_beside`.
      target: the place.
      stays: which entries of a folder that is there move into the new one.

    Raises:
      OSError: it cannot be moved; what was there before is there.
    """
    old = new.with_name(f"{new.name}.old")
    with locked(target.parent, wait=True):
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        if old.exists():
            _take_over(old, target, stays)


def _make(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    folder.mkdir(parents=True, exist_ok=True)


def _take_over(old: Path, target: Path, stays: Callable[[Path], bool]) -> None:
    """Moves what stays from a replaced folder into the new one, and removes the rest."""
    left = [entry for entry in old.iterdir() if stays(entry)]
    for entry in left:
        with contextlib.suppress(OSError):
            if not (target / entry.name).exists():
                entry.rename(target / entry.name)
    if not any(entry.exists() for entry in left):
        shutil.rmtree(old, ignore_errors=True)


def _clean_up(target: Path, stays: Callable[[Path], bool]) -> None:
    """Removes the unfinished folders that killed processes left beside a place.

    One may have been killed when it had moved an old folder away and not yet put the new one there: then the old one
    goes back. Or when it had not yet moved all that stays: then that is done now.
    """
    unfinished = f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}"
    for folder in target.parent.glob(f"{unfinished}.old"):
        if target.exists():
            _take_over(folder, target, stays)
        else:
            folder.rename(target)
    for folder in filter(Path.is_dir, target.parent.glob(unfinished)):
        with contextlib.suppress(BusyError, OSError), locked(folder, wait=False) as is_held:  # or another user's
            if is_held:
                shutil.rmtree(folder, ignore_errors=True)

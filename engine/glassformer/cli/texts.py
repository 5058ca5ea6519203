"""Texts in, lines of JSON out: what the commands that run a model on texts share."""

from __future__ import annotations

import json
import signal
import sys
import time
import warnings
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, BinaryIO

from glassformer.cli.errors import CommandError
from glassformer.cli.folder_kinds import refuse_run_of_train
from glassformer.data.tables import SUFFIXES, ColumnError, read_table
from glassformer.durable import new_file

_HINT = " (truncation=True says that this is intended)"  # to Python: it is no option
_SECONDS_BETWEEN = 0.5  # two updates of the count that a terminal shows


def answer_texts(
    args: Namespace, task: str, describe: Any, *, asked: Any = None, **settings: Any
) -> int:
    """Run a pipeline on the command's texts, and write a line of JSON for each.

    Args:
        args: of the command.
        task: of the pipeline.
        describe: makes the line's entries beside "text" of the pipeline's answer.
        asked: makes the pipeline's input of a text; default: the text.
        settings: of the task; None leaves one to the folder.

    Raises:
        CommandError: the texts, or the model for them, are of no use.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    with one_line_warnings(args.command), interrupts() as interrupted:
        read = texts_of(args)
        answer = loaded(task, args, given)
        with output_of(args.output) as write:
            for text, found in counted(answered(answer, read, asked), args.output):
                line = json.dumps({"text": text, **describe(found)}, ensure_ascii=False)
                write(line.encode(errors="replace") + b"\n")
                if interrupted():
                    raise KeyboardInterrupt
    return 0


def loaded(task: str, args: Namespace, settings: dict[str, Any]) -> Any:
    """Return the pipeline of the folder that the command names."""
    from glassformer.pipelines import pipeline
    from glassformer.pipelines.base import position_limit

    refuse_run_of_train(Path(args.model))
    try:
        answer = pipeline(
            task, args.model, batch_size=args.batch_size, device=args.device, **settings
        )
    except (TypeError, ValueError, ImportError) as error:
        raise CommandError(str(error)) from error
    asked, limit = settings.get("max_length"), answer.tokenizer.model_max_length
    limit = min(limit, position_limit(answer.model) or limit)
    if asked is not None and asked > limit:
        raise CommandError(
            f"--max-length {asked} is more than the {limit} tokens that {args.model} can read"
        )
    return answer


def answered(answer: Any, texts: Iterable[str], asked: Any = None) -> Iterator[tuple[str, Any]]:
    """Yield each text with its answer, or with that to what `asked` makes of it."""
    pending: deque[str] = deque()

    def noted() -> Iterator[Any]:
        for text in texts:
            pending.append(text)
            yield text if asked is None else asked(text)

    try:
        for found in answer(noted()):
            yield pending.popleft(), found
    except (ImportError, IndexError, ValueError) as error:
        raise CommandError(str(error)) from error


def texts_of(args: Namespace) -> Iterable[str]:
    """Return the texts of a command: its arguments, a file's, or the lines of stdin.

    Raises:
        CommandError: there are none, from two places, or they aren't UTF-8.
    """
    if args.texts and args.input:
        raise CommandError("give texts either as arguments or with --input, not both")
    is_table = args.input is not None and Path(args.input).suffix.lower() in SUFFIXES
    if args.text_column and not is_table:
        raise CommandError(
            "--text-column names a column of a .csv, .tsv or .jsonl file; give one with --input"
        )
    if args.texts:
        return list(args.texts)
    if args.input is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise CommandError("there is no text; give some, --input FILE, or a pipe into stdin")
        return lines_of(sys.stdin.buffer, "stdin")
    if is_table:
        return _column(Path(args.input), args.text_column or "text")
    return _lines_of_file(Path(args.input))


def lines_of(file: BinaryIO, name: str) -> Iterator[str]:
    """Yield the lines of a file without their ends; an empty one is an empty text.

    Raises:
        CommandError: a line isn't UTF-8.
    """
    for number, line in enumerate(file, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise CommandError(
                f"{name}, line {number}: byte {error.start + 1}, 0x{line[error.start]:02x}, is not "
                "valid UTF-8; convert it, such as by: iconv -f LATIN1 -t UTF-8"
            ) from None
        yield text.removesuffix("\n").removesuffix("\r")


def _lines_of_file(path: Path) -> Iterator[str]:
    file = open(path, "rb")  # noqa: SIM115  (now: a missing file is told before the model loads)

    def lines() -> Iterator[str]:
        with file:
            yield from lines_of(file, str(path))

    return lines()


def _column(path: Path, name: str) -> list[str]:
    try:
        return read_table(path).column(name)
    except ColumnError as error:
        raise CommandError(f"{error}; name the one of the texts with --text-column") from error


@contextmanager
def output_of(path: str | None) -> Iterator[Any]:
    """Give a function that writes bytes to stdout, or to a file that appears once it is whole.

    Raises:
        CommandError: no such file can be.
    """
    if path is None:
        sys.stdout.flush()
        yield _write_to_stdout
    else:
        if Path(path).is_dir():
            raise CommandError(f"--output {path} is a folder; name a file in it")
        if not Path(path).parent.is_dir():
            raise CommandError(f"--output {path}: there is no folder {Path(path).parent}; make it")
        with new_file(Path(path)) as file:
            yield file.write


def _write_to_stdout(data: bytes) -> None:
    sys.stdout.write(data.decode())


def counted(answers: Iterable[Any], output: str | None) -> Iterator[Any]:
    """Pass answers on, and show on a terminal how many there are, unless they show themselves."""
    shows = sys.stderr.isatty() and (output is not None or not sys.stdout.isatty())
    last = start = time.monotonic()
    count = 0
    for count, answer in enumerate(answers, 1):
        yield answer
        now = time.monotonic()
        if shows and now - last >= _SECONDS_BETWEEN:
            last = now
            sys.stderr.write(f"\r{count} texts, {count / (now - start):.0f}/s\x1b[K")
            sys.stderr.flush()
    if shows and last > start:
        sys.stderr.write(f"\r{count} texts, {count / (time.monotonic() - start):.0f}/s\x1b[K\n")


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Give what tells whether Ctrl-C was pressed inside.

    It raises KeyboardInterrupt as ever; but Python drops what is raised inside a finalizer, such as
    the one that gives an array's memory back, and an interrupt must not be lost.
    """
    pressed = False

    def press(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(number, frame)

    usual = signal.getsignal(signal.SIGINT)
    replaces = usual is signal.default_int_handler and current_thread() is main_thread()
    if replaces:
        signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        if replaces:
            signal.signal(signal.SIGINT, usual)


@contextmanager
def one_line_warnings(command: str) -> Iterator[None]:
    """Show warnings as the command's own lines on stderr, each once."""

    def show(message: Any, *_: Any, **__: Any) -> None:
        line = " ".join(str(message).split()).removesuffix(_HINT)
        print(f"glassformer {command}: warning: {line}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("default", category=UserWarning)
        warnings.showwarning = show
        yield

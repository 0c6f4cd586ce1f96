"""`python -m lsuvcb`: the demo from the command line. Its arguments are read before torch is imported, which takes seconds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

DATA = ("digits", "mnist", "fashion_mnist")
PICTURES = ("png", "svg", "pdf", "jpg", "jpeg", "webp", "tif", "tiff", "eps", "ps")  # that matplotlib writes
DESCRIPTION = """\
Trains a deep plain ReLU net three times, with the same seed, data order and
learning rate: as PyTorch makes it, from kaiming_normal_, and with an
LSUVCallback. Shows signal and gradient by depth, what LSUV changed and the three
accuracies, and draws a picture of it."""


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is in --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def at_least(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}")
        return int(text)

    return whole


def picture_file(text: str) -> Path:
    path = Path(text)
    if path.suffix[1:].lower() not in PICTURES:
        raise argparse.ArgumentTypeError(f"must end in .png, .svg, .pdf or another picture format, got {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be in a folder that exists, got {text!r}")
    is_new = not path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"must be a file that can be written, got {text!r}: {error.strerror}"
        ) from None
    if is_new:
        path.unlink()
    return path


def parser() -> argparse.ArgumentParser:
    p = OneLineParser("python -m lsuvcb", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--data",
        choices=DATA,
        default="digits",
        help="digits comes with scikit-learn, the others are downloaded once, or read from $LSUVCB_DATA (default: %(default)s)",
    )
    p.add_argument(
        "--epochs", type=at_least(1), metavar="N", help="of each run (default: 8 for digits, 1 for the others)"
    )
    p.add_argument(
        "--depth", type=at_least(2), default=50, metavar="N", help="layers of the net (default: %(default)s)"
    )
    p.add_argument("--device", help="cpu, cuda, mps, ... (default: the accelerator if there is one)")
    p.add_argument(
        "--out",
        type=picture_file,
        default="lsuvcb-demo.png",
        metavar="FILE",
        help="where the picture goes (default: %(default)s)",
    )
    p.add_argument(
        "--seed", type=at_least(0), default=42, metavar="N", help="of weights and data order (default: %(default)s)"
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """The demo from the command line. A wrong value exits with status 2, missing data and Ctrl-C with status 1."""
    options = parser()
    args = options.parse_args(argv)
    try:
        from . import demo

        try:
            device = demo.usable_device(args.device)
        except ValueError as error:
            options.error(f"argument --device: {error}")
        outcome = demo.run(args.data, args.epochs, args.depth, device, args.seed)
        demo.picture(outcome, args.out)
    except (ImportError, OSError) as error:
        sys.exit(f"python -m lsuvcb: error: {error}")
    except KeyboardInterrupt:
        sys.exit("\npython -m lsuvcb: interrupted")
    accuracies = ", ".join(f"{outcome.accuracy(start):.3f} with {start}" for start in outcome.histories)
    print(f"\nValidation accuracy: {accuracies}.")
    print(f"Picture: {args.out}")


if __name__ == "__main__":
    main()

"""What a person sees while a run goes on, all of it on standard error."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
    """A live bar on a terminal, plain lines elsewhere."""

    def __init__(self, total: int, first: int = 0, *, seconds_between_lines: float = 10.0, silent: bool = False):
        """Begin at a step.

        Args:
          total: Outer steps of the whole run.
          first: Steps already done.
          seconds_between_lines: How often a plain line is printed.
          silent: Show nothing: another process speaks.
        """
        self._total = total
        self._first = first
        self._between = seconds_between_lines
        self._silent = silent
        self._begun = None
        self._last = time.monotonic()
        self._bar = None
        if sys.stderr.isatty() and not silent:
            self._bar = Progress(
                TextColumn("[bold]meta-training"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=total, completed=first, text="compiling")

    def __enter__(self):
        """Show the bar."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_):
        """Take the bar away."""
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._silent:
            return
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def update(self, step: int, text: str) -> None:
        """Show how far the run is."""
        now = time.monotonic()
        if self._begun is None:
            # The first steps include compilation: the time left is reckoned from here.
            self._begun, self._first = now, step
        if self._bar:
            self._bar.update(self._task, completed=step, text=text)
        elif now - self._last >= self._between or step == self._total:
            left = ""
            if step > self._first:
                seconds = (now - self._begun) / (step - self._first) * (self._total - step)
                left = f"  {duration(seconds)} left"
            self.say(f"step {step}/{self._total}  {text}{left}")
            self._last = now


def duration(seconds: float) -> str:
    """Write seconds as a person would.

    Args:
      seconds: A length of time.

    Returns:
      Such as "42 s", "3 min 20 s" or "2 h 5 min".

    Example:
      >>> duration(200), duration(7500)
      ('3 min 20 s', '2 h 5 min')
    """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"

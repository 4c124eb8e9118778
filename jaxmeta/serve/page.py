"""What a classifier said of a pile of images: a table for programs, and a page for people."""

import base64
import csv
import io
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from jaxmeta.serve.files import Images, Support, shown

# A browser shows no more with pleasure; the table has them all.
MOST_ROWS = 2000
# Of many classes, only the likeliest are drawn.
MOST_BARS = 5
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
img { width: 64px; height: 64px; object-fit: contain; image-rendering: pixelated; border: 1px solid #888; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; padding: .5rem 0; }
th, td { text-align: left; vertical-align: top; padding: .5rem; border-top: 1px solid #888; }
td { overflow-wrap: anywhere; }
meter { width: 8rem; }
ul.images, ul.bars { list-style: none; padding: 0; margin: 0; }
ul.images { display: flex; flex-wrap: wrap; gap: .25rem; }
"""
# Nothing is fetched from anywhere, and no script runs: whatever the names of files and classes are.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Answers(NamedTuple):
    """What was said of images.

    Attributes:
      class_names: Name of each class.
      images: The images, and what was skipped.
      labels: `[images]`, the predicted class of each.
      probabilities: `[images, classes]`.
    """

    class_names: tuple[str, ...]
    images: Images
    labels: list[str]
    probabilities: np.ndarray


def answers_table(answers: Answers) -> str:
    """Write answers as CSV: file, predicted class, confidence, and a probability for each class.

    Args:
      answers: What was said.

    Returns:
      The text, one line for each image in the order given, below a line of names.

    Example:
      >>> from pathlib import Path
      >>> images = Images(np.zeros([1, 2, 2, 1], np.uint8), (Path("x.png"),), ())
      >>> print(answers_table(Answers(("a", "b"), images, ["a"], np.array([[0.75, 0.25]]))), end="")
      file,predicted,confidence,probability of a,probability of b
      x.png,a,0.750000,0.750000,0.250000
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"probability of {shown(name)}" for name in answers.class_names]
    writer.writerow(["file", "predicted", "confidence", *names])
    for file, label, row in zip(answers.images.files, answers.labels, answers.probabilities, strict=True):
        writer.writerow([shown(file), shown(label), *(f"{value:.6f}" for value in (row.max(), *row))])
    return text.getvalue()


def answers_page(answers: Answers, support: Support, notes: Sequence[str]) -> str:
    """Write answers as one page of HTML that needs nothing else: images inside, the least certain first.

    Args:
      answers: What was said.
      support: The labelled images, which are shown too.
      notes: Sentences about the classifier.

    Returns:
      The page. Names are escaped.
    """
    count, classes = len(answers.labels), len(answers.class_names)
    order = np.argsort(answers.probabilities.max(1), kind="stable")[:MOST_ROWS] if count else []
    rows = "\n".join(_row(answers, number) for number in order)
    left_out = f" The {MOST_ROWS} least certain are shown." if count > MOST_ROWS else ""
    title = f"{count} image{'' if count == 1 else 's'} labelled with {classes} classes"
    skipped = ""
    if answers.images.skipped:
        skipped = f"<h2>Skipped files</h2>\n<ul>{_items(answers.images.skipped)}</ul>"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<ul>{_items(notes)}</ul>
{skipped}
<h2>Predictions</h2>
<table>
<caption>The least certain first. Images are shown as the network saw them.{left_out}</caption>
<thead><tr><th scope="col">Image</th><th scope="col">File</th><th scope="col">Predicted</th>
<th scope="col">Confidence</th><th scope="col">Probabilities</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
<h2>Labelled images</h2>
<table>
<caption>What the classes were learned from.</caption>
<thead><tr><th scope="col">Class</th><th scope="col">Images</th></tr></thead>
<tbody>
{_support_rows(support)}
</tbody>
</table>
</body>
</html>
"""


def _row(answers: Answers, number: int) -> str:
    file, label, row = answers.images.files[number], answers.labels[number], answers.probabilities[number]
    likeliest = np.argsort(-row, kind="stable")[:MOST_BARS]
    bars = "".join(_bar(answers.class_names[place], row[place]) for place in likeliest)
    return (
        f"<tr><td>{_picture(answers.images.pixels[number], shown(file.name))}</td><td>{escape(shown(file))}</td>"
        f'<th scope="row">{escape(shown(label))}</th><td>{100 * row.max():.1f} %</td>'
        f'<td><ul class="bars">{bars}</ul></td></tr>'
    )


def _bar(name: str, probability: float) -> str:
    name = escape(shown(name))
    meter = f'<meter min="0" max="1" value="{probability:.4f}" aria-label="{name}"></meter>'
    return f"<li>{meter} {100 * probability:.1f} % {name}</li>"


def _support_rows(support: Support) -> str:
    rows = []
    for number, name in enumerate(support.class_names):
        mine = np.flatnonzero(support.targets == number)
        pictures = "".join(
            f"<li>{_picture(support.images.pixels[place], shown(support.images.files[place].name))}</li>"
            for place in mine
        )
        rows.append(f'<tr><th scope="row">{escape(shown(name))}</th><td><ul class="images">{pictures}</ul></td></tr>')
    return "\n".join(rows)


def _picture(pixels: np.ndarray, alternative: str) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "png")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alternative)}" loading="lazy">'


def _items(sentences: Sequence[str]) -> str:
    return "".join(f"<li>{escape(shown(sentence))}</li>" for sentence in sentences)

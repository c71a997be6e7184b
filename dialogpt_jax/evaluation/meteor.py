"""Replies and references flow in; METEOR 1.5's score comes out, computed by its own jar in Java, or one error.

There are many METEORs (nltk's, the one of `evaluate`, 1.0 to 1.4), with other numbers. Only what names itself version
1.5 is reported under that name, run as the DialoGPT evaluation runs it: English, `-norm`.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

NAME = "METEOR 1.5"


class MeteorError(ValueError):
    """The jar could not be run, or is another METEOR."""


def meteor(hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, jar: str | os.PathLike[str]) -> float:
    """METEOR 1.5's final score in [0, 1] (Denkowski and Lavie 2014).

    The jar wants the same number of references for every line: a line that has fewer has its first one repeated, which
    changes nothing, as the best one counts.

    Raises:
      OSError: there is no such jar. MeteorError: no Java, the run failed, or the jar is of another version.
    """
    if not Path(jar).is_file():
        raise FileNotFoundError(2, "no such METEOR jar", str(jar))
    java = shutil.which("java")
    if java is None:
        raise MeteorError(
            "METEOR 1.5 needs Java, and there is no `java` on the path; install one, or leave out the jar"
        )
    count = max(len(line) for line in references)
    filled = [text for line in references for text in [*line, *[line[0]] * (count - len(line))]]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, "hypotheses.txt"), Path(folder, "references.txt")]
        for path, texts in zip(paths, (hypotheses, filled), strict=True):
            path.write_bytes("".join(" ".join(text.split()) + "\n" for text in texts).encode())
        words = [java, "-Xmx2g", "-Dfile.encoding=UTF-8", "-jar", str(jar), *map(str, paths)]
        done = subprocess.run(
            [*words, "-r", str(count), "-l", "en", "-norm"], capture_output=True, encoding="utf-8", errors="replace"
        )
    last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
    if done.returncode:
        raise MeteorError(f"{jar}: java ended with status {done.returncode}: {last}")
    version = re.search(r"^Meteor version:\s*(\S+)", done.stdout, re.MULTILINE)
    if version is None or version[1] != "1.5":
        raise MeteorError(f"{jar}: not METEOR 1.5 but {version[1] if version else 'a jar that names no version'}")
    score = re.search(r"^Final score:\s*(\S+)", done.stdout, re.MULTILINE)
    if score is None:
        raise MeteorError(f"{jar}: ended without a final score: {last}")
    return float(score[1])

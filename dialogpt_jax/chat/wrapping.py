"""Text in pieces in, the same with line ends between words out, so that no word is cut at a terminal's edge."""

from rich.cells import cell_len


class WordWrap:
    r"""Lines of at most a given width, made while the text still comes.

    The last word of a piece is held back until its end is known: the next space, line end, or wide character (between
    Chinese or Japanese characters a line may end anywhere). A word that is wider than a line is left to the terminal.

    Example, 10 wide:
      >>> wrap = WordWrap()
      >>> wrap.feed("one two thr", 10) + wrap.feed("ee four", 10) + wrap.end(10)
      'one two\nthree four'

    Attributes:
      column: where the cursor stands.
    """

    def __init__(self, column: int = 0):
        self.column, self._space, self._word = column, "", ""
        self._long = False  # within a word that is wider than a line

    def feed(self, text: str, width: int) -> str:
        """What can be written of the text so far, on a terminal that is this wide now."""
        out = ""
        for character in text:
            if character == "\n":
                out += self._place(width) + character
                self.column, self._space = 0, ""
            elif character.isspace():
                out += self._place(width)
                self._space += character
            elif cell_len(character) > 1:
                out += self._place(width)
                self._word = character
                out += self._place(width)
            elif self._long:
                out += character
                self.column = self.column % width + 1
            else:
                self._word += character
                if cell_len(self._word) > width:
                    out += self._place(width)
                    self._long = True
        return out

    def end(self, width: int) -> str:
        """The word that was held back."""
        return self._place(width)

    def _place(self, width: int) -> str:
        self._long = False
        if not self._word:
            return ""
        before, size = self._space, cell_len(self._word)
        if self.column + cell_len(before) + size > width:
            before, self.column = "\n" if self.column else "", 0
        else:
            self.column += cell_len(before)
        self.column = (self.column + size - 1) % width + 1
        word, self._space, self._word = before + self._word, "", ""
        return word

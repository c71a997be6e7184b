"""What a run tells: a full disk with the name of the file; and no rate before there is one."""

import pytest

from dialogpt_jax.run.journal import METRICS, Journal, Pace, progress_line


class Full:
    """A file on a disk without room, which does not say its name."""

    name = "metrics"

    def write(self, text):
        raise OSError(28, "No space left on device")

    def close(self):
        pass


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
    journal = Journal(tmp_path, 0, print)
    whole, journal._file = journal._file, Full()
    whole.close()
    journal._file.name = str(tmp_path / METRICS)
    with pytest.raises(OSError, match="No space left on device") as told:
        journal.note(1, {"loss": 1.0})
    journal.close()
    assert told.value.filename == str(tmp_path / METRICS)


def test_the_one_step_that_was_compiled_tells_no_rate():
    pace = Pace(0, 1)
    pace.skip(5.0)
    figures = pace.figures(1, peak=1e12)
    assert figures == {}
    line = progress_line(1, 1, figures | {"loss": 2.0, "learning_rate": 1e-4})
    assert line == "step 1/1  loss 2.000  ppl 7.389  rate 1.00e-04"

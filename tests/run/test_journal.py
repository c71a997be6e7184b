"""What a run tells: a full disk is told with the name of the file."""

import pytest

from dialogpt_jax.run.journal import METRICS, Journal


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

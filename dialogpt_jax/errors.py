"""How an error reads to a person: an exception in, one line out."""


def one_line(error: BaseException) -> str:
    """An error's message; for the system's errors, the file and what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__

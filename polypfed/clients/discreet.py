"""What a site says of its own mistakes: enough to mend them, and no file of its patients by name."""

import re

from polypfed.core.errors import DataError, PolypfedError
from polypfed.core.messages import one_line

_QUOTED = re.compile(r"'[^']*[/.][^']*'|\"[^\"]*[/.][^\"]*\"")
_PATH = re.compile(r"\S*/\S+|\S+\.(?:png|jpe?g|tiff?|bmp|dcm|txt|csv|json|xml|mp4|avi|npz|pt|safetensors)\b", re.I)

_SETTING = re.compile(r"[a-z_]{1,20}")


def discreet(error: BaseException) -> str:
    """The error on one line, without paths, file names, and whatever is quoted and looks like one.

    The place of a DataError is left out where it may be a file; the site's own log has it.

    >>> discreet(DataError("not a number: 'x'", where="data/Jane Doe.txt, line 3"))
    "not a number: 'x'"
    >>> discreet(FileNotFoundError(2, "No such file or directory", "/data/Jane Doe.png"))
    'FileNotFoundError: No such file or directory'
    """
    if isinstance(error, DataError):
        place = f"{error.where}: " if _SETTING.fullmatch(error.where) else ""
        text = f"{place}{error.problem}" + (f". {error.remedy}" if error.remedy else "")
    elif isinstance(error, PolypfedError):
        text = str(error)
    elif isinstance(error, OSError) and error.filename is not None:
        text = f"{type(error).__name__}: {error.strerror}"
    else:
        text = f"{type(error).__name__}: {error}"
    return one_line(_PATH.sub("(a file)", _QUOTED.sub("(a file)", text)))

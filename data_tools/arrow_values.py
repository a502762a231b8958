"""The values of Arrow arrays as numpy arrays, for the ranks of a run.

pyarrow's own `to_numpy` loads pandas, if it is installed: most of a second and some 20 MiB of each rank.
"""

from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def values(array: pa.Array) -> NDArray[Any]:
    """Return the numbers of an array without nulls, as a view."""
    # pyarrow's versions of the protocol name no parameter that numpy's stubs ask for.
    return np.from_dlpack(cast("Any", array))


def bits(array: pa.BooleanArray) -> NDArray[np.bool_]:
    """Return the truth values of an array without nulls."""
    packed = np.frombuffer(array.buffers()[1], np.uint8)
    first, skipped = divmod(array.offset, 8)
    unpacked = np.unpackbits(packed[first:], count=skipped + len(array), bitorder="little")
    return unpacked[skipped:].view(np.bool_)

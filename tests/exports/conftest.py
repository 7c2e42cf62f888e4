"""Every export test keeps its index in a folder of its own, and `output` is that of the reader's tests."""

from tests.reader.conftest import cache as cache
from tests.reader.conftest import output as output

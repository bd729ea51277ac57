"""One browser for the tests of the page, as those of the map have it."""

from tests.explore.conftest import page, quiet_page  # noqa: F401

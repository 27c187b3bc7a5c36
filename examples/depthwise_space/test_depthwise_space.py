"""What flatsearch expects of every space."""

from flatsearch.testing import SearchSpaceContract


class TestDepthwiseSpace(SearchSpaceContract):
    """Eight tests, by the name that the package registers."""

    space = "depthwise"

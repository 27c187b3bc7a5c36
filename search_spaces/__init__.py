"""The search spaces that come with flatsearch: one file each, registered as entry points."""

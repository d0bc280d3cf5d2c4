"""One file a library; each makes a `Model` of the library's own kind of network."""
